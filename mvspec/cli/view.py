"""`mvspec view`: documents, traces, corpora and evaluations as one page for a browser."""

from __future__ import annotations

import webbrowser
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mvspec.cli.console import reading_bar, tell
from mvspec.cli.options import Field, Form, Inputs, OnlyRecords, Workers, apart, as_given, needs
from mvspec.cli.show import selected
from mvspec.data.parallel_map import ordered_map
from mvspec.data.records import BadRecord, Fields, Record
from mvspec.data.sources import open_records
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.view.page import RecordPage, own_output
from mvspec.view.records import LayDocument, unread, view_of

Made = tuple[str, str, list[Any]]


def view(
    inputs: Inputs,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The page; else NAME.html in this folder."),
    ] = None,
    field: Field = None,
    form: Form = MULTIVERSE.name,
    record: OnlyRecords = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Count texts in its tokens, not in words; as for compile."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="What the page is called.")] = None,
    workers: Workers = 1,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a file that is no page.")
    ] = False,
) -> None:
    """Write documents, traces or samples as one page: tree, timeline, mask, tokens, search."""
    name = "stdin" if inputs[0] == "-" else Path(inputs[0]).resolve().stem
    path = own_output(output or Path(f"{name}.html"), force)
    apart(path, inputs, "-o")
    lay = _tokens(tokenizer) if tokenizer else None
    verdicts: Counter[str] = Counter()
    source = open_records(inputs, Fields(form, field))
    with reading_bar(source, heads=True) as found, RecordPage(path, title or name) as page:
        make = partial(made, lay=lay)
        # A tokenizer works in threads of its own.
        for searched, rest, index in ordered_map(
            make, selected(found, record), 1 if lay else workers, size=_size, mended=Record.deadly
        ):
            page.add(searched, rest, index)
            verdicts[index[2]] += 1
    typer.echo(f"{path}: {_told(verdicts)}, {_bytes(path.stat().st_size)}")
    if unread := verdicts["unread"]:
        tell(f"{unread:,} of them could not be read: see their diagnostics")
    if open_page:
        webbrowser.open(path.resolve().as_uri())
    raise typer.Exit(1 if unread else 0)


def made(record: Record, lay: LayDocument | None) -> Made:
    """Return a record as the page holds it."""
    try:
        with record.guarded():
            shown = view_of(record, lay)
            return *shown.lines(), shown.index()
    except BadRecord as error:
        shown = unread(record, (error.diagnostic,))
        return *shown.lines(), shown.index()


def _size(record: Record) -> int:
    return int(record.size)


def _tokens(tokenizer: str) -> LayDocument:
    with needs("engine", "view --tokenizer"):
        from mvspec.compiler.token_view import lay_tokens
        from mvspec.compiler.vocabulary import load_vocabulary
    with as_given():
        vocabulary = load_vocabulary(tokenizer)
    return partial(lay_tokens, vocabulary=vocabulary)


def _told(verdicts: Counter[str]) -> str:
    number = verdicts.total()
    parts = [f"{number:,} record{'s' * (number != 1)}"]
    parts += [f"{verdicts[each]:,} {each}" for each in ("cut", "malformed") if verdicts[each]]
    return ", ".join(parts)


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"
