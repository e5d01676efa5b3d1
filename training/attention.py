"""FlexAttention as training uses it: a `BlockMask`, grouped heads, and nothing around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

__all__ = ["ATTENTIONS", "FLEX", "attend"]

FLEX = "mvspec_flex"
"""The name of `attend` in transformers' attention interface.

Transformers' own "flex_attention" repeats keys for each query head where their number is no power
of two, as Qwen2.5's is not, and keeps the log of every sum.
"""

ATTENTIONS = {"flex": FLEX, "sdpa": "sdpa", "eager": "eager"}
"""How a model may attend, and what transformers calls it."""

_compiled: Any = torch.compile(flex_attention)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    kernel_options: Mapping[str, Any] | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attend under a block mask; transformers calls it.

    Args:
        query: [batch, heads, n, dim]; key, value: [batch, key-value heads, n, dim].

    Returns:
        [batch, n, heads, dim].
    """
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # Rotated queries and keys are float32 then, values are not; FlexAttention wants one type.
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    # Inside a compiled layer it is a part of that layer's graph.
    flex = flex_attention if torch.compiler.is_compiling() else _compiled
    out: Tensor = flex(
        query,
        key,
        value,
        block_mask=attention_mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=kernel_options,
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(FLEX, attend)
AttentionMaskInterface.register(FLEX, lambda *args, **kwargs: None)
