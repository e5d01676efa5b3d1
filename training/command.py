"""`mvspec train`: Lightning's command line over this room's model and data."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningCLI

from mvspec.training.checkpoint import newest_checkpoint
from mvspec.training.data import LayoutData
from mvspec.training.folder import export
from mvspec.training.module import LanguageModel

__all__ = ["CONFIGS", "TrainingCLI", "main"]

CONFIGS = Path(__file__).parent / "configs"
"""Configurations that come with the package."""


class TrainingCLI(LightningCLI):
    """`ckpt_path: last` is the newest whole checkpoint, and nothing where there is none."""

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is given: a checkpoint's does not replace it."""

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        given = super()._prepare_subcommand_kwargs(subcommand)
        if given.get("ckpt_path") == "last":
            callback: Any = self.trainer.checkpoint_callback
            found = newest_checkpoint(getattr(callback, "dirpath", None))
            given["ckpt_path"] = None if found is None else str(found)
        return given


def main(arguments: Sequence[str]) -> None:
    """Run `mvspec train` with these arguments."""
    # What Lightning says of data and of itself that is not for its user's user.
    warnings.filterwarnings("ignore", message=r".*(Total length of `list`|LightningCLI's args).*")
    warnings.filterwarnings("ignore", message=r".*treespec.*", module="lightning")
    if arguments and arguments[0] == "export":
        _export(arguments[1:])
        return
    TrainingCLI(
        LanguageModel,
        LayoutData,
        args=_with_configs(arguments),
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "mvspec train"},
    )


def _with_configs(arguments: Sequence[str]) -> list[str]:
    """Let `--config tiny` be the configuration of that name that comes with the package."""
    found = list(arguments)
    for at, argument in enumerate(found[1:], 1):
        packaged = CONFIGS / f"{argument}.yaml"
        if found[at - 1] in ("--config", "-c") and not Path(argument).exists():
            found[at] = str(packaged) if packaged.is_file() else argument
    return found


def _export(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "mvspec train export", description="Write a checkpoint as a Hugging Face folder."
    )
    parser.add_argument("checkpoint", help="a checkpoint, or a folder: its newest whole one")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER")
    parser.add_argument("--dtype", help="of the weights, such as bfloat16")
    given = parser.parse_args(list(arguments))
    checkpoint = newest_checkpoint(given.checkpoint) or given.checkpoint
    export(checkpoint, given.output, given.dtype)
    print(f"{checkpoint} -> {given.output}")
