"""The structural law, vectorised: one layout for training and inference.

O(tokens x depth) time and memory. The law itself, one event at a time: mvspec/law/threads.py.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvspec.errors import VerifyError
from mvspec.law.threads import SurfaceLaw
from mvspec.shown import SCREEN, screen

Int = NDArray[np.int32]


@dataclass(frozen=True)
class Layout:
    """The arrays of a document's tokens: positions, visibility, parents and loss.

    Args:
        input_ids: int32 [n].
        position_ids: int32 [n].
        parent: int32 [n]; the token whose logits predict this one, -1 where there is none.
        loss_mask: bool [n].
        document_ids: int32 [n]; tokens of different documents do not see each other, and -1
            marks padding, which sees itself alone.
        hide_lo, hide_hi: int32 [depth, n]; at each depth q may not see k in [lo[q], hi[q]).

    q sees k iff k <= q, both are of one document, and no depth hides k from q.
    """

    input_ids: Int
    position_ids: Int
    parent: Int
    loss_mask: NDArray[np.bool_]
    document_ids: Int
    hide_lo: Int
    hide_hi: Int

    def __len__(self) -> int:
        return len(self.input_ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layout):
            return NotImplemented
        depth = max(self.depth, other.depth)
        mine, theirs = self.padded_depth(depth), other.padded_depth(depth)
        return all(
            np.array_equal(getattr(mine, name), getattr(theirs, name))
            for name in self.__dataclass_fields__
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def depth(self) -> int:
        """Levels of blocks that hide anything."""
        return len(self.hide_lo)

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, in bytes."""
        return sum(getattr(self, name).nbytes for name in self.__dataclass_fields__)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """int64 [n]: input_ids where there is loss, else -100.

        Predict `labels[i]` from the logits at `parent[i]`, not at i - 1.
        """
        return np.where(self.loss_mask, self.input_ids, -100).astype(np.int64)

    def truncate(self, length: int) -> Layout:
        """Return the layout of the first `length` tokens."""
        if length < 0:
            raise VerifyError("layout", f"no layout has {length} tokens")
        fields = {
            name: getattr(self, name)[..., :length].copy() for name in self.__dataclass_fields__
        }
        return Layout(**fields)

    def padded(self, length: int, *, pad_id: int = 0) -> Layout:
        """Return the layout with padding tokens up to `length`, which see only themselves."""
        extra = length - len(self)
        if extra < 0:
            raise VerifyError("layout", f"{len(self)} tokens do not fit into {length}: truncate")

        blank = {"input_ids": pad_id, "parent": -1, "document_ids": -1}
        padded: dict[str, NDArray[Any]] = {}
        for name in self.__dataclass_fields__:
            array = getattr(self, name)
            widths = [(0, 0)] * (array.ndim - 1) + [(0, extra)]
            padded[name] = np.pad(array, widths, constant_values=blank.get(name, 0))
        return Layout(**padded)

    def padded_depth(self, depth: int) -> Layout:
        """Return the layout with empty intervals up to `depth` levels."""
        if depth < self.depth:
            raise VerifyError("layout", f"blocks nest {self.depth} deep, more than {depth}")
        extra = np.zeros((depth - self.depth, len(self)), dtype=np.int32)
        return replace(
            self,
            hide_lo=np.concatenate([self.hide_lo, extra]),
            hide_hi=np.concatenate([self.hide_hi, extra]),
        )

    def __repr__(self) -> str:
        documents = len(np.unique(self.document_ids[self.document_ids >= 0]))
        return (
            f"<Layout: {len(self):,} tokens of {documents:,} documents, "
            f"{np.count_nonzero(self.loss_mask):,} with loss, {self.depth} deep>"
        )

    def __str__(self) -> str:
        rows = []
        for name in self.__dataclass_fields__:
            array = getattr(self, name)
            with np.printoptions(threshold=8, edgeitems=4, linewidth=SCREEN[1]):
                told = str(array).replace("\n", "\n" + " " * 15)
            rows.append(f"{name:14} {told}")
        return screen("\n".join([repr(self), *rows]))

    def _repr_html_(self) -> str:
        from mvspec.view.layout_page import layout_html

        return layout_html(self)


