"""Sources of records: files, folders, standard input, saved data sets and the hub.

Rows are read one at a time, so a file may be larger than memory, and any row can be started from.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from mvspec.data.records import Fields, InputError, Record, encoded, recognised
from mvspec.data.resume import digest
from mvspec.errors import Diagnostic

TEXTS = frozenset({".txt", ".md"})
ROWS = frozenset({".jsonl", ".ndjson"})
VALUE = ".json"
TABLE = ".parquet"
SAVED = ("state.json", "dataset_dict.json")
PACKED = frozenset({".gz", ".zst"})

PATIENCE = 100
"""Rows without the field that are held back before the field is taken to be a mistake."""

HEAD = b'{"format": '
"""What a line of an evaluation begins with that has its settings."""

TRACES = ".traces.jsonl"
"""What the file of an evaluation's traces ends in, beside its results."""

HUB = "hf:"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_UNKNOWN = 10_000.0
"""Bytes that a row of a data set is taken for, where nothing says."""

_MARKS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
_BROKEN = (OSError, EOFError, zlib.error, UnicodeDecodeError)
"""What a file that cannot be read to its end raises."""


def read(
    *inputs: str | os.PathLike[str],
    field: str | None = None,
    form: str = "multiverse",
    prompt_field: str | None = None,
    split: str | None = None,
) -> Records:
    """Open records: files, folders, "-" for standard input, or `hf:OWNER/NAME`.

    Args:
        inputs: as `mvspec check` takes them.
        field: where a row keeps its text; by default the first known column that it has.
        form: the surface form of texts.
        prompt_field: the question that a text answers.
        split: of a data set.

    Raises:
        InputError: one of them cannot be opened.

    >>> from tempfile import NamedTemporaryFile
    >>> with NamedTemporaryFile("w", suffix=".jsonl") as file:
    ...     print('{"messages": [{"role": "user", "content": "Hi"}]}', file=file, flush=True)
    ...     [record.document.messages[0].role for record in read(file.name)]
    ['user']
    """
    names = [os.fspath(each) for each in inputs]
    return open_records(names, Fields(form, field, prompt_field), split=split)


def open_records(
    inputs: Sequence[str],
    fields: Fields = Fields(),  # noqa: B008, frozen
    *,
    split: str | None = None,
    hub: bool = False,
    rows: bool = False,
    short: bool = False,
    again: bool = False,
) -> Records:
    """Open files, folders, saved data sets, standard input, or data sets on the hub.

    `.jsonl` and `.ndjson` are one record a line, `.json` one value or a list of them, `.parquet`
    a table; each of them and `.txt` and `.md` may be packed, as `.jsonl.gz` or `.jsonl.zst`. A
    folder that `save_to_disk` wrote is a data set; others are searched for such files, in order
    of their names. Any other file is one text, and so is standard input ("-"); with a field,
    both are rows.

    Args:
        inputs: paths, "-", or `hf:OWNER/NAME[/CONFIGURATION][:SPLIT]`.
        fields: where rows keep what.
        split: which split of a data set; by default "train", or the only one.
        hub: whether what is no file may be a name on the hub without `hf:`.
        rows: read files of other names as rows, whatever the fields.
        short: name records by their file without its folder, so that what is made of them does
            not depend on where it lies.
        again: keep standard input in memory, so that it can be read more than once.

    Raises:
        InputError: one of them does not exist or cannot be opened.
    """
    rows = rows or any((fields.field, fields.prompt_field))
    parts: list[InputPart] = []
    for name in inputs:
        path = Path(name)
        if name == "-":
            parts.append(_stdin("rows" if rows else "text", keep=again or short))
        elif name.startswith(HUB):
            parts.append(_named(name, split))
        elif path.is_dir() and any((path / file).is_file() for file in SAVED):
            parts.append(_saved(name, split, short))
        elif path.is_dir():
            files = sorted(_readable(path))
            if not files:
                raise InputError(
                    f"{name}: no .txt, .md, .json, .jsonl, .ndjson or .parquet file in it"
                )
            for file in files:
                place = str(file.relative_to(path)) if short else str(file)
                parts.append(_file(file, place, _layout(file.name, rows=False), inside=True))
        elif path.exists():
            place = path.name if short else name
            parts.append(_file(path, place, _layout(name, rows=rows), inside=False))
        elif hub and _NAME.fullmatch(name) and not is_readable(path):
            parts.append(_hub(name, split or "train"))
        else:
            raise InputError(f"{name}: no such file, folder or data set")
    return Records(tuple(parts), fields)


