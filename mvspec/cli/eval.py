"""`mvspec eval`: how good what a model writes is; runs, reports and comparisons."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mvspec.cli.console import plain_table, print_table, sample_bar, tell
from mvspec.cli.options import (
    Json,
    Model,
    TemplateArgs,
    as_given,
    from_options,
    needs,
    numbers,
    template_arguments,
)
from mvspec.cli.stats import counter_of
from mvspec.data.columns import listed
from mvspec.shown import visible

if TYPE_CHECKING:
    from rich.table import Table

    from mvspec.runtime.evaluation.results import EvaluationSample
    from mvspec.runtime.evaluation.summary import AccuracyEstimate, EvaluationSummary, RunComparison

RUN = "run"


class _Eval(TyperGroup):
    """Takes what is no command for the arguments of `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [RUN, *args]
        return super().parse_args(ctx, args)


eval = typer.Typer(
    cls=_Eval,
    no_args_is_help=True,
    add_completion=False,
    help="How good what a model writes is: run a task, report, compare two runs. "
    "`mvspec eval TASK DATA...` is `mvspec eval run TASK DATA...`.",
)

Plot = Annotated[
    Path | None,
    typer.Option(help="Draw accuracy against the caps to this .png or .svg file."),
]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN", help="Results that `-o` has written.")]


@eval.command(RUN)
def run(
    task: Annotated[
        str,
        typer.Argument(
            help="math, aime24, aime25, math500, gpqa-diamond, ifeval, livecodebench, or own."
        ),
    ],
    data: Annotated[
        list[str],
        typer.Argument(help="Its problems: JSONL, JSON or Parquet, or hf:OWNER/NAME[:SPLIT]."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Results, new or taken up (.jsonl).")
    ] = None,
    model: Model = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A server that `mvspec serve` started, not a model."),
    ] = None,
    outputs: Annotated[
        str | None, typer.Option(help="Grade the outputs of this file; no model runs.")
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(help="Where a row keeps its output; without --outputs, a row of DATA."),
    ] = None,
    prompt: Annotated[
        str,
        typer.Option(help="Behind a question: parallel, sequential, none, or a text."),
    ] = "parallel",
    samples: Annotated[int, typer.Option(min=1, help="Answers to each problem.")] = 1,
    cap: Annotated[
        str | None,
        typer.Option(help="Tokens on the critical path at most; several with commas: 512,1024."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Likeliest tokens that reach this sum.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="So many of the likeliest; 0 for all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the random streams.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of all paths together.")] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0.0, help="Wall-clock time.")] = None,
    max_depth: Annotated[
        int | None, typer.Option(min=0, help="Blocks inside blocks; 0 for plain generation.")
    ] = None,
    structure: Annotated[bool, typer.Option(help="Hold the model to the grammar.")] = True,
    template_arg: TemplateArgs = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests on their way at once.")] = 16,
    group: Annotated[
        str, typer.Option(help="Column that accuracies are told apart by.")
    ] = "source",
    split: Annotated[str | None, typer.Option(help="Split of a saved data set.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many problems.")] = None,
    count: Annotated[
        str, typer.Option(help="Unit of recorded outputs: chars, words, or a tokenizer.")
    ] = "words",
    checker: Annotated[
        str | None, typer.Option(help="Grades the task own: module:function(row, text).")
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run a model's code, in a sandbox.")
    ] = False,
    final: Annotated[
        bool, typer.Option("--final", help="Grade only what stands behind </Think>.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Answers that are graded at once.")] = 2,
    timeout: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds that grading an answer may take.")
    ] = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Ask a model a task's problems, or grade recorded outputs; resumes where it stopped."""
    given = locals()
    recorded = field is not None or outputs is not None
    if recorded and (model or engine or cap or samples > 1 or template_arg):
        raise typer.BadParameter(
            "recorded outputs are graded as they are: leave out --model, --engine, --cap, "
            "--samples, --template-arg"
        )
    if engine and model:
        raise typer.BadParameter("the server has its model: give one", param_hint="--engine")
    if samples > 1 and not temperature:
        raise typer.BadParameter("all samples would be alike: add --temperature, as 0.6")
    if output is None and not recorded:
        raise typer.BadParameter("needed, or --outputs or --field", param_hint="-o")
    with needs("eval", "eval"):
        from mvspec.runtime.evaluation.evaluation import (
            AskedSamples,
            EvaluationSource,
            grade_recorded,
            run_engine,
        )
        from mvspec.runtime.evaluation.plots import check_plot
    if plot is not None:
        check_plot(plot)
    source = from_options(EvaluationSource, given, data=tuple(data))
    caps: tuple[int | None, ...] = (None,)
    if cap is not None:
        caps = numbers(cap, "--cap", int, "whole numbers from 1 up, as 512,1024")
    with as_given():
        evaluation = source.open()
    problem = 0
    if recorded:
        counter, unit = counter_of(count)
        name = unit if count in ("chars", "words") else f"{unit} of {Path(count).resolve().name}"
        run, found = grade_recorded(
            evaluation, outputs, field, counter, name, output, tell, sample_bar
        )
        if found.missing:
            tell(f"no output for {len(found.missing):,} problems: {listed(found.missing, 5)}")
        problem = len(found.left_out) + len(found.missing)
    else:
        with needs("engine", "eval"):
            from mvspec.law.limits import Limits
            from mvspec.runtime import Options, Sampling
            from mvspec.runtime.evaluation.generation import AnswerGenerator, prompt_of
            from mvspec.runtime.program import engine_of
        with as_given():
            sampling, limits = from_options(Sampling, given), from_options(Limits, given)
            options = Options(sampling, limits, structure)
            asked = engine_of(
                engine, model, requests=concurrency,
                chat_template_kwargs=template_arguments(template_arg),
            )  # fmt: skip
        generation = AnswerGenerator(asked, prompt_of(prompt), options)
        asking = AskedSamples(samples, caps, concurrency)
        run = run_engine(evaluation, generation, asking, output or Path(), tell, sample_bar)
    raise typer.Exit(_shown([run], as_json, plot) or int(problem > 0))


@eval.command("report")
def report(runs: Runs, plot: Plot = None, as_json: Json = False) -> None:
    """Show what runs came to, by group and cap; with --plot, accuracy against the caps."""
    with needs("eval", "eval report"):
        from mvspec.runtime.evaluation.plots import check_plot
        from mvspec.runtime.evaluation.results import read_run
    if plot is not None:
        check_plot(plot)
    found = [read_run(path) for path in runs]
    raise typer.Exit(_shown(found, as_json, plot))


@eval.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Results of one run.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Results of the other.")],
    alpha: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="B is worse where p is below this.")
    ] = 0.05,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Compare two runs problem by problem; status 1 where B is significantly worse."""
    with needs("eval", "eval compare"):
        from mvspec.runtime.evaluation.plots import check_plot, plot_caps
        from mvspec.runtime.evaluation.results import read_run
        from mvspec.runtime.evaluation.summary import compare_runs
    if plot is not None:
        check_plot(plot)
    one, other = read_run(first), read_run(second)
    found = compare_runs(one, other)
    if as_json:
        records = [each.to_dict() for each in found]
        print(json.dumps({"first": str(first), "second": str(second), "comparisons": records}))
    else:
        for each in found:
            print_table(comparison_table(each, one.name, other.name))
            print()
    if plot is not None:
        plot_caps(plot, [one, other])
    marks = [each.figures["pass@1"] for each in found if "pass@1" in each.figures]
    raise typer.Exit(int(any(each.p < alpha and each.difference < 0 for each in marks)))


@eval.command(
    "harness",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def harness(context: typer.Context) -> None:
    """Run lm-evaluation-harness with the model `mvspec`; all that follows is for it."""
    with needs("harness", "eval harness"):
        from lm_eval.__main__ import cli_evaluate

        from mvspec.runtime.evaluation import harness as registered
    before = sys.argv
    sys.argv = [registered.NAME, *context.args]
    try:
        with registered.killed_graders():
            cli_evaluate()
    finally:
        sys.argv = before


def _unit(run: Any) -> str:
    """Return what a run counts: tokens, words or characters."""
    return str(run.settings.get("count", "tokens")).partition(" of ")[0]


def _shown(runs: list[Any], as_json: bool, plot: Path | None) -> int:
    """Print and draw runs; return the exit status."""
    from mvspec.runtime.evaluation.plots import plot_caps
    from mvspec.runtime.evaluation.summary import summaries

    bad = False
    for run in runs:
        found = summaries(run.samples.values())
        if as_json:
            records = [each.to_dict() for each in found]
            line = {"run": str(run.path), "settings": run.settings, "summaries": records}
            print(json.dumps(line), flush=True)
        else:
            if len(runs) > 1:
                print(visible(str(run.path)))
            for cap in dict.fromkeys(each.cap for each in found):
                some = [each for each in found if each.cap == cap]
                print_table(summary_table(some, _unit(run)))
        lines = troubles(run.samples.values())
        for text in lines:
            tell(text)
        if run.missing:
            tell(f"{run.path}: {run.missing:,} samples are missing: the same command goes on")
        bad = bad or bool(lines or run.missing)
    if plot is not None:
        plot_caps(plot, runs)
    return int(bad)


def troubles(samples: Iterable[EvaluationSample]) -> list[str]:
    """Return a line for each sample that has no verdict, with the reason."""
    return [
        f"{visible(each.id)}, sample {each.sample}"
        + ("" if each.cap is None else f", cap {each.cap}")
        + f": {'refused' if each.error else 'not graded'}: {visible(each.error or each.note)}"
        for each in samples
        if each.score is None
    ]


def comparison_table(found: RunComparison, first: str, second: str) -> Table:
    """Return a table of a comparison, a row for each figure.

    Args:
        first, second: what the runs are called.
    """
    cap = "" if found.cap is None else f", cap {found.cap:,}"
    table = plain_table(
        f"{visible(found.group)}{cap}", "problems", visible(first), visible(second),
        "difference [95 %]", "p", "more / less",
    )  # fmt: skip
    for name, each in found.figures.items():
        share = name in ("pass@1", "well-formed")
        scale, places = (100, 1) if share else (1, 3 if "parallel" in name else 2)
        interval = ""
        if each.low is not None and each.high is not None:
            interval = f" [{scale * each.low:+,.{places}f}, {scale * each.high:+,.{places}f}]"
        table.add_row(
            f"{name}, %" if share else name,
            f"{each.problems:,}",
            f"{scale * each.first:,.{places}f}",
            f"{scale * each.second:,.{places}f}",
            f"{scale * each.difference:+,.{places}f}{interval}",
            f"{each.p:.4f}" if each.p >= 1e-4 else "< 0.0001",
            f"{each.better} / {each.worse}",
            style="bold" if name == "pass@1" else "",
        )
        if each.mcnemar is not None and name == "pass@1":
            table.add_row("  McNemar's exact test", "", "", "", "", f"{each.mcnemar:.4f}", "")
    return table


def percent(estimate: AccuracyEstimate | None) -> str:
    """Return an accuracy with its interval, in percent."""
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.mean:.1f}"
    return f"{100 * estimate.mean:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def summary_table(found: Sequence[EvaluationSummary], unit: str = "tokens") -> Table:
    """Return a table with a column for each summary.

    Args:
        unit: that tokens are counted in.
    """
    caps = ["" if each.cap is None else f"\ncap {each.cap:,}" for each in found]
    heads = zip(found, caps, strict=True)
    table = plain_table("", *(f"{visible(each.group)}{cap}" for each, cap in heads))

    def row(name: str, cells: list[str], style: str = "") -> None:
        table.add_row(name, *cells, style=style)

    row("problems", [f"{each.problems:,}" for each in found])
    row("samples", [f"{each.samples:,}" for each in found])
    row("pass@1, % [95 % interval]", [percent(each.accuracy) for each in found], "bold")
    for name, style in (("ungraded", "red"), ("refused", "red")):
        if any(getattr(each, name) for each in found):
            row(f"  {name}", [f"{getattr(each, name):,}" for each in found], style)
    corpora = [each.corpus.to_dict() for each in found]
    for form in ("ok", "cut", "malformed"):
        name = "well-formed" if form == "ok" else form
        row(name, [f"{each.forms[form]:,}" for each in found], "" if form == "ok" else "dim")
        if form == "ok":
            row("  with a block", [f"{each['documents_with_blocks']:,}" for each in corpora])
    row("# parallel, well-formed", [_number(each["parallelism"], 3) for each in corpora])
    row("  with a block", [_number(each["parallelism_with_blocks"], 3) for each in corpora])
    row(unit, [_number(each.tokens, 0) for each in found])
    row("critical path", [_number(each.critical_path, 0) for each in found])
    if any(each.forced for each in found):
        row("closed by a limit", [f"{each.forced:,}" for each in found], "yellow")
    if any(each.seconds is not None for each in found):
        row("seconds", [_number(each.seconds, 2) for each in found])
    return table


def _number(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:,.{places}f}"
