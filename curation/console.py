"""What `mvspec curate` shows people: a line while it runs, a table at its end."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mvspec.curation.client import ModelClient, dollars
from mvspec.curation.estimate import ASSUMED, CurationEstimate
from mvspec.curation.output import QUARANTINE, UNFINISHED
from mvspec.curation.run import CurationTally

__all__ = ["estimate_table", "progress", "progress_line", "summary_table"]

OFTEN, SELDOM = 0.5, 30.0
"""Seconds between two lines, on a terminal and in a log."""


@asynccontextmanager
async def progress(tally: CurationTally, caller: ModelClient) -> AsyncIterator[None]:
    """Say on standard error how far a run is: a line that changes, or in a log one now and then."""
    live = sys.stderr.isatty()
    console = Console(stderr=True, highlight=False)
    start = time.monotonic()

    async def repeat() -> None:
        while True:
            await asyncio.sleep(OFTEN if live else SELDOM)
            line = progress_line(tally, caller, time.monotonic() - start)
            if not live:
                console.print(line, soft_wrap=True)
            elif not caller.stopped:
                console.file.write(f"\r\x1b[K{line[: console.width - 1]}")
                console.file.flush()

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        with suppress(OSError):  # the terminal may have gone, and the run shall end all the same
            if live:
                console.file.write("\r\x1b[K")
                console.file.flush()


def progress_line(tally: CurationTally, caller: ModelClient, seconds: float) -> str:
    """Return records, yield, cost, calls and time left in one line."""
    budget, traffic = caller.budget, caller.traffic
    share = f" ({tally.share:.0%})" if tally.share else ""
    rate = f"{tally.accepted / tally.decided:.0%}" if tally.decided else "-"
    limit = "" if budget.limit is None else f" of {dollars(budget.limit)}"
    calls = f"{traffic.calls:,} calls, {traffic.in_flight} on their way"
    failed = traffic.failures.total()
    calls += f", {failed:,} failed" if failed else ""
    left = _left(tally.share, seconds)
    return (
        f"{tally.decided:,} records{share}, yield {rate}, "
        f"{dollars(budget.spent)}{limit}, {calls}{left}"
    )


def _left(share: float, seconds: float) -> str:
    if not 0.001 < share < 1 or seconds < 5:
        return ""
    left = seconds * (1 - share) / share
    if left < 90:
        return f", {left:.0f} s left"
    hours, minutes = divmod(round(left / 60), 60)
    return f", {hours} h {minutes:02} min left" if hours else f", {minutes} min left"


def summary_table(tally: CurationTally, caller: ModelClient, folder: Path) -> Table:
    """Return what a run came to."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column(str(folder), justify="right", no_wrap=True)
    budget, traffic = caller.budget, caller.traffic
    table.add_row("records", f"{tally.records:,}")
    if tally.resumed:
        table.add_row("  decided before", f"{tally.resumed:,}", style="dim")
    table.add_row("accepted", f"{tally.accepted:,}", style="green" if tally.accepted else "")
    bad = tally.quarantined.total()
    note = f" (see {QUARANTINE})" if bad else ""
    table.add_row("quarantined", f"{bad:,}{note}", style="red" if bad else "")
    for code, number in tally.quarantined.most_common():
        table.add_row(f"  {code}", f"{number:,}", style="dim")
    if tally.unfinished:
        count = f"{len(tally.unfinished):,} (see {UNFINISHED})"
        table.add_row("not decided", count, style="yellow")
    table.add_section()
    table.add_row("calls", f"{traffic.calls:,}")
    for kind, number in traffic.failures.most_common():
        table.add_row(f"  failed: {kind}", f"{number:,}", style="yellow")
    usage = traffic.usage
    table.add_row("tokens read", f"{usage.prompt:,}")
    table.add_row("tokens written", f"{usage.output + usage.thoughts:,}")
    table.add_row("cost, all runs", dollars(budget.spent))
    if budget.doubtful:
        table.add_row("  perhaps billed, unanswered", dollars(budget.doubtful), style="yellow")
    return table


def estimate_table(found: CurationEstimate, priced: bool) -> Table:
    """Return an estimate, with what it assumes."""
    table = Table(
        box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False,
        caption=ASSUMED, caption_justify="left",
    )  # fmt: skip
    table.add_column("estimate")
    table.add_column("", justify="right", no_wrap=True)
    table.add_row("records", f"{found.records:,}")
    if found.unreadable:
        table.add_row("  that cannot be read", f"{found.unreadable:,}", style="red")
    table.add_row("calls", f"{found.calls:,}")
    table.add_row("tokens read", f"{found.usage.prompt:,}")
    table.add_row("tokens written", f"{found.usage.output:,}")
    how = f"counted by the service on {found.counted} records" if found.counted else "guessed"
    table.add_row(f"  bytes per token, {how}", f"{found.bytes_per_token:.2f}", style="dim")
    table.add_row("cost", dollars(found.cost) if priced else "give --price IN,OUT")
    return table
