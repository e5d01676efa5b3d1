"""One training run: from weights to weights, carried on where it was stopped."""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers.utils.logging import disable_progress_bar

from mvspec.compiler import Layout
from mvspec.compiler.vocabulary import load_tokenizer
from mvspec.training import LanguageModel, LayoutData, Optimizer, save_model
from mvspec.training.checkpoint import newest_checkpoint

from settings import Fit, Settings  # isort: skip

__all__ = ["OutOfTime", "fit"]


class OutOfTime(Exception):
    """The time of this call is over; what was done is kept."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a run did.

    Args:
        steps: of the optimizer.
        loss: the last step's, of a token.
    """

    steps: int
    loss: float


class Deadline(Callback):
    """Stops a run after so many seconds, with a checkpoint to go on from.

    Lightning's own timer counts the seconds of earlier calls, and once a run has stopped its
    epoch counts as over.

    Args:
        seconds: from now on; without end where it is None.
        path: of the checkpoint.
    """

    def __init__(self, seconds: float | None, path: Path) -> None:
        self.end = float("inf") if seconds is None else time.monotonic() + seconds
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *given: Any, **more: Any) -> None:
        """Let the step be the last one where the time is over."""
        if time.monotonic() > self.end:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


class Progress(Callback):
    """Says every so often how far a run is; a bar would not do for several calls in one log.

    Args:
        name: of the run.
        steps: of all of it.
        tell: takes a line.
        every: seconds from line to line.
    """

    def __init__(
        self, name: str, steps: int, tell: Callable[[str], None], every: float = 20
    ) -> None:
        self.name, self.steps, self.tell, self.every = name, steps, tell, every
        self.next = time.monotonic() + every
        self.loss = torch.tensor(torch.nan)

    def state_dict(self) -> dict[str, float]:
        """Return the last step's loss, for the checkpoint: it may be that of the whole run."""
        return {"loss": float(self.loss)}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Take it back."""
        self.loss = torch.tensor(state_dict["loss"])

    def on_train_batch_end(self, trainer: Trainer, *given: Any, **more: Any) -> None:
        """Say the step and its loss where the time has come."""
        self.loss = trainer.callback_metrics["train/loss"]  # on the device: nobody waits for it
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + self.every
            step = f"step {trainer.global_step} of {self.steps}"
            self.tell(f"{self.name}: {step}, loss {self.loss:.4f}")


def fit(
    source: Any,
    rows: Sequence[Layout],
    folder: Path,
    settings: Settings,
    how: Fit,
    *,
    tokenizer: str,
    tell: Callable[[str], None],
    seconds: float | None = None,
) -> Fitted:
    """Train on rows in their order, and write a Hugging Face folder.

    Args:
        source: a folder of weights, or a config for fresh ones.
        rows: packed, in order.
        folder: where the weights go; it appears whole or not at all.
        settings, how: of the comparison, and of this run.
        tokenizer: a folder.
        tell: takes a line now and then that says how far the run is.
        seconds: what is left of the call's time; without end where it is None.

    Raises:
        OutOfTime: it is over; a later call goes on from the checkpoint.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.compiler.reset()  # graphs of the model before this one
    loaded = load_tokenizer(tokenizer)
    module = LanguageModel(
        source,
        loaded,
        add_tags=isinstance(source, str),  # a model of another make may lack them
        compile=settings.compile,
        optimizer=Optimizer(
            lr=how.lr, muon=how.muon, weight_decay=how.weight_decay, warmup=how.warmup
        ),
    )
    state = folder.with_suffix(".state")
    saver = ModelCheckpoint(
        dirpath=state, filename="last", enable_version_counter=False,
        train_time_interval=timedelta(minutes=1), save_on_train_epoch_end=False,
    )  # fmt: skip
    steps = -(-len(rows) // how.rows)
    progress = Progress(folder.name, steps, tell)
    precision: Any = settings.precision
    trainer = Trainer(
        max_epochs=1,
        devices=1,
        precision=precision,
        callbacks=[progress, Deadline(seconds, state / "last.ckpt"), saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=state,
    )
    data = LayoutData(list(rows), batch_size=how.rows, length=how.length, shuffle=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice
        trainer.fit(module, data, ckpt_path=newest_checkpoint(state))
    if trainer.global_step < steps:
        raise OutOfTime
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    model: Any = module.built().model
    save_model(model, loaded, part)
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    shutil.rmtree(state, ignore_errors=True)
    return Fitted(trainer.global_step, float(progress.loss))
