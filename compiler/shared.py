"""Paths that read each other while they run: a layout in rounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mvspec.compiler.layout import Layout, lay_out
from mvspec.compiler.lower import Tokens
from mvspec.compiler.runs import structural_runs
from mvspec.errors import Unsupported

__all__ = ["shared"]


def shared(k: int) -> Callable[[Tokens], Layout]:
    """Return the lowering in which paths read each other after every `k` tokens.

    Tokens of a block are laid out in rounds of `k` positions from its outermost fork on: a
    token sees the rounds before its own, and of its own round what the law shows it.

    Source: the rebuttal's ablation (Table R1), Group Think, Hogwild.
    """
    if k < 1:
        raise Unsupported(f"shared({k}): paths read each other after at least one token")
    k = min(k, np.iinfo(np.int32).max)

    def lowering(tokens: Tokens) -> Layout:
        runs = structural_runs(tokens.tags, tokens.ends)
        law = lay_out(tokens.ids, tokens.free, tokens.forced, runs)
        n = len(law)
        depth = law.depth
        bounds = np.array([*runs.starts, n], dtype=np.int64)
        lengths = np.diff(bounds)
        # For every run: at each depth the block and the path that its tokens stand in, and the
        # position of the outermost path's start, which rounds are counted from.
        block = np.full((depth, len(lengths)), -1, dtype=np.int32)
        path = np.full((depth, len(lengths)), -1, dtype=np.int32)
        base = np.zeros(len(lengths), dtype=np.int32)
        group = np.zeros(len(lengths), dtype=np.int32)
        group_inside = np.zeros(len(lengths), dtype=np.bool_)
        at = 0
        for run, number in enumerate(runs.paths):
            inside: list[int] = []
            while number >= 0:
                inside.append(number)
                number = runs.spans[number].outer
            for level, span in enumerate(reversed(inside)):
                block[level, run] = runs.spans[span].block
                path[level, run] = span
            group_inside[run] = bool(inside)
            if inside:
                base[run] = law.position_ids[runs.spans[inside[-1]].start :][:1].sum()
                at += runs.paths[run - 1] < 0
            else:
                at += 1
            group[run] = at
        inside_block = np.repeat(group_inside, lengths)
        rounds = np.where(inside_block, (law.position_ids - np.repeat(base, lengths)) // k, 0)
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
        parent = np.where(law.parent >= 0, place[law.parent], -1).astype(np.int32)
        return Layout(
            law.input_ids[order], law.position_ids[order], parent[order], law.loss_mask[order],
            law.document_ids[order], hide[0], hide[1],
        )  # fmt: skip

    return lowering
