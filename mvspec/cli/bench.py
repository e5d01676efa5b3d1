"""`mvspec bench`: how much faster documents that fork are than plain text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvspec.cli.console import plain_table, print_table, sample_bar, tell
from mvspec.cli.options import Json, Model, as_given, needs, numbers
from mvspec.data.records import InputError
from mvspec.data.resume import check_file, replaced

if TYPE_CHECKING:
    from rich.table import Table

    from mvspec.runtime.evaluation.plots import PlotCurve
    from mvspec.runtime.evaluation.speed import SpeedCell, SpeedGrid


def bench(
    model: Model = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A server that `mvspec serve` started, not a model."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Requests at once, several with commas.")] = "1,2,4",
    degree: Annotated[
        str, typer.Option(help="Degrees of parallelism, several with commas.")
    ] = "1.5,2,3",
    tokens: Annotated[int, typer.Option(min=16, help="Of every request.")] = 96,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 64,
    paths: Annotated[
        int | None, typer.Option(min=2, help="Of a block; else what the degree needs.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the tokens.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="All figures, as .json or .csv.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw speedup by degree and by batch (.png or .svg).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure speedup against batch size and degree of parallelism, beside plain text."""
    if engine and model:
        raise typer.BadParameter("the server has its model: give one", param_hint="--engine")
    batches = numbers(batch, "--batch", int, "whole numbers from 1 up, as 1,4,16")
    degrees = numbers(degree, "--degree", float, "numbers from 1 up, as 1.25,2,4")
    with needs("eval", "bench"):
        from mvspec.runtime.evaluation.plots import check_plot
    with needs("serve-client", "bench"):
        from mvspec.runtime.evaluation.speed import SpeedGrid, measure_grid
        from mvspec.runtime.program import engine_of
    if output is not None:
        check_file(output, "-o", (".json", ".csv"))
    if plot is not None:
        check_plot(plot)
    grid = SpeedGrid(batches, degrees, tokens, prompt, paths, repeats, seed)
    with as_given():
        grid.shapes()
    loaded = engine_of(engine, model, requests=max(batches))
    about = loaded.describe()
    total = len(batches) * (repeats + 1) * (1 + len(degrees))
    with sample_bar(total) as advance:
        found = list(measure_grid(loaded, grid, advance))
    if output is not None:
        write_output(output, found, grid, about)
    if plot is not None:
        draw(plot, found, about)
    if as_json:
        print(json.dumps({"about": about, "cells": [each.to_dict() for each in found]}))
    else:
        print_table(speed_table(found))
    for line in doubts(found):
        tell(line)


def doubts(found: Sequence[SpeedCell]) -> list[str]:
    """Return a line for each cell whose figure is noise: it beats the ideal, or repeats disagree.

    A twentieth over the ideal, and repeats a third apart, are what a quiet machine shows too.
    """
    lines = []
    for each in found:
        low, high = each.spread
        why = []
        if each.speedup > 1.05 * each.degree:
            why.append(f"{each.speedup / each.degree:.0%} of ideal cannot be")
        if high > 4 / 3 * low:
            why.append(f"its repeats say {low:.2f} to {high:.2f}")
        if why and len(each.plain) < 3:
            why.append(f"{len(each.plain)} repeat{'s' * (len(each.plain) > 1)} cannot tell noise")
        if why:
            lines.append(
                f"batch {each.batch}, degree {each.degree:.2f}: {'; '.join(why)}: other work on "
                "this machine? give more --repeats or more --tokens"
            )
    return lines


def write_output(
    path: Path, found: Sequence[SpeedCell], grid: SpeedGrid, about: dict[str, Any]
) -> None:
    """Write the figures as JSON or CSV, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    if path.suffix.lower() == ".csv":
        table = io.StringIO()
        rows = [
            {name: value for name, value in each.to_dict().items() if not isinstance(value, tuple)}
            for each in found
        ]
        writer = csv.DictWriter(table, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = table.getvalue()
    else:
        shown = {**about, "tokens": grid.tokens, "prompt": grid.prompt, "repeats": grid.repeats}
        text = json.dumps({"about": shown, "cells": [each.to_dict() for each in found]}, indent=1)
    try:
        with replaced(path) as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"-o {path}: {error.strerror or error}") from None


def speed_table(found: Sequence[SpeedCell]) -> Table:
    """Return a row for each cell."""
    table = plain_table(
        "batch", "degree = ideal", "paths", "plain, s", "parallel, s", "times faster", "spread",
        "of ideal",
    )  # fmt: skip
    table.columns[0].justify = "right"
    for each in found:
        record = each.to_dict()
        low, high = each.spread
        table.add_row(
            f"{each.batch:,}", f"{each.degree:.2f}", f"{each.paths}",
            f"{record['plain_seconds']:.2f}", f"{record['parallel_seconds']:.2f}",
            f"{each.speedup:.2f}", f"{low:.2f} to {high:.2f}", f"{record['share_of_ideal']:.0%}",
        )  # fmt: skip
    return table


def draw(path: Path, found: Sequence[SpeedCell], about: dict[str, Any]) -> None:
    """Draw speedup against the degree, and against the batch, with the ideal.

    Args:
        path: a .png or an .svg file.
    """
    from mvspec.runtime.evaluation.plots import PlotCurve, PlotPanel, write_plot

    degrees = sorted({each.degree for each in found})
    batches = sorted({each.batch for each in found})
    by_degree = [PlotCurve("ideal", [1.0, *degrees], [1.0, *degrees], ideal=True)]
    for batch in batches:
        cells = sorted((c for c in found if c.batch == batch), key=lambda cell: cell.degree)
        by_degree.append(_curve(f"batch {batch}", [c.degree for c in cells], cells))
    by_batch = []
    for number, degree in enumerate(degrees):
        cells = sorted((c for c in found if c.degree == degree), key=lambda cell: cell.batch)
        by_batch.append(_curve(f"degree {degree:.2f}", [c.batch for c in cells], cells))
        name = "" if number else "ideal"
        by_batch.append(PlotCurve(name, [batches[0], batches[-1]], [degree, degree], ideal=True))
    ticks = {float(batch): f"{batch}" for batch in batches}
    y = "times as fast as plain text"
    panels = [
        PlotPanel("Speedup by degree of parallelism", "degree of parallelism", y, by_degree),
        PlotPanel("Speedup by batch", "requests at once", y, by_batch, ticks, log=True),
    ]
    shown = {name: value for name, value in about.items() if name not in ("load", "server")}
    note = ", ".join(f"{name} {value}" for name, value in shown.items())
    write_plot(path, panels, note)


def _curve(name: str, x: list[float], cells: Sequence[SpeedCell]) -> PlotCurve:
    from mvspec.runtime.evaluation.plots import PlotCurve

    spreads = [each.spread for each in cells]
    return PlotCurve(
        name, x, [each.speedup for each in cells], [low for low, _ in spreads],
        [high for _, high in spreads],
    )  # fmt: skip
