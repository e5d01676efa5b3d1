"""`mvspec convert`: records of one form as records of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvspec.cli.console import reading_bar, tell
from mvspec.cli.options import READABLE, Field, Inputs, apart, known_form
from mvspec.data.convert import convert_records
from mvspec.data.records import Fields
from mvspec.data.sources import is_one_text, open_records
from mvspec.forms import FORMS
from mvspec.forms.multiverse import MULTIVERSE


def convert(
    inputs: Inputs,
    to: Annotated[str, typer.Option(help=f"Form to write: {', '.join(FORMS)}.")],
    source: Annotated[
        str,
        typer.Option("--from", help=f"Form to read: {', '.join(READABLE)}.", callback=known_form),
    ] = MULTIVERSE.name,
    field: Field = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", dir_okay=False, help="Write to this file instead."),
    ] = None,
    recover: Annotated[
        bool, typer.Option("--recover", help="Convert malformed records too, repaired.")
    ] = False,
) -> None:
    """Write each record in another form; one that the form cannot hold is left out."""
    apart(output, inputs, "-o")
    left_out = 0
    with reading_bar(open_records(inputs, Fields(source, field))) as records:
        for problem in convert_records(
            records, to, output, text=is_one_text(inputs, field), recover=recover
        ):
            left_out += 1
            tell(f"left out: {problem}")
    raise typer.Exit(1 if left_out else 0)
