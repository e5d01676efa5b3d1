"""Outputs that were recorded elsewhere: matched with problems by id, and graded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace

from mvspec.data.columns import RowError
from mvspec.data.measure import Counter
from mvspec.data.records import BadRecord, InputError, Record
from mvspec.data.sources import Records
from mvspec.forms import render
from mvspec.runtime.evaluation.grading import Graders
from mvspec.runtime.evaluation.problem import EvaluationProblem
from mvspec.runtime.evaluation.results import EvaluationSample, Key, final_text, shape_of
from mvspec.runtime.evaluation.tasks import EvaluationTask

__all__ = ["RecordedOutputs", "grade_outputs", "graded", "match_outputs"]


@dataclass
class RecordedOutputs:
    """Outputs by problem.

    Args:
        outputs: of each problem's id, in the order of the file.
        left_out: rows that could not be used, with the place and why.
        missing: problems without an output.
    """

    outputs: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def match_outputs(records: Records, problems: Sequence[EvaluationProblem]) -> RecordedOutputs:
    """Return the outputs of a file, by the problems that they answer.

    Rows name their problem by the same columns as problems do; a problem with several rows has
    several samples.

    Args:
        records: of the file.
        problems: that are graded.

    Raises:
        InputError: no row could be used; the message says why the first was not.
    """
    found = RecordedOutputs({problem.id: [] for problem in problems})
    by_place = {problem.place: problem.id for problem in problems}
    for record in records.read():
        try:
            name = by_place.get(record.place, record.place)
            name = name if record.name == record.place else record.name
            text = output_of(record)
            if name not in found.outputs:
                raise record.bad("no-problem", f"no problem has the id {name!r}")
        except BadRecord as error:
            found.left_out.append(f"{record.place}: {error.entry['reason']}")
            continue
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
    if record.kind == "chat":
        try:
            turns = [turn for turn in record.turns() if turn.role == "assistant"]
        except RowError as error:
            raise record.bad(error.code, str(error), address=error.address) from None
        if turns and turns[-1].thoughts is None:
            return turns[-1].text
    answers = [each for each in record.document.messages if each.role == "assistant"]
    return render(answers[-1], record.fields.form) if answers else ""


def graded(
    sample: EvaluationSample,
    problem: EvaluationProblem,
    task: EvaluationTask,
    graders: Graders,
    final: bool,
) -> EvaluationSample:
    """Return a sample with its verdict.

    Args:
        final: grade what stands behind the thoughts only.
    """
    text = final_text(sample.output) if final or not task.whole else sample.output
    verdict = graders.grade(task.grader, problem.payload, text)
    return replace(
        sample,
        score=verdict.score,
        extracted=verdict.extracted,
        note=verdict.note,
        details=verdict.details,
    )


def grade_outputs(
    problems: Sequence[EvaluationProblem],
    outputs: dict[str, list[str]],
    task: EvaluationTask,
    graders: Graders,
    count: Counter,
    done: Iterable[Key] = (),
    *,
    workers: int,
    final: bool = False,
) -> Iterator[EvaluationSample]:
    """Grade recorded outputs and yield the samples as they are graded.

    Args:
        outputs: of each problem's id.
        count: the unit of tokens.
        done: keys of samples that are graded already.
        workers: answers that are graded at once.
        final: as in `graded`.
    """
    skipped = set(done)

    def one(problem: EvaluationProblem, number: int, output: str) -> EvaluationSample:
        shape = shape_of(output, count)
        sample = EvaluationSample(
            problem.id,
            number,
            None,
            problem.group,
            output,
            form=shape.form,
            code=shape.code,
            blocks=shape.blocks,
            tokens=shape.tokens,
            critical_path=shape.critical_path,
        )
        return graded(sample, problem, task, graders, final)

    with ThreadPoolExecutor(workers, "grading") as pool:
        futures = [
            pool.submit(one, problem, number, output)
            for problem in problems
            for number, output in enumerate(outputs[problem.id])
            if (problem.id, number, None) not in skipped
        ]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
