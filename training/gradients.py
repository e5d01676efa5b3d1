"""Gradients of a step: their norm and their scale, sharded or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["gradient_norm", "scale_gradients"]


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients together, the same on every rank: float32 [].

    >>> gradient_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    # Tensors of one mesh at a time: those of different ones cannot be stacked.
    by_mesh: dict[Any, list[Tensor]] = {}
    for each in gradients:
        by_mesh.setdefault(each.device_mesh if isinstance(each, DTensor) else None, []).append(each)
    norms: list[Tensor] = []
    for some in by_mesh.values():
        norm = torch.nn.utils.get_total_norm(some)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.stack([norm.float() for norm in norms]).norm() if norms else torch.zeros(())


def scale_gradients(gradients: Sequence[Tensor], factor: float) -> None:
    """Multiply gradients by a number, in place."""
    parts = [each.to_local() if isinstance(each, DTensor) else each for each in gradients]
    if parts:
        torch._foreach_mul_(parts, factor)
