"""A whole evaluation: problems of a task asked of an engine, or outputs read, and graded."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvspec.data.measure import Counter
from mvspec.data.records import Fields
from mvspec.runtime.evaluation.checks import check_instructions
from mvspec.runtime.evaluation.grading import graders
from mvspec.runtime.evaluation.problem import (
    EvaluationProblem,
    digest,
    open_problems,
    read_problems,
)
from mvspec.runtime.evaluation.recorded import RecordedOutputs, grade_outputs, match_outputs
from mvspec.runtime.evaluation.results import EvaluationRun, EvaluationSample, open_results
from mvspec.runtime.evaluation.sandbox import missing
from mvspec.runtime.evaluation.tasks import EvaluationTask, task_of

if TYPE_CHECKING:
    from mvspec.runtime.evaluation.generation import AnswerGenerator

__all__ = ["AskedSamples", "Evaluation", "EvaluationSource", "grade_recorded", "run_engine"]

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

    def open(self, tell: Tell) -> Evaluation:
        """Read the data.

        Raises:
            InputError: it cannot be read, or the task lacks what it needs.
        """
        task = task_of(self.task, self.checker, allow_code=self.allow_code)
        if self.checker is not None:
            from mvspec.runtime.evaluation.checks import find_checker

            find_checker(self.checker)
        records = open_problems(self.data, self.split)
        problems = read_problems(records, task.read, group=self.group)
        if task.name == "ifeval":
            check_instructions(name for each in problems for name in each.payload["instructions"])
        if task.runs_code:
            for wall in missing():
                tell(f"the sandbox has not {wall} here: run it in a container of its own")
        return Evaluation(self, task, problems[: self.limit], digest(problems))


@dataclass(frozen=True)
class Evaluation:
    """A task with its problems.

    Args:
        digest: of all problems of the data, whatever the limit.
    """

    source: EvaluationSource
    task: EvaluationTask
    problems: Sequence[EvaluationProblem]
    digest: str

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
        yield run, lambda sample: run.samples.update({sample.key: sample})
        return
    with open_results(path, settings) as results:
        yield results.run, results.add


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
    found = match_outputs(records, evaluation.problems)
    for line in found.left_out:
        tell(f"left out: {line}")
    made = hashlib.sha256(repr(found.outputs).encode(errors="surrogatepass")).hexdigest()[:16]
    total = sum(map(len, found.outputs.values()))
    settings = evaluation.to_dict(outputs=made, field=field or "output", count=unit, total=total)
    place = {problem.id: number for number, problem in enumerate(evaluation.problems)}
    with (
        _kept(path, settings) as (run, keep),
        graders(evaluation.source.workers, evaluation.seconds) as pool,
    ):
        done = [key for key, each in run.samples.items() if each.score is not None]
        with progress(total, len(done)) as advance:
            for sample in grade_outputs(
                evaluation.problems, found.outputs, evaluation.task, pool, count, done,
                workers=evaluation.source.workers, final=evaluation.source.final,
            ):  # fmt: skip
                keep(sample)
                advance(score_line(run))
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
    from mvspec.runtime.evaluation.generation import generate, wanted

    source, problems = evaluation.source, evaluation.problems
    total = len(problems) * asking.samples * len(asking.caps)
    settings = evaluation.to_dict(
        **generation.to_dict(), samples=asking.samples, caps=list(asking.caps), total=total
    )
    with (
        open_results(path, settings) as results,
        graders(source.workers, evaluation.seconds) as pool,
    ):
        run = results.run
        asked = wanted(problems, asking.samples, asking.caps, run.samples.values())
        if len(asked) < total:
            tell(f"{total - len(asked):,} of {total:,} samples are there: going on")
        with progress(total, total - len(asked)) as advance:

            def keep(sample: EvaluationSample) -> None:
                results.add(sample)
                advance(score_line(run))

            asyncio.run(
                generate(
                    asked, generation, evaluation.task, pool, keep, dict(run.samples),
                    concurrency=min(asking.concurrency, max(len(asked), 1)), final=source.final,
                )
            )  # fmt: skip
        return run
