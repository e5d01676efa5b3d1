"""The optimizer, AdamW or with Muon, and its learning rate, as data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from mvspec.errors import Unsupported, VerifyError


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW with one state, so that a trainer schedules and saves them as one.

    Muon orthogonalises a matrix's update: a small model learns from several times fewer tokens.
    Source: Jordan et al., 2024; scaled as in "Muon is Scalable" (arXiv 2502.16982), so that
    learning rates of AdamW are of the right size.

    Args:
        matrices: two-dimensional, whole on every device, and no embeddings.
        groups: of everything else, as AdamW takes them.
        rate: the learning rate of the matrices.
        weight_decay: of the matrices.
        options: of AdamW.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        groups: Sequence[dict[str, Any]],
        *,
        rate: float,
        weight_decay: float,
        **options: Any,
    ) -> None:
        self.muon = torch.optim.Muon(
            matrices, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(list(groups), **options)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        count = len(self.muon.param_groups)
        self.muon.param_groups, self.adamw.param_groups = (
            self.param_groups[:count],
            self.param_groups[count:],
        )
        self.muon.state = self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change the weights by their gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()  # type: ignore[no-untyped-call]
        self.adamw.step()
        return loss


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
