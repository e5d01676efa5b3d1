"""Batches in the schedule's order: its share for each rank, carried on in mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from mvspec.compiler.layout import Layout
from mvspec.training.batch import Batch, Row
from mvspec.training.faults import CheckpointError
from mvspec.training.schedule import Schedule
from mvspec.training.source import Source

__all__ = ["Loader"]

_BLANK = -1
"""The row of a rank that has none left: padding, which carries no loss."""


class Loader:
    """The batches of one rank; what Lightning takes as a data loader.

    Its state is a number: the batches of the epoch that were handed out. What workers have read
    ahead does not count, so a resumed run sees exactly the batches that the killed one would have.
    The last batch is smaller where rows do not come out even, so that no row is left out or
    doubled.

    Args:
        sources: in the order of the schedule's sets.
        schedule: which row comes when.
        batch_size: rows of a rank in a step.
        rank, ranks: of the data-parallel group.
        length: tokens to pad rows to; by default the longest of the batch.
        pad_id: the token id of padding.
        workers: processes that read.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        schedule: Schedule,
        batch_size: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        length: int | None = None,
        pad_id: int = 0,
        workers: int = 0,
    ) -> None:
        self.sources = sources
        self.schedule = schedule
        self.batch_size = batch_size
        self.rank, self.ranks = rank, ranks
        self.length, self.pad_id = length, pad_id
        self.workers = workers
        self.epoch = self.handed = 0
        self._resumed: tuple[int, int] | None = None

    def __len__(self) -> int:
        return -(-len(self.schedule) // (self.batch_size * self.ranks))

    @property
    def sampler(self) -> Loader:
        """Whom Lightning tells of the epoch."""
        return self

    batch_sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """Take the number of the epoch whose batches come next."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, and in what order of which data."""
        return {
            "epoch": self.epoch, "handed": self.handed, "batches": len(self), "order": self._order,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where a loader stood.

        Raises:
            CheckpointError: it stood in the middle of another order: other data, stages, seed,
                or rows of a step.
        """
        self.epoch, handed = state["epoch"], state["handed"]
        batches = state.get("batches", len(self))  # of its own epoch; older ones do not say
        if state["order"] != self._order and 0 < handed < batches:
            raise CheckpointError(
                "the checkpoint stands in the middle of an epoch over other data, stages, seed or "
                f"rows of a step ({state['order']}, now {self._order}): use the same, or start "
                "from an exported model"
            )
        self._resumed = self.epoch, handed

    @property
    def _order(self) -> str:
        rows = self.batch_size * self.ranks
        return f"{self.schedule.key()}, {rows} rows a step"

    def __iter__(self) -> Iterator[Batch]:
        return _Epochs(self)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches from number `start` on."""
        keys = self._keys(epoch)[start:]
        yield from DataLoader(
            _Rows(self.sources, self.pad_id),
            batch_sampler=keys,
            collate_fn=self._collate,
            num_workers=self.workers,
        )

    def _collate(self, rows: list[Row]) -> Batch:
        return Batch(rows, self.length, pad_id=self.pad_id)

    def _keys(self, epoch: int) -> Any:
        which, rows = self.schedule.order(epoch)
        size = self.batch_size * self.ranks
        keys = np.stack([which, rows], 1)
        found: list[list[tuple[int, int]]] = []
        for at in range(0, len(keys), size):
            own = keys[at : at + size][self.rank :: self.ranks].tolist()
            found.append([(a, b) for a, b in own] or [(0, _BLANK)])
        return found


class _Rows(Dataset[Row]):
    def __init__(self, sources: Sequence[Source], pad_id: int) -> None:
        self.sources = sources
        self.pad_id = pad_id

    def __getitem__(self, key: tuple[int, int]) -> Row:
        source, row = key
        if row == _BLANK:
            none, no = np.zeros(0, np.int32), np.zeros(0, np.bool_)
            hide = np.zeros((0, 0), np.int32)
            blank = Layout(none, none, none, no, none, hide, hide)
            return Row(blank.padded(1, pad_id=self.pad_id), ())
        return self.sources[source][row]


class _Epochs:
    """An iterator that starts over when the epoch has changed.

    Lightning makes the iterator before it says which epoch it is, and keeps one that had come to
    its end when the run was resumed there.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._epoch = -1
        self._batches: Iterator[Batch] = iter(())

    def __iter__(self) -> _Epochs:
        return self

    def __next__(self) -> Batch:
        loader = self._loader
        if loader.epoch != self._epoch:
            self._epoch = loader.epoch
            resumed, start = loader._resumed or (-1, 0)
            loader.handed = start if resumed == self._epoch else 0
            loader._resumed = None
            self._batches = loader.batches(self._epoch, loader.handed)
        batch = next(self._batches)
        loader.handed += 1
        return batch
