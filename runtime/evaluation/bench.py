"""`mvspec bench`: a grid to a table, files and a plot."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from mvspec.data.records import InputError
from mvspec.runtime.engine.torch_engine import TorchEngine
from mvspec.runtime.evaluation.plots import Curve, Panel, write_plot
from mvspec.runtime.evaluation.progress import progress
from mvspec.runtime.evaluation.speed import Grid, Measured, measure_grid
from mvspec.runtime.serving.engine import SGLangEngine

__all__ = [
    "check_output",
    "machine",
    "measure",
    "plot",
    "speed_table",
    "write_output",
]


def machine(engine: TorchEngine | SGLangEngine) -> dict[str, Any]:
    """Return what was measured on what."""
    if not isinstance(engine, TorchEngine):
        return {"engine": "sglang", "model": engine.model, "server": engine.endpoint.name}
    import torch

    device = engine.model.device
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else platform.processor() or device.type
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "engine": "torch", "model": engine.model.name, "device": name,
        "dtype": str(engine.model.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "load": load,
    }  # fmt: skip


def measure(engine: TorchEngine | SGLangEngine, grid: Grid) -> list[Measured]:
    """Measure a grid behind a progress bar."""
    total = len(grid.batches) * (grid.repeats + 1) * (1 + len(grid.degrees))
    with progress(total) as advance:
        return list(measure_grid(engine, grid, advance))


def check_output(path: Path) -> None:
    """Refuse a file that `write_output` could not write, before there is something to lose.

    Raises:
        InputError: it is neither .json nor .csv, or its folder is not there.
    """
    if path.suffix.lower() not in (".json", ".csv"):
        raise InputError(f"-o {path}: name a .json or a .csv file")
    if not path.parent.is_dir():
        raise InputError(f"-o {path}: there is no folder {path.parent}")


def write_output(path: Path, found: Sequence[Measured], grid: Grid, about: dict[str, Any]) -> None:
    """Write the figures as JSON or CSV, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    if path.suffix.lower() == ".csv":
        file = io.StringIO()
        rows = [
            {name: value for name, value in each.record().items() if not isinstance(value, tuple)}
            for each in found
        ]
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = file.getvalue()
    else:
        shown = {**about, "tokens": grid.tokens, "prompt": grid.prompt, "repeats": grid.repeats}
        text = json.dumps({"about": shown, "cells": [each.record() for each in found]}, indent=1)
    part = path.with_name(f".{path.name}.tmp")
    try:
        part.write_text(text, "utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"-o {path}: {error.strerror or error}") from None


def speed_table(found: Sequence[Measured]) -> Table:
    """Return a row for each cell."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    names = ("batch", "degree = ideal", "paths", "plain, s", "parallel, s", "times faster",
             "spread", "of ideal")  # fmt: skip
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for each in found:
        record = each.record()
        low, high = each.spread
        table.add_row(
            f"{each.batch:,}", f"{each.degree:.2f}", f"{each.paths}",
            f"{record['plain_seconds']:.2f}", f"{record['parallel_seconds']:.2f}",
            f"{each.speedup:.2f}", f"{low:.2f} to {high:.2f}", f"{record['share_of_ideal']:.0%}",
        )  # fmt: skip
    return table


def plot(path: Path, found: Sequence[Measured], about: dict[str, Any]) -> None:
    """Draw speedup against the degree, and against the batch, with the ideal.

    Args:
        path: a .png or an .svg file.
    """
    degrees = sorted({each.degree for each in found})
    batches = sorted({each.batch for each in found})
    by_degree = [Curve("ideal", [1.0, *degrees], [1.0, *degrees], ideal=True)]
    for batch in batches:
        cells = sorted((c for c in found if c.batch == batch), key=lambda cell: cell.degree)
        by_degree.append(_curve(f"batch {batch}", [c.degree for c in cells], cells))
    by_batch = []
    for number, degree in enumerate(degrees):
        cells = sorted((c for c in found if c.degree == degree), key=lambda cell: cell.batch)
        by_batch.append(_curve(f"degree {degree:.2f}", [c.batch for c in cells], cells))
        name = "" if number else "ideal"
        by_batch.append(Curve(name, [batches[0], batches[-1]], [degree, degree], ideal=True))
    ticks = {float(batch): f"{batch}" for batch in batches}
    y = "times as fast as plain text"
    panels = [
        Panel("Speedup by degree of parallelism", "degree of parallelism", y, by_degree),
        Panel("Speedup by batch", "requests at once", y, by_batch, ticks, log=True),
    ]
    shown = {name: value for name, value in about.items() if name not in ("load", "server")}
    note = ", ".join(f"{name} {value}" for name, value in shown.items())
    write_plot(path, panels, note)


def _curve(name: str, x: list[float], cells: Sequence[Measured]) -> Curve:
    spreads = [each.spread for each in cells]
    return Curve(
        name, x, [each.speedup for each in cells], [low for low, _ in spreads],
        [high for _, high in spreads],
    )  # fmt: skip
