"""Cross-entropy of a linear head, without ever holding the logits of all tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from mvspec.errors import Unsupported, VerifyError

LOSSES = ("chunked", "liger")
"""How the loss is computed: in plain torch, or by liger-kernel's fused kernel on a GPU."""

_CHUNK = 1 << 28  # logits of a chunk: 1 GiB in float32


def check_loss(how: str) -> None:
    """See that a loss is one of `LOSSES`, and installed.

    Raises:
        VerifyError: there is no such loss.
        Unsupported: it is not installed.
    """
    if how not in LOSSES:
        raise VerifyError("loss", f"{how!r} is not one of {', '.join(LOSSES)}")
    if how == "liger":
        _liger_kernel()


def head_loss(
    head: nn.Module, hidden: Tensor, targets: Tensor, *, chunk: int | None = None,
    how: str = "chunked",
) -> Tensor:  # fmt: skip
    """Return the summed cross-entropy of `head(hidden)`; logits exist a chunk of tokens at a time.

    Args:
        head: a linear layer, or any module from hidden states to logits.
        hidden: [m, width].
        targets: int64 [m].
        chunk: tokens of a chunk; by default as many as have 2**28 logits, in multiples of 256.
        how: one of `LOSSES`.

    Returns:
        float32 [] (float64 for float64): the sum over all targets.

    >>> head, hidden = nn.Linear(4, 10), torch.randn(7, 4)
    >>> targets = torch.arange(7)
    >>> whole = cross_entropy(head(hidden), targets, reduction="sum")
    >>> bool(torch.isclose(head_loss(head, hidden, targets, chunk=3), whole))
    True
    """
    if not len(targets):
        # Connected all the same: every rank has to take part in the backward pass.
        zero = hidden.sum() * 0.0 + sum(p.sum() * 0.0 for p in head.parameters())
        return zero.to(_wide(hidden.dtype))
    weight: Any = getattr(head, "weight", None)
    plain = type(head) is nn.Linear
    if how == "liger":
        return _liger(head, hidden, targets)
    size = chunk or max(256, _CHUNK // (weight.shape[0] if plain else 1 << 17) // 256 * 256)
    if not plain:  # a head with adapters, for example: its logits are computed twice
        parts = [
            checkpoint(_module_loss, head, h, t, use_reentrant=False)
            for h, t in zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
        ]
        return torch.stack(parts).sum()
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    apply: Any = _LinearLoss.apply
    loss: Tensor = apply(hidden, weight, head.bias, targets, size)
    return loss


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _module_loss(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head(hidden)
    return cross_entropy(logits.to(_wide(logits.dtype)), targets, reduction="sum")


def _chunk_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed loss of a chunk, and its gradient at the logits, in their type."""
    wide = logits.to(_wide(logits.dtype))
    logsum = torch.logsumexp(wide, -1, keepdim=True)
    loss = (logsum - wide.gather(1, targets[:, None])).sum()
    gradient = (wide - logsum).exp()
    index = torch.arange(wide.shape[-1], device=wide.device)
    gradient = gradient - (index == targets[:, None]).to(gradient.dtype)
    return loss, gradient.to(logits.dtype)


_compiled: Any = torch.compile(_chunk_loss, dynamic=True)


class _LinearLoss(torch.autograd.Function):
    """The gradient is linear in the loss, so forward makes it, chunk by chunk, and keeps it.

    So the logits of a chunk are computed once, and neither they nor their gradient outlive it.
    Source: "Cut Your Losses" (arXiv 2411.09009) and Liger's fused linear cross-entropy.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, size: int
    ) -> Tensor:
        wide = _wide(hidden.dtype)
        matrix = weight.to(hidden.dtype)
        each = _compiled if hidden.is_cuda else _chunk_loss
        wants = ctx.needs_input_grad
        at_hidden = torch.empty_like(hidden) if wants[0] else None
        at_weight = torch.zeros_like(weight, dtype=wide) if wants[1] else None
        at_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wants[2] else None
        total = torch.zeros((), dtype=wide, device=hidden.device)
        for at in range(0, len(targets), size):
            some = hidden[at : at + size]
            logits = some @ matrix.T
            if bias is not None:
                logits += bias.to(logits.dtype)
            loss, gradient = each(logits, targets[at : at + size])
            del logits
            total += loss
            if at_hidden is not None:
                torch.mm(gradient, matrix, out=at_hidden[at : at + size])
            if at_weight is not None:
                at_weight += gradient.T @ some
            if at_bias is not None:
                at_bias += gradient.sum(0, dtype=wide)
        ctx.save_for_backward(at_hidden, at_weight, at_bias)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:
        found = [
            None if each is None else (each * scale).to(dtype)
            for each, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*found, None, None)


def _liger_kernel() -> Any:
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError as error:
        raise Unsupported(
            f"loss 'liger' needs: pip install liger-kernel ({error}); or use loss: chunked"
        ) from None
    return liger_fused_linear_cross_entropy


def _liger(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    if type(head) is not nn.Linear or not hidden.is_cuda:
        raise Unsupported("loss 'liger' needs a plain linear head on a GPU: use loss: chunked")
    weight: Tensor = head.weight
    bias: Tensor | None = head.bias
    if torch.is_autocast_enabled(hidden.device.type):
        # Once, here: in its loop the kernel would convert the whole matrix for every chunk.
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    loss: Tensor = _liger_kernel()(
        hidden, weight, targets, bias, reduction="sum", accum_dtype=torch.float32
    )
    return loss
