"""A whole evaluation: problems of a task asked of an engine, or outputs read, and graded."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from mvspec.data.measure import Counter
from mvspec.data.records import Fields, InputError
from mvspec.runtime.evaluation.answer_graders import check_instructions
from mvspec.runtime.evaluation.generation import Answer, AnswerGenerator, AskedAnswer, generate
from mvspec.runtime.evaluation.grader_process import graders
from mvspec.runtime.evaluation.problem import (
    EvaluationProblem,
    digest,
    open_problems,
    read_problems,
)
from mvspec.runtime.evaluation.recorded import RecordedOutputs, match_outputs
from mvspec.runtime.evaluation.results import (
    EvaluationRun,
    EvaluationSample,
    open_results,
    shape_of,
)
from mvspec.runtime.evaluation.sandbox import refusal
from mvspec.runtime.evaluation.tasks import EvaluationTask, task_of

Tell = Callable[[str], object]
Keep = Callable[[EvaluationSample], object]
Progress = Callable[[int, int], AbstractContextManager[Callable[[str], object]]]
"""Of samples in all and done before: gives a function that takes a short text after each."""


def no_progress(total: int, done: int) -> AbstractContextManager[Callable[[str], object]]:
    """Show nothing."""
    return nullcontext(lambda text: None)


@dataclass(frozen=True)
class EvaluationSource:
    """Data of an evaluation, and how its answers are graded.

    Args:
        task: a name of `TASKS`.
        data: what `open_problems` takes.
        group: the column that accuracies are told apart by.
        split: of saved data sets.
        limit: the first so many problems only.
        checker: of the task `own`.
        allow_code: whether a model's code may be run.
        final: grade what stands behind the thoughts only.
        workers: answers that are graded at once.
        timeout: seconds that grading an answer may take; by default the task's.
    """

    task: str
    data: tuple[str, ...]
    group: str = "source"
    split: str | None = None
    limit: int | None = None
    checker: str | None = None
    allow_code: bool = False
    final: bool = False
    workers: int = 1
    timeout: float | None = None

    def open(self) -> Evaluation:
        """Read the data.

        Raises:
            InputError: it cannot be read, or the task lacks what it needs.
        """
        task = task_of(self.task, self.checker, allow_code=self.allow_code)
        if self.checker is not None:
            from mvspec.runtime.evaluation.answer_graders import find_checker

            find_checker(self.checker)
        records = open_problems(self.data, self.split)
        problems = read_problems(records, task.read, group=self.group)
        if task.name == "ifeval":
            check_instructions(name for each in problems for name in each.payload["instructions"])
        if task.runs_code and (reason := refusal()):
            raise InputError(reason)
        end = len(problems) if self.limit is None else self.limit
        return Evaluation(self, task, problems[:end], digest(problems), problems[end:])


@dataclass(frozen=True)
class Evaluation:
    """A task with its problems.

    Args:
        digest: of all problems of the data, whatever the limit.
        beyond: problems behind the limit, which are not asked.
    """

    source: EvaluationSource
    task: EvaluationTask
    problems: Sequence[EvaluationProblem]
    digest: str
    beyond: Sequence[EvaluationProblem] = ()

    def to_dict(self, **more: Any) -> dict[str, Any]:
        """Return what decides a run's samples."""
        return {
            "task": self.task.name,
            "problems": self.digest,
            "limit": self.source.limit,
            "data": [Path(name).name for name in self.source.data],
            "group": self.source.group,
            "checker": self.source.checker,
            "final": self.source.final,
            **more,
        }

    @property
    def seconds(self) -> float:
        """How long grading an answer may take."""
        return self.source.timeout or self.task.seconds


@contextmanager
def _kept(path: Path | None, settings: Mapping[str, Any]) -> Iterator[tuple[EvaluationRun, Keep]]:
    """Give a run and what adds a sample to it, on disk where there is a path."""
    if path is None:
        run = EvaluationRun(Path("-"), dict(settings))
        yield run, lambda sample: run.samples.update({sample.key: replace(sample, trace=None)})
        return
    with open_results(path, settings) as results:
        yield results.run, results.add


