"""Masks of layouts for transformers models: dense (the oracle), additive, and FlexAttention.

All take one layout or a batch of them; a batch is padded to one length, and a padding row sees
itself alone, since a row that sees nothing becomes NaN and spreads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from mvspec.compiler.layout import Layout
from mvspec.errors import VerifyError

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
    if not isinstance(layouts, Layout) and not len(layouts):
        raise VerifyError("layouts", "a batch of none has no mask")
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
    batch = [layouts] if isinstance(layouts, Layout) else list(layouts)
    n = max(map(len, batch), default=0) if length is None else length
    if not batch or n < 1:
        raise VerifyError("layouts", "there is no token to make a mask of")
    nested = max(layout.depth for layout in batch)
    levels = max(2, 1 << max(nested - 1, 0).bit_length()) if depth is None else depth
    if nested > levels:
        raise VerifyError("layout", f"blocks nest {nested} deep, more than {levels}")
    longest = max(map(len, batch))
    if longest > n:
        raise VerifyError("layout", f"{longest} tokens do not fit into {n}: truncate")
    tables = [_stretches(layout, n, levels, block_size) for layout in batch]
    rows = [torch.from_numpy(table).to(device, non_blocking=True) for table in tables]
    lists = _stack([_kinds(row, n, block_size, nested) for row in rows], 1)
    number, columns = _ordered(lists)
    # [batch, 1, rows of blocks(, columns)] for each: keys of a row, then rows of a key.
    # Contiguous: FlexAttention's kernels know no stride over the batch.
    partial, full, partial_q, full_q = number.unsqueeze(2)
    partial_at, full_at, partial_q_at, full_q_at = columns.unsqueeze(2)
    padded = any(len(each) < n or each.document_ids.min() < 0 for each in batch)
    spread = _stack([_spread(row, n, padded=padded) for row in rows], 1)
    return BlockMask(
        seq_lengths=(n, n),
        kv_num_blocks=partial,
        kv_indices=partial_at,
        full_kv_num_blocks=full,
        full_kv_indices=full_at,
        q_num_blocks=partial_q,
        q_indices=partial_q_at,
        full_q_num_blocks=full_q,
        full_q_indices=full_q_at,
        BLOCK_SIZE=(block_size, block_size),
        mask_mod=_mask_mod(spread[0], tuple(spread[1 : 1 + levels]), tuple(spread[1 + levels :])),
    )


def _mask_mod(
    start: Tensor, lo: Sequence[Tensor], hi: Sequence[Tensor]
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    # One tensor a level: some of FlexAttention's back ends take no constant index.
    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (k <= q) & (k >= start[b, q])
        for low, high in zip(lo, hi, strict=True):
            seen = seen & ((k < low[b, q]) | (k >= high[b, q]))
        return seen

    return mask_mod


def _stack(tensors: list[Tensor], dim: int) -> Tensor:
    # A stack of one would be a copy; most batches are one packed row.
    return tensors[0].unsqueeze(dim) if len(tensors) == 1 else torch.stack(tensors, dim)


_AFTER, _END, _ROW, _FROM, _START = range(5)


def _stretches(layout: Layout, n: int, levels: int, size: int) -> NDArray[np.int32]:
    """int32 [5 + 2 levels, stretches]: rows within which no interval changes.

    For each: the row after its first, the row after its last, its row of blocks, the first key
    that its first row sees, where its document starts (-1 for padding), and lo and hi at each
    level. They also end where a row of blocks ends.
    """
    real = len(layout)
    cut = np.zeros(n, dtype=np.bool_)
    cut[::size] = True
    cut[real : real + 1] = True
    new = layout.document_ids[1:] != layout.document_ids[:-1]
    cut[1:real] |= new
    for interval in (*layout.hide_lo, *layout.hide_hi):
        cut[1:real] |= interval[1:] != interval[:-1]
    first = np.flatnonzero(cut)
    inside = np.searchsorted(first, real)
    rows = first[:inside]
    starts = np.concatenate([[0], np.flatnonzero(new) + 1])
    table = np.zeros((5 + 2 * levels, len(first)), dtype=np.int32)
    table[_AFTER] = first + 1
    table[_END, :-1], table[_END, -1:] = first[1:], n
    table[_ROW] = first // size
    table[_START] = -1
    table[_START, :inside] = starts[np.searchsorted(starts, rows, side="right") - 1]
    table[_START, :inside][layout.document_ids[rows] < 0] = -1
    table[_FROM] = np.where(table[_START] < 0, first, table[_START])
    lo, hi = table[5 : 5 + layout.depth], table[5 + levels : 5 + levels + layout.depth]
    lo[:, :inside], hi[:, :inside] = layout.hide_lo[:, rows], layout.hide_hi[:, rows]
    return table


def _spread(table: Tensor, n: int, *, padded: bool) -> Tensor:
    """int32 [1 + 2 levels, n]: start, lo and hi of every token; padding starts at itself."""
    lengths = table[_END] - table[_AFTER] + 1
    out = torch.repeat_interleave(table[_START:], lengths, dim=1, output_size=n)
    if padded:
        index = torch.arange(n, dtype=torch.int32, device=table.device)
        out[0] = torch.where(out[0] < 0, index, out[0])
    return out


def _kinds(table: Tensor, n: int, size: int, nested: int) -> Tensor:
    """bool [4, blocks, blocks]: which blocks of pairs are partly and wholly visible.

    [row, key] and then [key, row]. Of a stretch and a block of keys, the number of visible keys
    follows from the overlaps; only where they cross the diagonal does it differ by row.
    """
    blocks = -(-n // size)
    levels = (len(table) - 5) // 2
    after, end, seen_from = (table[name, :, None] for name in (_AFTER, _END, _FROM))
    lo, hi = table[5 : 5 + nested, :, None], table[5 + levels : 5 + levels + nested, :, None]
    k0 = (torch.arange(blocks, dtype=torch.int32, device=table.device) * size)[None, :]
    k1 = k0 + size
    if n % size:
        k1 = k1.clamp(max=n)
    visible = (k1 - torch.maximum(k0, seen_from)).clamp(min=0)
    if nested:
        hidden = (torch.minimum(k1, hi) - torch.maximum(k0, lo)).clamp(min=0)
        visible = visible - hidden.sum(0, dtype=torch.int32)
    before = k1 <= after  # no key of the block comes after the stretch's first row
    some = torch.where(before, visible > 0, k0 < end)
    lacking = ~before | (visible != size)
    # Per row of blocks: something is seen in any of its stretches, all in every one.
    counts = torch.zeros(2, blocks, blocks, dtype=torch.int32, device=table.device)
    counts.index_add_(1, table[_ROW], torch.stack([some, lacking]).int())
    any_seen, any_lacks = counts > 0
    all_seen = any_seen & ~any_lacks
    if n % size:
        all_seen[-1] = False  # the last rows are not all there
    pair = torch.stack([any_seen ^ all_seen, all_seen])
    return torch.cat([pair, pair.transpose(1, 2)])


def _ordered(listed: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row of blocks how many are listed, and their columns in order."""
    place = listed.cumsum(-1)
    number = place[..., -1].int()
    blocks = listed.shape[-1]
    # What is not listed is written to a slot past the end.
    place = torch.where(listed, place - 1, blocks)
    columns = torch.zeros((*listed.shape[:-1], blocks + 1), dtype=torch.int32, device=listed.device)
    each = torch.arange(blocks, dtype=torch.int32, device=listed.device)
    columns.scatter_(-1, place, each.expand_as(place))
    return number, columns[..., :-1].contiguous()
