"""Problems: what a task asks, read from rows whose columns go by several names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mvspec.data.columns import COLUMNS, column, kind_of, listed
from mvspec.data.records import BadRecord, Fields, InputError, Record
from mvspec.data.sources import Records, open_records
from mvspec.errors import MvspecError

NO_FIELDS = Fields()

_LISTED = 5
"""Bad rows that one message names."""


class BadProblem(MvspecError):
    """A row is not a problem of the task; the message says why."""


@dataclass(frozen=True, slots=True)
class EvaluationProblem:
    """One problem of a task: its question, and the reference that answers are graded by.

    Args:
        id: its name, one of a kind in its data.
        question: as a model gets it, without the prompt.
        payload: what the task's grader takes; JSON.
        group: what accuracies are told apart by, as the benchmark that it is from.
        place: where it stands, as `aime.jsonl:12`.
    """

    id: str
    question: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    place: str = ""

    @property
    def gold(self) -> str:
        """The reference answer as text; "" where there is none, but tests or instructions."""
        row = self.payload.get("row")
        gold = column(row, *COLUMNS["answer"]) if row else self.payload.get("letter")
        gold = self.payload.get("answer", gold)
        return gold if isinstance(gold, str) else "" if gold is None else json.dumps(gold)


class ProblemColumns:
    """A row's values by name; case and blanks do not matter.

    Args:
        row: a JSON object.
    """

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row = row

    def find(self, *names: str) -> Any:
        """Return the first column of these that is there and not empty, else None."""
        return column(self.row, *names)

    def need(self, *names: str) -> Any:
        """Return the first column of these that is there.

        Raises:
            BadProblem: there is none; the message has the columns that there are.
        """
        found = self.find(*names)
        if found is None:
            raise BadProblem(f"no column {' or '.join(names)}: there is {listed(self.row)}")
        return found

    def text(self, *names: str) -> str:
        """Return such a column's text; numbers are written out.

        Raises:
            BadProblem: there is none, or it is no text.
        """
        found = self.need(*names)
        if isinstance(found, int | float) and not isinstance(found, bool):
            return str(found)
        if not isinstance(found, str):
            raise BadProblem(f"column {names[0]} is {kind_of(found)}, not a text")
        return found

    def items(self, *names: str) -> list[Any]:
        """Return such a column's list; JSON text of a list will do.

        Raises:
            BadProblem: there is none, or it is no list.
        """
        found = self.need(*names)
        if isinstance(found, str):
            try:
                found = json.loads(found)
            except ValueError:
                raise BadProblem(f"column {names[0]} is a text, not a list") from None
        if not isinstance(found, list | tuple):
            raise BadProblem(f"column {names[0]} is {kind_of(found)}, not a list")
        return list(found)


def open_problems(
    inputs: Sequence[str], split: str | None = None, fields: Fields = NO_FIELDS
) -> Records:
    """Open the data of a task; nothing is fetched that was not named with `hf:`.

    Args:
        inputs: what `open_records` takes.
        split: of data sets.
        fields: where rows keep what, if they hold outputs.

    Raises:
        InputError: one of them cannot be opened.
    """
    return open_records(inputs, fields, split=split, rows=True, short=True)


def read_problems(
    records: Records,
    read: Callable[[ProblemColumns], tuple[str, Mapping[str, Any]]],
    *,
    group: str = "source",
) -> list[EvaluationProblem]:
    """Return the problems of all records.

    Args:
        records: the data.
        read: gives question and payload of a row.
        group: the column that accuracies are told apart by.

    Raises:
        InputError: a row cannot be read, is no problem of the task, or has the id of another;
            the message has the places.
    """
    problems: list[EvaluationProblem] = []
    places: dict[str, str] = {}
    bad: list[str] = []
    for record in records.read():
        try:
            with record.guarded():
                problem = _problem(record, read, group)
        except (BadProblem, BadRecord) as error:
            reason = error.entry["reason"] if isinstance(error, BadRecord) else str(error)
            bad.append(f"{record.place}: {reason}")
            continue
        if problem.id in places:
            bad.append(f"{record.place}: the id {problem.id!r} is that of {places[problem.id]}")
        places.setdefault(problem.id, record.place)
        problems.append(problem)
    if bad:
        more = f"\n  and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
        lines = "\n  ".join(bad[:_LISTED])
        count = "a row is" if len(bad) == 1 else f"{len(bad)} rows are"
        raise InputError(f"{count} no problem of this task:\n  {lines}{more}")
    if not problems:
        raise InputError("the data holds no problem")
    return problems


def _problem(
    record: Record, read: Callable[[ProblemColumns], tuple[str, Mapping[str, Any]]], group: str
) -> EvaluationProblem:
    value = record.at(".")
    if not isinstance(value, dict):
        raise BadProblem(f"{kind_of(value)}, not an object with columns")
    columns = ProblemColumns(value)
    question, payload = read(columns)
    if not question.strip():
        raise BadProblem("the question is empty")
    source = columns.find(group)
    told = "" if source is None or isinstance(source, dict | list) else str(source)
    return EvaluationProblem(record.name, question, payload, told, record.place)


def digest(problems: Sequence[EvaluationProblem]) -> str:
    """Return what tells problems from others, wherever they stand.

    >>> len(digest([EvaluationProblem("a", "2 + 3?", {"answer": "5"})]))
    16
    """
    made = hashlib.sha256()
    for each in problems:
        line = json.dumps([each.id, each.question, dict(each.payload)], sort_keys=True, default=str)
        made.update(line.encode(errors="surrogatepass"))
    return made.hexdigest()[:16]
