"""Attention of one token of each of many threads, wherever their keys lie; for CUDA graphs.

All that changes from step to step is data: addresses of keys, columns, and what a token sees
are read from memory. So a captured launch serves any requests, whatever their lengths.
Source: flash decoding, with a visibility table.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""Columns that a program reads at once."""


@triton.jit
def _write(
    new, row_stride, head_stride,
    pointers, capacities, columns,
    dim: tl.constexpr, dim_padded: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    column = tl.load(columns + row)
    offset = tl.arange(0, dim_padded)
    inside = (offset < dim) & (column >= 0)
    values = tl.load(new + row * row_stride + head * head_stride + offset, mask=inside)
    to = tl.load(pointers + row).to(tl.pointer_type(new.dtype.element_ty))
    place = (head * tl.load(capacities + row) + column) * dim
    tl.store(to + place + offset, values, mask=inside)


@triton.jit
def _read(
    query, row_stride, head_stride,
    keys, values, capacities, columns, table,
    sums, highest, totals, scale,
    group: tl.constexpr, group_padded: tl.constexpr,
    dim: tl.constexpr, dim_padded: tl.constexpr,
    width: tl.constexpr, width_padded: tl.constexpr,
    splits: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kind = query.dtype.element_ty
    exact = sums.dtype.element_ty
    capacity = tl.load(capacities + row)
    end = tl.load(columns + row) + 1
    # The first two numbers of the table: where it lies, and how wide it is.
    seen_row = tl.load(table).to(tl.pointer_type(tl.int8)) + row * tl.load(table + 1)
    key = tl.load(keys + row).to(tl.pointer_type(kind)) + head * capacity * dim
    value = tl.load(values + row).to(tl.pointer_type(kind)) + head * capacity * width
    key, value = tl.multiple_of(key, 16), tl.multiple_of(value, 16)

    member, offset = tl.arange(0, group_padded), tl.arange(0, dim_padded)
    wide = tl.arange(0, width_padded)
    asked = tl.load(
        query + row * row_stride + (head * group + member[:, None]) * head_stride + offset[None, :],
        mask=(member[:, None] < group) & (offset[None, :] < dim),
        other=0.0,
    )
    most = tl.full([group_padded], -float("inf"), exact)
    total = tl.zeros([group_padded], exact)
    out = tl.zeros([group_padded, width_padded], exact)
    each = tl.cdiv(tl.cdiv(end, splits), size) * size
    stop = tl.minimum(split * each + each, end)
    for start in range(split * each, stop, size):
        column = start + tl.arange(0, size)
        # Columns that are not seen are not even read: what stands there changes nothing.
        seen = tl.load(seen_row + column, mask=column < stop, other=0) != 0
        k = tl.load(
            key + column[:, None] * dim + offset[None, :],
            mask=seen[:, None] & (offset[None, :] < dim),
            other=0.0,
        )
        v = tl.load(
            value + column[:, None] * width + wide[None, :],
            mask=seen[:, None] & (wide[None, :] < width),
            other=0.0,
        )
        score = tl.dot(asked, tl.trans(k), input_precision="ieee", out_dtype=exact) * scale
        score = tl.where(seen[None, :], score, -float("inf"))
        higher = tl.maximum(most, tl.max(score, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)  # nothing seen so far
        weight = tl.exp(score - base[:, None])
        fade = tl.exp(most - base)
        total = total * fade + tl.sum(weight, 1)
        part = tl.dot(weight.to(kind), v, input_precision="ieee", out_dtype=exact)
        out = out * fade[:, None] + part
        most = higher
    at = ((row * tl.num_programs(1) + head) * splits + split) * group_padded + member
    tl.store(highest + at, most)
    tl.store(totals + at, total)
    tl.store(sums + at[:, None] * width_padded + wide[None, :], out)


@triton.jit
def _combine(
    sums, highest, totals, out,
    group: tl.constexpr, group_padded: tl.constexpr,
    width: tl.constexpr, width_padded: tl.constexpr, splits: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)  # of a query
    shared, member = head // group, head % group
    wide = tl.arange(0, width_padded)
    first = (row * (tl.num_programs(1) // group) + shared) * splits
    at = (first + tl.arange(0, splits)) * group_padded + member
    most = tl.load(highest + at)
    base = tl.max(most, 0)
    base = tl.where(base == -float("inf"), 0.0, base)
    weight = tl.exp(most - base)
    total = tl.sum(tl.load(totals + at) * weight, 0)
    found = tl.sum(tl.load(sums + at[:, None] * width_padded + wide[None, :]) * weight[:, None], 0)
    found = found / tl.where(total == 0, 1.0, total)  # a row that is only there to fill up
    place = (row * tl.num_programs(1) + head) * width
    tl.store(out + place + wide, found.to(out.dtype.element_ty), mask=wide < width)


def write(new: Tensor, pointers: Tensor, capacities: Tensor, columns: Tensor) -> None:
    """Keep one new token's keys, or values, of each row.

    Args:
        new: [1, heads, rows, dim].
        pointers: int64 [rows]; where the row's tensor [heads, capacity, dim] begins.
        capacities, columns: int64 [rows]; nothing is kept at column -1.
    """
    _, heads, rows, dim = new.shape
    _write[(rows, heads)](
        new, new.stride(2), new.stride(1), pointers, capacities, columns,
        dim=dim, dim_padded=triton.next_power_of_2(dim), num_warps=1,
    )  # fmt: skip


def read(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    capacities: Tensor,
    columns: Tensor,
    table: Tensor,
    groups: int,
    width: int,
    scale: float,
) -> Tensor:
    """Let one token of each row attend to the columns up to its own that the table shows it.

    Args:
        query: [1, heads, rows, dim].
        keys, values: int64 [rows]; where the row's tensors [groups, capacity, dim or width] begin.
        capacities, columns: int64 [rows]; a row at column -1 sees nothing.
        table: int64 [2]: the address of bytes [rows, at least columns + 1], and their row's length.
        groups: key-value heads.
        width: of a value.
        scale: of the products.

    Returns:
        [1, rows, heads, width]; zeros where nothing is seen.
    """
    _, heads, rows, dim = query.shape
    group = heads // groups
    # Enough programs for a large GPU, also for a single thread.
    splits = max(1, min(32, triton.next_power_of_2(256 // (rows * groups) or 1)))
    padded = max(16, triton.next_power_of_2(group))
    wide = max(16, triton.next_power_of_2(width))
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    sums = query.new_empty(rows, groups, splits, padded, wide, dtype=exact)
    highest = query.new_empty(rows, groups, splits, padded, dtype=exact)
    totals = torch.empty_like(highest)
    out = query.new_empty(1, rows, heads, width)
    _read[(rows, groups, splits)](
        query, query.stride(2), query.stride(1),
        keys, values, capacities, columns, table,
        sums, highest, totals, scale,
        group=group, group_padded=padded,
        dim=dim, dim_padded=max(16, triton.next_power_of_2(dim)),
        width=width, width_padded=wide, splits=splits, size=BLOCK,
    )  # fmt: skip
    _combine[(rows, heads)](
        sums, highest, totals, out,
        group=group, group_padded=padded, width=width, width_padded=wide, splits=splits,
        num_warps=1,
    )  # fmt: skip
    return out
