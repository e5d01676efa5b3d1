"""Conversion: records of one form as records of another."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mvspec.data.columns import COLUMNS, PAIR, columns
from mvspec.data.records import InputError, Record, RowPath
from mvspec.disk import naming
from mvspec.errors import MvspecError
from mvspec.forms import FORMS, JSON, render


def converted(record: Record, target: str, *, recover: bool = False) -> str:
    """Return the text of a record in the form `target`.

    Args:
        recover: convert what is malformed too, as recovery repairs it.

    Raises:
        MvspecError: it has no document, or one that the form cannot hold.

    >>> converted(Record("a.txt", "<Think>\\nHm.\\n</Think>\\n\\n"), "threadweaver")
    '<think>\\nHm.\\n</think>\\n\\n'
    """
    reading = record.read(recover=recover)
    if reading.document is None:
        first = reading.diagnostics[0]
        raise MvspecError(f"{first.line}:{first.column}: {first.message} [{first.code}]")
    return render(reading.document, target)


def convert_records(
    records: Iterable[Record],
    target: str,
    output: Path | None,
    *,
    text: bool,
    recover: bool = False,
) -> Iterator[str]:
    """Write the records in the form `target`; yield what is wrong with those that are left out.

    Args:
        output: the file, complete or not there at all; None for standard output.
        text: the input is one text, and so is the output; else it is JSON lines.

    Raises:
        InputError: there is no such form.
    """
    if target not in FORMS:
        raise InputError(f"--to {target}: use one of {', '.join(FORMS)}")
    partial = output.with_name(output.name + ".partial") if output else None
    written = 0
    with (
        naming(partial or "standard output"),
        partial.open("w", encoding="utf-8", newline="")
        if partial
        else nullcontext(sys.stdout) as file,
    ):
        for record in records:
            try:
                with record.guarded():
                    result = converted(record, target, recover=recover)
                    if not text:
                        result = json.dumps(output_row(record, result, target)) + "\n"
            except MvspecError as error:
                yield f"{record.name}: {error}"
                continue
            file.write(result)
            written += 1
    if partial and output:
        if written or not text:
            os.replace(partial, output)
        else:  # the one text has no such form: no empty file passes for it
            partial.unlink()


def output_row(record: Record, text: str, form: str = "") -> dict[str, Any]:
    """Return the row of a record with another text, its other fields as they were.

    The text stands where the old one stood; where that was the row itself, or a chat's messages,
    it stands in `text`, and a document in `document`.

    Args:
        form: a text in JSON stands there as the value that it is.
    """
    value = json.loads(text) if form in (JSON, "apr") else text
    key = "document" if form == JSON else "text"
    if record.row is None or not record.path:
        return {"id": record.name, key: value}
    if record.kind == "trace":  # the tokens of a run are not those of another text
        key = key if form == JSON else next(columns(record.row, *COLUMNS["text"]), key)
        others = {name: each for name, each in record.row.items() if name != record.path[0]}
        return {**others, key: value}
    if record.kind == "chat":
        gone = (record.path[0], "id", *PAIR)
        others = {name: each for name, each in record.row.items() if name not in gone}
        return {"id": record.name, **others, key: value}
    row: dict[str, Any] = put(record.row, record.path, value)
    return row


def put(row: Any, path: RowPath, value: Any) -> Any:
    """Return a row with another value at a path; the row stays as it was."""
    if not path:
        return value
    while isinstance(row, str):
        row = json.loads(row)
    made = row.copy()
    inside = row.get(path[0]) if isinstance(row, dict) else row[path[0]]
    found = put(inside, path[1:], value)
    # A column of texts keeps JSON as text: without --field no object is looked for there.
    packed = isinstance(inside, str) and inside.lstrip()[:1] in ("{", "[", '"')
    if packed and path[0] in COLUMNS["text"] and not isinstance(found, str):
        found = json.dumps(found)
    made[path[0]] = found
    return made
