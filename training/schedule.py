"""Which row comes when: an order that follows from seed and epoch alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvspec.errors import VerifyError

__all__ = ["Schedule", "Stage"]


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one mixture.

    Args:
        weights: the share of rows that each named set has, in any unit; by default each has its
            share of all rows.
        until: shares at the stage's end: they move there linearly; by default they stay.
        rows: how many rows the stage has.
        passes: where `rows` is not given: rows over those of all sets that the stage names.
    """

    weights: Mapping[str, float] | None = None
    until: Mapping[str, float] | None = None
    rows: int | None = None
    passes: float = 1.0


class Schedule:
    """The rows of an epoch, stage by stage.

    Within a set every row comes once before any comes again, in an order drawn anew for every
    pass. Shares are kept exactly and evenly: no draw decides which set is next.

    Args:
        sizes: rows of each set, by name.
        stages: one after the other; an epoch is all of them.
        seed: of the order.
        shuffle: whether rows are drawn in random order.

    Raises:
        VerifyError: a stage names a set that is not there, or has no row.

    >>> schedule = Schedule({"a": 4, "b": 2}, [Stage({"a": 1}, rows=2), Stage({"a": 1, "b": 1})])
    >>> len(schedule)
    8
    >>> [int(each) for each in schedule.order(0)[0]]
    [0, 0, 0, 1, 0, 1, 0, 1]
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        stages: Sequence[Stage] = (),
        *,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.sizes = dict(sizes)
        self.seed = seed
        self.shuffle = shuffle
        empty = [name for name, size in self.sizes.items() if not size]
        if empty or not self.sizes:
            raise VerifyError(
                ", ".join(empty) or "data", "there is no row to train on: compile some, or leave it"
            )
        self.stages = [self._counts(i, stage) for i, stage in enumerate(stages or [Stage()])]
        self._per_epoch = np.sum([counts for counts, _ in self.stages], axis=0)

    def __len__(self) -> int:
        return int(self._per_epoch.sum())

    def key(self) -> str:
        """Return a text that is the same for the same order."""
        each = [self.sizes, self.seed, self.shuffle, [counts.tolist() for counts, _ in self.stages]]
        order = np.concatenate([which for _, which in self.stages]).tobytes()
        digest = hashlib.sha256(json.dumps(each).encode() + order).hexdigest()
        return f"order {digest[:12]} of {len(self):,} rows"

    def order(self, epoch: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the set and the row of everything in an epoch, in order: both [rows]."""
        which = np.concatenate([each for _, each in self.stages])
        rows = np.empty(len(which), np.int64)
        for source, size in enumerate(self.sizes.values()):
            count = int(self._per_epoch[source])
            first = epoch * count
            taken = np.arange(first, first + count)
            found = np.empty(count, np.int64)
            for turn in range(first // size, -(-(first + count) // size)):
                of_turn = taken // size == turn
                found[of_turn] = self._permutation(source, turn, size)[taken[of_turn] % size]
            rows[which == source] = found
        return which, rows

    def _permutation(self, source: int, turn: int, size: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(size)
        return np.random.default_rng([self.seed, source, turn]).permutation(size)

    def _counts(self, index: int, stage: Stage) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return a stage's number of rows of each set, and the set of each of its rows."""
        names = list(self.sizes)
        given = stage.weights or {name: float(size) for name, size in self.sizes.items()}
        shares = []
        for weights in (given, stage.until or given):
            unknown = sorted(set(weights) - set(names))
            if unknown:
                raise VerifyError(
                    f"stages[{index}]",
                    f"no set is named {', '.join(unknown)}: there are {', '.join(names)}",
                )
            values = np.array([float(weights.get(name, 0)) for name in names])
            if (values < 0).any() or not values.sum() > 0 or not np.isfinite(values).all():
                raise VerifyError(
                    f"stages[{index}]", "weights are numbers from 0 up, and one is above 0"
                )
            shares.append(values / values.sum())
        used = (shares[0] > 0) | (shares[1] > 0)
        total = sum(size for size, use in zip(self.sizes.values(), used, strict=True) if use)
        count = round(stage.passes * total) if stage.rows is None else stage.rows
        if count < 1:
            raise VerifyError(f"stages[{index}]", "the stage has no row: raise rows or passes")
        # Of each set the running sum of its share: its next row comes where that passes the
        # next half, so shares are even at every point.
        at = (np.arange(count) + 0.5) / count
        sums = np.cumsum(shares[0][:, None] * (1 - at) + shares[1][:, None] * at, axis=1)
        exact = sums[:, -1]
        counts = np.floor(exact + 1e-9).astype(np.int64)
        most = np.argsort(-(exact - counts), kind="stable")[: count - counts.sum()]
        counts[most] += 1
        times = [
            np.interp(np.arange(each) + 0.5, np.concatenate([[0], running]), np.arange(count + 1))
            for each, running in zip(counts, sums, strict=True)
        ]
        which = np.repeat(np.arange(len(names), dtype=np.int32), counts)
        return counts, which[np.argsort(np.concatenate(times), kind="stable")]