def lay_out(
    ids: Int,
    free: NDArray[np.bool_],
    forced: NDArray[np.bool_],
    law: SurfaceLaw,
    *,
    forced_loss: bool = False,
) -> Layout:
    """Spread the runs of the law over their tokens.

    Args:
        ids, free, forced: of the tokens [n].
        forced_loss: let forced tokens carry loss too, where the token before them in the
            surface form is their parent.
    """
    n = len(ids)
    starts, positions, parents, threads = zip(*law.runs, strict=True)
    bounds = np.array([*starts, n], dtype=np.int64)
    lengths = np.diff(bounds)
    # Runs without a token (a prefix that ends at a fork) leave no trace.
    index = np.arange(n, dtype=np.int32)
    shift = bounds[:-1] - np.array(positions, dtype=np.int64)
    position_ids = index - np.repeat(shift.astype(np.int32), lengths)
    parent = index - 1
    kept = lengths > 0
    parent[bounds[:-1][kept]] = np.array(parents, dtype=np.int32)[kept]
    depth = max(len(thread.hidden) for thread in law.threads)
    table = np.zeros((2, depth, len(threads)), dtype=np.int32)
    for run, thread in enumerate(threads):
        for level, (lo, hi) in enumerate(thread.hidden):
            table[:, level, run] = lo, hi
    hide = np.repeat(table, lengths, axis=2)
    loss = free.copy()
    if forced_loss:
        loss |= forced & (parent == index - 1)
    loss &= parent >= 0
    return Layout(ids, position_ids, parent, loss, np.zeros(n, dtype=np.int32), hide[0], hide[1])


def concatenate(layouts: Sequence[Layout]) -> Layout:
    """Lay documents end to end: each restarts at position 0 and sees nothing of the others."""
    depth = max((layout.depth for layout in layouts), default=0)
    none, no_depth = np.zeros(0, dtype=np.int32), np.zeros((depth, 0), dtype=np.int32)
    parts = [Layout(none, none, none, none.astype(np.bool_), none, no_depth, no_depth)]
    start = document = 0
    for layout in layouts:
        part = layout.padded_depth(depth)
        empty = part.hide_lo == part.hide_hi
        parts.append(
            replace(
                part,
                parent=np.where(part.parent >= 0, part.parent + start, -1),
                document_ids=np.where(part.document_ids >= 0, part.document_ids + document, -1),
                hide_lo=np.where(empty, 0, part.hide_lo + start),
                hide_hi=np.where(empty, 0, part.hide_hi + start),
            )
        )
        start += len(part)
        document += int(part.document_ids.max(initial=-1)) + 1
    fields = Layout.__dataclass_fields__
    return Layout(
        **{name: np.concatenate([getattr(part, name) for part in parts], -1) for name in fields}
    )


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Assign documents to rows of `size` tokens, best fit decreasing, O(n log n).

    Returns:
        for each row the indices of its documents, in their order in `lengths`.

    Raises:
        VerifyError: a document is longer than a row.

    >>> best_fit([5, 3, 4, 2], 8)
    [[0, 1], [2, 3]]
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > size:
            raise VerifyError(
                f"document {index}", f"{length} tokens do not fit into {size}: truncate it"
            )
        at = bisect.bisect_left(room, (length, -1))
        if at == len(room):
            rows.append([])
            free, row = size, len(rows) - 1
        else:
            free, row = room.pop(at)
        rows[row].append(index)
        bisect.insort(room, (free - length, row))
    return [sorted(row) for row in rows]


def pack(layouts: Iterable[Layout], size: int, *, pad_id: int = 0) -> list[Layout]:
    """Pack documents into layouts of exactly `size` tokens; they do not see one another.

    Raises:
        VerifyError: a document is longer than `size`.
    """
    documents = list(layouts)
    rows = best_fit([len(layout) for layout in documents], size)
    return [concatenate([documents[i] for i in row]).padded(size, pad_id=pad_id) for row in rows]
