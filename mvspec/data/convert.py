"""`mvspec convert`: records of one form as records of another."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mvspec.data.check import read_document
from mvspec.data.records import InputError, Record
from mvspec.errors import MvspecError
from mvspec.forms import FORMS, JSON, render

__all__ = ["convert_records", "converted", "output_row"]


def converted(
    records: Iterable[Record], source: str, target: str, *, recover: bool = False
) -> Iterator[tuple[Record, str | MvspecError]]:
    """Yield each record with its text in the form `target`, or why it has none.

    Args:
        source: the form that the records are in.
        recover: convert what is malformed too, as recovery repairs it.

    >>> from mvspec.data.records import Record
    >>> record = Record("a", "a.txt", "<Think>\\nHm.\\n</Think>\\n\\n")
    >>> [text for _, text in converted([record], "multiverse", "threadweaver")]
    ['<think>\\nHm.\\n</think>\\n\\n']
    """
    for record in records:
        document, diagnostics, _ = read_document(record, source, recover=recover)
        if document is None:
            first = diagnostics[0]
            where = f"{first.line}:{first.column}: {first.message} [{first.code}]"
            yield record, MvspecError(where)
            continue
        try:
            yield record, render(document, target)
        except MvspecError as error:
            yield record, error


def convert_records(
    records: Iterable[Record],
    source: str,
    target: str,
    output: Path | None,
    field: str | None,
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
        partial.open("w", encoding="utf-8", newline="")
        if partial
        else nullcontext(sys.stdout) as file
    ):
        for record, result in converted(records, source, target, recover=recover):
            if isinstance(result, MvspecError):
                yield f"{record.name}: {result}"
                continue
            if not text:
                result = json.dumps(output_row(record, result, field, target)) + "\n"
            file.write(result)
            written += 1
    if partial and output:
        if written or not text:
            os.replace(partial, output)
        else:  # the one text has no such form: no empty file passes for it
            partial.unlink()


def output_row(record: Record, text: str, field: str | None, form: str = "") -> dict[str, Any]:
    """Return the row of a record with another text, its other fields as they were.

    Args:
        field: where the text stands; without one, or where the row is no object, in `text`.
        form: a text in JSON stands there as the value that it is.
    """
    value = json.loads(text) if form in (JSON, "apr") else text
    steps = field.split(".") if field and field != "." and record.row is not None else []
    if not steps:
        key = "document" if form == JSON else "text"
        return {"id": record.name, key: value}
    row = json.loads(json.dumps(record.row))
    inner = row
    for step in steps[:-1]:
        inner = inner[step]
    inner[steps[-1]] = value
    whole: dict[str, Any] = row
    return whole
