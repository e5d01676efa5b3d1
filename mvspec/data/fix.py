"""`mvspec check --fix`: the repaired corpus and its log, which a run that was killed goes on with.

Both are written under a name that ends in `.partial` and get their own when all is done. The log
has a line a record, written after the record's row; a run that finds partial files of the same
command takes up where the last whole line of the log stands.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, get_args

from mvspec.data.check import Verdict
from mvspec.data.convert import output_row
from mvspec.data.records import InputError, Record, total_bytes
from mvspec.forms.recovery.edits import Code, apply

__all__ = ["Policy", "fixed", "log_path"]


@dataclass(frozen=True)
class Policy:
    """Which repaired records are kept.

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
    ) -> Policy:
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

    def refusal(self, verdict: Verdict) -> str:
        """Return why a record is left out, or "" where it is kept.

        >>> from mvspec.data.check import check_record
        >>> verdict = check_record(Record("a", "a", "<Think>\\nHm"), recover=True)
        >>> Policy(drop=("cut",)).refusal(verdict)
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


def fixed(
    records: Iterable[Record],
    check: Callable[[Iterable[Record]], Iterator[Verdict]],
    policy: Policy,
    inputs: Sequence[str],
    text_field: str | None,
    form: str,
    resume: Callable[[int, int], object] = lambda done, kept: None,
) -> Iterator[Verdict]:
    """Yield each verdict, with the reason where its record is left out, and write both files.

    Args:
        check: verdicts of records, in order, every repair among them.
        inputs, text_field, form: what makes two runs the same, besides the policy.
        resume: told how many records an earlier run has done, of which no verdict comes here,
            and how many of them it has kept.

    Raises:
        InputError: partial files of another command stand in the way.
    """
    if policy.out is None:
        yield from check(records)
        return
    rows, log = _Partial(policy.out), _Partial(log_path(policy.out))
    command = {
        "inputs": list(inputs), "bytes": total_bytes(inputs), "field": text_field, "form": form,
        "max_repairs": policy.max_repairs, "drop": list(policy.drop),
    }  # fmt: skip
    done, kept = _taken_up(rows, log, command)
    resume(done, kept)
    held: deque[Record] = deque()

    def remember() -> Iterator[Record]:
        for record in islice(iter(records), done, None):
            held.append(record)
            yield replace(record, row=None)

    with rows.open(kept) as row_file, log.open(done and done + 1) as log_file:
        if not done:
            _line(log_file, {"command": command})
        for verdict in check(remember()):
            record = held.popleft()
            why = policy.refusal(verdict)
            if not why:
                text = apply(record.text, _errors(verdict))
                _line(row_file, output_row(record, text, text_field, record.form or form))
            _line(log_file, {**verdict.row(), **({"left_out": why} if why else {})})
            yield replace(verdict, left_out=why)
    # A run that is killed between the two begins anew, since it finds no log to go on from.
    log.finish()
    rows.finish()


def _errors(verdict: Verdict) -> tuple[Any, ...]:
    return tuple(each for each in verdict.diagnostics if each.severity == "error")


def _line(file: IO[bytes], value: dict[str, Any]) -> None:
    # Rows may hold characters that UTF-8 has not; JSON escapes them.
    file.write(json.dumps(value).encode() + b"\n")
    file.flush()


def _taken_up(rows: _Partial, log: _Partial, command: dict[str, Any]) -> tuple[int, int]:
    """Return how many records the partial files hold, and how many of them are kept."""
    done = kept = 0
    for number, line in enumerate(log.whole_lines()):
        value = json.loads(line)
        if number:
            done += 1
            kept += "left_out" not in value
        elif value != {"command": command}:
            why = "it is of another command: remove it, or name another file"
            raise InputError(f"{log.partial}: {why}")
    if sum(1 for _ in rows.whole_lines()) < kept:
        raise InputError(f"{rows.partial}: it lacks rows that its log has: remove both")
    return done, kept


@dataclass
class _Partial:
    """A file that gets its name when it is complete."""

    path: Path
    partial: Path = field(init=False)

    def __post_init__(self) -> None:
        self.partial = self.path.with_name(self.path.name + ".partial")

    def whole_lines(self) -> Iterator[bytes]:
        """Yield the lines that are complete; a killed run may have begun another."""
        if self.partial.exists():
            with self.partial.open("rb") as file:
                yield from (line for line in file if line.endswith(b"\n"))

    def open(self, lines: int) -> IO[bytes]:
        """Open the file behind its first lines; what follows them is written again."""
        size = sum(map(len, islice(self.whole_lines(), lines)))
        file = self.partial.open("ab")
        file.truncate(size)
        return file

    def finish(self) -> None:
        """Give the file its name."""
        os.replace(self.partial, self.path)
