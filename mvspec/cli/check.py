"""`mvspec check`: the verdict on each record, and its repair."""

from __future__ import annotations

import json
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from mvspec.cli.console import Summary, print_table, progress
from mvspec.cli.options import Field, Form, Inputs, Json, Workers, apart
from mvspec.data.check import check_record, other_forms
from mvspec.data.fix import Policy, fixed, log_path
from mvspec.data.parallel_map import ordered_map
from mvspec.data.records import Record, read_records
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.view.terminal import visible

__all__ = ["check"]


def check(
    inputs: Inputs,
    field: Field = None,
    form: Form = MULTIVERSE.name,
    recover: Annotated[
        bool, typer.Option("--recover", help="List every repair, not only the first violation.")
    ] = False,
    fix: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Write the repaired records to this file, a log beside it."
        ),
    ] = None,
    max_repairs: Annotated[
        int | None, typer.Option(min=0, help="Leave records with more repairs out of --fix.")
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Leave records with such a repair out; repeatable."),
    ] = None,
    as_json: Json = False,
    workers: Workers = 1,
) -> None:
    """Say of each record whether it is well-formed, and where it is not."""
    summary = Summary()
    for output in (fix, log_path(fix)) if fix else ():
        apart(output, inputs, "--fix")
    policy = Policy.of(fix, recover, max_repairs, drop)
    function = partial(check_record, form=form, recover=recover)
    several = partial(ordered_map, function, workers=workers, size=text_length)
    with progress(inputs) as advance:
        records = read_records(inputs, field, advance)
        first = next(records, None)
        records = chain([first] if first else [], records)
        for verdict in fixed(records, several, policy, inputs, field, form, summary.resume):
            summary.add(verdict)
            if as_json:
                print(json.dumps(verdict.row()), flush=True)
            elif verdict.report:
                print(verdict.report, flush=True)
    if not as_json:
        print_table(summary)
        if first is None:
            typer.echo("there is no record in the input", err=True)
        elif not (summary.ok or summary.cut) and (others := other_forms(first, form)):
            name = visible(first.name)
            typer.echo(f"{name} is well-formed with --form {' or '.join(others)}", err=True)
    wrong = summary.left_out if fix else summary.records - summary.ok
    raise typer.Exit(1 if wrong else 0)


def text_length(record: Record) -> int:
    """Return the characters of a record's text, the cost of checking it."""
    return len(record.text)
