"""A set of layouts as rows of training: packed, or one document a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mvspec.compiler.layout import Layout, concatenate
from mvspec.compiler.packing import best_fit
from mvspec.errors import LimitExceeded, VerifyError
from mvspec.training.batch import Row

__all__ = ["TOO_LONG", "Documents", "Source"]

TOO_LONG = ("truncate", "drop", "error")
"""What becomes of documents that are longer than a row."""


class Documents(Protocol):
    """Layouts by index: a list of them, or a `CompiledDataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Layout: ...


class Source:
    """The rows of one set.

    Args:
        name: of the set.
        documents: what it holds.
        length: the most tokens of a row; None is no limit.
        pack: fill rows with documents, best fit decreasing within windows of shuffled ones.
        too_long: one of `TOO_LONG`: a truncated document is a valid layout.
        seed: of the windows.
        window: documents that are packed together: fewer keep the order more random, more waste
            less.

    Raises:
        VerifyError: no row is left.
        LimitExceeded: a document is too long, and `too_long` is "error".
    """

    def __init__(
        self,
        name: str,
        documents: Documents,
        *,
        length: int | None = None,
        pack: bool = False,
        too_long: str = "truncate",
        seed: int = 0,
        window: int = 1024,
    ) -> None:
        if too_long not in TOO_LONG:
            raise VerifyError("too_long", f"{too_long!r} is not one of {', '.join(TOO_LONG)}")
        if pack and length is None:
            raise VerifyError("pack", "packing needs a length: give length")
        self.name = name
        self.documents = documents
        self.length = length
        self.truncated = self.dropped = 0
        """Documents that were longer than a row."""
        lengths = _lengths(documents)
        long = lengths > length if length else np.zeros(len(lengths), np.bool_)
        kept = np.arange(len(lengths))
        if long.any():
            if too_long == "error":
                first = int(long.argmax())
                raise LimitExceeded(
                    f"{self.names(first)[0]}: {lengths[first]} tokens, more than length {length}: "
                    "raise length, or use too_long: truncate or drop"
                )
            if too_long == "drop":
                self.dropped = int(long.sum())
                kept = kept[~long]
            else:
                self.truncated = int(long.sum())
        if not len(kept):
            what = f"all {len(lengths)} documents are too long" if len(lengths) else "it is empty"
            raise VerifyError(name, f"there is no row to train on: {what}")
        self._rows: list[list[int]] | NDArray[np.int64] = kept
        if pack:
            sizes = np.minimum(lengths, length or 0)
            mixed = np.random.default_rng([seed, len(kept)]).permutation(kept)
            self._rows = []
            for at in range(0, len(mixed), window):
                some = mixed[at : at + window]
                rows = best_fit(sizes[some].tolist(), length or 0)
                self._rows += [some[row].tolist() for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        row = self._rows[index]
        members = [int(row)] if isinstance(row, int | np.integer) else row
        layouts = [self.documents[member] for member in members]
        names = tuple(name for member in members for name in self.names(member))
        if self.length is not None:
            layouts = [
                each if len(each) <= self.length else each.truncate(self.length) for each in layouts
            ]
        return Row(layouts[0] if len(layouts) == 1 else concatenate(layouts), names)

    def names(self, index: int) -> list[str]:
        """Return the names of the records of a document, or of a row that was packed before."""
        records = getattr(self.documents, "records", None)
        return records(index) if records else [f"{self.name}[{index}]"]


def _lengths(documents: Documents | Sequence[Any]) -> NDArray[np.int64]:
    known: NDArray[np.int64] | None = getattr(documents, "lengths", None)
    if known is not None:
        return known
    return np.array([len(documents[i]) for i in range(len(documents))], np.int64)
