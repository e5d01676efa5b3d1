"""Lightning's command line over our model and data, as `mvspec train` runs it."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_utilities.core.rank_zero import rank_zero_info

import mvspec.training
from mvspec.data.records import InputError
from mvspec.errors import MvspecError, VerifyError
from mvspec.training.checkpoint import export, newest_checkpoint
from mvspec.training.data import LayoutData
from mvspec.training.errors import CheckpointError
from mvspec.training.module import LanguageModel
from mvspec.training.precision import machine_precision

CONFIGS = Path(mvspec.training.__file__).parent / "configs"
"""Configurations that come with the package."""

_OTHER_STATE = ("Error(s) in loading state_dict", "loaded state dict")
"""How torch begins where a model, or an optimizer, is not the one whose state is loaded."""


class TrainingCLI(LightningCLI):
    """`ckpt_path: last` is the newest whole checkpoint, and nothing where there is none.

    Raises:
        MvspecError: trainer, model or data cannot be made of their settings.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's but `predict`: engines do that, over an exported folder."""
        found = LightningCLI.subcommands()
        del found["predict"]
        return found

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Let what a resumed run changes on purpose be named beside `ckpt_path`."""
        parser.add_argument(
            "--resume_changing",
            type=str | list[str],
            default="",
            help="settings in which the run may differ from its checkpoint's, with commas",
        )
        parser.link_arguments("resume_changing", "model.resume_changing")

    def instantiate_trainer(self, **more: Any) -> Trainer:
        """Make the trainer, with the machine's precision where none is given; a line says which."""
        if self._get(self.config, "trainer.precision") is None:
            kind = str(self._get(self.config, "trainer.accelerator"))
            if kind in ("auto", "gpu"):
                gpu = "mps" if MPSAccelerator.is_available() else "cpu"
                kind = "cuda" if CUDAAccelerator.is_available() else gpu
            more["precision"], why = machine_precision(kind)
            rank_zero_info(f"precision {why}")
        return super().instantiate_trainer(**more)

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Read configurations and arguments; what is wrong in them is told without the usage."""
        try:
            super().parse_arguments(parser, args)
        except argparse.ArgumentError as error:
            raise InputError(
                f"train: {_told(str(error))}; `mvspec train fit --help` lists what there is"
            ) from None

    def instantiate_classes(self) -> None:
        """Make trainer, model and data, and see that the devices are as many as are used."""
        _check_accelerator(self._get(self.config, "trainer.accelerator"))
        if not isinstance(self._get(self.config, "model.model"), str | Mapping):
            raise VerifyError(
                "model.model", "its fields cannot be given one by one: give them in a "
                'configuration, or all of them as --model.model \'{"model_type": ...}\''
            )  # fmt: skip
        try:
            super().instantiate_classes()
        except (
            MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError
        ) as error:  # fmt: skip
            raise _refusal(error) from error
        if self.trainer.accumulate_grad_batches < 1:
            raise VerifyError("trainer.accumulate_grad_batches", "is a whole number from 1 up")
        _check_mesh(self.trainer)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is given: a checkpoint's does not replace it."""

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        given = super()._prepare_subcommand_kwargs(subcommand)
        if given.get("ckpt_path") == "last":
            callback: Any = self.trainer.checkpoint_callback
            found = newest_checkpoint(getattr(callback, "dirpath", None))
            given["ckpt_path"] = None if found is None else str(found)
        return given


def _told(message: str) -> str:
    """Return what jsonargparse says as a line, without the types that it has tried."""
    noise = ("Does not validate", "Subtypes:", "Errors:", "Given value type")
    lines = (line.strip() for line in message.splitlines())
    return " ".join(line for line in lines if not line.startswith(noise))


def _refusal(error: BaseException) -> MvspecError:
    """Return what stands at the bottom of an error of Lightning or jsonargparse."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MvspecError):  # of a callback, say, which the trainer's parser made
            return found
        found = found.__cause__ or found.__context__
    return VerifyError("trainer", " ".join(str(error).split()))


def _check_accelerator(name: Any) -> None:
    """Refuse a kind of device that this machine has none of.

    Raises:
        VerifyError: it has none.
    """
    cuda, mps = CUDAAccelerator.is_available, MPSAccelerator.is_available
    found = {"gpu": (cuda, mps), "cuda": (cuda,), "mps": (mps,)}.get(name)
    if found is not None and not any(is_there() for is_there in found):
        raise VerifyError(
            "trainer.accelerator",
            f"{name}: this machine has none that torch {torch.__version__} can use: use cpu or "
            "auto, as --trainer.accelerator cpu, or a build of torch for its driver",
        )


def _check_mesh(trainer: Trainer) -> None:
    """Refuse a mesh that is not all of the devices, before any rank is started.

    Raises:
        VerifyError: it is of more of them, or of fewer.
    """
    strategy: Any = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return
    nodes, devices = trainer.num_nodes, trainer.num_devices
    data, tensor = strategy._data_parallel_size, strategy._tensor_parallel_size
    data = nodes if data == "auto" else data
    tensor = devices if tensor == "auto" else tensor
    if data * tensor != nodes * devices:
        raise VerifyError(
            "trainer.strategy",
            f"data_parallel_size {data} x tensor_parallel_size {tensor} are {data * tensor} "
            f"devices, and trainer.devices x trainer.num_nodes are {nodes * devices}: "
            "give sizes whose product they are",
        )


def main(arguments: Sequence[str]) -> None:
    """Run `mvspec train` with these arguments."""
    # What Lightning says of data and of itself that is not for its user's user.
    warnings.filterwarnings("ignore", message=r".*(Total length of `list`|LightningCLI's args).*")
    warnings.filterwarnings("ignore", message=r".*treespec.*", module="lightning")
    # What is logged is the sum over all ranks already.
    warnings.filterwarnings("ignore", message=r".*sync_dist=True.*")
    if arguments and arguments[0] == "export":
        _export(arguments[1:])
        return
    try:
        TrainingCLI(
            LanguageModel,
            LayoutData,
            args=_with_configs(arguments),
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "mvspec train", "exit_on_error": False},
        )
    except MisconfigurationException as error:
        raise _refusal(error) from error
    except (RuntimeError, ValueError) as error:
        if str(error).startswith(_OTHER_STATE):
            raise _other_settings(str(error)) from error
        raise


def _other_settings(message: str) -> CheckpointError:
    """Return what to say where a checkpoint's model or optimizer is not the settings'."""
    first, *mismatches = message.splitlines()
    reason = mismatches[0].strip().rstrip(".") if mismatches else first
    return CheckpointError(
        f"the checkpoint to go on from is of other settings of model ({reason}): give those again, "
        "or another folder for this run's checkpoints (trainer.callbacks, dirpath)"
    )


def _with_configs(arguments: Sequence[str]) -> list[str]:
    """Let `--config tiny` be the configuration of that name that comes with the package."""
    found = [each.replace("--resume-changing", "--resume_changing", 1) for each in arguments]
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

    def refuse(message: str) -> NoReturn:
        raise InputError(
            f"train export: {message}; `mvspec train export --help` lists what there is"
        )

    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_args(list(arguments))
    checkpoint = newest_checkpoint(given.checkpoint) or given.checkpoint
    export(checkpoint, given.output, given.dtype)
    print(f"{checkpoint} -> {given.output}")
