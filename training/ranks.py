"""The ranks of a run among which its data is shared out, and what they add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

__all__ = ["Ranks"]


@dataclass(frozen=True)
class Ranks:
    """Those that read different rows; where matrices are split too, a mesh has more of them.

    Args:
        rank: this one's number among them.
        count: how many they are.
        group: of `torch.distributed`; None is all of it.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @classmethod
    def of(cls, trainer: Trainer | None) -> Ranks:
        """Return those of a trainer; one where there is none."""
        if trainer is None or trainer.world_size == 1:
            return cls()
        strategy: Any = trainer.strategy
        kwargs = getattr(strategy, "distributed_sampler_kwargs", None) or {}
        mesh = getattr(strategy, "_device_mesh", None)
        return cls(
            int(kwargs.get("rank", trainer.global_rank)),
            int(kwargs.get("num_replicas", trainer.world_size)),
            None if mesh is None else mesh["data_parallel"].get_group(),
        )

    def summed(self, values: Sequence[float | Tensor], device: torch.device) -> list[float]:
        """Return numbers summed over the ranks, in one exchange; they meet the host here.

        >>> Ranks().summed([1, torch.tensor(2.5)], torch.device("cpu"))
        [1.0, 2.5]
        """
        total = torch.stack(
            [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]
        )
        if self.count > 1:
            torch.distributed.all_reduce(total, group=self.group)
        found: list[float] = total.tolist()
        return found
