"""How far a run is, on standard error: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress"]

SELDOM = 30.0
"""Seconds between two lines of a log."""


@contextmanager
def progress(total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Give a function that is called with a short text after each step.

    Args:
        total: steps in all.
        done: those of an earlier run.
    """
    console = Console(stderr=True, highlight=False)
    if not sys.stderr.isatty():
        last, count = time.monotonic(), done

        def tell(text: str) -> None:
            nonlocal last, count
            count += 1
            if time.monotonic() - last > SELDOM:
                last = time.monotonic()
                console.print(f"{count:,} of {total:,}, {text}", soft_wrap=True, markup=False)

        yield tell
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total, completed=done, text="")
        yield lambda text: bar.update(task, advance=1, text=text)
