"""`mvspec compile`: records as layouts for training, or what a stage makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvspec.cli.console import compiling_bar, plain_table, print_table, tell
from mvspec.cli.options import (
    Field,
    Form,
    Lowering,
    TemplateArgs,
    Tokenizer,
    Workers,
    as_given,
    needs,
    template_arguments,
)
from mvspec.forms.multiverse import MULTIVERSE

if TYPE_CHECKING:
    from rich.table import Table

    from mvspec.compiler.compilation import Compilation

TOO_LONG = ("truncate", "drop", "error")


def compile(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="JSONL, JSON, Parquet or text files, folders, data sets (a folder or a hub name).",
        ),
    ],
    tokenizer: Tokenizer,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a data set to this folder.")
    ] = None,
    emit: Annotated[
        str | None,
        typer.Option(help="Stop after a stage and print it: ir, segments, layout, plan."),
    ] = None,
    lowering: Lowering = "multiverse",
    field: Field = None,
    prompt_field: Annotated[
        str | None, typer.Option(help="Where a row keeps the question that its text answers.")
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(help='What the last question ends with: "Think step by step ...".'),
    ] = None,
    form: Form = MULTIVERSE.name,
    split: Annotated[str | None, typer.Option(help="Split of a data set; else train.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Tokens of a row.")] = None,
    too_long: Annotated[
        str, typer.Option(help="What becomes of longer records: truncate, drop or error.")
    ] = "truncate",
    pack: Annotated[
        bool, typer.Option("--pack", help="Fill rows of exactly --max-length tokens.")
    ] = False,
    forced_loss: Annotated[
        bool, typer.Option("--forced-loss", help="Let forced tokens carry loss where they may.")
    ] = False,
    add_tags: Annotated[
        bool, typer.Option("--add-tags", help="Add missing tags; save the tokenizer beside it.")
    ] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD OP VALUE",
            help="Only rows like this, as score=1 or 'score>=0.5'; repeatable: all have to hold.",
        ),
    ] = None,
    shard: Annotated[int, typer.Option(min=1, help="Records of a file, and of packing.")] = 256,
    template_arg: TemplateArgs = None,
    workers: Workers = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a data set that was made otherwise.")
    ] = False,
) -> None:
    """Compile records to layouts for training, or print what a stage makes of them."""
    stage = emit or "layout"
    if too_long not in TOO_LONG:
        raise typer.BadParameter(
            f"{too_long!r} is not one of {', '.join(TOO_LONG)}", param_hint="--too-long"
        )
    if output and emit:
        raise typer.BadParameter("prints, and -o writes: give one", param_hint="--emit")
    written = {"--max-length": max_length is not None, "--pack": pack, "--overwrite": overwrite}
    for option in [name for name, given in written.items() if given and not output]:
        raise typer.BadParameter("needs -o: it is about what is written", param_hint=option)
    with needs("engine", "compile"):
        from mvspec.cli.print_stages import STAGES, print_stage
        from mvspec.compiler.vocabulary import load_vocabulary
        from mvspec.data.records import Fields
        from mvspec.data.sources import open_records
    if stage not in STAGES:
        raise typer.BadParameter(
            f"{stage!r} is not one of {', '.join(STAGES)}", param_hint="--emit"
        )
    arguments = template_arguments(template_arg)
    fields = Fields(form, field, prompt_field, instruction)
    records = open_records(inputs, fields, split=split, hub=True, short=True)
    if output is None:
        with as_given():
            loaded = load_vocabulary(tokenizer, tags=add_tags).asking(arguments)
        bad = print_stage(stage, records, loaded, lowering, where or (), forced_loss=forced_loss)
        raise typer.Exit(1 if bad else 0)
    with needs("compile", "compile -o"):
        from mvspec.compiler.compilation import CompilationOptions, compile_records
    options = CompilationOptions(
        lowering, max_length, too_long, pack, forced_loss, shard, add_tags, tuple(where or ())
    )
    with compiling_bar(records.size) as advance:
        result = compile_records(
            records, tokenizer, output, options,
            workers=workers, overwrite=overwrite, advance=advance, chat_template_kwargs=arguments,
        )  # fmt: skip
    if not result.ended:
        tell(
            "mvspec: nothing teaches the model to stop: the tokenizer has no chat template and no "
            "eos_token (a folder with tokenizer_config.json names one)"
        )
    print_table(compilation_table(result, output, packed=pack))
    if where and not result.counts.records + result.counts.quarantined:
        tell("no row meets --where: the data set is empty")
    raise typer.Exit(1 if result.counts.quarantined or not result.counts.records else 0)


def compilation_table(result: Compilation, folder: Path, *, packed: bool) -> Table:
    """Return what a compilation came to as a table."""
    from mvspec.compiler.compilation import QUARANTINE

    counts = result.counts
    record = counts.to_dict()
    table = plain_table("", str(folder))
    table.add_row("records", f"{counts.records:,}")
    if counts.left:
        table.add_row("left out by --where", f"{counts.left:,}")
    if counts.without_block:
        share = f"{counts.without_block:,} ({counts.without_block / counts.records:.0%})"
        table.add_row("  without a block", share, style="dim")
    if counts.truncated:
        table.add_row("  truncated", f"{counts.truncated:,}", style="yellow")
    bad = f"{counts.quarantined:,}" + (f" (see {QUARANTINE})" if counts.quarantined else "")
    table.add_row("quarantined", bad, style="red" if counts.quarantined else "")
    table.add_row("rows", f"{counts.rows:,}")
    if result.settings.arguments:
        table.add_row("chat template", str(result.settings))
    if result.settings.clock:
        table.add_row("the template's now", result.settings.clock)
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
