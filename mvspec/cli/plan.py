"""`mvspec plan`: what a runtime would do, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvspec.cli.options import Json, Model, as_given, needs
from mvspec.data.records import InputError

__all__ = ["plan"]


def plan(
    program: Annotated[Path, typer.Argument(help="As for run.")],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Print what a runtime would do, and what it costs; no weights are loaded."""
    if not program.is_file():
        raise InputError(f"{program}: there is no such file")
    with needs("engine", "plan"):
        from mvspec.runtime.console import cost_line, describe_plan
    with as_given():
        found = describe_plan(program, model)
        print(found.to_json() if as_json else f"{found}\n{cost_line(found)}")
