"""Input of a compilation as rows, whatever holds them; any row can be started from.

Rows are not decoded here: that costs more than reading, and belongs into the workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mvspec.data.records import ROWS, TEXTS, VALUE, InputError

__all__ = ["Row", "Rows", "open_hub", "open_rows"]

PARQUET = ".parquet"
KNOWN = frozenset({*TEXTS, *ROWS, VALUE, PARQUET})
"""Endings of files that a folder is searched for."""

_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Row:
    """One record of the input, undecoded.

    Args:
        place: where it stands, as `runs.jsonl:12`.
        data: the value; as bytes, what `kind` says.
        kind: "value", "json" (a line of JSON) or "text" (a whole file).
        cost: its share of the input, in the unit of `Rows.size`.
    """

    place: str
    data: Any
    kind: str = "value"
    cost: float = 1.0


class Part(Protocol):
    """One file or data set: `count` rows, None where only reading tells; `size` for a bar."""

    @property
    def count(self) -> int | None: ...
    @property
    def size(self) -> float | None: ...
    @property
    def key(self) -> list[Any]: ...
    def read(self, start: int) -> Iterator[Row]: ...


@dataclass(frozen=True)
class Rows:
    """The rows of all parts, in order."""

    parts: tuple[Part, ...]

    @property
    def size(self) -> float | None:
        """The cost of all rows together; None where it is not known."""
        sizes = [part.size for part in self.parts]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def key(self) -> list[list[Any]]:
        """What tells one input from another: names, sizes, fingerprints."""
        return [part.key for part in self.parts]

    def read(self, start: int = 0) -> Iterator[Row]:
        """Yield the rows from number `start` on."""
        for part in self.parts:
            if part.count is not None:
                skipped = min(start, part.count)
                start -= skipped
                yield from part.read(skipped)
                continue
            for row in part.read(0):
                if start:
                    start -= 1
                else:
                    yield row


def open_hub(name: str, split: str = "train", configuration: str | None = None) -> Rows:
    """Open a data set on the Hugging Face hub; rows are fetched when they are read.

    Args:
        name: as `OWNER/NAME`.
        split: of it.
        configuration: of it, where it has several.
    """
    return Rows((_Stream(name, split, configuration),))


def open_rows(
    inputs: Sequence[str], *, rows: bool = False, split: str | None = None, hub: bool = True
) -> Rows:
    """Open files, folders, saved data sets, or a name on the Hugging Face hub.

    `.jsonl` and `.ndjson` are one row a line, `.json` one value or a list of them, `.parquet` a
    table, a folder that `save_to_disk` wrote a data set; other folders are searched for such
    files and texts, in order of their names; any other file is one text.

    Args:
        inputs: paths or names.
        rows: read files of other kinds as JSONL.
        split: which split of a data set; by default "train", or the only one.
        hub: whether what is no file may be a name on the hub.

    Raises:
        InputError: one of them does not exist or cannot be opened.
    """
    parts: list[Part] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir() and any((path / f).is_file() for f in ("state.json", "dataset_dict.json")):
            parts.append(_saved(name, split))
        elif path.is_dir():
            files = sorted(_found(path))
            if not files:
                raise InputError(f"{name}: no text, JSON, JSONL or Parquet file in it")
            parts += [_file(file, str(file.relative_to(path)), rows=False) for file in files]
        elif path.exists():
            parts.append(_file(path, path.name, rows=rows))
        elif hub and _HUB.fullmatch(name) and path.suffix.lower() not in KNOWN:
            parts.append(_Stream(name, split or "train"))
        else:
            raise InputError(f"{name}: no such file, folder or data set")
    return Rows(tuple(parts))


def _found(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in files:
            if Path(file).suffix.lower() in KNOWN and not file.startswith("."):
                yield Path(root, file)


def _file(path: Path, name: str, *, rows: bool) -> Part:
    suffix = path.suffix.lower()
    try:
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if suffix == PARQUET:
        return _table(path, name, size)
    if suffix in ROWS or (rows and suffix != VALUE):
        return _Lines(path, name, size)
    return _Whole(path, name, size, json=suffix == VALUE)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class _Lines:
    path: Path
    name: str
    size: int
    count: int | None = None

    @property
    def key(self) -> list[Any]:
        return [self.name, self.size, _digest(self.path)]

    def read(self, start: int) -> Iterator[Row]:
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                text = line.removeprefix(_MARK) if number == 1 else line
                if text.strip():
                    yield Row(f"{self.name}:{number}", text.rstrip(b"\r\n"), "json", len(line))


@dataclass(frozen=True)
class _Whole:
    """A file that is one text, one JSON value, or a JSON list with a row for each item."""

    path: Path
    name: str
    size: int
    json: bool
    count: int | None = None

    @property
    def key(self) -> list[Any]:
        return [self.name, self.size, _digest(self.path)]

    def read(self, start: int) -> Iterator[Row]:
        data = self.path.read_bytes().removeprefix(_MARK)
        if self.json:
            try:
                value = json.loads(data)
            except (ValueError, RecursionError):
                value = None  # whoever decodes it says where
            if isinstance(value, list):
                for index, item in enumerate(value):
                    yield Row(f"{self.name}[{index}]", item, cost=self.size / len(value))
                return
        yield Row(self.name, data, "json" if self.json else "text", self.size)


@dataclass(frozen=True)
class _Table:
    path: Path
    name: str
    size: int
    count: int

    @property
    def key(self) -> list[Any]:
        return [self.name, self.size, _digest(self.path)]

    def read(self, start: int) -> Iterator[Row]:
        import pyarrow.parquet as pq

        at = 0
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=256):
                for index in range(max(0, start - at), batch.num_rows):
                    row = batch.slice(index, 1).to_pylist()[0]
                    yield Row(f"{self.name}[{at + index}]", row, cost=self.size / self.count)
                at += batch.num_rows


def _table(path: Path, name: str, size: int) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return _Table(path, name, size, pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not Parquet: {error}") from None


@dataclass(frozen=True)
class _Saved:
    """A data set that `save_to_disk` wrote."""

    name: str
    data: Any

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def size(self) -> float:
        return float(len(self.data))

    @property
    def key(self) -> list[Any]:
        return [self.name, len(self.data), self.data._fingerprint]

    def read(self, start: int) -> Iterator[Row]:
        for index in range(start, len(self.data)):
            yield Row(f"{self.name}[{index}]", self.data[index])


def _saved(name: str, split: str | None) -> _Saved:
    from datasets import Dataset, load_from_disk

    data = load_from_disk(name)
    if isinstance(data, Dataset):
        return _Saved(Path(name).name, data)
    chosen = split or (next(iter(data)) if len(data) == 1 else "train")
    if chosen not in data:
        raise InputError(f"{name}: no split {chosen!r}: --split is one of {', '.join(data)}")
    return _Saved(f"{Path(name).name}/{chosen}", data[chosen])


@dataclass(frozen=True)
class _Stream:
    """A data set on the hub, read as it arrives."""

    name: str
    split: str
    configuration: str | None = None
    count: int | None = None
    size: float | None = None

    @property
    def key(self) -> list[Any]:
        return [self.name, self.split, *([self.configuration] if self.configuration else [])]

    def read(self, start: int) -> Iterator[Row]:
        from datasets import load_dataset

        try:
            data = load_dataset(self.name, self.configuration, split=self.split, streaming=True)
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{self.name}: no such file, and no data set on the hub that can be reached "
                f"({reason})"
            ) from None
        for index, row in enumerate(data):
            yield Row(f"{self.name}/{self.split}[{index}]", row)
