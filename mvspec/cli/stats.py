"""`mvspec stats`: how parallel records are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvspec.cli.console import plain_table, print_table, reading_bar, tell
from mvspec.cli.options import Field, Form, Inputs, Json, needs
from mvspec.data.measure import Counter, count_words, measure, token_counter
from mvspec.data.records import Fields, InputError
from mvspec.data.sources import open_records
from mvspec.errors import MvspecError
from mvspec.forms import FORMS
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.law.metrics import Corpus, Metrics
from mvspec.shown import visible

if TYPE_CHECKING:
    from rich.table import Table


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
    with reading_bar(open_records(inputs, Fields(form, field))) as records:
        for item in records:
            reading = item.read(recover=recover)
            document, diagnostics = reading.document, reading.diagnostics
            try:
                if document is None:
                    raise MvspecError(f"{diagnostics[0].message} [{diagnostics[0].code}]")
                with item.guarded():
                    metrics = measure(document, counter, counted_in(item.form))
            except MvspecError as error:
                skipped += 1
                tell(f"left out: {item.name}: {error}")
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


def documents_table(rows: Sequence[tuple[str, Metrics]], unit: str) -> Table:
    """Return a table with a row for each document.

    Args:
        unit: what the counts count, such as words.
    """
    from rich.text import Text

    table = plain_table("record", unit, "critical\npath", "parallel-\nism", "coverage", "blocks",
                   "paths/\nblock", "longest/\nmean", "depth")  # fmt: skip
    for name, metrics in rows:
        cells = [_cell(key, value) for key, value in metrics.to_dict().items()]
        table.add_row(Text(visible(name), overflow="fold"), *cells)
    return table


def corpus_table(corpus: Corpus, unit: str) -> Table:
    """Return a table of a corpus's totals and means."""
    record = corpus.to_dict()
    table = plain_table("", "all documents")
    names = {
        "documents": "documents",
        "documents_with_blocks": "  with a block",
        "tokens": unit,
        "critical_path": "critical path",
        "parallelism": "degree of parallelism, mean",
        "parallelism_with_blocks": "  of those with a block",
        "parallelism_pooled": "  of all text together",
        "coverage": "coverage",
        "blocks": "blocks",
        "paths_per_block": "paths per block",
        "longest_over_mean": "longest over mean path",
        "depth": "depth",
    }
    for key, name in names.items():
        table.add_row(name, _cell(key, record[key]))
    return table


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "coverage":
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


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
