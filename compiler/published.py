"""Layout of the published training code, the lowering `official`; nothing else knows of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mvspec.compiler.layout import Layout
from mvspec.compiler.sequential import sequential
from mvspec.compiler.tokens import Tokens
from mvspec.compiler.vocabulary import TAGS
from mvspec.law.tags import Tag

__all__ = ["published"]

Int = NDArray[np.int32]


def published(tokens: Tokens) -> Layout:
    """Reproduce the published training tensors, for comparison and published checkpoints.

    There, a path spans `<Path>` to `</Path>`; separators belong to no path, so later paths see
    them; `<Path>` sits on the position of the separator after `</Goal>`; `<Conclusion>` right
    after the longest `</Path>`; labels are shifted by one in flat order.
    """
    paths = iter(tokens.law.threads[1:])
    n = len(tokens.ids)
    starts, positions = [0], [0]
    blocks: list[list[int]] = []  # of the open blocks: [where paths start, longest path's end]
    siblings: dict[int, list[tuple[int, int]]] = {}
    levels: list[Int] = []
    for number, end in zip(tokens.tags.tolist(), tokens.ends.tolist(), strict=True):
        at = positions[-1] + end - 1 - starts[-1]
        if TAGS[number] is Tag.END_GOAL:
            blocks.append([at + 1, at])
        elif TAGS[number] is Tag.PATH:
            starts.append(end - 1)
            positions.append(blocks[-1][0])
            path = next(paths)
            here = (end - 1, path.stop if path.stop >= 0 else n)
            for earlier in siblings.setdefault(path.block, []):
                _hide(levels, n, here, earlier)
            siblings[path.block].append(here)
        elif TAGS[number] is Tag.END_PATH:
            blocks[-1][1] = max(blocks[-1][1], at)
        elif TAGS[number] is Tag.CONCLUSION:
            starts.append(end - 1)
            positions.append(blocks.pop()[1] + 1)
    shift = np.array(starts, dtype=np.int32) - np.array(positions, dtype=np.int32)
    index = np.arange(n, dtype=np.int32)
    hide = np.stack(levels, axis=1) if levels else np.zeros((2, 0, n), dtype=np.int32)
    return replace(
        sequential(tokens),
        position_ids=index - np.repeat(shift, np.diff([*starts, n])),
        hide_lo=hide[0],
        hide_hi=hide[1],
    )


def _hide(levels: list[Int], n: int, rows: tuple[int, int], keys: tuple[int, int]) -> None:
    """Hide the keys [lo, hi) from these rows, on the first level that is free there."""
    for level in levels:
        if not level[1, slice(*rows)].any():
            break
    else:
        level = np.zeros((2, n), dtype=np.int32)
        levels.append(level)
    level[:, slice(*rows)] = np.array(keys, dtype=np.int32)[:, None]
