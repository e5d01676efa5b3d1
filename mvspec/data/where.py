"""Conditions on the fields of rows, such as `score>=0.5`: which records a command takes."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mvspec.data.columns import kind_of
from mvspec.data.records import BadRecord, InputError, Record
from mvspec.data.sources import PATIENCE

_CONDITION = re.compile(
    r"\s*([^<>=!]*[^<>=!\s])\s*(==|!=|<=|>=|=|<|>)\s*(?![<>=])(.*?)\s*", re.DOTALL
)
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RowCondition:
    """A condition on a field of a row.

    Args:
        field: as `score` or `details.kind`.
        comparison: =, !=, <, <=, > or >=.
        value: what it is compared with: what JSON says that it is, else a text.
        text: it as it was given.
    """

    field: str
    comparison: str
    value: Any
    text: str

    @classmethod
    def parse(cls, text: str) -> RowCondition:
        """Read FIELD OP VALUE.

        Raises:
            InputError: it is something else.

        >>> RowCondition.parse("score >= 0.5")
        RowCondition(field='score', comparison='>=', value=0.5, text='0.5')
        >>> RowCondition.parse("finish=end").value
        'end'
        """
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise InputError(
                f"--where {text!r}: write FIELD=VALUE, or !=, <, <=, > or >=: 'score>=0.5'"
            )
        field, comparison, value = found.groups()
        try:
            decoded = json.loads(value)
        except (ValueError, RecursionError):
            decoded = value
        if comparison in _COMPARED and (
            isinstance(decoded, bool) or not isinstance(decoded, int | float | str)
        ):
            raise InputError(f"--where {text!r}: {comparison} compares numbers or texts")
        return cls(field, comparison.replace("==", "="), decoded, value)

    def holds(self, record: Record) -> bool:
        """Whether a record's row meets it; one without the field, or with null there, does not.

        Raises:
            BadRecord: the row cannot be read, or what stands there has no order with the value.
        """
        try:
            value = record.at(self.field)
        except BadRecord as error:
            if error.entry["code"] != "missing-field":
                raise
            return False
        if self.comparison in ("=", "!="):
            # An id that is the text "17" is meant by 17 too.
            equal = value == self.value or (isinstance(value, str) and value == self.text)
            return equal is (self.comparison == "=")
        if value is None:
            return False
        other = self.text if isinstance(value, str) and isinstance(self.value, str) else self.value
        if isinstance(value, str) != isinstance(other, str) or not isinstance(
            value, int | float | str
        ):
            raise record.bad(
                "not-comparable",
                f"field {self.field!r} is {kind_of(value)}, and --where "
                f"compares it by {self.comparison} with {self.text!r}",
            )
        return _COMPARED[self.comparison](value, other)


def _at(record: Record, field: str) -> tuple[Any, ...]:
    """Return what stands in a field of a record's row, in a tuple; () where nothing does."""
    try:
        return (record.at(field),)
    except BadRecord:
        return ()


def check_conditions(records: Iterable[Record], conditions: Sequence[RowCondition]) -> None:
    """Refuse conditions on fields that none of the first rows has.

    Raises:
        InputError: there is no such field; the message says which there are.
    """
    first = list(islice(records, PATIENCE)) if conditions else []
    for condition in conditions:
        if first and not any(_at(record, condition.field) for record in first):
            above = condition.field.rpartition(".")[0]
            rows = [value for record in first for value in _at(record, above or ".")]
            objects = (row for row in rows if isinstance(row, dict))
            names = dict.fromkeys(str(name) for row in objects for name in row)
            there = f"there is {', '.join(names)}" if names else "there is none"
            inside = f" in {above!r}" if names and above else ""
            raise InputError(
                f"--where: no field {condition.field!r} in {first[0].place}"
                + (" or the rows behind it" if len(first) > 1 else "")
                + f": {there}{inside}"
            )