def _run(
    evaluation: Evaluation,
    asked: Sequence[AskedAnswer],
    answer: Answer,
    path: Path | None,
    tell: Tell,
    progress: Progress,
    concurrency: int,
    settings: Mapping[str, Any],
) -> EvaluationRun:
    """Get the answers that a run still lacks, grade them and keep each at once.

    What was refused or not graded is asked for again.
    """
    total = len(asked)
    with (
        _kept(path, {**settings, "total": total}) as (run, keep),
        graders(evaluation.source.workers, evaluation.seconds) as pool,
    ):
        rest = [
            (problem, number, cap)
            for problem, number, cap in asked
            if (had := run.samples.get((problem.id, number, cap))) is None
            or had.error
            or had.score is None
        ]
        if len(rest) < total:
            tell(f"{total - len(rest):,} of {total:,} samples are there: going on")
        with progress(total, total - len(rest)) as advance:

            def add(sample: EvaluationSample) -> None:
                keep(sample)
                advance(score_line(run))

            asyncio.run(
                generate(
                    rest, answer, evaluation.task, pool, add, dict(run.samples),
                    concurrency=min(concurrency, max(len(rest), 1)),
                    final=evaluation.source.final,
                )
            )  # fmt: skip
    return run


def grade_recorded(
    evaluation: Evaluation,
    outputs: str | None,
    field: str | None,
    count: Counter,
    unit: str,
    path: Path | None,
    tell: Tell,
    progress: Progress = no_progress,
) -> tuple[EvaluationRun, RecordedOutputs]:
    """Grade outputs that were recorded elsewhere.

    Args:
        outputs: the file; None where the problems' rows hold them.
        field: where a row keeps its text; None for the first known column.
        count: of tokens; `unit` is what is counted.
        path: of the results; None keeps none.

    Raises:
        InputError: no output can be used, or the results cannot be written.
    """
    names = (outputs,) if outputs is not None else evaluation.source.data
    records = open_problems(names, evaluation.source.split, Fields(field=field))
    found = match_outputs(records, evaluation.problems, evaluation.beyond)
    for line in found.left_out:
        tell(f"left out: {line}")
    made = hashlib.sha256(repr(found.outputs).encode(errors="surrogatepass")).hexdigest()[:16]
    settings = evaluation.to_dict(outputs=made, field=field or "output", count=unit)
    asked: list[AskedAnswer] = [
        (problem, number, None)
        for problem in evaluation.problems
        for number in range(len(found.outputs[problem.id]))
    ]

    async def answer(problem: EvaluationProblem, number: int, _: int | None) -> EvaluationSample:
        output = found.outputs[problem.id][number]
        shape = await asyncio.to_thread(shape_of, output, count)
        run = found.runs.get((problem.id, number))
        return EvaluationSample(
            problem.id, number, None, problem.group, output=output,
            trace=None if run is None else run.value, **asdict(shape),
        )  # fmt: skip

    run = _run(evaluation, asked, answer, path, tell, progress, evaluation.source.workers, settings)
    place = {problem.id: number for number, problem in enumerate(evaluation.problems)}
    ordered = sorted(run.samples.values(), key=lambda each: (place.get(each.id, 0), each.sample))
    run.samples = {each.key: each for each in ordered}
    return run, found


def score_line(run: EvaluationRun) -> str:
    """Return how many of the graded samples are right."""
    scores = [each.score for each in run.samples.values() if each.score is not None]
    return f"{sum(scores):g} of {len(scores):,} right" if scores else ""


@dataclass(frozen=True)
class AskedSamples:
    """Samples that an engine is asked for.

    Args:
        samples: of each problem.
        caps: on the critical path, in tokens; (None,) for no cap.
        concurrency: requests on their way at once.
    """

    samples: int = 1
    caps: tuple[int | None, ...] = (None,)
    concurrency: int = 16


def run_engine(
    evaluation: Evaluation,
    generation: AnswerGenerator,
    asking: AskedSamples,
    path: Path,
    tell: Tell,
    progress: Progress = no_progress,
) -> EvaluationRun:
    """Ask an engine for what is missing of a run, and grade it.

    Args:
        generation: how problems are asked.
        asking: how much.
        path: of the results.

    Raises:
        InputError: the results were made under other settings, or cannot be written.
        MvspecError: the engine has failed; what was done is kept.
    """
    asked = [
        (problem, number, cap)  # all problems once before any a second time
        for number, cap, problem in product(range(asking.samples), asking.caps, evaluation.problems)
    ]
    settings = evaluation.to_dict(
        **generation.to_dict(), samples=asking.samples, caps=list(asking.caps)
    )
    return _run(
        evaluation, asked, generation.answer, path, tell, progress, asking.concurrency, settings
    )
