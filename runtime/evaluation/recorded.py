"""Outputs that were recorded elsewhere, matched with problems by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mvspec.data.conversation import BadRecord, row_value, step_into
from mvspec.data.records import InputError
from mvspec.data.rows import Row, Rows
from mvspec.runtime.evaluation.problem import IDS, Columns, Problem

__all__ = ["Recorded", "match_outputs"]


@dataclass
class Recorded:
    """Outputs by problem.

    Args:
        outputs: of each problem's id, in the order of the file.
        left_out: rows that could not be used, with the place and why.
        missing: problems without an output.
    """

    outputs: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def match_outputs(rows: Rows, problems: Sequence[Problem], field: str) -> Recorded:
    """Return the outputs of a file, by the problems that they answer.

    Rows name their problem by the same columns as problems do; a problem with several rows has
    several samples. The first line of a file that `mvspec eval` wrote is passed over.

    Args:
        rows: of the file.
        problems: that are graded.
        field: where a row keeps its text, as `output` or `result.text`.

    Raises:
        InputError: no row could be used; the message says why the first was not.
    """
    found = Recorded({problem.id: [] for problem in problems})
    by_place = {problem.place: problem.id for problem in problems}
    for number, row in enumerate(rows.read()):
        try:
            value = row_value(row)
            if not number and isinstance(value, dict) and "settings" in value:
                continue
            name = _name(value, row, by_place)
            text = step_into(value, field, name, row.place)
            if not isinstance(text, str):
                raise BadRecord(name, row.place, "not-a-string", f"field {field!r} is no text")
            if name not in found.outputs:
                raise BadRecord(name, row.place, "no-problem", f"no problem has the id {name!r}")
        except BadRecord as error:
            has = ", ".join(value) if isinstance(value, dict) else ""
            more = f": there is {has}" if error.entry["code"] == "missing-field" and has else ""
            found.left_out.append(f"{row.place}: {error.entry['reason']}{more}")
            continue
        found.outputs[name].append(text)
    if not any(found.outputs.values()):
        why = found.left_out[0] if found.left_out else "the file is empty"
        raise InputError(f"no output could be used: {why}")
    found.missing = [name for name, texts in found.outputs.items() if not texts]
    return found


def _name(value: Any, row: Row, by_place: dict[str, str]) -> str:
    name = Columns(value).find(*IDS) if isinstance(value, dict) else None
    if isinstance(name, str | int) and not isinstance(name, bool):
        return str(name)
    return by_place.get(row.place, row.place)
