"""`mvspec demo --adaptive`: a small model decides by itself when to fork, live and measured."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mvspec.errors import VerifyError
from mvspec.runtime.console import load_engine, run_live, summary
from mvspec.runtime.engine.torch_engine import TorchEngine
from mvspec.runtime.options import Options
from mvspec.runtime.tasks.arithmetic import TINY, Problem, arithmetic_model, problems
from mvspec.runtime.tasks.examination import UNHELD
from mvspec.runtime.tasks.problem import ask
from mvspec.trace import Result, Trace
from mvspec.view.timeline import timeline_text
from mvspec.view.timeline_image import check_timeline, write_timeline

__all__ = ["Measured", "measure", "show_adaptive_demo"]

SEED = 54
"""Of the held-out problems: one without parts, two with, and one whose parts have parts."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The same tokens read twice, each the model's own one a step: paths at once, and in turn.

    Args:
        forwards, seconds: with all paths in every step.
        forwards_alone, seconds_alone: with one token in every step.
    """

    forwards: int
    seconds: float
    forwards_alone: int
    seconds_alone: float


def measure(engine: TorchEngine, traces: list[Trace], rounds: int = 2) -> Measured:
    """Replay traces at once and one path after the other, in turns; the faster round of each."""
    counts = [0, 0]
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for way, threads in enumerate((0, 1)):
            options = Options(decode=True, threads=threads)
            replays = [engine.run(trace.plan, options).trace for trace in traces]
            counts[way] = sum(len(replay.forward_seconds) for replay in replays)
            best[way] = min(best[way], sum(replay.seconds for replay in replays))
    return Measured(counts[0], best[0], counts[1], best[1])


def show_adaptive_demo(
    model: str | None = None, *, count: int = 4, timeline: Path | None = None
) -> list[Result]:
    """Ask a model problems that it was not trained on, live, and measure what forking saved.

    Args:
        model: a folder or hub name; by default the one that comes with the package.
        count: how many problems.
        timeline: an .svg or .png file that the last timeline is drawn to.

    Raises:
        VerifyError: there is no problem to ask.
    """
    if count < 1:
        raise VerifyError("problems", f"{count}: ask at least one")
    if timeline is not None:
        check_timeline(timeline)
    console, errors = Console(), Console(stderr=True)
    engine = load_engine(model or str(arithmetic_model()), errors)
    asked = list(islice(problems("test", SEED, TINY), count))
    results = [_answer(engine, each, console, errors) for each in asked]
    widest = max(results, key=lambda result: result.trace.parallelism)
    console.rule("the timeline of the most parallel answer")
    console.print(timeline_text(widest.trace, console.width))
    if timeline is not None:
        write_timeline(timeline, widest.trace)
    console.rule("what forking saved")
    with errors.status("measuring the same tokens, paths at once and one after the other"):
        measured = measure(engine, [result.trace for result in results])
    console.print(_table(measured))
    right = sum(p.is_right(r.text) for r, p in zip(results, asked, strict=True))
    formed = sum(not result.diagnostics for result in results)
    console.print(
        f"{right} of {len(asked)} right, {formed} well-formed, none held to the grammar. "
        "A step of so small a model is mostly overhead, the same for one thread or several; "
        "forwards are what a larger model saves.",
        highlight=False,
    )
    return results


def _answer(engine: TorchEngine, problem: Problem, console: Console, errors: Console) -> Result:
    """Ask one problem, and show what the model wrote."""
    console.rule(f"What is {problem}?")
    result = run_live(engine, ask(problem), UNHELD, errors, live=True)
    if result.document is not None:
        console.print(result.document.messages[-1])
    right = problem.is_right(result.text)
    console.print(
        f"[green]right: {problem.value}[/]" if right else f"[red]wrong: it is {problem.value}[/]"
    )
    for each in result.diagnostics:
        console.print(f"malformed: {each.message}", style="red", markup=False)
    console.print(summary(result.trace), highlight=False, markup=False)
    return result


def _table(measured: Measured) -> Table:
    table = Table("the same tokens", "forwards", "seconds")
    table.add_row("paths at once", str(measured.forwards), f"{measured.seconds:.2f}")
    table.add_row(
        "one path after the other", str(measured.forwards_alone), f"{measured.seconds_alone:.2f}"
    )
    table.add_row(
        "times fewer, times faster",
        f"{measured.forwards_alone / measured.forwards:.2f}",
        f"{measured.seconds_alone / measured.seconds:.2f}",
    )
    return table
