"""Grading samples, and outputs that are on record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

from mvspec.data.measure import Counter
from mvspec.runtime.evaluation.grading import Graders
from mvspec.runtime.evaluation.problem import Problem
from mvspec.runtime.evaluation.sample import Key, Sample, final_text, shape_of
from mvspec.runtime.evaluation.tasks import Task

__all__ = ["grade_outputs", "graded"]


def graded(sample: Sample, problem: Problem, task: Task, graders: Graders, final: bool) -> Sample:
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
    problems: Sequence[Problem],
    outputs: dict[str, list[str]],
    task: Task,
    graders: Graders,
    count: Counter,
    done: Iterable[Key] = (),
    *,
    workers: int,
    final: bool = False,
) -> Iterator[Sample]:
    """Grade recorded outputs and yield the samples as they are graded.

    Args:
        outputs: of each problem's id.
        count: the unit of tokens.
        done: keys of samples that are graded already.
        workers: answers that are graded at once.
        final: as in `graded`.
    """
    skipped = set(done)

    def one(problem: Problem, number: int, output: str) -> Sample:
        shape = shape_of(output, count)
        sample = Sample(
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
