"""The mask of a layout as an image, and the paths that its colours tell apart."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

CELLS = 480
"""Rows and columns of a picture at most; a longer layout shares its cells out."""

PAGE = (1.0, 1.0, 1.0)
HIDDEN = (0.86, 0.84, 0.80)
ROOT = (0.42, 0.48, 0.60)
HUES = (0.58, 0.08, 0.37, 0.80, 0.50, 0.95, 0.15, 0.68)
"""Of the paths of a block, in order; they start over after the last."""

Colours = NDArray[np.float64]


class MaskArrays(Protocol):
    """The arrays of a layout that are drawn; `mvspec.compiler.Layout` has them."""

    @property
    def input_ids(self) -> NDArray[np.int32]: ...
    @property
    def position_ids(self) -> NDArray[np.int32]: ...
    @property
    def loss_mask(self) -> NDArray[np.bool_]: ...
    @property
    def document_ids(self) -> NDArray[np.int32]: ...
    @property
    def hide_lo(self) -> NDArray[np.int32]: ...
    @property
    def hide_hi(self) -> NDArray[np.int32]: ...
    @property
    def depth(self) -> int: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class MaskImage:
    """The mask of a layout as an image, a row for each query and a column for each key.

    Args:
        pixels: uint8 [cells, cells, 3].
        edges: int64 [cells + 1]; cell c stands for the tokens edges[c] up to edges[c + 1].
        seen: float [cells, cells]; the share of the cell's pairs that are visible.
        tracks: uint8 [cells, 3]; the colour of each cell's path.
        loss: uint8 [cells, 3]; the darker, the more of the cell's tokens carry loss.
        stretches: the paths.
    """

    pixels: NDArray[np.uint8]
    edges: NDArray[np.int64]
    seen: Colours
    tracks: NDArray[np.uint8]
    loss: NDArray[np.uint8]
    stretches: PathStretches


def draw(layout: MaskArrays, cells: int = CELLS) -> MaskImage:
    """Draw the mask of a layout; O((cells + runs) x cells) time, whatever its length.

    What q sees has the colour of the path that it reads; what a block hides from it is grey;
    what is still to come is white. Cells of several pairs are mixed in exact proportion.

    Args:
        layout: of one document or of a packed row.
        cells: rows and columns at most.
    """
    n = len(layout)
    size = max(1, min(n, cells))
    edges = np.arange(size + 1, dtype=np.int64) * n // size
    stretches = find_stretches(layout)
    seen, past = _shares(layout, edges, stretches)
    colours = np.repeat(stretches.colours, np.diff(stretches.starts), axis=0)
    share = np.repeat(layout.loss_mask[:, None], 3, axis=1)

    def means(values: Colours) -> Colours:
        sums = np.add.reduceat(values, edges[:-1], axis=0) if n else np.zeros((1, 3))
        return sums / np.maximum(np.diff(edges), 1)[:, None]

    keys = means(colours)
    loss = 1 - means(share.astype(float)) * (225 / 255)
    mixed = seen[..., None] * keys[None]
    mixed += (past - seen)[..., None] * np.array(HIDDEN)
    mixed += (1 - past)[..., None] * np.array(PAGE)
    return MaskImage(_bytes(mixed), edges, seen, _bytes(keys), _bytes(loss), stretches)


def _bytes(colours: Colours) -> NDArray[np.uint8]:
    return np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)


def _shares(
    layout: MaskArrays, edges: NDArray[np.int64], stretches: PathStretches
) -> tuple[Colours, Colours]:
    """Of each cell the share of pairs that are visible, and of those that are not to come."""
    size = len(edges) - 1
    k0, k1 = edges[:-1], edges[1:]
    seen = np.zeros((size, size))
    past = np.zeros((size, size))
    start = document_starts(layout)
    lo, hi = layout.hide_lo.astype(np.int64), layout.hide_hi.astype(np.int64)
    # Within a stretch and a cell all queries see the same keys, up to themselves.
    documents = np.flatnonzero(np.diff(start)) + 1
    for a, b in pairwise(np.unique([*edges, *stretches.starts, *documents]).tolist()):
        row = int(np.searchsorted(edges, a, side="right")) - 1
        past[row] += _pairs(a, b, k0, k1)
        visible = _pairs(a, b, np.clip(start[a], k0, k1), k1)
        for level in range(layout.depth):
            low, high = np.clip(lo[level, a], k0, k1), np.clip(hi[level, a], k0, k1)
            visible -= (b - a) * (high - low)
        seen[row] += visible
    area = np.maximum((k1 - k0)[:, None] * (k1 - k0)[None], 1)
    return seen / area, past / area


def _pairs(a: int, b: int, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count for each range of keys the pairs of a query in [a, b) and a key not after it."""
    width = high - low

    def before(q: int) -> NDArray[np.int64]:
        # The sum over all queries up to q of clip(query + 1 - low, 0, width).
        rising = np.clip(q - low, 0, width)
        sums: NDArray[np.int64] = rising * (rising + 1) // 2 + np.maximum(q - high, 0) * width
        return sums

    return before(b) - before(a)


