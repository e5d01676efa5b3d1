"""`mvspec train`: weights from compiled data sets, with Lightning."""

from __future__ import annotations

from typing import Annotated

import typer

from mvspec.cli.options import needs


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="fit|validate|test|export ...",
            help="As LightningCLI takes them; `mvspec train fit --help` lists all.",
        ),
    ] = None,
) -> None:
    """Train, validate or test a model on compiled data sets, or export a checkpoint."""
    with needs("train", "train"):
        from mvspec.cli.training_cli import main
    main(arguments or ["--help"])
