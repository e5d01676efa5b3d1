"""A step of the optimizer: the batches that it adds up, and the gradients of their mean loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from mvspec.training.batch import Batch
from mvspec.training.faults import NotFinite
from mvspec.training.gradients import gradient_norm, scale_gradients
from mvspec.training.ranks import Ranks

__all__ = ["Step"]


class Step:
    """Sums the losses of batches; at its end their gradients are divided by all their tokens."""

    def __init__(self) -> None:
        self._read: list[tuple[Batch, Tensor]] = []

    def add(self, batch: Batch, loss: Tensor) -> None:
        """Add a batch and its summed loss, whose gradient is taken elsewhere."""
        self._read.append((batch, loss.detach()))

    def end(
        self,
        gradients: Sequence[Tensor],
        ranks: Ranks,
        *,
        batches: int,
        clip: float | None,
        number: int,
    ) -> tuple[float, float]:
        """Make gradients those of the mean over the tokens of all ranks and batches; clip them.

        Args:
            gradients: of summed losses, divided by `batches` and meant over the ranks.
            ranks: that share the data.
            batches: by whose number the trainer has divided.
            clip: the most that the norm may be; None is no limit.
            number: of the step, for messages.

        Returns:
            The loss of a token, and the norm before it was clipped.

        Raises:
            NotFinite: the loss or the gradient is not; gradients are as they were.
        """
        total = torch.stack([loss for _, loss in self._read]).sum()
        tokens = sum(batch.loss_tokens for batch, _ in self._read)
        share = gradient_norm(gradients) / ranks.count  # every rank has the whole norm
        # Numbers meet the host once a step, here.
        loss, count, norm = ranks.summed([total, tokens, share], total.device)
        loss /= max(count, 1)
        factor = ranks.count * batches / max(count, 1)
        norm *= factor
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._stop("gradient" if math.isfinite(loss) else "loss", number)
        if clip is not None and norm > clip:
            factor *= clip / norm
        scale_gradients(gradients, factor)
        return loss, norm

    def _stop(self, what: str, number: int) -> NoReturn:
        """Raise `NotFinite` on every rank, with the names that all of them know."""
        bad = [batch for batch, loss in self._read if not bool(torch.isfinite(loss))]
        some = bad if what == "loss" else [batch for batch, _ in self._read]
        names = [name for batch in some for row in batch.names for name in row]
        if torch.distributed.is_initialized():
            of_all: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(of_all, names)
            names = [name for each in of_all for name in each]
        raise NotFinite(number, what, names)
