"""Repaired corpora: the rows that `mvspec check --fix` keeps, and its log.

Both are written under a name that ends in `.partial` and get their own when all is done. The log
has a line a record, written after the record's row; a run that finds partial files of the same
command takes up where the last whole line of the log stands.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from mvspec.data.check import RecordVerdict
from mvspec.data.columns import PAIR
from mvspec.data.convert import output_row, put
from mvspec.data.records import BadRecord, InputError, Record
from mvspec.data.resume import Journal, whole_lines
from mvspec.data.sources import Records
from mvspec.errors import Diagnostic
from mvspec.forms.recovery.edits import Code, apply


@dataclass(frozen=True)
class FixPolicy:
    """The choice of which repaired records are kept.

    Args:
        out: the file of the repaired corpus; None where none is asked for.
        max_repairs: the most repairs of a record; None for any number.
        drop: codes of repairs that no kept record has.
    """

    out: Path | None = None
    max_repairs: int | None = None
    drop: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, out: Path | None, recover: bool, max_repairs: int | None, drop: list[str] | None
    ) -> FixPolicy:
        """Return the policy that options ask for.

        Raises:
            InputError: an option that would be ignored, or a code that there is not.
        """
        if out is not None and not recover:
            raise InputError("--fix needs --recover: it writes what recovery repaired")
        if out is None and (max_repairs is not None or drop):
            raise InputError("--max-repairs and --drop need --fix: they say what it leaves out")
        for code in drop or ():
            if code not in get_args(Code):
                raise InputError(f"--drop {code}: no repair has this code (docs/diagnostics.md)")
        return cls(out, max_repairs, tuple(drop or ()))

    def refusal(self, verdict: RecordVerdict) -> str:
        """Return why a record is left out, or "" where it is kept.

        >>> from mvspec.data.check import check_record
        >>> verdict = check_record(Record("a", "<Think>\\nHm"), recover=True)
        >>> FixPolicy(drop=("cut",)).refusal(verdict)
        'it has the repair cut'
        """
        repairs = [each for each in verdict.diagnostics if each.severity == "error"]
        found = [each.code for each in repairs if each.code in self.drop]
        if any(each.code in ("not-a-document", "strict-only") for each in repairs):
            return "it has no tree"
        if not verdict.ok and not all(each.inserted or each.dropped for each in repairs):
            return "it cannot be read"
        if found:
            return f"it has the repair {found[0]}"
        if self.max_repairs is not None and len(repairs) > self.max_repairs:
            return f"it has {len(repairs)} repairs, more than {self.max_repairs}"
        return ""


def log_path(out: Path) -> Path:
    """Return where the log of a repaired corpus stands."""
    return out.with_name(out.name + ".log.jsonl")


def fix_records(
    records: Iterable[Record],
    check: Callable[[Iterable[Record]], Iterator[RecordVerdict]],
    policy: FixPolicy,
    source: Records,
    resume: Callable[[int, int], object] = lambda done, kept: None,
) -> Iterator[RecordVerdict]:
    """Yield each verdict, with the reason where its record is left out, and write both files.

    Args:
        records: of the source.
        check: verdicts of records, in order, every repair among them.
        source: with the policy, what makes two runs the same.
        resume: told how many records an earlier run has done, of which no verdict comes here,
            and how many of them it has kept.

    Raises:
        InputError: partial files of another command stand in the way, or another process
            writes them.
    """
    if policy.out is None:
        yield from check(records)
        return
    rows, log = partial(policy.out), partial(log_path(policy.out))
    command = {
        "input": source.key, "field": source.fields.field, "form": source.fields.form,
        "max_repairs": policy.max_repairs, "drop": list(policy.drop),
    }  # fmt: skip
    done, kept = _taken_up(rows, log, command)
    resume(done, kept)
    held: deque[Record] = deque()

    def remember() -> Iterator[Record]:
        for record in islice(iter(records), done, None):
            held.append(record)
            yield record

    with (
        Journal(rows, _size(rows, kept)) as row_file,
        Journal(log, _size(log, done and done + 1)) as log_file,
    ):
        if not done:
            log_file.add({"command": command}, ascii=True)
        for verdict in check(remember()):
            record = held.popleft()
            why = policy.refusal(verdict)
            try:
                with record.guarded():
                    row = {} if why else fixed_row(record, verdict.diagnostics)
            except BadRecord as error:
                why = error.diagnostic.message
            if not why:
                row_file.add(row, ascii=True)
            left_out = {"left_out": why} if why else {}
            log_file.add({**verdict.to_dict(), **left_out}, ascii=True)
            yield replace(verdict, left_out=why)
    # A run that is killed between the two begins anew, since it finds no log to go on from.
    os.replace(log, log_path(policy.out))
    os.replace(rows, policy.out)


def fixed_row(record: Record, diagnostics: Iterable[Diagnostic]) -> dict[str, Any]:
    """Return a record's row with its texts repaired, all else as it was."""
    errors = [each for each in diagnostics if each.severity == "error"]
    if record.kind == "trace":
        mended = apply(record.read(recover=True).texts[""], tuple(errors))
        return output_row(record, mended) if errors else record.row or {}
    if record.kind != "chat":
        return output_row(record, apply(record.text, tuple(errors)), record.form)
    row: Any = record.row if record.row is not None else {"id": record.name, "messages": []}
    path = record.path or ("messages",)
    row = put(row, path, json.loads(json.dumps(record.value)))
    for turn in record.turns():
        for field, text in ((turn.field, turn.text), (turn.thoughts_field, turn.thoughts)):
            own = [each for each in errors if each.address == f"{turn.where}.{field}"]
            if own and text is not None:
                row = put(row, (*path, turn.number, field), apply(text, tuple(own)))
    pair = record.row is not None and path[0] not in record.row
    return {key: each for key, each in row.items() if not (pair and key in PAIR)}


def partial(path: Path) -> Path:
    """Return the name of a file until all of it is written."""
    return path.with_name(path.name + ".partial")


def _size(path: Path, lines: int) -> int:
    return sum(map(len, islice(whole_lines(path), lines)))


def _taken_up(rows: Path, log: Path, command: dict[str, Any]) -> tuple[int, int]:
    """Return how many records the partial files hold, and how many of them are kept."""
    done = kept = 0
    for number, line in enumerate(whole_lines(log)):
        value = json.loads(line)
        if number:
            done += 1
            kept += "left_out" not in value
        elif value != {"command": command}:
            raise InputError(f"{log}: it is of another command: remove it, or name another file")
    if sum(1 for _ in whole_lines(rows)) < kept:
        raise InputError(f"{rows}: it lacks rows that its log has: remove both")
    return done, kept
