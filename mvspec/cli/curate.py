"""`mvspec curate`: sequential chains to documents, with Gemini."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvspec.cli.console import plain_table, print_table, tell
from mvspec.cli.options import TemplateArgs, from_options, needs, template_arguments

if TYPE_CHECKING:
    from rich.table import Table

    from mvspec.curation.estimate import CurationEstimate
    from mvspec.curation.run import CurationRun, TaskRun

LEVELS = ("minimal", "low", "medium", "high")
"""How much a model is to think, where it takes no number."""


def curate(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="CHAINS", help="JSONL, JSON or Parquet files, folders, data sets, a hub name."
        ),
    ],
    model: Annotated[
        str, typer.Option(help="Gemini model that is asked; with --local a folder or hub name.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run, new or taken up.")
    ] = None,
    task: Annotated[
        str, typer.Option(help="documents, or an analysis: branches, prompting.")
    ] = "documents",
    field: Annotated[str | None, typer.Option(help="Where a row keeps its reasoning.")] = None,
    question_field: Annotated[str | None, typer.Option(help="Where it keeps the question.")] = None,
    answer_field: Annotated[str | None, typer.Option(help="Where it keeps the answer.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a data set; else train.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many records.")] = None,
    price: Annotated[
        str | None, typer.Option(help="Dollars for a million tokens: READ,WRITTEN.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=0.0, help="Dollars that all runs on OUT may spend.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate calls, tokens and cost; ask nothing.")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests on their way at once.")] = 16,
    requests: Annotated[
        int | None, typer.Option("--rpm", min=1, help="Requests a minute at most.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tpm", min=1, help="Tokens read a minute at most.")
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="How often a request without an answer goes out again.")
    ] = 8,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds an answer may take.")] = 300.0,
    batch: Annotated[bool, typer.Option("--batch", help="Use the Batch API.")] = False,
    linger: Annotated[
        float, typer.Option(min=0.0, help="Seconds without a request that make a batch.")
    ] = 2.0,
    poll: Annotated[float, typer.Option(min=0.01, help="Seconds between looks at a batch.")] = 30.0,
    max_distance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Edit distance to the source at most.")
    ] = 0.2,
    max_path_distance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The same of the sentences of one path.")
    ] = 0.5,
    attempts: Annotated[
        int, typer.Option(min=0, help="Answers to a question that may be refused.")
    ] = 3,
    max_depth: Annotated[int, typer.Option(min=1, max=8, help="Blocks inside blocks.")] = 3,
    max_paths: Annotated[int, typer.Option(min=2, help="Paths of a block.")] = 16,
    independence: Annotated[
        bool, typer.Option("--rules/--no-rules", help="Refuse words that lean on another path.")
    ] = True,
    judge: Annotated[
        bool, typer.Option("--judge", help="Ask the model too whether paths are independent.")
    ] = False,
    sequential: Annotated[
        bool, typer.Option("--keep-sequential", help="Keep chains where nothing is parallel.")
    ] = False,
    trigger: Annotated[
        str, typer.Option(help="Line before every block; '' for none.")
    ] = "Let's think in parallel.",
    prefix: Annotated[
        str, typer.Option("--answer-prefix", help="How the answer begins.")
    ] = "Answer: ",
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Else the model's.")] = None,
    thinking: Annotated[
        str | None, typer.Option(help=f"Budget in tokens, or {', '.join(LEVELS)}.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=64, help="Of an answer, thoughts too.")] = 32_768,
    local: Annotated[
        bool, typer.Option("--local", help="Ask a model in this process; no key is needed.")
    ] = False,
    template_arg: TemplateArgs = None,
    base_url: Annotated[str | None, typer.Option(help="Another address of the service.")] = None,
    sample: Annotated[int, typer.Option(min=0, help="Records that report.html shows.")] = 20,
) -> None:
    """Turn sequential reasoning chains into documents, with Gemini; resumes where it stopped."""
    given = locals()
    if output is None and not dry_run:
        raise typer.BadParameter("needed, or --dry-run", param_hint="-o")
    if not model and not local:
        raise typer.BadParameter("name a model, such as gemini-2.5-flash", param_hint="--model")
    if thinking and not thinking.isdecimal() and thinking not in LEVELS:
        raise typer.BadParameter(
            f"a number of tokens, or one of {', '.join(LEVELS)}", param_hint="--thinking"
        )
    with needs("curate", "curate"):
        from mvspec.curation import ChainFields, CurationOptions, TokenPrice
        from mvspec.curation.process import outlived
        from mvspec.curation.run import CurationRun
    curation = from_options(
        CurationOptions,
        given,
        thinking=int(thinking) if thinking and thinking.isdecimal() else thinking,
    )
    job = from_options(
        CurationRun,
        given,
        inputs=tuple(inputs),
        curation=curation,
        fields=ChainFields(field, question_field, answer_field),
        price=None if price is None else TokenPrice.parse(price),
        template=template_arguments(template_arg),
    )
    if output is None or dry_run:
        import asyncio

        print_table(estimate_table(asyncio.run(job.dry_run()), price is not None))
        return
    folder = output
    raise typer.Exit(outlived(lambda gone: carry_out(job, folder, gone)))


def carry_out(job: CurationRun, folder: Path, gone: int | None = None) -> int:
    """Carry out a run, show what it came to, and return the exit status."""
    run = job.run(folder, gone, tell, progress)
    if run.client.abandoned:
        return 1
    print_table(summary_table(run, folder))
    if run.tally.unfinished:
        tell(run.tally.most_unfinished())
    if run.client.stopped:
        tell(f"stopped: {run.client.stopped}")
        tell("the same command goes on from here")
    if run.client.stopped == "interrupted":
        return 130
    return 1 if run.tally.quarantined or run.tally.unfinished else 0


OFTEN, SELDOM = 0.5, 30.0
"""Seconds between two lines, on a terminal and in a log."""


@asynccontextmanager
async def progress(run: TaskRun) -> AsyncIterator[None]:
    """Say on standard error how far a run is: a line that changes, or in a log one now and then."""
    import asyncio

    from rich.console import Console

    live = sys.stderr.isatty()
    console = Console(stderr=True, highlight=False)
    start = time.monotonic()

    async def repeat() -> None:
        while True:
            await asyncio.sleep(OFTEN if live else SELDOM)
            line = progress_line(run, time.monotonic() - start)
            if not live:
                console.print(line, soft_wrap=True)
            elif not run.client.stopped:
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


def progress_line(run: TaskRun, seconds: float) -> str:
    """Return records, yield, cost, calls and time left in one line."""
    from mvspec.curation.client import dollars

    tally, budget, traffic = run.tally, run.client.budget, run.client.traffic
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


def summary_table(run: TaskRun, folder: Path) -> Table:
    """Return what a run came to."""
    from mvspec.curation.client import dollars
    from mvspec.curation.output import QUARANTINE, UNFINISHED

    table = plain_table("", str(folder))
    tally, budget, traffic = run.tally, run.client.budget, run.client.traffic
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
    from mvspec.curation.client import dollars
    from mvspec.curation.estimate import ASSUMED

    table = plain_table("estimate", "", caption=ASSUMED, caption_justify="left")
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
