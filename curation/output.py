"""What a run leaves in its folder; every file is made of the stored verdicts alone.

So the files do not depend on concurrency, on retries, or on how often the run was killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mvspec.curation.budget import UNIT
from mvspec.curation.run import Unfinished
from mvspec.curation.store import Store
from mvspec.data.records import InputError

__all__ = ["BRANCHES", "DOCUMENTS", "PARQUET", "PROMPTING", "QUARANTINE", "UNFINISHED",
           "open_folder", "write_branches", "write_documents", "write_prompting",
           "write_unfinished"]  # fmt: skip

STORE = "answers.sqlite"
DOCUMENTS = "documents.jsonl"
PARQUET = "documents.parquet"
QUARANTINE = "quarantine.jsonl"
UNFINISHED = "unfinished.jsonl"
BRANCHES = "branches.jsonl"
PROMPTING = "prompting.jsonl"

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


def write_documents(folder: Path, store: Store) -> None:
    """Write documents (JSONL and Parquet) and the quarantine."""
    with replaced(folder / DOCUMENTS) as file:
        for row in document_rows(store):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    _write_parquet(folder / PARQUET, document_rows(store))
    write_quarantine(folder, store)


def document_rows(store: Store) -> Iterator[dict[str, Any]]:
    """Yield a row for each document: `id`, `document`, `autoregressive`, `provenance`."""
    for outcome in store.outcomes():
        if outcome["code"]:
            continue
        answers = [event["key"] for event in outcome["history"]]
        provenance = outcome["provenance"] | {
            "answers": answers,
            "dollars": store.costs(sorted(set(answers))) / UNIT,
        }
        yield {
            "id": outcome["record"],
            "document": outcome["document"],
            "autoregressive": outcome["autoregressive"],
            "provenance": provenance,
        }


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    import pyarrow as pa  # half a second that only a run's end needs
    import pyarrow.parquet as pq

    names = ("id", "document", "autoregressive", "provenance")
    schema = pa.schema([(name, pa.string()) for name in names])
    temporary = _temporary(path)
    with pq.ParquetWriter(temporary, schema) as writer:
        batch: list[dict[str, str]] = []
        for row in rows:
            texts = {name: json.dumps(row[name], ensure_ascii=False) for name in names[1:]}
            batch.append({"id": row["id"]} | texts)
            if len(batch) == _ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    os.replace(temporary, path)


def write_quarantine(folder: Path, store: Store) -> None:
    """Write the records that were given up, each with all the answers it got."""
    with replaced(folder / QUARANTINE, keep_empty=False) as file:
        for outcome in store.outcomes():
            if not outcome["code"]:
                continue
            entry = {name: outcome[name] for name in ("record", "place", "code", "reason")}
            entry["history"] = [_with_answer(event, store) for event in outcome["history"]]
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _with_answer(event: dict[str, Any], store: Store) -> dict[str, Any]:
    answer = store.answer(event["key"])
    text = "" if answer is None else answer.text
    return event | {"answer": text.encode(errors="backslashreplace").decode()}


def write_unfinished(folder: Path, unfinished: Sequence[Unfinished]) -> None:
    """Write the records that this run could not decide, with the reason."""
    with replaced(folder / UNFINISHED, keep_empty=False) as file:
        for each in sorted(unfinished, key=lambda each: (each.place, each.record)):
            entry = {"record": each.record, "place": each.place, "reason": each.reason}
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def write_branches(folder: Path, store: Store) -> None:
    """Write a line for each branch; what a person has confirmed in the file stays.

    Raises:
        InputError: the file was edited into something that is not JSON lines.
    """
    confirmed = {_branch_key(row): row["confirmed"] for row in read_confirmed(folder / BRANCHES)}
    with replaced(folder / BRANCHES) as file:
        for outcome in store.outcomes():
            for row in branch_rows(outcome):
                row["confirmed"] = confirmed.get(_branch_key(row))
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    write_quarantine(folder, store)


def branch_rows(outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each branch of a chain."""
    for place, branching in enumerate(outcome.get("branchings", ()), 1):
        pairs = zip(branching["branches"], branching["texts"], strict=True)
        for number, (branch, text) in enumerate(pairs, 1):
            yield {
                "record": outcome["record"],
                "branching": place,
                "branch": number,
                **branch,
                "text": text,
                "proposed": branching["kind"],
                "reason": branching["reason"],
            }


def _branch_key(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("record", "branching", "branch", "first", "last", "proposed")
    return tuple(row.get(name) for name in names)


def write_prompting(folder: Path, store: Store) -> None:
    """Write the models' texts with their verdicts."""
    with replaced(folder / PROMPTING) as file:
        for outcome in store.outcomes():
            if not outcome["code"]:
                row = {"id": outcome["record"], "text": outcome["text"]}
                file.write(json.dumps(row | outcome["verdict"], ensure_ascii=False) + "\n")
    write_quarantine(folder, store)


def read_confirmed(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file; none where it is not there.

    Raises:
        InputError: a line is not a JSON object.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "confirmed" not in row:
                raise ValueError('an object with "confirmed" is expected')
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}: mend the line, or delete it") from None
        rows.append(row)
    return rows


@contextmanager
def replaced(path: Path, *, keep_empty: bool = True) -> Iterator[IO[str]]:
    """Give a file that takes the place of `path` whole; an empty one may take it away instead."""
    temporary = _temporary(path)
    with temporary.open("w", encoding="utf-8", newline="") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        empty = file.tell() == 0
    if empty and not keep_empty:
        temporary.unlink()
        path.unlink(missing_ok=True)
    else:
        os.replace(temporary, path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
