"""`mvspec train`: Lightning's command line over this room's model and data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningCLI

from mvspec.training.checkpoint import newest_checkpoint
from mvspec.training.data import LayoutData
from mvspec.training.module import LanguageModel

__all__ = ["TrainingCLI", "main"]


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
    TrainingCLI(
        LanguageModel,
        LayoutData,
        args=list(arguments),
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "mvspec train"},
    )
