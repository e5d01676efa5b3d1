"""Output files of a curation, made of the stored verdicts alone.

So the files do not depend on concurrency, on retries, or on how often the run was killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mvspec.curation.client import UNIT
from mvspec.curation.store import CurationStore
from mvspec.data.records import InputError, encodable
from mvspec.data.resume import replaced

STORE = "answers.sqlite"
DOCUMENTS = "documents.jsonl"
PARQUET = "documents.parquet"
QUARANTINE = "quarantine.jsonl"
UNFINISHED = "unfinished.jsonl"

_ROWS = 256
"""Rows of a Parquet batch."""


def open_folder(folder: Path) -> Path:
    """Make the folder, or take up one that an earlier run left; return its store's path.

    Raises:
        InputError: it holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"-o {folder}: {error.strerror or error}") from None
    if found and STORE not in found:
        raise InputError(f"-o {folder}: not empty, and not of a curation: use another folder")
    return folder / STORE


def write_documents(folder: Path, store: CurationStore) -> None:
    """Write the documents as JSONL, and as Parquet whose columns are text."""
    import pyarrow as pa  # half a second that only a run's end needs
    import pyarrow.parquet as pq

    write_lines(folder / DOCUMENTS, document_rows(store))
    names = ("id", "document", "autoregressive", "provenance")
    schema = pa.schema([(name, pa.string()) for name in names])
    rows = (
        {"id": row["id"]} | {name: json.dumps(row[name], ensure_ascii=False) for name in names[1:]}
        for row in document_rows(store)
    )
    with replaced(folder / PARQUET, "wb") as file, pq.ParquetWriter(file, schema) as writer:
        while some := list(islice(rows, _ROWS)):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))


def document_rows(store: CurationStore) -> Iterator[dict[str, Any]]:
    """Yield a row for each document: `id`, `document`, `autoregressive`, `provenance`."""
    for outcome in store.outcomes():
        if outcome["code"]:
            continue
        answers = [event["key"] for event in outcome["history"]]
        yield {
            "id": outcome["record"],
            "document": outcome["document"],
            "autoregressive": outcome["autoregressive"],
            "provenance": outcome["provenance"]
            | {"answers": answers, "dollars": store.costs(sorted(set(answers))) / UNIT},
        }


def write_quarantine(folder: Path, store: CurationStore) -> None:
    """Write the records that were given up, each with all the answers it got."""

    def with_answer(event: dict[str, Any]) -> dict[str, Any]:
        answer = store.answer(event["key"])
        return event | {"answer": encodable(answer.text) if answer else ""}

    entries = (
        {name: outcome[name] for name in ("record", "place", "code", "reason")}
        | {"history": [with_answer(event) for event in outcome["history"]]}
        for outcome in store.outcomes()
        if outcome["code"]
    )
    write_lines(folder / QUARANTINE, entries, keep_empty=False)


def write_unfinished(folder: Path, unfinished: Iterable[dict[str, str]]) -> None:
    """Write the records that this run could not decide, with the reason."""
    order = sorted(unfinished, key=lambda each: (each["place"], each["record"]))
    write_lines(folder / UNFINISHED, order, keep_empty=False)


def write_lines(path: Path, rows: Iterable[dict[str, Any]], *, keep_empty: bool = True) -> None:
    """Write a JSONL file whole; an empty one may take an older one away instead."""
    with replaced(path, keep_empty=keep_empty) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
