"""Terminal output that commands share: tables, progress bars, and lines for people."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable, RichCast
    from rich.progress import Progress
    from rich.table import Table

    from mvspec.data.records import Record
    from mvspec.data.sources import Records

LONG = 4_000_000
"""Bytes of input from which a bar is shown: about two seconds of checking."""

SELDOM = 30.0
"""Seconds between two lines of a log."""

# Rich is imported where something is drawn: what a command prints as JSON needs none of it.


def tell(line: str) -> None:
    """Print a line for people to stderr."""
    from mvspec.shown import visible

    typer.echo(visible(line), err=True)


def plain_table(first: str, *others: str, **more: Any) -> Table:
    """Return a table without frames: names on the left, numbers on the right."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, **more)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def print_table(table: ConsoleRenderable | RichCast) -> None:
    """Print a table to stdout; a file has no width to fold it to."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 1_000).print(table)


def progress_bar(*columns: str, **more: Any) -> Progress:
    """Return a bar on stderr.

    Args:
        columns: "bar" for the bar itself; "bytes", "share" or "number" for what is done, "left"
            for the time that is left, or else a text.
        more: as of rich's `Progress`.
    """
    from rich import progress
    from rich.console import Console

    kinds = {
        "bar": progress.BarColumn,
        "bytes": progress.DownloadColumn,
        "share": progress.TaskProgressColumn,
        "number": progress.MofNCompleteColumn,
        "left": progress.TimeRemainingColumn,
    }
    made = [kinds[each]() if each in kinds else progress.TextColumn(each) for each in columns]
    return progress.Progress(*made, console=Console(stderr=True), **more)


def noticed(records: Iterator[Record]) -> Iterator[Record]:
    """Yield records, and say on stderr where a file is empty, or all of the input."""
    record = None
    for record in records:
        if record.encoding == "text" and not record.size:
            tell(f"{record.name} is empty")
        yield record
    if record is None:
        tell("there is no record in the input")


@contextmanager
def reading_bar(records: Records, *, heads: bool = False) -> Iterator[Iterator[Record]]:
    """Give the records; a bar on stderr, where that is a terminal, shows how many are read.

    Args:
        heads: as of `Records.checked`.
    """
    size = records.size if sys.stderr.isatty() else 0
    read = noticed(records.checked(heads=heads))
    if (size is not None and size < LONG) or (size is None and sys.stdin.isatty()):
        yield read
        return
    # Lines on a terminal go above the bar; a stdout that goes elsewhere is left alone.
    more = {"transient": True, "redirect_stdout": sys.stdout.isatty()}
    with progress_bar("reading", "bar", "bytes", "left", **more) as bar:
        task = bar.add_task("", total=size)

        def told() -> Iterator[Record]:
            for record in read:
                bar.advance(task, record.size)
                yield record

        yield told()


@contextmanager
def compiling_bar(total: float | None) -> Iterator[Callable[[float], object]]:
    """Give a function that takes the cost of rows that are done; a bar on a terminal's stderr."""
    hidden = not sys.stderr.isatty()
    with progress_bar("compiling", "bar", "share", "left", disable=hidden) as bar:
        task = bar.add_task("", total=total)
        yield lambda cost: bar.advance(task, cost)


@contextmanager
def sample_bar(total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Give a function that is called with a short text after each sample.

    On a terminal it is a bar on stderr, in a log a line now and then.

    Args:
        total: samples in all.
        done: those of an earlier run.
    """
    if not sys.stderr.isatty():
        last, count = time.monotonic(), done

        def say(text: str) -> None:
            nonlocal last, count
            count += 1
            if time.monotonic() - last > SELDOM:
                last = time.monotonic()
                tell(f"{count:,} of {total:,}, {text}")

        yield say
        return
    more = {"transient": True, "redirect_stdout": False}
    with progress_bar("bar", "number", "left", "{task.fields[text]}", **more) as bar:
        task = bar.add_task("", total=total, completed=done, text="")
        yield lambda text: bar.update(task, advance=1, text=text)


def discard_stdout() -> None:
    """Let what stdout still holds go nowhere: the interpreter flushes it as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
