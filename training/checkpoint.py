"""Checkpoints that appear whole or not at all, and the Hugging Face folders that they become."""

from __future__ import annotations

import os
import signal
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.distributed.checkpoint.api import CheckpointException
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from mvspec.compiler.vocabulary import load_tokenizer, save_tokenizer
from mvspec.training.errors import CheckpointError
from mvspec.training.weights import LoraAdapters, build_model, save_model, torch_dtype


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it there.

    Killed half-way, or with a full disk, what stood there before still stands there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: it cannot be written; the disk is as it was before.
        """
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for left in target.parent.glob(f".{target.name}.*.tmp"):
                left.unlink()  # of a run that was killed while it wrote
            with temporary.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except (OSError, RuntimeError) as error:
            # torch's zip writer turns a full disk into a RuntimeError of its own.
            temporary.unlink(missing_ok=True)
            good = newest_checkpoint(target.parent)
            cause = error if isinstance(error, OSError) else error.__context__ or error
            reason = getattr(cause, "strerror", None) or str(cause).strip().partition("\n")[0]
            raise CheckpointError(
                f"checkpoint {target} was not written ({reason}); "
                + (f"the last good one is {good}" if good else "there is no earlier one")
                + ": free space there, or save elsewhere, and run the same command again"
            ) from None

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            CheckpointError: it is not there, or not what `save_checkpoint` wrote.
        """
        if Path(path).is_dir():
            raise CheckpointError(
                f"{path} is a checkpoint of shards: go on with the strategy that wrote it "
                "(ModelParallelStrategy), or export it and start from the folder"
            )
        try:
            return super().load_checkpoint(path, map_location, weights_only)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: there is no such checkpoint") from None
        except Exception as error:  # torch and pickle raise several kinds
            raise CheckpointError.unread(path, error) from None


def newest_checkpoint(folder: str | os.PathLike[str] | None) -> Path | None:
    """Return the newest whole checkpoint of a folder, or None."""
    if folder is None or not Path(folder).is_dir():
        return None
    found = [path for path in Path(folder).glob("*.ckpt") if is_whole(path)]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint's writing came to its end."""
    # A sharded checkpoint is a folder, whose last file is this one.
    file = path / "meta.pt" if path.is_dir() else path
    return file.is_file() and zipfile.is_zipfile(file)


