"""Outputs that were recorded elsewhere, matched with problems by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mvspec.data.columns import COLUMNS, RowError, column
from mvspec.data.records import BadRecord, InputError, Record
from mvspec.data.sources import Records
from mvspec.forms import render
from mvspec.runtime.evaluation.problem import EvaluationProblem


@dataclass
class RecordedOutputs:
    """Outputs by problem.

    Args:
        outputs: of each problem's id, in the order of the file.
        left_out: rows that could not be used, with the place and why.
        missing: problems without an output.
        runs: of the outputs that are runs, their records by problem and place in its list.
    """

    outputs: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    runs: dict[tuple[str, int], Record] = field(default_factory=dict)


def match_outputs(
    records: Records,
    problems: Sequence[EvaluationProblem],
    beyond: Sequence[EvaluationProblem] = (),
) -> RecordedOutputs:
    """Return the outputs of a file, by the problems that they answer.

    Rows name their problem by the same columns as problems do; a problem with several rows has
    several samples.

    Args:
        records: of the file.
        problems: that are graded.
        beyond: problems that are not: their outputs are passed over.

    Raises:
        InputError: no row could be used; the message says why the first was not.
    """
    found = RecordedOutputs({problem.id: [] for problem in problems})
    by_place = {problem.place: problem.id for problem in (*problems, *beyond)}
    passed = {problem.id for problem in beyond}
    for record in records.read():
        try:
            with record.guarded():
                text = output_of(record)
            name = by_place.get(record.place, record.place)
            name = name if record.name == record.place else record.name
            if name in passed:
                continue
            if name not in found.outputs:
                raise record.bad("no-problem", f"no problem has the id {name!r}")
        except BadRecord as error:
            found.left_out.append(f"{record.place}: {error.entry['reason']}")
            continue
        if record.kind == "trace":  # without what was decoded of it
            found.runs[name, len(found.outputs[name])] = replace(record)
        found.outputs[name].append(text)
    if not any(found.outputs.values()):
        why = found.left_out[0] if found.left_out else "the file is empty"
        raise InputError(f"no output could be used: {why}")
    found.missing = [name for name, texts in found.outputs.items() if not texts]
    return found


def output_of(record: Record) -> str:
    """Return what the assistant wrote last in a record, well-formed or not.

    Raises:
        BadRecord: the record has no text, no document and no chat.
    """
    if record.trouble is not None:
        raise BadRecord.at(record.name, record.place, record.trouble)
    if record.kind == "text":
        return record.text
    beside = column(record.row or {}, *COLUMNS["text"]) if record.kind == "trace" else None
    if isinstance(beside, str):
        return beside
    if record.kind == "chat":
        try:
            turns = [turn for turn in record.turns() if turn.role == "assistant"]
        except RowError as error:
            raise record.bad(error.code, str(error), address=error.address) from None
        if turns and turns[-1].thoughts is None:
            return turns[-1].text
    answers = [each for each in record.document.messages if each.role == "assistant"]
    return render(answers[-1], record.fields.form) if answers else ""
