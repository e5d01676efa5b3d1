"""Input as records: files, folders, JSONL rows, standard input, one text each.

A row that cannot be read is a record too, with a located error: nothing stops a batch and
nothing is lost. Rows are read one at a time, so a file may be larger than memory.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from mvspec.errors import Diagnostic, MvspecError, Source

__all__ = [
    "InputError",
    "Record",
    "is_one_text",
    "is_readable",
    "read_records",
    "total_bytes",
]

TEXTS = frozenset({".txt", ".md"})
ROWS = frozenset({".jsonl", ".ndjson"})
VALUE = ".json"

PATIENCE = 100
"""Rows without the field that are held back before the field is taken to be a mistake."""

_OBJECTS = {"messages": "json", "main_calls": "apr"}
"""What an object that stands where a text is expected is known by, and the form that it is in."""

_SHOWN = 8
"""Fields of a row that a message names."""

_MARK = b"\xef\xbb\xbf"

Progress = Callable[[int], object]


class Wanted(NamedTuple):
    """What is looked for in a row: a field, and objects of other kinds than texts."""

    field: str | None = None
    objects: Callable[[dict[str, Any]], str | None] = lambda row: None


class InputError(MvspecError):
    """What was asked for cannot be read at all: no such file, no such field."""


@dataclass(frozen=True, slots=True)
class Record:
    """One text of the input.

    Args:
        name: the row's `id`, else the place.
        place: the file, with the line of a row: `runs.jsonl:12`.
        text: the text; of a record that cannot be read, what the error points into.
        form: the form that the text is in whatever was asked for: a document or a trace as JSON.
        error: why the record cannot be read.
        row: the object that the text is part of.
    """

    name: str
    place: str
    text: str
    form: str | None = None
    error: Diagnostic | None = None
    row: dict[str, Any] | None = None


def read_records(
    inputs: Iterable[str],
    field: str | None = None,
    progress: Progress | None = None,
    objects: Callable[[dict[str, Any]], str | None] | None = None,
) -> Iterator[Record]:
    """Yield the records of files and folders in order.

    `.txt` and `.md` files are one text each, `.json` is one value or a list of them, `.jsonl`
    and `.ndjson` are one row a line; folders are searched for these, in order of their names.
    `-` is standard input. With `field`, standard input and files named one by one are rows.

    Args:
        inputs: paths, or `-`.
        field: where a row keeps its text, as `output` or `result.text`; "." is the row itself.
            Without it a row is a string or a document.
        progress: called with the bytes read since the last call.
        objects: says of a row that is an object, without `field`, what else it is than a text
            or a document: a record of that form, with the row and without a text.

    Raises:
        InputError: a path cannot be opened, a folder holds nothing to read, or none of the
            first rows of a file has the field.
    """
    advance = progress or (lambda count: None)
    wanted = Wanted(field, objects) if objects else Wanted(field)
    for name in inputs:
        if name == "-":
            if sys.stdin is None:
                raise InputError("-: standard input is closed")
            yield from _stream(sys.stdin.buffer, "<stdin>", _layout("", field), wanted, advance)
        elif os.path.isdir(name):
            files = _found(name)
            if not files:
                raise InputError(f"{name}: no .txt, .md, .json, .jsonl or .ndjson file in it")
            for file in files:
                yield from _file(file, wanted, advance, named=False)
        else:
            yield from _file(name, wanted, advance, named=True)


def is_one_text(inputs: Sequence[str], field: str | None) -> bool:
    """Whether the input is a single text and no rows."""
    if len(inputs) != 1 or os.path.isdir(inputs[0]):
        return False
    return _layout("" if inputs[0] == "-" else inputs[0], field) == "text"


def total_bytes(inputs: Iterable[str]) -> int | None:
    """Return the size of the input in bytes; None where standard input is part of it."""
    total = 0
    for name in inputs:
        if name == "-":
            return None
        for file in _found(name) if os.path.isdir(name) else [name]:
            total += os.stat(file).st_size if os.path.isfile(file) else 0
    return total


def is_readable(path: Path) -> bool:
    """Whether a file is read where it stands in a folder that is."""
    return path.suffix.lower() in TEXTS | ROWS | {VALUE}


def _found(folder: str) -> list[str]:
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [
            os.path.join(root, file)
            for file in sorted(files)
            if is_readable(Path(file)) and not file.startswith(".")
        ]
    return found


def _layout(name: str, field: str | None) -> str:
    suffix = Path(name).suffix.lower()
    if suffix == VALUE:
        return "value"
    return "rows" if suffix in ROWS or field is not None else "text"


def _file(name: str, wanted: Wanted, advance: Progress, *, named: bool) -> Iterator[Record]:
    # A field says that a file named one by one holds rows; in a folder the suffix says it.
    layout = _layout(name, wanted.field if named else None)
    try:
        stream = open(name, "rb")  # noqa: SIM115
    except OSError as error:
        reason = f"{name}: {error.strerror or error}"
        if named:
            raise InputError(reason) from None
        yield _unreadable(name, name, "", 0, "unreadable", reason)
        return
    with stream:
        yield from _stream(stream, name, layout, wanted, advance)


def _stream(
    stream: IO[bytes], name: str, layout: str, wanted: Wanted, advance: Progress
) -> Iterator[Record]:
    if layout == "rows":
        yield from _with_field(_rows(stream, name, wanted, advance), name, wanted.field)
        return
    data = stream.read()
    advance(len(data))
    record = _decoded(data.removeprefix(_MARK), name)
    if layout == "value" and not record.error:
        yield from _with_field(_values(record, wanted), name, wanted.field)
    else:
        yield record


def _decoded(data: bytes, place: str) -> Record:
    try:
        return Record(place, place, data.decode())
    except UnicodeDecodeError as error:
        before = len(data[: error.start].decode())
        what = f"byte 0x{data[error.start]:02x} is not UTF-8"
        text = data.decode(errors="replace")
        return _unreadable(place, place, text, before, "invalid-utf-8", what)


def _unreadable(
    name: str,
    place: str,
    text: str,
    offset: int,
    code: str,
    message: str,
    row: dict[str, Any] | None = None,
) -> Record:
    line, column = Source(text).position(offset)
    error = Diagnostic(offset, offset, line, column, code, message)
    return Record(name, place, text, error=error, row=row)


def _rows(stream: IO[bytes], name: str, wanted: Wanted, advance: Progress) -> Iterator[Record]:
    for number, line in enumerate(stream, 1):
        advance(len(line))
        if number == 1:
            line = line.removeprefix(_MARK)
        if line.strip():
            record = _decoded(line.rstrip(b"\r\n"), f"{name}:{number}")
            yield record if record.error else _value(record, wanted)


def _value(record: Record, wanted: Wanted) -> Record:
    try:
        value = json.loads(record.text)
    except (ValueError, RecursionError) as error:
        return _bad_json(record, error)
    return _row(value, record.place, wanted)


def _bad_json(record: Record, error: ValueError | RecursionError) -> Record:
    offset, what = 0, str(error)
    if isinstance(error, json.JSONDecodeError):
        offset, what = error.pos, error.msg
    elif isinstance(error, RecursionError):
        what = "nested too deep"
    return _unreadable(
        record.place, record.place, record.text, offset, "invalid-json", f"not JSON: {what}"
    )


def _values(record: Record, wanted: Wanted) -> Iterator[Record]:
    """Yield the record of a JSON file, or one for each item of a list."""
    try:
        value = json.loads(record.text)
    except (ValueError, RecursionError) as error:
        yield _bad_json(record, error)
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield _row(item, f"{record.place}[{index}]", wanted)
    else:
        yield _row(value, record.place, wanted)


def _row(row: Any, place: str, wanted: Wanted) -> Record:
    field = wanted.field
    name = row.get("id", place) if isinstance(row, dict) else place
    usable = isinstance(name, str | int) and not isinstance(name, bool) and name != ""
    name = str(name) if usable else place
    whole = row if isinstance(row, dict) else None
    value = row
    for step in field.split(".") if field and field != "." else ():
        if not isinstance(value, dict) or step not in value:
            has = f": there is {_keys(value)}" if isinstance(value, dict) else ""
            return _unreadable(
                name, place, "", 0, "missing-field", f"no field {field!r}{has}", whole
            )
        value = value[step]
    if isinstance(value, str):
        return Record(name, place, value, row=whole)
    for key, form in _OBJECTS.items():
        if isinstance(value, dict) and isinstance(value.get(key), list):
            # The name of a row is no part of the document that stands in it.
            own = {k: v for k, v in value.items() if k != "id"} if value is row else value
            return Record(name, place, json.dumps(own), form, row=whole)
    if field is None and isinstance(value, dict):
        if kind := wanted.objects(value):
            return Record(name, place, "", kind, row=whole)
        message = f"the row is an object: name the text's field with --field: {_keys(value)}"
        return _unreadable(name, place, "", 0, "missing-field", message, whole)
    other = {dict: "an object", list: "a list", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number"
    )
    where = f"field {field!r} is" if field else "the row is"
    message = f"{where} {other}, neither a text nor a document"
    return _unreadable(name, place, "", 0, "not-a-string", message, whole)


def _keys(value: dict[str, Any]) -> str:
    """Return the first names of an object's fields, as a message lists them."""
    names = list(map(repr, value))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more or "none"


def _with_field(records: Iterable[Record], name: str, field: str | None) -> Iterator[Record]:
    """Hold back rows without the field until one row has it; a field no row has is a mistake."""
    held: list[Record] = []
    lacking = 0
    records = iter(records)
    for record in records:
        if record.error is None or record.error.code == "not-a-string":
            yield from held
            yield record
            yield from records
            return
        held.append(record)
        lacking += record.error.code == "missing-field"
        if lacking == PATIENCE:
            break
    if not lacking:
        yield from held
        return
    error = next(r.error for r in held if r.error and r.error.code == "missing-field")
    hint = "" if field is None else " (nor in any of the rows read)"
    raise InputError(f"{name}: {error.message}{hint}")
