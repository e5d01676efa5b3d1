"""Masks of layouts for transformers models: dense (the oracle), additive, and FlexAttention.

All take one layout or a batch of them; a batch is padded to one length, and a padding row sees
itself alone, since a row that sees nothing becomes NaN and spreads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from mvspec.compiler.layout import Layout

__all__ = ["additive_mask", "block_mask", "dense_mask", "pad_batch"]

Layouts = Layout | Sequence[Layout]


def pad_batch(layouts: Layouts, length: int | None = None, *, pad_id: int = 0) -> list[Layout]:
    """Return layouts of one length and one depth.

    Args:
        length: tokens; by default the longest layout's.
        pad_id: the token id of padding.
    """
    batch = [layouts] if isinstance(layouts, Layout) else list(layouts)
    size = max((len(layout) for layout in batch), default=0) if length is None else length
    depth = max((layout.depth for layout in batch), default=0)
    return [layout.padded(size, pad_id=pad_id).padded_depth(depth) for layout in batch]


def dense_mask(layouts: Layouts, *, device: torch.device | str = "cpu") -> Tensor:
    """Return who sees whom, by evaluating every pair: the oracle of all other masks.

    Returns:
        bool [n, n] for one layout, [batch, n, n] for a sequence; True where q may see k.

    >>> import numpy as np
    >>> from mvspec.compiler import Layout
    >>> zeros, none = np.zeros(3, np.int32), np.zeros((0, 3), np.int32)
    >>> layout = Layout(zeros, zeros, zeros, zeros.astype(bool), zeros, none, none)
    >>> dense_mask(layout).int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    masks = torch.stack([_dense(layout, device) for layout in pad_batch(layouts)])
    return masks[0] if isinstance(layouts, Layout) else masks


def _dense(layout: Layout, device: torch.device | str) -> Tensor:
    index = torch.arange(len(layout), device=device)
    q, k = index[:, None], index[None, :]
    document = torch.as_tensor(layout.document_ids, device=device)
    mask = (k <= q) & (document[:, None] == document[None, :]) & (document[:, None] >= 0)
    for lo, hi in zip(layout.hide_lo, layout.hide_hi, strict=True):
        low, high = torch.as_tensor(lo, device=device), torch.as_tensor(hi, device=device)
        mask &= (k < low[:, None]) | (k >= high[:, None])
    return mask | (q == k)


