"""The optimizer and its learning rate, as data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from mvspec.errors import Unsupported, VerifyError
from mvspec.training.muon import MuonAdamW

__all__ = ["SCHEDULES", "Optimizer"]

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class Optimizer:
    """AdamW; matrices decay, vectors do not.

    Args:
        lr: the highest learning rate.
        muon: that of the decoder's matrices, which Muon changes then; None leaves all to AdamW.
        weight_decay, betas: AdamW's.
        schedule: "cosine", "linear" or "constant", after the warm-up.
        warmup: steps over which the rate rises; a share of all steps where it is below 1.
        final: what the rate ends at, as a share of `lr`.
        clip: the most that the gradient's norm may be; None is no limit.
    """

    lr: float = 3e-4
    muon: float | None = None
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: str = "cosine"
    warmup: float = 0.03
    final: float = 0.0
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise VerifyError(
                "optimizer.schedule", f"{self.schedule!r} is not one of {', '.join(SCHEDULES)}"
            )
        if self.muon is not None and not self.muon > 0:
            raise VerifyError("optimizer.muon", f"{self.muon} is no learning rate above 0")
        if not (self.lr > 0 and self.warmup >= 0 and (self.clip is None or self.clip > 0)):
            raise VerifyError("optimizer", "lr and clip are above 0, warmup from 0 up")

    def build(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        fused: bool,
        inner: Iterable[nn.Parameter] = (),
    ) -> torch.optim.Optimizer:
        """Return the optimizer over the parameters that are trained.

        Args:
            fused: whether AdamW is one kernel.
            inner: those of the decoder's layers, whose matrices are Muon's.

        Raises:
            Unsupported: Muon needs whole matrices, and these are sharded.
        """
        matrices = [p for p in inner if p.requires_grad and p.ndim == 2] if self.muon else []
        if any(isinstance(each, DTensor) for each in matrices):
            raise Unsupported("optimizer.muon: the matrices are sharded; leave it out, or use ddp")
        taken = set(map(id, matrices))
        groups: dict[Any, dict[str, Any]] = {}
        for each in parameters:
            if each.requires_grad and id(each) not in taken:
                # Tensors of different meshes cannot be updated in one call.
                key = each.ndim > 1, each.device_mesh if isinstance(each, DTensor) else None
                decay = self.weight_decay if each.ndim > 1 else 0.0
                group = groups.setdefault(key, {"params": [], "weight_decay": decay})
                group["params"].append(each)
        settings: dict[str, Any] = {"lr": self.lr, "betas": self.betas, "fused": fused}
        if not matrices or self.muon is None:
            return torch.optim.AdamW(groups.values(), **settings)
        return MuonAdamW(
            matrices, list(groups.values()), rate=self.muon, weight_decay=self.weight_decay,
            **settings,
        )  # fmt: skip

    def rates(self, optimizer: torch.optim.Optimizer, steps: float) -> LambdaLR:
        """Return the learning rate's schedule over so many steps; without end where it is inf."""
        return LambdaLR(optimizer, self.rate(steps))

    def rate(self, steps: float) -> Callable[[int], float]:
        """Return the share of `lr` that each step has."""
        known = math.isfinite(steps) and steps > 0
        warmup = self.warmup * steps if self.warmup < 1 and known else self.warmup
        schedule: Any = self.schedule if known else "constant"

        def share(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if schedule == "constant":
                return 1.0
            done = min(1.0, (step - warmup) / max(1.0, steps - warmup))
            left = 0.5 + 0.5 * math.cos(math.pi * done) if schedule == "cosine" else 1 - done
            return self.final + (1 - self.final) * left

        return share
