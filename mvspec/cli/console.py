"""How commands meet people: a progress bar, summary tables, and how every command ends."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from mvspec.data.check import Verdict
from mvspec.data.records import InputError, total_bytes
from mvspec.errors import MvspecError
from mvspec.law.metrics import Corpus, Metrics
from mvspec.view.terminal import visible

__all__ = ["Commands", "Summary", "corpus_table", "documents_table", "print_table", "progress"]

LONG = 4_000_000
"""Bytes of input from which a bar is shown: about two seconds of checking."""

Row = dict[str, int | float | None]


@contextmanager
def progress(inputs: Sequence[str]) -> Iterator[Callable[[int], object]]:
    """Give a function that takes the bytes read; shows a bar on stderr where that is a terminal.

    Args:
        inputs: what is read, for its size.
    """
    size = total_bytes(inputs) if sys.stderr.isatty() else 0
    if (size is not None and size < LONG) or ("-" in inputs and sys.stdin.isatty()):
        yield lambda count: None
        return
    columns = TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    # Lines on a terminal go above the bar; a stdout that goes elsewhere is left alone.
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
    with bar:
        task = bar.add_task("", total=size)
        yield lambda count: bar.advance(task, count)


class Summary:
    """Counts verdicts; prints as a table."""

    def __init__(self) -> None:
        self.records = self.ok = self.cut = self.with_blocks = self.left_out = self.done = 0
        self.malformed: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()

    def add(self, verdict: Verdict) -> None:
        """Count one verdict; a malformed record by the code of its first violation."""
        self.records += 1
        self.ok += verdict.ok
        self.cut += verdict.cut
        self.with_blocks += verdict.blocks > 0
        self.left_out += bool(verdict.left_out)
        if verdict.ok:
            self.warnings.update({each.code for each in verdict.diagnostics})
        elif not verdict.cut:
            self.malformed[verdict.diagnostics[0].code] += 1

    def resume(self, done: int, kept: int) -> None:
        """Count what an earlier run has done, and has left out."""
        self.done = done
        self.left_out += done - kept

    def __rich__(self) -> Table:
        table = _table("", "records")
        table.add_row("ok", f"{self.ok:,}", style="green" if self.ok else "")
        # Any text without a tag is well-formed, so a wrong file could pass as ok.
        table.add_row("  without a block", f"{self.ok - self.with_blocks:,}", style="dim")
        for code, number in sorted(self.warnings.items()):
            table.add_row(f"  with warning {code}", f"{number:,}", style="yellow")
        table.add_row("cut", f"{self.cut:,}", style="yellow" if self.cut else "")
        number = self.malformed.total()
        table.add_row("malformed", f"{number:,}", style="red" if number else "")
        for code, number in self.malformed.most_common():
            table.add_row(f"  {code}", f"{number:,}", style="dim")
        table.add_section()
        table.add_row("all", f"{self.records:,}")
        if self.done:
            table.add_row("done by an earlier run", f"{self.done:,}", style="dim")
        if self.left_out:
            table.add_row("left out of --fix", f"{self.left_out:,}", style="yellow")
        return table


def documents_table(rows: Sequence[tuple[str, Metrics]], unit: str) -> Table:
    """Return a table with a row for each document.

    Args:
        unit: what the counts count, such as words.
    """
    table = _table("record", unit, "critical\npath", "parallel-\nism", "coverage", "blocks",
                   "paths/\nblock", "longest/\nmean", "depth")  # fmt: skip
    for name, metrics in rows:
        cells = [_cell(key, value) for key, value in metrics.to_dict().items()]
        table.add_row(Text(visible(name), overflow="fold"), *cells)
    return table


def corpus_table(corpus: Corpus, unit: str) -> Table:
    """Return a table of a corpus's totals and means."""
    record = corpus.to_dict()
    table = _table("", "all documents")
    names = {
        "documents": "documents",
        "documents_with_blocks": "  with a block",
        "tokens": unit,
        "critical_path": "critical path",
        "parallelism": "degree of parallelism, mean",
        "parallelism_with_blocks": "  of those with a block",
        "parallelism_pooled": "  of all text together",
        "coverage": "coverage",
        "blocks": "blocks",
        "paths_per_block": "paths per block",
        "longest_over_mean": "longest over mean path",
        "depth": "depth",
    }
    for key, name in names.items():
        table.add_row(name, _cell(key, record[key]))
    return table


def print_table(table: Table | Summary) -> None:
    """Print a table to stdout; a file has no width to fold it to."""
    Console(width=None if sys.stdout.isatty() else 1_000).print(table)


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "coverage":
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def discard_stdout() -> None:
    """Let what stdout still holds go nowhere: the interpreter flushes it as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Commands(TyperGroup):
    """Ends every command alike: errors as one line, interrupts and closed pipes in silence."""

    def invoke(self, ctx: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            # A name or a message may hold what the terminal's encoding cannot.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            discard_stdout()
            raise typer.Exit(141) from None
        except MvspecError as error:
            typer.echo(f"mvspec: {visible(str(error))}", err=True)
            raise typer.Exit(2 if isinstance(error, InputError) else 1) from None
        except OSError as error:
            # A folder that is not there, a full disk: the command's surroundings, not its records.
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            typer.echo(f"mvspec: {visible(what)}", err=True)
            discard_stdout()
            raise typer.Exit(2) from None
