"""Attention of the new tokens of one forward, whatever the model.

Linear layers see all new tokens as one row; only attention looks at whose they are. It reads the
KV cache of each request in place, so neither fork, join nor batching copies any keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from mvspec.errors import Unsupported
from mvspec.runtime.engine.kv_cache import KVCache
from mvspec.runtime.sampling import sent

ATTENTION = "mvspec"
"""The name of `attend` in transformers' attention interface."""


@dataclass(slots=True)
class TokenChunk:
    """New tokens of one request, which one forward reads.

    Args:
        cache: what they see.
        ids, positions: of the tokens.
        rows: each token's row in the cache.
        start: slot of the first; the others follow it.
        keep: numbers of the tokens whose logits are wanted.
    """

    cache: KVCache
    ids: list[int]
    positions: list[int]
    rows: list[int]
    start: int
    keep: list[int]


def kept_tokens(chunks: Sequence[TokenChunk]) -> list[int]:
    """Return the numbers, among the tokens of all chunks, of those whose logits are wanted."""
    found: list[int] = []
    at = 0
    for chunk in chunks:
        found += [at + index for index in chunk.keep] if at else chunk.keep
        at += len(chunk.ids)
    return found


class KVReader(Protocol):
    """Keeps the keys and values of new tokens and lets them attend."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """Keep keys and values, and return what the tokens read.

        Args:
            query: [1, heads, new, dim]; key, value: [1, key-value heads, new, dim].

        Returns:
            [1, new, heads, dim]; rows of no request hold numbers without meaning.
        """


class SlicedAttention:
    """One attention for each request; for any number of tokens, on any device.

    Args:
        chunks: the new tokens, one chunk after the other.
        dtype, device: of the model.
    """

    def __init__(
        self, chunks: Sequence[TokenChunk], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._chunks = chunks
        self._widths = [len(chunk.ids) for chunk in chunks]
        self._masks: list[Tensor | None] = [None] * len(chunks)
        seen = [chunk.cache.seen(chunk.rows, chunk.start) for chunk in chunks]
        flat = [each.ravel() for each in seen if each is not None]
        if not flat:
            return
        # All masks as one line of numbers, so that a GPU is sent one tensor.
        hidden = sent(torch.from_numpy(~np.concatenate(flat)), device)
        # The lowest number and not minus infinity: kernels give NaN for a block of slots
        # that a row does not see at all. Its softmax is exactly 0 all the same.
        line = torch.zeros(hidden.shape, dtype=dtype, device=device)
        line.masked_fill_(hidden, torch.finfo(dtype).min)
        at = 0
        for index, each in enumerate(seen):
            if each is not None:
                self._masks[index] = line.as_strided(each.shape, (each.shape[1], 1), at)
                at += each.size

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """See `KVReader`."""
        heads, groups = query.shape[1], key.shape[1]
        rest = query.shape[2] - sum(self._widths)  # rows of no request
        widths = [*self._widths, rest] if rest else self._widths
        asked, new_keys, new_values = (
            each.split_with_sizes(widths, 2) for each in (query, key, value)
        )
        shared = heads // groups
        found: list[Tensor] = []
        for index, chunk in enumerate(self._chunks):
            width, mask, own = widths[index], self._masks[index], asked[index]
            keys, values = chunk.cache.write(layer, new_keys[index], new_values[index], chunk.start)
            if shared > 1:
                # Query heads that share a key head stand as rows of one product: no key is
                # repeated.
                own = own.reshape(1, groups, shared * width, -1)
                if mask is not None and len(mask) == width:
                    mask = self._masks[index] = mask.repeat(shared, 1)
            out = scaled_dot_product_attention(own, keys, values, attn_mask=mask, scale=scale)
            found.append(out.reshape(1, heads, width, -1) if shared > 1 else out)
        if rest:
            found.append(value.new_zeros(1, heads, rest, value.shape[3]))
        return torch.cat(found, 2).transpose(1, 2)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    reader: KVReader,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Let new tokens attend; transformers calls it.

    Args:
        reader: what the engine passed to the model.
    """
    unknown = [name for name in ("softcap", "s_aux") if rest.get(name) is not None]
    if unknown:
        raise Unsupported(f"{type(module).__name__} uses {unknown[0]} in its attention")
    return reader.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
