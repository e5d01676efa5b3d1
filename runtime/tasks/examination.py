"""Problems of a task asked of an engine, how it did, and what forking saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from mvspec.law.limits import Limits
from mvspec.runtime.options import Options
from mvspec.runtime.protocol import Engine
from mvspec.runtime.tasks.problem import PARALLEL, TaskProblem, ask
from mvspec.trace import Result, Trace

UNHELD = Options(structure=False, limits=Limits(max_tokens=2000))
"""Nothing holds the model to the grammar: what is well-formed is its own doing."""


@dataclass(frozen=True, slots=True)
class ExamMark:
    """The mark of one problem.

    Args:
        right: the final answer is right.
        well_formed: the turn ended by itself, and its structure needs no repair.
        forked: it has a block.
        tokens: of the assistant's turn.
        critical_path: of them.
        forwards: that the run took part in.
    """

    right: bool
    well_formed: bool
    forked: bool
    tokens: int
    critical_path: int
    forwards: int


def mark(result: Result, problem: TaskProblem) -> ExamMark:
    """Return how an engine's answer to a problem went."""
    trace = result.trace
    return ExamMark(
        right=problem.is_right(result.text),
        well_formed=trace.finish == "end" and not result.diagnostics,
        forked=len(trace.threads) > 1,
        tokens=trace.answer,
        critical_path=trace.critical_path,
        forwards=len(trace.forward_seconds),
    )


def examine(
    engine: Engine,
    problems: Sequence[TaskProblem],
    prompt: str = PARALLEL,
    options: Options = UNHELD,
    *,
    batch: int = 64,
) -> Iterator[tuple[ExamMark, str]]:
    """Ask an engine problems, several at once, and yield how each went, and the turn's text.

    Args:
        engine: of whatever kind.
        problems: what to ask.
        prompt: that follows the question.
        options: how answers are written.
        batch: problems that run at once.
    """
    rest = iter(problems)
    while some := list(islice(rest, batch)):
        results = engine.run_many([ask(problem, prompt) for problem in some], options)
        for result, problem in zip(results, some, strict=True):
            yield mark(result, problem), result.text


def means(marks: Iterable[ExamMark]) -> dict[str, float]:
    """Return the mean of every field, and of tokens over critical path as `parallelism`.

    >>> means([ExamMark(True, True, True, 150, 100, 101), ExamMark(False, True, False, 50, 50, 51)])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'right': 0.5, 'well_formed': 1.0, 'forked': 0.5, 'tokens': 100.0, 'critical_path': 75.0,
     'forwards': 76.0, 'parallelism': 1.25}
    """
    rows = [asdict(each) for each in marks]
    found = {name: sum(float(row[name]) for row in rows) / len(rows) for name in rows[0]}
    degrees = [row["tokens"] / max(row["critical_path"], 1) for row in rows]
    return found | {"parallelism": sum(degrees) / len(rows)}


@dataclass(frozen=True, slots=True)
class MeasuredReplays:
    """The same tokens read twice, each the model's own one a step: paths at once, and in turn.

    Args:
        forwards, seconds: with all paths in every step.
        forwards_alone, seconds_alone: with one token in every step.
    """

    forwards: int
    seconds: float
    forwards_alone: int
    seconds_alone: float


def measure_replays(engine: Engine, traces: Sequence[Trace], rounds: int = 2) -> MeasuredReplays:
    """Replay traces at once and one path after the other, in turns; the faster round of each."""
    counts = [0, 0]
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for way, threads in enumerate((0, 1)):
            options = Options(decode=True, threads=threads)
            replays = [engine.run(trace.plan, options).trace for trace in traces]
            counts[way] = sum(len(replay.forward_seconds) for replay in replays)
            best[way] = min(best[way], sum(replay.seconds for replay in replays))
    return MeasuredReplays(counts[0], best[0], counts[1], best[1])