def document_starts(layout: MaskArrays) -> NDArray[np.int64]:
    """Return for each token the first that it could see: its document's, or itself in padding."""
    index = np.arange(len(layout), dtype=np.int64)
    new = np.ones(len(layout), dtype=np.bool_)
    new[1:] = layout.document_ids[1:] != layout.document_ids[:-1]
    new |= layout.document_ids < 0
    starts: NDArray[np.int64] = np.maximum.accumulate(np.where(new, index, 0))
    return starts


@dataclass(frozen=True)
class PathStretches:
    """Stretches of tokens of one path, in which positions rise by one.

    Args:
        starts: int64 [stretches + 1]; the last is the number of tokens.
        numbers: int32 [depth, stretches]; at each depth the path's number among its siblings
            from 0, -1 outside of blocks.
        colours: float [stretches, 3] in 0 to 1.
    """

    starts: NDArray[np.int64]
    numbers: NDArray[np.int32]
    colours: Colours

    def labels(self) -> list[str]:
        """Return of each stretch its path, as "2.1": the first path inside the second."""
        return [
            ".".join(str(number + 1) for number in column if number >= 0)
            for column in self.numbers.T.tolist()
        ]


def find_stretches(layout: MaskArrays) -> PathStretches:
    """Find the paths of a layout from its intervals alone.

    What the second path may not see is the first. A block of one path hides nothing, and so does
    not show.
    """
    n = len(layout)
    cut = np.zeros(n + 1, dtype=np.bool_)
    cut[[0, n]] = True
    if n:
        cut[1:n] |= layout.document_ids[1:] != layout.document_ids[:-1]
        real = layout.document_ids >= 0  # padding is one stretch, though its positions stand still
        cut[1:n] |= (layout.position_ids[1:] != layout.position_ids[:-1] + 1) & real[1:]
        for table in (layout.hide_lo, layout.hide_hi):
            cut[1:n] |= (table[:, 1:] != table[:, :-1]).any(axis=0)
        hiding = layout.hide_lo < layout.hide_hi
        cut[layout.hide_lo[hiding]] = True
        cut[layout.hide_hi[hiding]] = True
    starts = np.flatnonzero(cut)
    at = starts[:-1]
    numbers = np.full((layout.depth, len(at)), -1, dtype=np.int32)
    for level in range(layout.depth):
        lo, hi = layout.hide_lo[level, at], layout.hide_hi[level, at]
        for first in np.unique(lo[lo < hi]).tolist():
            block = (lo < hi) & (lo == first)
            seconds = np.unique(hi[block])
            numbers[level, (at >= first) & (at < seconds[0])] = 0
            numbers[level, block] = np.searchsorted(seconds, hi[block]) + 1
    colours = _colours(numbers)
    colours[layout.document_ids[at] < 0] = HIDDEN
    return PathStretches(starts, numbers, colours)


def _colours(numbers: NDArray[np.int32]) -> Colours:
    """The hue is that of the outermost path; paths inside it are shades of it."""
    known: dict[tuple[int, ...], tuple[float, ...]] = {(): ROOT}
    colours = np.empty((numbers.shape[1], 3))
    for stretch, column in enumerate(numbers.T.tolist()):
        path = tuple(number for number in column if number >= 0)
        if path not in known:
            inside = enumerate(path[1:], 1)
            shade = sum((0.14 + 0.12 * (number % 3)) / depth for depth, number in inside)
            known[path] = colorsys.hls_to_rgb(
                HUES[path[0] % len(HUES)], min(0.46 + shade, 0.82), 0.62
            )
        colours[stretch] = known[path]
    return colours