class Checkpoints(ModelCheckpoint):
    """Keeps the newest checkpoint of a run, and one of its end, Ctrl-C and SIGTERM included.

    A signal lets the step, or a validation, come to its end: only there a run can go on as if it
    had not been stopped. A second Ctrl-C does not wait.

    Args:
        dirpath: where they go.
        every: steps from one to the next.
        keep: "newest", or "all".
    """

    def __init__(self, dirpath: str, every: int = 200, keep: Literal["newest", "all"] = "newest"):
        super().__init__(
            dirpath,
            filename="{step}",
            every_n_train_steps=every,
            save_top_k=-1 if keep == "all" else 1,
        )

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        # Lightning keeps the one that a run was resumed from: each kill would leave one more.
        return previous != current and Path(previous).parent == Path(str(self.dirpath))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals that end a run; Lightning gives them back."""
        super().on_train_start(trainer, pl_module)
        self._stopped: int | None = None

        def stop(number: int, frame: Any) -> None:
            if number == signal.SIGINT and self._stopped is not None:
                raise KeyboardInterrupt
            launcher = trainer.strategy.launcher
            if number == signal.SIGTERM and self._stopped is None and launcher is not None:
                launcher.kill(number)  # a terminal reaches all processes, SIGTERM this one alone
            self._stopped = number
            # What a handler prints may meet a print that it has interrupted.
            os.write(2, b"stopping after this step, with a checkpoint; Ctrl-C again: at once\n")

        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background
                trainer._signal_connector._register_signal(number, stop)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save where it is time, or where a signal ends the run.

        Raises:
            SystemExit: a signal ends it.
        """
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.fit_loop._should_accumulate():
            return
        if trainer.strategy.reduce_boolean_decision(self._stopped is not None, all=False):
            path = self._save_here(trainer)
            number = self._stopped or signal.SIGTERM
            rank_zero_info(
                f"stopped by {signal.Signals(number).name} after step {trainer.global_step:,}: "
                f"{path} has everything; the same command goes on there, with --ckpt_path last"
            )
            raise SystemExit(128 + number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step too, wherever it falls."""
        super().on_train_end(trainer, pl_module)
        self._save_here(trainer)

    def _save_here(self, trainer: Trainer) -> str:
        """Save the step where the run stands, unless it is saved; return the file."""
        path = self.format_checkpoint_name({"step": torch.tensor(trainer.global_step)})
        # All ranks save, or none: one may already see what another has written.
        if not trainer.strategy.broadcast(Path(path).exists()):
            before, self.best_model_path = self.best_model_path, path
            trainer.save_checkpoint(path)  # with its own name, for a run that goes on to remove it
            if (
                self.save_top_k == 1
                and before
                and self._should_remove_checkpoint(trainer, before, path)
            ):
                trainer.strategy.remove_checkpoint(before)
        return path


EXPORTED = "mvspec"
"""The key of a checkpoint under which `recipe` is kept."""

FORMAT = 1
"""The version of `recipe`; checkpoints of before there was one are of the first."""

_PREFIX = "network.model."


def recipe(
    model: Any,
    tokenizer: Any,
    *,
    source: Any,
    lora: LoraAdapters | None,
    new_tags: list[int],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Return what a folder needs beside the weights, and a run that goes on, as plain values."""
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    known = isinstance(source, str | os.PathLike)
    generation = getattr(model, "generation_config", None)
    return {
        "format": FORMAT,
        "config": model.config.to_dict(),
        "generation": None if generation is None else generation.to_dict(),
        "tokenizer": files,
        "source": os.fspath(source) if known else None,
        "lora": asdict(lora) if lora else None,
        "new_tags": list(new_tags),
        "settings": settings,
    }


def kept_recipe(
    checkpoint: Mapping[str, Any], name: object = "the checkpoint"
) -> Mapping[str, Any]:
    """Return the recipe in a checkpoint that was read.

    Raises:
        CheckpointError: it has none, or one of a format that is not known here.
    """
    kept = checkpoint.get(EXPORTED)
    if not isinstance(kept, Mapping):
        raise CheckpointError(f"{name}: no checkpoint of mvspec train")
    found = kept.get("format", 1)
    if found != FORMAT:
        raise CheckpointError(
            f"{name}: of format {found!r}, and this mvspec reads {FORMAT}: use the mvspec that "
            "wrote it, or its `mvspec train export`, and start from the folder"
        )
    return kept


def export(
    checkpoint: str | os.PathLike[str], folder: str | os.PathLike[str], dtype: str | None = None
) -> None:
    """Write a checkpoint as a Hugging Face folder; adapters are merged into their base model.

    Args:
        checkpoint: a file, or a folder of shards.
        folder: made where it is not there.
        dtype: of the weights; by default what they were trained in.

    Raises:
        CheckpointError: it is no checkpoint of this room.
    """
    loaded = _read(Path(checkpoint))
    kept = kept_recipe(loaded, checkpoint)
    state = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in loaded["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    with tempfile.TemporaryDirectory() as written:
        for name, data in kept["tokenizer"].items():
            Path(written, name).write_bytes(data)
        tokenizer = load_tokenizer(written)
    model = _adapted(kept, tokenizer, state) if kept["lora"] else _whole(kept, state)
    if kept["generation"]:
        model.generation_config = GenerationConfig.from_dict(kept["generation"])
    save_model(model.to(torch_dtype(dtype)) if dtype else model, tokenizer, folder)


def _whole(kept: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    config = AutoConfig.for_model(**kept["config"])
    dtype = next(iter(state.values())).dtype
    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):  # the checkpoint has every weight
        model = make(config, dtype=dtype)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def _adapted(kept: Mapping[str, Any], tokenizer: Any, state: Mapping[str, Any]) -> Any:
    if kept["source"] is None:
        raise CheckpointError(
            "the checkpoint holds adapters of a model that was given in memory: "
            "call LanguageModel.export instead"
        )
    model = build_model(
        kept["source"],
        tokenizer,
        kept["new_tags"],
        dtype=torch_dtype(str(kept["config"]["dtype"])),
        attention="sdpa",
        lora=LoraAdapters(**kept["lora"]),
    )
    unknown = model.load_state_dict(dict(state), strict=False).unexpected_keys
    if unknown:
        raise CheckpointError(
            f"{kept['source']} is not the adapters' model: it has no {unknown[0]}"
        )
    return model


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.is_dir():
            from lightning.fabric.utilities.load import _load_distributed_checkpoint

            if not is_whole(path):
                raise CheckpointError(f"{path}: there is no whole checkpoint in it")
            found: dict[str, Any] = _load_distributed_checkpoint(path)
            return found
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except CheckpointError:
        raise
    except (Exception, CheckpointException) as error:  # torch raises several kinds
        raise CheckpointError.unread(path, error) from None
    return found
