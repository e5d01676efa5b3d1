"""Data of training: compiled sets, packed and mixed by stages, as resumable batches of a rank."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from mvspec.compiler.chat_template import TemplateSettings, adopt, settings_of
from mvspec.compiler.layout import Layout, best_fit, concatenate
from mvspec.compiler.vocabulary import pad_id
from mvspec.errors import LimitExceeded, VerifyError
from mvspec.training.batch import Batch, BatchRow
from mvspec.training.parallel import DataRanks


@dataclass(frozen=True)
class MixtureStage:
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


class RowSchedule:
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

    >>> stages = [MixtureStage({"a": 1}, rows=2), MixtureStage({"a": 1, "b": 1})]
    >>> schedule = RowSchedule({"a": 4, "b": 2}, stages)
    >>> len(schedule)
    8
    >>> [int(each) for each in schedule.order(0)[0]]
    [0, 0, 0, 1, 0, 1, 0, 1]
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        stages: Sequence[MixtureStage] = (),
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
        self.stages = [self._counts(i, stage) for i, stage in enumerate(stages or [MixtureStage()])]
        self._per_epoch = np.sum([counts for counts, _ in self.stages], axis=0)

    def __len__(self) -> int:
        return int(self._per_epoch.sum())

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

    def _counts(
        self, index: int, stage: MixtureStage
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
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


TOO_LONG = ("truncate", "drop", "error")
"""What becomes of documents that are longer than a row."""


class LayoutSequence(Protocol):
    """Layouts by index: a list of them, or a `CompiledDataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Layout: ...


class LayoutSource:
    """The rows of one set.

    Args:
        name: of the set.
        documents: what it holds.
        length: the most tokens of a row; None is no limit.
        positions: how many the model has; a document that goes past them is too long as well.
        pack: fill rows with documents, best fit decreasing within windows of shuffled ones.
        too_long: one of `TOO_LONG`: a truncated document is a valid layout.
        seed: of the windows.
        window: documents that are packed together: fewer keep the order more random, more waste
            less.

    A document of which no token with loss fits is left out: it cannot teach. `notes` says how many.

    Raises:
        VerifyError: no row is left.
        LimitExceeded: a document is too long, and `too_long` is "error".
    """

    def __init__(
        self,
        name: str,
        documents: LayoutSequence,
        *,
        length: int | None = None,
        positions: int | None = None,
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
        self.notes: list[str] = []
        """What was cut or left out, a sentence each."""
        lengths = _of_documents(documents, "lengths", len)
        self._room = lengths.copy() if length is None else np.minimum(lengths, length)
        limits = [] if length is None else [f"length {length:,}"]
        if positions is not None and (self._room > positions).any():
            limits.append(f"the model's {positions:,} positions")
            highest = _of_documents(documents, "highest", lambda each: each.position_ids.max())
            for row in np.flatnonzero((highest >= positions) & (self._room > positions)):
                cut = int((documents[int(row)].position_ids >= positions).argmax())
                self._room[row] = min(self._room[row], cut)
        long = lengths > self._room
        kept = np.ones(len(lengths), np.bool_)
        if long.any():
            limit = " or ".join(limits)
            if too_long == "error":
                first = int(long.argmax())
                raise LimitExceeded(
                    f"{self.names(first)[0]}: {lengths[first]} tokens, more than {limit}: "
                    "use too_long: truncate or drop, or a model or length with room"
                )
            what = "dropped" if too_long == "drop" else "truncated"
            self.notes.append(f"{long.sum():,} documents longer than {limit} are {what}")
            if too_long == "drop":
                kept = ~long
        taught = _of_documents(documents, "first_loss", _first_loss) < self._room
        if (kept & ~taught).any():
            self.notes.append(
                f"{(kept & ~taught).sum():,} documents without loss (in what fits) are left out"
            )
        rows = np.flatnonzero(kept & taught)
        if not len(rows):
            what = "; ".join(self.notes) if len(lengths) else "it is empty"
            raise VerifyError(name, f"there is no row to train on: {what}")
        self._rows: list[list[int]] | NDArray[np.int64] = rows
        if pack:
            mixed = np.random.default_rng([seed, len(rows)]).permutation(rows)
            self._rows = []
            for at in range(0, len(mixed), window):
                some = mixed[at : at + window]
                found = best_fit(self._room[some].tolist(), length or 0)
                self._rows += [some[row].tolist() for row in found]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> BatchRow:
        row = self._rows[index]
        members = [int(row)] if isinstance(row, int | np.integer) else row
        layouts = [
            each if len(each) <= room else each.truncate(int(room))
            for each, room in ((self.documents[i], self._room[i]) for i in members)
        ]
        names = tuple(name for member in members for name in self.names(member))
        return BatchRow(layouts[0] if len(layouts) == 1 else concatenate(layouts), names)

    def names(self, index: int) -> list[str]:
        """Return the names of the records of a document, or of a row that was packed before."""
        records = getattr(self.documents, "records", None)
        return records(index) if records else [f"{self.name}[{index}]"]


def described_content(documents: LayoutSequence) -> str:
    """Return how many rows a set has and a digest of what they hold, wherever it lies.

    The digest is the manifest's, or else one of all lengths and of up to 512 rows.
    """
    lowering = getattr(documents, "manifest", {}).get("lowering", "")
    content = getattr(documents, "content", None)
    if content is None:
        digest = hashlib.sha256(_of_documents(documents, "lengths", len).tobytes())
        for index in np.unique(np.linspace(0, len(documents) - 1, 512).astype(int)):
            for array in vars(documents[int(index)]).values():
                digest.update(np.ascontiguousarray(array).tobytes())
        content = digest.hexdigest()
    return f"{len(documents):,} rows{lowering and ' of '}{lowering}, sha256 {content[:16]}"


def _of_documents(
    documents: LayoutSequence, name: str, each: Callable[[Layout], int]
) -> NDArray[np.int64]:
    """Return a number of every document: an attribute of a `CompiledDataset`, or computed."""
    known: NDArray[np.int64] | None = getattr(documents, name, None)
    if known is not None:
        return known
    return np.array([each(documents[i]) for i in range(len(documents))], np.int64)


def _first_loss(layout: Layout) -> int:
    return int(layout.loss_mask.argmax()) if layout.loss_mask.any() else len(layout)


_BLANK = -1
"""The row of a rank that has none left: padding, which carries no loss."""


class BatchLoader:
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
        sources: Sequence[LayoutSource],
        schedule: RowSchedule,
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
    def sampler(self) -> BatchLoader:
        """Whom Lightning tells of the epoch."""
        return self

    batch_sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """Take the number of the epoch whose batches come next."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands."""
        return {"epoch": self.epoch, "handed": self.handed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where a loader of the same order stood."""
        self.epoch = state["epoch"]
        self._resumed = self.epoch, state["handed"]

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

    def _collate(self, rows: list[BatchRow]) -> Batch:
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


class _Rows(Dataset[BatchRow]):
    def __init__(self, sources: Sequence[LayoutSource], pad_id: int) -> None:
        self.sources = sources
        self.pad_id = pad_id

    def __getitem__(self, key: tuple[int, int]) -> BatchRow:
        source, row = key
        if row == _BLANK:
            none, no = np.zeros(0, np.int32), np.zeros(0, np.bool_)
            hide = np.zeros((0, 0), np.int32)
            blank = Layout(none, none, none, no, none, hide, hide)
            return BatchRow(blank.padded(1, pad_id=self.pad_id), ())
        return self.sources[source][row]


class _Epochs:
    """An iterator that starts over when the epoch has changed.

    Lightning makes the iterator before it says which epoch it is, and keeps one that had come to
    its end when the run was resumed there.
    """

    def __init__(self, loader: BatchLoader) -> None:
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


_OF_THE_ORDER = ("length", "pack", "too_long", "seed", "shuffle")


def adopt_template(tokenizer: Any, settings: TemplateSettings | None) -> str:
    """Let a model's chat template be rendered, from now on, as it was for its data.

    Returns:
        what to say where it goes on being rendered otherwise; else "".
    """
    if tokenizer is None or settings is None:
        return ""
    own = settings_of(tokenizer)
    if own is None:
        adopt(tokenizer, settings)
    elif own.clock != settings.clock:
        told, asked = settings.clock or "any time", own.clock or "any time"
        return f"its prompts say it is {told}, and the model will be asked as at {asked}"
    return ""


Given = str | os.PathLike[str] | Sequence[Layout]


class LayoutData(LightningDataModule):
    """Rows of layouts: packed or padded, mixed by stages, sharded over ranks, resumable.

    Args:
        train: a folder that `mvspec compile -o` wrote, or a list of layouts; or several by name.
        validation, test: as `train`; read in order, one document a row.
        stages: mixtures of the named sets, one after the other; an epoch is all of them. By
            default every row comes once.
        batch_size: rows of a rank in a step.
        length: the most tokens of a row; rows are padded to it where they are packed.
        pack: fill rows of `length` tokens with documents. Leave it for sets that
            `mvspec compile --pack` packed.
        too_long: what becomes of longer documents: "truncate", "drop" or "error"; the numbers are
            logged.
        seed: of the order; the same seed gives the same batches on any number of workers.
        shuffle: whether rows of training come in random order.
        workers: processes of each rank that read.

    Raises:
        VerifyError: a set is empty, incomplete, or made with another tokenizer than the model's.
    """

    def __init__(
        self,
        train: Any = None,
        validation: Any = None,
        test: Any = None,
        *,
        stages: list[MixtureStage] | None = None,
        batch_size: int = 1,
        length: int | None = None,
        pack: bool = False,
        too_long: str = "truncate",
        seed: int = 0,
        shuffle: bool = True,
        workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1), ("length", length, 1), ("workers", workers, 0)
        ):  # fmt: skip
            if value is not None and value < least:
                raise VerifyError(f"data.{name}", f"{value} is not a whole number from {least} up")
        self._given = {"train": train, "validation": validation, "test": test}
        self.stages = list(stages or [])
        self.batch_size = batch_size
        self.length = length
        self.pack = pack
        self.too_long = too_long
        self.seed = seed
        self.shuffle = shuffle
        self.workers = workers
        self._sources: dict[str, list[LayoutSource]] = {}
        self._loader: BatchLoader | None = None
        self._resumed: dict[str, Any] | None = None
        self._settings: dict[str, Any] | None = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model that is trained, where there is one."""
        return getattr(self._module, "tokenizer", None)

    @property
    def _module(self) -> Any:
        return getattr(self.trainer, "lightning_module", None)

    def sources(self, split: str) -> list[LayoutSource]:
        """Return the sets of "train", "validation" or "test"; none where none was given."""
        if split not in self._sources:
            given = self._given[split]
            named = given if isinstance(given, Mapping) else {split: given}
            self._sources[split] = [
                self._source(name, each, split) for name, each in named.items() if each is not None
            ]
        return self._sources[split]

    def _source(self, name: str, given: Given, split: str) -> LayoutSource:
        documents: LayoutSequence
        if isinstance(given, str | os.PathLike):
            # Layouts in memory need no pyarrow.
            from mvspec.compiler.dataset import CompiledDataset

            documents = CompiledDataset(given, self.tokenizer)
            told = adopt_template(self.tokenizer, documents.template)
            if told and (self.trainer is None or self.trainer.is_global_zero):
                print(f"mvspec: {os.fspath(given)}: {told}", flush=True)
            name = os.fspath(given) if name == split else name
        else:
            documents = given
        return LayoutSource(
            name,
            documents,
            length=self.length,
            positions=getattr(self._module, "positions", None),
            pack=self.pack and split == "train",
            too_long=self.too_long,
            seed=self.seed,
        )

    def setup(self, stage: str) -> None:
        """Open the sets that a stage reads, so that a fault shows before the model is loaded.

        Raises:
            VerifyError: there is none.
        """
        if stage == "fit":
            self._loader = self._resumed = self._settings = None
        splits = {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",))
        if not self.sources(splits[0]):
            raise VerifyError(f"data.{splits[0]}", "there is no set to read: give one")
        for split in splits:
            for source in self.sources(split):
                for note in source.notes:
                    if self.trainer is None or self.trainer.is_global_zero:
                        print(f"mvspec: {source.name}: {note}", flush=True)

    def settings(self) -> dict[str, Any]:
        """Return what decides which rows each step trains on, as plain values."""
        if self._settings is None:
            content = {
                each.name: described_content(each.documents) for each in self.sources("train")
            }
            named = isinstance(self._given["train"], Mapping)
            self._settings = {
                "train": content if named else next(iter(content.values()), None),
                "stages": [asdict(stage) for stage in self.stages],
                "batch_size": self.batch_size * DataRanks.of(self.trainer).count,
                **{name: getattr(self, name) for name in _OF_THE_ORDER},
            }
        return self._settings

    def train_dataloader(self) -> BatchLoader:
        """Return the batches of training."""
        sources = self.sources("train")
        if not sources:
            raise VerifyError("train", "there is no set to train on: give data.train")
        sizes = {source.name: len(source) for source in sources}
        stages = self.stages
        if len(sizes) < len(sources):
            raise VerifyError("train", "two sets have the same name")
        schedule = RowSchedule(sizes, stages, seed=self.seed, shuffle=self.shuffle)
        self._loader = self._loader_of(sources, schedule, self.length if self.pack else None)
        if self._resumed is not None:
            self._loader.load_state_dict(self._resumed)
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands, for the checkpoint."""
        return {"train": self._loader.state_dict()} if self._loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; Lightning forgets loaders that it had before the checkpoint."""
        self._resumed = state_dict.get("train")
        if self._loader is not None and self._resumed is not None:
            self._loader.load_state_dict(self._resumed)

    def val_dataloader(self) -> BatchLoader | list[Any]:
        """Return the batches of validation."""
        return self._in_order("validation")

    def test_dataloader(self) -> BatchLoader | list[Any]:
        """Return the batches of the test."""
        return self._in_order("test")

    def _in_order(self, split: str) -> BatchLoader | list[Any]:
        sources = self.sources(split)
        if not sources:
            return []
        schedule = RowSchedule({each.name: len(each) for each in sources}, shuffle=False)
        return self._loader_of(sources, schedule, None)

    def _loader_of(
        self, sources: list[LayoutSource], schedule: RowSchedule, length: int | None
    ) -> BatchLoader:
        ranks = DataRanks.of(self.trainer)
        tokenizer = self.tokenizer
        return BatchLoader(
            sources,
            schedule,
            self.batch_size,
            rank=ranks.rank,
            ranks=ranks.count,
            length=length,
            pad_id=0 if tokenizer is None else pad_id(tokenizer),
            workers=self.workers,
        )