@dataclass(frozen=True)
class InputPart:
    """One file or data set.

    Args:
        read: yields its records from a row on.
        key: what tells it from others: its name, size and digest.
        size: in bytes, None where nothing says.
        counted: whether `read` can start at a row; `count` is how many there are.
    """

    read: Callable[[int], Iterator[Record]]
    key: Callable[[], list[Any]]
    size: float | None = None
    count: int | None = None


@dataclass(frozen=True)
class Records:
    """The records of all parts, in order."""

    parts: tuple[InputPart, ...]
    fields: Fields

    @property
    def size(self) -> float | None:
        """The size of all records together; None where it is not known."""
        sizes = [part.size for part in self.parts]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def key(self) -> list[list[Any]]:
        """What tells one input from another: names, sizes, digests."""
        return [part.key() for part in self.parts]

    def __iter__(self) -> Iterator[Record]:
        """Yield the records.

        Raises:
            InputError: none of the first rows of a file has the field.
        """
        return self.checked()

    def checked(self, *, heads: bool = False) -> Iterator[Record]:
        """Yield the records; a field that no row has is a mistake.

        Args:
            heads: yield the first line of an evaluation too, which has its settings.

        Raises:
            InputError: none of the first rows of a file has the field.
        """
        for part in self.parts:
            yield from _with_field(self._rows(part, 0, heads=heads))

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield the records from number `start` on."""
        for part in self.parts:
            if part.count is not None:
                skipped = min(start, part.count)
                yield from self._rows(part, skipped)
                start -= skipped
            elif start:
                for record in self._rows(part, 0):
                    if start:
                        start -= 1
                    else:
                        yield record
            else:
                yield from self._rows(part, 0)

    def _rows(self, part: InputPart, start: int, *, heads: bool = False) -> Iterator[Record]:
        for number, record in enumerate(part.read(start)):
            record = replace(record, fields=self.fields)
            if number or heads or record.encoding != "json" or record.kind != "settings":
                yield record


def _with_field(records: Iterator[Record]) -> Iterator[Record]:
    """Hold back rows without the field until one row has it; a field no row has is a mistake."""
    held: list[Record] = []
    first: Record | None = None
    for record in records:
        trouble = record.trouble
        if trouble is None or trouble.code == "not-a-string":
            yield from held
            yield record
            yield from records
            return
        held.append(record)
        if trouble.code == "missing-field":
            first = first or record
        if len(held) == PATIENCE:
            break
    if first is None or first.trouble is None:
        yield from held
        yield from records
        return
    hint = "" if first.fields.field is None else " (nor in any of the rows read)"
    raise InputError(f"{first.place}: {first.trouble.message}{hint}")


# Files


def is_one_text(inputs: Sequence[str], field: str | None) -> bool:
    """Whether the input is a single text and no rows."""
    if len(inputs) != 1 or os.path.isdir(inputs[0]):
        return False
    return _layout("" if inputs[0] == "-" else inputs[0], rows=field is not None) == "text"


def is_readable(path: Path) -> bool:
    """Whether a file is read where it stands in a folder that is."""
    return _suffix(path.name) in TEXTS | ROWS | {VALUE, TABLE}


def _suffix(name: str) -> str:
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix


def _layout(name: str, *, rows: bool) -> str:
    suffix = _suffix(name)
    if suffix in (VALUE, TABLE):
        return suffix
    return "rows" if suffix in ROWS or rows else "text"


def _readable(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = set(files)
        for file in files:
            run = file.removesuffix(TRACES)
            if run != file and f"{run}.jsonl" in names:
                continue  # an evaluation's, which is read itself
            if is_readable(Path(file)) and not file.startswith("."):
                yield Path(root, file)


def _file(path: Path, place: str, layout: str, *, inside: bool) -> InputPart:
    try:
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        reason = f"{path}: {error.strerror or error}"
        if not inside:
            raise InputError(reason) from None
        return InputPart(lambda start: iter((_unreadable(place, reason),)), lambda: [place])
    if layout == TABLE:
        return _table(path, place, size, inside=inside)

    def records(start: int) -> Iterator[Record]:
        with _opened(path) as stream:
            old = _superseded(stream) if layout == "rows" else frozenset()
        with _opened(path) as stream:
            yield from _records(stream, place, layout, size, str(path.parent), old)

    packed = path.suffix.lower() in PACKED
    return InputPart(records, lambda: [place, size, digest(path)], None if packed else size)


def _stdin(layout: str, *, keep: bool) -> InputPart:
    if sys.stdin is None:
        raise InputError("-: standard input is closed")
    kept = sys.stdin.buffer.read() if keep else b""

    def records(start: int) -> Iterator[Record]:
        stream = io.BytesIO(kept) if keep else sys.stdin.buffer
        old = _superseded(io.BytesIO(kept)) if layout == "rows" else frozenset()
        yield from _records(stream, "<stdin>", layout, len(kept), ".", old)

    return InputPart(records, lambda: ["<stdin>", hashlib.sha256(kept).hexdigest()])


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked."""
    suffix = path.suffix.lower()
    with path.open("rb") as raw:
        if suffix == ".gz":
            yield gzip.GzipFile(fileobj=raw)  # type: ignore[misc]
        elif suffix == ".zst":
            pyarrow = _pyarrow(path)
            yield io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
        else:
            yield raw


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        needed = "pip install 'mvspec[compile]', for pyarrow"
        raise InputError(f"{path} needs: {needed} ({error})") from None
    return pyarrow


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a stream in UTF-8 and without a byte order mark."""
    lines = iter(stream)
    first = next(lines, b"")
    if first[:2] not in _MARKS:
        yield first.removeprefix(b"\xef\xbb\xbf")
        yield from lines
        return
    # A line of UTF-16 ends inside a character of two bytes, so the decoder holds on to one.
    decode = codecs.getincrementaldecoder(_MARKS[first[:2]])().decode
    begun = decode(first[2:])
    for line in lines:
        begun += decode(line)
        *whole, begun = begun.split("\n")
        yield from (each.encode() + b"\n" for each in whole)
    yield (begun + decode(b"", True)).encode()


def _records(
    stream: IO[bytes],
    place: str,
    layout: str,
    size: float,
    folder: str,
    superseded: Set[int] = frozenset(),
) -> Iterator[Record]:
    number = 0
    try:
        if layout == "rows":
            for number, line in enumerate(_lines(stream), 1):
                if line.strip() and number not in superseded:
                    where, data = f"{place}:{number}", line.rstrip(b"\r\n")
                    yield Record(where, data, "json", size=len(line), folder=folder)
            return
        data = b"".join(_lines(stream))
    except _BROKEN as error:
        where = f"{place}:{number + 1}" if layout == "rows" else place
        yield _unreadable(where, f"{place}: {error}")
        return
    if layout == VALUE:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None  # whoever decodes it says where
        if isinstance(value, list) and not recognised(value):
            share = (size or len(data)) / max(1, len(value))
            for index, item in enumerate(value):
                yield Record(f"{place}[{index}]", item, "value", size=share, folder=folder)
            return
    encoding: Any = "json" if layout == VALUE else "text"
    yield Record(place, data, encoding, size=size or len(data), folder=folder)


def _superseded(stream: IO[bytes]) -> Set[int]:
    """Return the lines of an evaluation that later ones stand for; none of any other file.

    A run that was taken up has its settings again, and samples that were asked for or graded
    again: the last line of each counts.
    """
    last: dict[Any, int] = {}
    old: set[int] = set()
    try:
        for number, line in enumerate(stream, 1):
            if number == 1 and not line.startswith(HEAD):
                break
            if line.startswith(HEAD):
                if number > 1:
                    old.add(number)
                continue
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("id"), str):
                    key = row["id"], encoded(row.get("sample")), encoded(row.get("cap"))
                    if key in last:
                        old.add(last[key])
                    last[key] = number
    except _BROKEN:
        pass  # whoever reads it says so
    return old


def _unreadable(place: str, reason: str) -> Record:
    return Record(place, "", error=Diagnostic(0, 0, 1, 1, "unreadable", reason))


def _table(path: Path, place: str, size: int, *, inside: bool) -> InputPart:
    pa = _pyarrow(path)
    pq = pa.parquet
    try:
        count = pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        reason = f"{path}: not Parquet: {error}"
        if not inside:
            raise InputError(reason) from None
        return InputPart(lambda start: iter((_unreadable(place, reason),)), lambda: [place])

    def records(start: int) -> Iterator[Record]:
        at = 0
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=256):
                    for index in range(max(0, start - at), batch.num_rows):
                        where = f"{place}[{at + index}]"
                        try:
                            row = batch.slice(index, 1).to_pylist()[0]
                        except ValueError as error:  # bytes that are no UTF-8
                            yield _unreadable(where, f"{where}: {error}")
                            continue
                        yield Record(
                            where, row, "value", size=size / count, folder=str(path.parent)
                        )
                    at += batch.num_rows
        except (pa.ArrowException, *_BROKEN) as error:
            yield _unreadable(f"{place}[{at}]", f"{place}: {' '.join(str(error).split())}")

    return InputPart(records, lambda: [place, size, digest(path)], size, count)


# Data sets


def _saved(name: str, split: str | None, short: bool) -> InputPart:
    """Return the part of a data set that `save_to_disk` wrote."""
    with _needed(name):
        from datasets import Dataset, load_from_disk

    data = load_from_disk(name)
    place = Path(name).name if short else name
    if not isinstance(data, Dataset):
        chosen = split or (next(iter(data)) if len(data) == 1 else "train")
        if chosen not in data:
            raise InputError(f"{name}: no split {chosen!r}: --split is one of {', '.join(data)}")
        data, place = data[chosen], f"{place}/{chosen}"
    count = len(data)
    size = float(data.data.nbytes)

    def records(start: int) -> Iterator[Record]:
        for index in range(start, count):
            yield Record(f"{place}[{index}]", data[index], "value", size=size / count)

    return InputPart(records, lambda: [place, count, data._fingerprint], size, count)


def _named(name: str, split: str | None) -> InputPart:
    path, _, part = name.removeprefix(HUB).partition(":")
    owner, _, rest = path.partition("/")
    data, _, configuration = rest.partition("/")
    if not data:
        raise InputError(f"{name}: expected hf:OWNER/NAME[/CONFIGURATION][:SPLIT]")
    return _hub(f"{owner}/{data}", part or split or "train", configuration or None)


def _hub(name: str, split: str, configuration: str | None = None) -> InputPart:
    """Return the part of a data set on the Hugging Face hub, read as it arrives."""

    def records(start: int) -> Iterator[Record]:
        with _needed(name):
            from datasets import load_dataset
        try:
            data = load_dataset(name, configuration, split=split, streaming=True)
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{name}: no such file, and no data set on the hub that can be reached ({reason})"
            ) from None
        for index, row in enumerate(data):
            yield Record(f"{name}/{split}[{index}]", row, "value", size=_UNKNOWN)

    return InputPart(records, lambda: [name, split, *([configuration] if configuration else [])])


@contextmanager
def _needed(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise InputError(f"{name} needs: pip install 'mvspec[compile]' ({error})") from None
