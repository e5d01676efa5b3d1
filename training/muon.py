"""Muon for a decoder's matrices and AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["MuonAdamW"]


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
