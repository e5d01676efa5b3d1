"""What `mvspec compile` prints for people: a bar while it runs, a table at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from mvspec.compiler.compilation import QUARANTINE, Compilation
from mvspec.data.rows import Rows

__all__ = ["progress", "summary"]


@contextmanager
def progress(rows: Rows) -> Iterator[Callable[[float], object]]:
    """Give a function that takes the cost of rows that are done; a bar on a terminal's stderr."""
    columns = (TextColumn("compiling"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=rows.size)
        yield lambda cost: bar.advance(task, cost)


def summary(result: Compilation, folder: Path, *, packed: bool) -> Table:
    """Return what a compilation came to as a table."""
    counts = result.counts
    record = counts.record()
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column(str(folder), justify="right", no_wrap=True)
    table.add_row("records", f"{counts.records:,}")
    if counts.truncated:
        table.add_row("  truncated", f"{counts.truncated:,}", style="yellow")
    bad = f"{counts.quarantined:,}" + (f" (see {QUARANTINE})" if counts.quarantined else "")
    table.add_row("quarantined", bad, style="red" if counts.quarantined else "")
    table.add_row("rows", f"{counts.rows:,}")
    table.add_row("tokens", f"{counts.tokens:,}")
    table.add_row("  with loss", f"{counts.loss_tokens:,}")
    mean = record["mean_parallelism"]
    table.add_row("degree of parallelism, mean", "-" if mean is None else f"{mean:.3f}")
    table.add_row("padding waste", f"{record['padding_waste']:.1%}" if packed else "-")
    if result.resumed:
        table.add_row("shards that were there", f"{result.resumed:,}", style="dim")
    speed = result.tokens / result.seconds if result.tokens else None
    table.add_row("tokens/s", "-" if speed is None else f"{speed:,.0f}")
    return table
