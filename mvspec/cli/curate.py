"""`mvspec curate`: the options of the command; the work is in the room `curation`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from mvspec.cli.console import print_table
from mvspec.cli.options import needs
from mvspec.view.terminal import visible

__all__ = ["curate"]

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
    rpm: Annotated[int | None, typer.Option(min=1, help="Requests a minute at most.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Tokens read a minute at most.")] = None,
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
    rules: Annotated[bool, typer.Option(help="Refuse words that lean on another path.")] = True,
    judge: Annotated[
        bool, typer.Option("--judge", help="Ask the model too whether paths are independent.")
    ] = False,
    keep_sequential: Annotated[
        bool, typer.Option("--keep-sequential", help="Keep chains where nothing is parallel.")
    ] = False,
    trigger: Annotated[
        str, typer.Option(help="Line before every block; '' for none.")
    ] = "Let's think in parallel.",
    answer_prefix: Annotated[str, typer.Option(help="How the answer begins.")] = "Answer: ",
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Else the model's.")] = None,
    thinking: Annotated[
        str | None, typer.Option(help=f"Budget in tokens, or {', '.join(LEVELS)}.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=64, help="Of an answer, thoughts too.")] = 32_768,
    local: Annotated[
        bool, typer.Option("--local", help="Ask a model in this process; no key is needed.")
    ] = False,
    base_url: Annotated[str | None, typer.Option(help="Another address of the service.")] = None,
    sample: Annotated[int, typer.Option(min=0, help="Records that report.html shows.")] = 20,
) -> None:
    """Turn sequential reasoning chains into documents, with Gemini; resumes where it stopped."""
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
        from mvspec.curation.command import CurationRun
        from mvspec.curation.command import dry_run as estimated
        from mvspec.curation.command import run as carry_out
        from mvspec.curation.process import outlived
    given = CurationRun(
        inputs=tuple(inputs),
        curation=CurationOptions(
            model=model,
            max_distance=max_distance,
            max_path_distance=max_path_distance,
            attempts=attempts,
            max_depth=max_depth,
            max_paths=max_paths,
            independence=rules,
            judge=judge,
            sequential=keep_sequential,
            trigger=trigger,
            prefix=answer_prefix,
            temperature=temperature,
            thinking=int(thinking) if thinking and thinking.isdecimal() else thinking,
            max_tokens=max_tokens,
        ),
        fields=ChainFields(field, question_field, answer_field),
        task=task,
        local=local,
        base_url=base_url,
        price=None if price is None else TokenPrice.parse(price),
        budget=budget,
        concurrency=concurrency,
        requests=rpm,
        tokens=tpm,
        retries=retries,
        timeout=timeout,
        batch=batch,
        linger=linger,
        poll=poll,
        limit=limit,
        split=split,
        sample=sample,
    )
    if output is None or dry_run:
        print_table(asyncio.run(estimated(given)))
        return
    folder = output

    def work(gone: int | None) -> int:
        return carry_out(given, folder, gone, lambda line: typer.echo(visible(line), err=True))

    raise typer.Exit(outlived(work))
