"""Documents into rows of one length."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from mvspec.compiler.layout import Layout, concatenate
from mvspec.errors import VerifyError

__all__ = ["best_fit", "pack"]


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