def additive_mask(
    layouts: Layouts,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the mask that transformers adds to attention scores (`eager` and `sdpa`).

    Always additive: a boolean mask is added as numbers by eager attention, and no mask at all
    makes transformers guess packing from the positions.

    Returns:
        `dtype` [batch, 1, n, n]: 0 where q may see k, else the smallest number of the type.
    """
    batch = [layouts] if isinstance(layouts, Layout) else layouts
    allowed = dense_mask(batch, device=device)[:, None]
    blocked = torch.full(allowed.shape, torch.finfo(dtype).min, dtype=dtype, device=device)
    return blocked.masked_fill_(allowed, 0.0)


def block_mask(
    layouts: Layouts,
    *,
    device: torch.device | str = "cpu",
    block_size: int = 128,
    length: int | None = None,
    depth: int | None = None,
) -> BlockMask:
    """Return a FlexAttention `BlockMask`, built from the intervals without evaluating pairs.

    Pass it as `attention_mask`, with `position_ids`, to a transformers model that was loaded
    with `attn_implementation="flex_attention"`.

    Args:
        device: where attention runs.
        block_size: rows and columns of a block, in tokens.
        length: tokens to pad to; by default the longest layout's.
        depth: levels of intervals that the kernel evaluates; every other number is another
            kernel, so it is padded to 2, 4, 8, ... by default.

    Returns:
        a BlockMask [batch, 1, n, n]; O(n/block_size x n/block_size) memory.
    """
    batch = pad_batch(layouts, length)
    n = len(batch[0])
    levels = max(2, 1 << (batch[0].depth - 1).bit_length()) if depth is None else depth
    batch = [layout.padded_depth(levels) for layout in batch]
    starts = np.stack([_starts(layout) for layout in batch])
    lo = np.stack([layout.hide_lo for layout in batch], axis=1)
    hi = np.stack([layout.hide_hi for layout in batch], axis=1)
    start_t, lo_t, hi_t = (
        torch.from_numpy(array).to(device, non_blocking=True) for array in (starts, lo, hi)
    )
    kinds = torch.stack(
        [_kinds(layout, start, block_size, device) for layout, start in zip(batch, starts, strict=True)]
    )[:, None]
    partial_num, partial = _ordered(kinds == _PARTIAL)
    full_num, full = _ordered(kinds == _FULL)
    return BlockMask.from_kv_blocks(
        partial_num,
        partial,
        full_num,
        full,
        BLOCK_SIZE=block_size,
        mask_mod=_mask_mod(start_t, lo_t, hi_t, levels),
        seq_lengths=(n, n),
    )


_EMPTY, _PARTIAL, _FULL = 0, 1, 2


def _mask_mod(
    start: Tensor, lo: Tensor, hi: Tensor, levels: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (k <= q) & (k >= start[b, q])
        for level in range(levels):
            seen = seen & ((k < lo[level, b, q]) | (k >= hi[level, b, q]))
        return seen

    return mask_mod


def _starts(layout: Layout) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """[n]: the first token of each token's document; of a padding token, itself."""
    index = np.arange(len(layout), dtype=np.int32)
    changed = np.ones(len(layout), dtype=np.bool_)
    changed[1:] = layout.document_ids[1:] != layout.document_ids[:-1]
    changed |= layout.document_ids < 0
    starts: np.ndarray[tuple[int], np.dtype[np.int32]] = np.maximum.accumulate(
        np.where(changed, index, 0)
    )
    return starts


def _kinds(
    layout: Layout,
    starts: np.ndarray[tuple[int], np.dtype[np.int32]],
    size: int,
    device: torch.device | str,
) -> Tensor:
    """int8 [blocks, blocks]: whether each block of pairs is empty, partly or wholly visible.

    Rows are cut into stretches within which no interval changes; of a stretch and a block of
    keys, the number of visible keys follows from the overlaps.
    """
    n = len(layout)
    blocks = -(-n // size)
    cut = np.zeros(n, dtype=np.bool_)
    cut[::size] = True
    padding = layout.document_ids < 0
    cut[1:] |= (starts[1:] != starts[:-1]) & ~padding[1:]
    cut[1:] |= padding[1:] != padding[:-1]
    cut[1:] |= (layout.hide_lo[:, 1:] != layout.hide_lo[:, :-1]).any(axis=0)
    cut[1:] |= (layout.hide_hi[:, 1:] != layout.hide_hi[:, :-1]).any(axis=0)
    first = np.flatnonzero(cut)
    last = np.append(first[1:], n) - 1
    table = np.stack([first, last, starts[first], first // size, *layout.hide_lo[:, first], *layout.hide_hi[:, first]])
    packed = torch.from_numpy(table.astype(np.int32)).to(device, non_blocking=True)[:, :, None]
    first_t, last_t, start_t, row_t = packed[:4]
    lo_t, hi_t = packed[4 : 4 + layout.depth], packed[4 + layout.depth :]
    k0 = (torch.arange(blocks, dtype=torch.int32, device=device) * size)[None, :]
    k1 = (k0 + size).clamp(max=n)
    # Keys of the block that the stretch's first row sees, as far as they precede it.
    visible = (k1 - torch.maximum(k0, start_t)).clamp(min=0)
    hidden = torch.minimum(k1[None], hi_t) - torch.maximum(k0[None], lo_t)
    visible = visible - hidden.clamp(min=0).sum(0, dtype=torch.int32)
    before = k1 <= first_t + 1
    any_seen = torch.where(before, visible > 0, k0 <= last_t)
    all_seen = before & (visible == size)
    rows = row_t[:, 0].long()
    some = torch.zeros(blocks, blocks, dtype=torch.int32, device=device)
    some.index_add_(0, rows, any_seen.int())
    missing = torch.zeros(blocks, blocks, dtype=torch.int32, device=device)
    missing.index_add_(0, rows, (~all_seen).int())
    kinds = (some > 0).to(torch.int8)
    kinds += ((missing == 0) & (some > 0)).to(torch.int8)
    if n % size:
        kinds[-1].clamp_(max=_PARTIAL)  # the last rows are not all there
    return kinds


def _ordered(listed: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row of blocks how many are listed, and their columns, listed ones first."""
    number = listed.sum(-1, dtype=torch.int32)
    columns = torch.argsort(listed.to(torch.int8), dim=-1, descending=True, stable=True)
    return number, columns.to(torch.int32)
