"""Layouts in rounds, in which paths read each other while they run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mvspec.compiler.layout import Layout, lay_out
from mvspec.compiler.tokens import Tokens
from mvspec.errors import Unsupported
from mvspec.law.threads import SurfaceLaw

__all__ = ["in_rounds", "shared"]


def shared(k: int) -> Callable[[Tokens], Layout]:
    """Return the lowering in which paths read each other after every `k` tokens.

    Tokens of a block are laid out in rounds of `k` positions from its outermost fork on: a
    token sees the rounds before its own, and of its own round what the law shows it.

    Source: the rebuttal's ablation (Table R1), Group Think, Hogwild.
    """
    if k < 1:
        raise Unsupported(f"shared({k}): paths read each other after at least one token")
    k = min(k, np.iinfo(np.int32).max)

    return lambda tokens: in_rounds(
        lay_out(tokens.ids, tokens.free, tokens.forced, tokens.law), tokens.law, k
    )


def in_rounds(layout: Layout, law: SurfaceLaw, k: int) -> Layout:
    """Lay the tokens of a layout of the law out in rounds of `k` positions."""
    n = len(layout)
    depth = layout.depth
    bounds = np.array([*(run.start for run in law.runs), n], dtype=np.int64)
    lengths = np.diff(bounds)
    # For every run: at each depth the block and the path that its tokens stand in, and the
    # position of the outermost path's start, which rounds are counted from.
    block = np.full((depth, len(lengths)), -1, dtype=np.int32)
    path = np.full((depth, len(lengths)), -1, dtype=np.int32)
    base = np.zeros(len(lengths), dtype=np.int32)
    group = np.zeros(len(lengths), dtype=np.int32)
    group_inside = np.zeros(len(lengths), dtype=np.bool_)
    at = start = 0
    before = False  # whether the run before is inside a block
    for run, (_, position, _, thread) in enumerate(law.runs):
        inside = bool(thread.chain)
        for level, numbers in enumerate(thread.chain):
            block[level, run], path[level, run] = numbers
        if inside and not before:
            start = position
        at += not (inside and before)
        base[run], group[run], group_inside[run] = start, at, inside
        before = inside
    inside_block = np.repeat(group_inside, lengths)
    rounds = np.where(inside_block, (layout.position_ids - np.repeat(base, lengths)) // k, 0)
    order = np.lexsort((np.arange(n), rounds, np.repeat(group, lengths)))
    place = np.empty(n, dtype=np.int32)
    place[order] = np.arange(n, dtype=np.int32)
    hide = np.zeros((2, depth, n), dtype=np.int32)
    round_ = rounds[order]
    index = np.arange(n, dtype=np.int32)
    for level in range(depth):
        blocks = np.repeat(block[level], lengths)[order]
        paths = np.repeat(path[level], lengths)[order]
        # Within one round, the tokens of a block stand together, path after path.
        new_block = index == 0
        new_block[1:] = (blocks[1:] != blocks[:-1]) | (round_[1:] != round_[:-1])
        new_path = new_block.copy()
        new_path[1:] |= paths[1:] != paths[:-1]
        lo = np.maximum.accumulate(np.where(new_block, index, 0))
        hi = np.maximum.accumulate(np.where(new_path, index, 0))
        hidden = (blocks >= 0) & (lo < hi)
        hide[0, level] = np.where(hidden, lo, 0)
        hide[1, level] = np.where(hidden, hi, 0)
    parent = np.where(layout.parent >= 0, place[layout.parent], -1).astype(np.int32)
    return Layout(
        layout.input_ids[order], layout.position_ids[order], parent[order], layout.loss_mask[order],
        layout.document_ids[order], hide[0], hide[1],
    )  # fmt: skip
