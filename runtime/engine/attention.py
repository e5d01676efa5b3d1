"""How the new tokens of one forward attend, whatever the model.

Linear layers see all new tokens as one row; only attention looks at whose they are. It reads the
store of each request in place, so neither fork, join nor batching copies any keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from mvspec.errors import Unsupported
from mvspec.runtime.engine.store import Store

__all__ = ["ATTENTION", "Part", "Reader", "Slices", "attend", "kept"]

ATTENTION = "mvspec"
"""The name of `attend` in transformers' attention interface."""


@dataclass(slots=True)
class Part:
    """New tokens of one request.

    Args:
        store: what they see.
        ids, positions: of the tokens.
        rows: each token's row in the store.
        start: column of the first; the others follow it.
        keep: numbers of the tokens whose logits are wanted.
    """

    store: Store
    ids: list[int]
    positions: list[int]
    rows: list[int]
    start: int
    keep: list[int]


def kept(parts: Sequence[Part]) -> list[int]:
    """Return the numbers, among the tokens of all parts, of those whose logits are wanted."""
    found: list[int] = []
    at = 0
    for part in parts:
        found += [at + index for index in part.keep]
        at += len(part.ids)
    return found


class Reader(Protocol):
    """What keeps the keys of new tokens and lets them attend."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """Keep keys and values, and return what the tokens read.

        Args:
            query: [1, heads, new, dim]; key, value: [1, key-value heads, new, dim].

        Returns:
            [1, new, heads, dim]; rows of no request hold numbers without meaning.
        """


class Slices:
    """One attention for each request; for any number of tokens, on any device.

    Args:
        parts: the new tokens, one part after the other.
        dtype: of the model.
    """

    def __init__(self, parts: Sequence[Part], dtype: torch.dtype) -> None:
        self._parts = parts
        self._widths = [len(part.ids) for part in parts]
        self._masks: list[Tensor | None] = []
        for part in parts:
            seen = part.store.mask(part.rows, part.start)
            if seen is None:
                self._masks.append(None)
                continue
            # The lowest number and not minus infinity: kernels give NaN for a block of columns
            # that a row does not see at all. Its softmax is exactly 0 all the same.
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._masks.append(mask.masked_fill_(~seen, torch.finfo(dtype).min))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """See `Reader`."""
        heads, groups = query.shape[1], key.shape[1]
        rest = query.shape[2] - sum(self._widths)  # rows of no request
        widths = [*self._widths, rest] if rest else self._widths
        asked, new_keys, new_values = (
            each.split_with_sizes(widths, 2) for each in (query, key, value)
        )
        found: list[Tensor] = []
        for index, part in enumerate(self._parts):
            store, width = part.store, widths[index]
            store.write(layer, new_keys[index], new_values[index], part.start)
            mask = self._masks[index]
            # Query heads that share a key head stand as rows of one product: no key is repeated.
            if mask is not None and len(mask) == width:
                mask = self._masks[index] = mask.repeat(heads // groups, 1)
            used = part.start + width
            out = scaled_dot_product_attention(
                asked[index].reshape(1, groups, heads // groups * width, -1),
                store.keys[layer].narrow(2, 0, used),
                store.values[layer].narrow(2, 0, used),
                attn_mask=mask,
                scale=scale,
            )
            found.append(out.reshape(1, heads, width, -1))
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
    reader: Reader,
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
