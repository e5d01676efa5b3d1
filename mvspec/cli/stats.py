"""`mvspec stats`: how parallel records are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mvspec.cli.console import corpus_table, documents_table, print_table, progress
from mvspec.cli.options import Field, Form, Inputs, Json, needs
from mvspec.data.check import read_document
from mvspec.data.measure import Counter, count_words, measure, token_counter
from mvspec.data.records import InputError, read_records
from mvspec.errors import MvspecError
from mvspec.forms import FORMS
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.law.metrics import Corpus, Metrics
from mvspec.view.terminal import visible

__all__ = ["stats"]


def stats(
    inputs: Inputs,
    field: Field = None,
    form: Form = MULTIVERSE.name,
    count: Annotated[
        str,
        typer.Option(
            help="Unit: chars, words, or the tokens of a tokenizer (its folder or tokenizer.json)."
        ),
    ] = "words",
    each: Annotated[
        bool, typer.Option("--each", help="One row a record instead of the whole corpus.")
    ] = False,
    recover: Annotated[
        bool, typer.Option("--recover", help="Count malformed records too, repaired.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how parallel the records are; those that are not well-formed are left out."""
    counter, unit = counter_of(count)
    corpus = Corpus()
    rows: list[tuple[str, Metrics]] = []
    skipped = 0
    with progress(inputs) as advance:
        for item in read_records(inputs, field, advance):
            document, diagnostics, _ = read_document(item, form, recover=recover)
            try:
                if document is None:
                    raise MvspecError(f"{diagnostics[0].message} [{diagnostics[0].code}]")
                metrics = measure(document, counter, counted_in(item.form or form))
            except MvspecError as error:
                skipped += 1
                typer.echo(f"left out: {visible(f'{item.name}: {error}')}", err=True)
                continue
            corpus += metrics
            if each and as_json:
                print(json.dumps({"record": item.name, **metrics.to_dict()}), flush=True)
            elif each:
                rows.append((item.name, metrics))
    if as_json and not each:
        print(json.dumps({**corpus.to_dict(), "left_out": skipped}), flush=True)
    elif not as_json:
        print_table(documents_table(rows, unit) if each else corpus_table(corpus, unit))
    raise typer.Exit(1 if skipped else 0)


def counted_in(form: str) -> Syntax:
    """Return the form that lengths are counted in: its own where its text is the tree in order."""
    syntax = FORMS[form].syntax if form in FORMS else MULTIVERSE
    return syntax if syntax.ordered else MULTIVERSE


def counter_of(count: str) -> tuple[Counter, str]:
    """Return the counter that `--count` asks for, and the name of its unit."""
    if count == "chars":
        return len, "characters"
    if count == "words":
        return count_words, "words"
    path = Path(count)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"--count {count}: not chars, words, a tokenizer.json or its folder")
    with needs("engine", "--count with a tokenizer"):
        from tokenizers import Tokenizer
    try:
        return token_counter(Tokenizer.from_file(str(file))), "tokens"
    except Exception as error:  # tokenizers raises no narrower class
        raise InputError(f"--count {count}: not a tokenizer: {error}") from None
