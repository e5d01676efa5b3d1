"""`mvspec demo`: paths at once, live, and measured against one after the other."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvspec.cli.options import Model, Timeline, as_given, needs
from mvspec.cli.plan import cost_line
from mvspec.cli.run import load_engine, run_live, show_result
from mvspec.errors import VerifyError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mvspec.runtime.protocol import Engine
    from mvspec.runtime.tasks.arithmetic import ArithmeticProblem
    from mvspec.runtime.tasks.examination import MeasuredReplays
    from mvspec.trace import Result
    from mvspec.tree.ir import Document

SEED = 54
"""Of the held-out problems: one without parts, two with, and one whose parts have parts."""


def demo(
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive", help="Let a small model that comes along decide by itself when to fork."
        ),
    ] = False,
    problems: Annotated[
        int, typer.Option(min=1, help="How many the model is asked, with --adaptive.")
    ] = 4,
    model: Model = None,
    timeline: Timeline = None,
) -> None:
    """Run eight questions about a text at once, and a verdict; measure it against one by one."""
    with needs("engine", "demo"):
        from mvspec.runtime.tasks.demo import document
    with as_given():
        if adaptive:
            show_adaptive_demo(model, count=problems, timeline=timeline)
        else:
            show_demo(document, model, timeline=timeline)


def show_demo(document: Document, model: str | None, *, timeline: Path | None = None) -> Result:
    """Author a small task, show its plan, run it live, and measure it against one path at a time.

    Args:
        document: the task.
        timeline: an .svg or .png file that the timeline is drawn to.
    """
    from rich.console import Console

    from mvspec.compiler.plan import plan_cost
    from mvspec.runtime.options import Options
    from mvspec.view.timeline import check_timeline, timeline_text, write_timeline

    check_timeline(timeline)
    console = Console()
    errors = Console(stderr=True)
    engine = load_engine(model, errors)
    console.rule("the document")
    console.print(document)
    plan = engine.plan(document)
    console.rule("its plan")
    console.print(str(plan), highlight=False, markup=False)
    console.print(cost_line(plan), highlight=False, markup=False)
    result = run_live(engine, plan, Options(), errors, live=True)
    console.rule("the results")
    show_result(result, console)
    console.rule("the timeline")
    console.print(timeline_text(result.trace, console.width))
    write_timeline(timeline, result.trace)
    # The same tokens twice more, in one process: all paths a step, and one path after the other.
    with errors.status("measuring the same tokens, one path after the other"):
        together = engine.run(result.trace.plan, Options(decode=True)).trace.seconds
        alone = engine.run(result.trace.plan, Options(decode=True, threads=1)).trace.seconds
    predicted = plan_cost(result.trace.plan).speedup
    console.print(
        f"the same tokens: {together:.1f} s in parallel, {alone:.1f} s one path after the other: "
        f"{alone / together:.2f} times faster (at most {predicted:.2f}, were every step as fast "
        "as one with a single path)",
        highlight=False,
    )
    return result


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
    from rich.console import Console

    from mvspec.runtime.tasks.arithmetic import TINY, arithmetic_model, problems
    from mvspec.runtime.tasks.examination import measure_replays
    from mvspec.view.timeline import check_timeline, timeline_text, write_timeline

    if count < 1:
        raise VerifyError("problems", f"{count}: ask at least one")
    check_timeline(timeline)
    console, errors = Console(), Console(stderr=True)
    engine = load_engine(model or str(arithmetic_model()), errors)
    asked = list(islice(problems("test", SEED, TINY), count))
    results = [_answer(engine, each, console, errors) for each in asked]
    widest = max(results, key=lambda result: result.trace.parallelism)
    console.rule("the timeline of the most parallel answer")
    console.print(timeline_text(widest.trace, console.width))
    write_timeline(timeline, widest.trace)
    console.rule("what forking saved")
    with errors.status("measuring the same tokens, paths at once and one after the other"):
        measured = measure_replays(engine, [result.trace for result in results])
    console.print(_saved_table(measured))
    right = sum(p.is_right(r.text) for r, p in zip(results, asked, strict=True))
    formed = sum(not result.diagnostics for result in results)
    console.print(
        f"{right} of {len(asked)} right, {formed} well-formed, none held to the grammar. "
        "A step of so small a model is mostly overhead, the same for one thread or several; "
        "forwards are what a larger model saves.",
        highlight=False,
    )
    return results


def _answer(
    engine: Engine, problem: ArithmeticProblem, console: Console, errors: Console
) -> Result:
    """Ask one problem, and show what the model wrote."""
    from mvspec.runtime.tasks.examination import UNHELD
    from mvspec.runtime.tasks.problem import ask
    from mvspec.view.timeline import captions

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
    console.print("; ".join(captions(result.trace)), highlight=False, markup=False)
    return result


def _saved_table(measured: MeasuredReplays) -> Table:
    from rich.table import Table

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
