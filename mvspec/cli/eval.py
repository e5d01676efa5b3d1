"""`mvspec eval`: how good what a model writes is; runs, reports and comparisons."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mvspec.cli.console import print_table
from mvspec.cli.options import Json, Model, as_given, needs
from mvspec.cli.stats import counter_of
from mvspec.data.records import InputError
from mvspec.view.terminal import visible

__all__ = ["app"]

RUN = "run"


class _Eval(TyperGroup):
    """Takes what is no command for the arguments of `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
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


def _tell(line: str) -> None:
    typer.echo(visible(line), err=True)


@app.command(RUN)
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
    if outputs is not None and field is None:
        field = "output"
    recorded = field is not None
    if recorded and (model or engine or cap or samples > 1):
        raise typer.BadParameter(
            "recorded outputs are graded as they are: leave out --model, --engine, --cap, --samples"
        )
    if engine and model:
        raise typer.BadParameter("the server has its model: give one", param_hint="--engine")
    if samples > 1 and not temperature:
        raise typer.BadParameter("all samples would be alike: add --temperature, as 0.6")
    if output is None and not recorded:
        raise typer.BadParameter("needed, or --outputs or --field", param_hint="-o")
    with needs("eval", "eval"):
        from mvspec.runtime.evaluation import command
        from mvspec.runtime.evaluation.plots import check_plot
    if plot is not None:
        check_plot(plot)
    source = command.Source(
        task, tuple(data), group, split, limit, checker, allow_code, final, workers, timeout
    )
    with as_given():
        caps = _caps(cap)
        evaluation = source.open(_tell)
    problem = 0
    if recorded:
        counter, unit = counter_of(count)
        name = unit if count in ("chars", "words") else f"{unit} of {Path(count).resolve().name}"
        run, found = command.grade_recorded(
            evaluation, outputs, field or "output", counter, name, output, _tell
        )
        if found.missing:
            _tell(f"no output for {len(found.missing):,} problems: {_some(found.missing)}")
        problem = len(found.left_out) + len(found.missing)
    else:
        with needs("engine", "eval"):
            from mvspec.law.limits import Limits
            from mvspec.runtime import Options, Sampling
            from mvspec.runtime.evaluation.engines import load_engine
            from mvspec.runtime.evaluation.generation import Generation, prompt_of
        given = {"max_tokens": max_tokens, "max_seconds": max_seconds, "max_depth": max_depth}
        with as_given():
            options = Options(
                Sampling(temperature, top_p, top_k, seed=seed),
                Limits(**{name: value for name, value in given.items() if value is not None}),
                structure,
            )
        generation = Generation(load_engine(model, engine, concurrency), prompt_of(prompt), options)
        asking = command.Asking(samples, caps, concurrency)
        run = command.run_engine(evaluation, generation, asking, output or Path(), _tell)
    raise typer.Exit(_shown([run], as_json, plot) or int(problem > 0))


@app.command("report")
def report(runs: Runs, plot: Plot = None, as_json: Json = False) -> None:
    """Show what runs came to, by group and cap; with --plot, accuracy against the caps."""
    with needs("eval", "eval report"):
        from mvspec.runtime.evaluation.plots import check_plot
        from mvspec.runtime.evaluation.results import read_run
    if plot is not None:
        check_plot(plot)
    found = [read_run(path) for path in runs]
    raise typer.Exit(_shown(found, as_json, plot))


@app.command("compare")
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
        from mvspec.runtime.evaluation.comparison import compare_runs, comparison_table
        from mvspec.runtime.evaluation.curves import plot_caps
        from mvspec.runtime.evaluation.plots import check_plot
        from mvspec.runtime.evaluation.results import read_run
    if plot is not None:
        check_plot(plot)
    one, other = read_run(first), read_run(second)
    found = compare_runs(one, other)
    if as_json:
        records = [each.record() for each in found]
        print(json.dumps({"first": str(first), "second": str(second), "comparisons": records}))
    else:
        for each in found:
            print_table(comparison_table(each, one.name, other.name))
            print()
    if plot is not None:
        plot_caps(plot, [one, other])
    marks = [each.figures["pass@1"] for each in found if "pass@1" in each.figures]
    raise typer.Exit(int(any(each.p < alpha and each.difference < 0 for each in marks)))


@app.command(
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
        cli_evaluate()
    finally:
        sys.argv = before


def _caps(given: str | None) -> tuple[int | None, ...]:
    """Return the caps of `--cap`, in order."""
    if given is None:
        return (None,)
    try:
        found = sorted({int(each) for each in given.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise InputError(f"--cap {given}: expected whole numbers from 1 up, as 512,1024")
    return tuple(found)


def _unit(run: Any) -> str:
    """Return what a run counts: tokens, words or characters."""
    return str(run.settings.get("count", "tokens")).partition(" of ")[0]


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _shown(runs: list[Any], as_json: bool, plot: Path | None) -> int:
    """Print and draw runs; return the exit status."""
    from mvspec.runtime.evaluation.curves import plot_caps
    from mvspec.runtime.evaluation.summary import summaries, summary_table, troubles

    bad = False
    for run in runs:
        found = summaries(run.samples.values())
        if as_json:
            records = [each.record() for each in found]
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
            typer.echo(text, err=True)
        if run.missing:
            _tell(f"{run.path}: {run.missing:,} samples are missing: the same command goes on")
        bad = bad or bool(lines or run.missing)
    if plot is not None:
        plot_caps(plot, runs)
    return int(bad)
