"""Plain lines of how far training is, where there is no terminal."""

from __future__ import annotations

import math
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from mvspec.training.batch import Batch
from mvspec.training.parallel import DataRanks


class ProgressLines(Callback):
    """Says every ten seconds how far training is, where no terminal shows a bar.

    A thread of its own says it: a first step that compiles, or a long validation, is no silence.
    """

    seconds = 10.0

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._steps = self._tokens = 0

    @staticmethod
    def needed() -> bool:
        """Return whether there is neither a terminal nor a notebook."""
        return not sys.stdout.isatty() and "ipykernel" not in sys.modules

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put lines in the place of the bar."""
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.disable()
        self._over.clear()
        self._steps = self._tokens = 0
        if trainer.is_global_zero:
            args = trainer, pl_module, trainer.global_step
            self._thread = threading.Thread(target=self._say, args=args, daemon=True)
            self._thread.start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Count its tokens."""
        self._tokens += batch.tokens * DataRanks.of(trainer).count
        self._steps = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say the last line."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, error: BaseException
    ) -> None:
        """Say the last line."""
        self.on_train_end(trainer, pl_module)

    def _say(self, trainer: Trainer, module: Any, first: int) -> None:
        began = last = time.perf_counter()
        told = 0
        over = False
        while not over:
            over = self._over.wait(self.seconds)
            now, tokens, step = time.perf_counter(), self._tokens, self._steps or first
            line = f"step {step:,}"
            if math.isfinite(module.steps):
                line += f" of {module.steps:,}"
            if step > first:
                line += f", loss {module.last_loss:.4f}"
            if tokens > told:
                line += f", {(tokens - told) / (now - last):,.0f} tokens/s"
            if trainer.validating:
                line += ", validating"
            if step > first and math.isfinite(module.steps) and not over:
                left = (now - began) / (step - first) * (module.steps - step)
                line += f", {timedelta(seconds=round(left))} left"
            rank_zero_info(line)
            last, told = now, tokens
