"""`mvspec show`: records as trees, in the terminal or as a page, and their masks."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from mvspec.cli.check import report
from mvspec.cli.console import noticed, tell
from mvspec.cli.options import Field, Form, Inputs, Lowering, OnlyRecords, apart, needs
from mvspec.data.records import BadRecord, Fields, InputError, Record
from mvspec.data.sources import open_records
from mvspec.disk import naming
from mvspec.errors import MvspecError
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.shown import visible
from mvspec.view.notebook import HTML_LIMIT, tree_html
from mvspec.view.terminal import TEXT_LIMIT, least_width, tree_rich


def show(
    inputs: Inputs,
    field: Field = None,
    form: Form = MULTIVERSE.name,
    record: OnlyRecords = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"Characters shown of each text, else {TEXT_LIMIT}, and {HTML_LIMIT} in a page; "
            "0 shows all.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page to this file instead.", dir_okay=False)
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Draw who sees whom to this .png or .html; needs --tokenizer."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="As for compile.")] = None,
    lowering: Lowering = "multiverse",
) -> None:
    """Print each record as a tree; in a wide terminal, paths stand side by side."""
    console = Console()
    page: list[str] = []
    drawn: list[tuple[str, Any]] = []
    unread = False
    if mask and not tokenizer:
        raise typer.BadParameter("needs --tokenizer", param_hint="--mask")
    if mask and html:
        raise typer.BadParameter("--html draws trees: give one", param_hint="--mask")
    for option, output in (("--html", html), ("--mask", mask)):
        apart(output, inputs, option)
    if mask and tokenizer:
        with needs("engine", "show --mask"):
            from mvspec.compiler import compile_document
            from mvspec.compiler.vocabulary import load_vocabulary
            from mvspec.view.layout_page import write_pictures
        vocabulary = load_vocabulary(tokenizer)
    shown = (HTML_LIMIT if html else TEXT_LIMIT) if limit is None else limit or None
    for item in selected(noticed(iter(open_records(inputs, Fields(form, field)))), record):
        reading = item.read(recover=True)
        document, diagnostics = reading.document, reading.diagnostics
        if document is None:
            unread = True
            typer.echo("\n".join(report(item.name, reading.texts, diagnostics)), err=True)
            continue
        repairs = f"{len(diagnostics)} repair{'s' * (len(diagnostics) > 1)}"
        title = visible(item.name) + (f" ({repairs}: see check --recover)" if diagnostics else "")
        try:
            with item.guarded():
                if mask:
                    drawn.append((title, compile_document(document, vocabulary, lowering)))
                elif html:
                    page.append(f"<h2>{escape(title)}</h2>\n{tree_html(document, shown)}\n")
                else:
                    console.print(Text(title, "bold yellow" if diagnostics else "bold"))
                    # Deep trees need more columns than a narrow terminal has: rich would drop
                    # their text.
                    wide = Console(width=max(console.width, least_width(document)))
                    wide.print(tree_rich(document, shown))
        except MvspecError as error:
            unread = True
            tell(str(error) if isinstance(error, BadRecord) else f"{item.name}: {error}")
    if html:
        with naming(html):
            html.write_text(PAGE.format("".join(page)), "utf-8")
    if mask and drawn:
        write_pictures(mask, drawn, vocabulary)
    raise typer.Exit(1 if unread else 0)


PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>mvspec</title>
{}"""


def selected(records: Iterator[Record], names: list[str] | None) -> Iterator[Record]:
    """Yield the records of these names or places, or all where none is given.

    Raises:
        InputError: no record has one of the names.
    """
    if not names:
        yield from records
        return
    missing = dict.fromkeys(names)
    for record in records:
        if record.name in names or record.place in names:
            missing.pop(record.name, None)
            missing.pop(record.place, None)
            yield record
    if missing:
        raise InputError(f"no record is named {', '.join(missing)}")
