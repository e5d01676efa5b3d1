"""`mvspec bench`: how much faster documents that fork are than plain text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mvspec.cli.console import print_table
from mvspec.cli.options import Json, Model, as_given, needs
from mvspec.data.records import InputError

__all__ = ["bench"]


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
    batches = tuple(int(each) for each in _numbers(batch, "--batch", whole=True))
    degrees = tuple(_numbers(degree, "--degree", whole=False))
    with needs("eval", "bench"):
        from mvspec.runtime.evaluation.plots import check_plot
    with needs("serve-client", "bench"):
        from mvspec.runtime.evaluation import bench as benches
        from mvspec.runtime.evaluation.engines import load_engine
        from mvspec.runtime.evaluation.speed import Grid
    if output is not None:
        benches.check_output(output)
    if plot is not None:
        check_plot(plot)
    grid = Grid(batches, degrees, tokens, prompt, paths, repeats, seed)
    with as_given():
        grid.shapes()
    loaded = load_engine(model, engine, max(batches))
    about = benches.machine(loaded)
    found = benches.measure(loaded, grid)
    if output is not None:
        benches.write_output(output, found, grid, about)
    if plot is not None:
        benches.plot(plot, found, about)
    if as_json:
        print(json.dumps({"about": about, "cells": [each.record() for each in found]}))
    else:
        print_table(benches.speed_table(found))


def _numbers(given: str, option: str, *, whole: bool) -> list[float]:
    """Return the numbers of an option, in order."""
    try:
        found = sorted({float(int(each) if whole else float(each)) for each in given.split(",")})
    except ValueError:
        found = []
    kind = "whole numbers from 1 up, as 1,4,16" if whole else "numbers from 1 up, as 1.25,2,4"
    if not found or not 1 <= found[0] <= found[-1] < 1e6:
        raise InputError(f"{option} {given}: expected {kind}")
    return found
