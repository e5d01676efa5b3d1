"""The command line: `mvspec check`, `convert`, `show`, `stats`, `compile`, `run`, `plan`, ...


Exit status: 0 all is well, 1 some record is not, 2 the command cannot be carried out as given,
130 interrupted, 141 the reader of the output has gone.
"""

from __future__ import annotations

import json
from functools import partial
from html import escape
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from mvspec.check import check_record, read_document, report
from mvspec.console import (
    Commands,
    Summary,
    corpus_table,
    documents_table,
    print_table,
    progress,
)
from mvspec.convert import convert_records
from mvspec.errors import MvspecError, Source
from mvspec.forms import FORMS, JSON
from mvspec.ir import Document
from mvspec.limits import Limits
from mvspec.metrics import Corpus, Counter, Metrics, count_words, measure, token_counter
from mvspec.records import InputError, Record, is_one_text, read_records, selected
from mvspec.repaired import Policy, fixed
from mvspec.schema import document_schema
from mvspec.syntax import MULTIVERSE, Syntax
from mvspec.views import HTML_LIMIT, TEXT_LIMIT, least_width, tree_html, tree_rich, visible
from mvspec.workers import ordered_map

__all__ = ["app"]


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Generation that forks and joins: check it, look at it, measure it.",
)

READABLE = (*(name for name, syntax in FORMS.items() if syntax.tagged), JSON)


def known_form(form: str) -> str:
    """Return `form` where it can be read; else a usage error."""
    if form not in READABLE:
        raise typer.BadParameter(f"{form!r} is not one of {', '.join(READABLE)}")
    return form


Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", help="Files, folders, or - for standard input."),
]
Field = Annotated[
    str | None,
    typer.Option(help="Where a JSONL row keeps its text, such as output or result.text."),
]
Form = Annotated[
    str,
    typer.Option(help=f"Surface form: {', '.join(READABLE)}.", callback=known_form),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes to work in.")]
Tokenizer = Annotated[
    str, typer.Option(help="A tokenizer.json, its folder, or a name on the Hugging Face hub.")
]
Lowering = Annotated[
    str,
    typer.Option(help="multiverse, autoregressive, sequential, tree, official or shared(k)."),
]
TOO_LONG = ("truncate", "drop", "error")


@app.command()
def check(
    inputs: Inputs,
    field: Field = None,
    form: Form = MULTIVERSE.name,
    recover: Annotated[
        bool, typer.Option("--recover", help="List every repair, not only the first violation.")
    ] = False,
    fix: Annotated[
        Path | None, typer.Option(help="Write the repaired records to this file, a log beside it.")
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
    policy = Policy.of(fix, recover, max_repairs, drop)
    function = partial(check_record, form=form, recover=recover)
    several = partial(ordered_map, function, workers=workers, size=text_length)
    with progress(inputs) as advance:
        records = read_records(inputs, field, advance)
        for verdict in fixed(records, several, policy, inputs, field, form):
            summary.add(verdict)
            if as_json:
                print(json.dumps(verdict.row()), flush=True)
            elif verdict.report:
                print(verdict.report, flush=True)
    if not as_json:
        print_table(summary)
    well = summary.records - summary.left_out if fix else summary.ok
    raise typer.Exit(0 if well == summary.records else 1)


@app.command()
def convert(
    inputs: Inputs,
    to: Annotated[str, typer.Option(help=f"Form to write: {', '.join((*FORMS, JSON))}.")],
    source: Annotated[
        str,
        typer.Option("--from", help=f"Form to read: {', '.join(READABLE)}.", callback=known_form),
    ] = MULTIVERSE.name,
    field: Field = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file instead.")
    ] = None,
    recover: Annotated[
        bool, typer.Option("--recover", help="Convert malformed records too, repaired.")
    ] = False,
) -> None:
    """Write each record in another form; one that the form cannot hold is left out."""
    left_out = 0
    with progress(inputs) as advance:
        records = read_records(inputs, field, advance)
        for problem in convert_records(
            records, source, to, output, field, text=is_one_text(inputs, field), recover=recover
        ):
            left_out += 1
            typer.echo(f"left out: {visible(problem)}", err=True)
    raise typer.Exit(1 if left_out else 0)


@app.command()
def show(
    inputs: Inputs,
    field: Field = None,
    form: Form = MULTIVERSE.name,
    record: Annotated[
        list[str] | None,
        typer.Option(help="Show only the record of this id or place (runs.jsonl:3); repeatable."),
    ] = None,
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
    drawn: list[tuple[str, Document]] = []
    unread = False
    if mask and not tokenizer:
        raise typer.BadParameter("needs --tokenizer", param_hint="--mask")
    if mask and html:
        raise typer.BadParameter("--html draws trees: give one", param_hint="--mask")
    shown = (HTML_LIMIT if html else TEXT_LIMIT) if limit is None else limit or None
    for item in selected(read_records(inputs, field), record):
        document, diagnostics, _ = read_document(item, form, recover=True)
        if document is None:
            unread = True
            typer.echo("\n".join(report(Source(item.text, item.name), diagnostics)), err=True)
            continue
        repairs = f"{len(diagnostics)} repair{'s' * (len(diagnostics) > 1)}"
        title = visible(item.name) + (f" ({repairs}: see check --recover)" if diagnostics else "")
        if mask:
            drawn.append((title, document))
        elif html:
            page.append(f"<h2>{escape(title)}</h2>\n{tree_html(document, shown)}\n")
        else:
            console.print(Text(title, "bold yellow" if diagnostics else "bold"))
            # Deep trees need more columns than a narrow terminal has: rich would drop their text.
            wide = Console(width=max(console.width, least_width(document)))
            wide.print(tree_rich(document, shown))
    if html:
        html.write_text(PAGE.format("".join(page)), "utf-8")
    if mask and tokenizer and drawn:
        draw_masks(mask, drawn, tokenizer, lowering)
    raise typer.Exit(1 if unread else 0)


@app.command()
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
                print(json.dumps({"record": item.name, **metrics.record()}), flush=True)
            elif each:
                rows.append((item.name, metrics))
    if as_json and not each:
        print(json.dumps({**corpus.record(), "left_out": skipped}), flush=True)
    elif not as_json:
        print_table(documents_table(rows, unit) if each else corpus_table(corpus, unit))
    raise typer.Exit(1 if skipped else 0)


@app.command(name="compile")
def compile_(
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
    shard: Annotated[int, typer.Option(min=1, help="Records of a file, and of packing.")] = 256,
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
    try:
        from mvspec.compiler.conversation import Fields
        from mvspec.compiler.emit import STAGES, print_stage
        from mvspec.compiler.rows import open_rows
        from mvspec.compiler.tokenizer import load_vocabulary
    except ImportError:
        raise InputError("compile needs: pip install 'mvspec[engine]'") from None
    if stage not in STAGES:
        raise typer.BadParameter(
            f"{stage!r} is not one of {', '.join(STAGES)}", param_hint="--emit"
        )
    fields = Fields(form, field, prompt_field)
    rows = open_rows(inputs, rows=bool(field or prompt_field), split=split)
    if output is None:
        loaded = load_vocabulary(tokenizer, tags=add_tags)
        bad = print_stage(stage, rows, fields, loaded, lowering, forced_loss=forced_loss)
        raise typer.Exit(1 if bad else 0)
    try:
        from mvspec.compiler import console
        from mvspec.compiler.compilation import compile_rows
        from mvspec.compiler.shard import Options
    except ImportError:
        raise InputError("compile -o needs: pip install 'mvspec[compile]'") from None
    options = Options(lowering, max_length, too_long, pack, forced_loss, shard, add_tags, fields)
    with console.progress(rows) as advance:
        result = compile_rows(
            rows, tokenizer, output, options,
            workers=workers, overwrite=overwrite, advance=advance,
        )  # fmt: skip
    print_table(console.summary(result, output, packed=pack))
    raise typer.Exit(1 if result.counts.quarantined else 0)


Model = Annotated[
    str | None,
    typer.Option(help="Folder or hub name of a model; by default a small one, fetched once."),
]
Timeline = Annotated[
    Path | None, typer.Option(help="Draw threads over steps to this .svg or .png file.")
]


@app.command()
def run(
    program: Annotated[
        Path,
        typer.Argument(
            help="A .py file that binds `document`; a document or a plan as .json; a .jsonl file "
            "of traces; or a text in the multiverse form, which is replayed."
        ),
    ],
    model: Model = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Likeliest tokens that reach this sum.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="So many of the likeliest; 0 for all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Tokens this share as likely as the first.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="For what a thread has seen.")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Ends the model's turn outside blocks; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random streams.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens that are written.")] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0.0, help="Wall-clock time.")] = None,
    max_depth: Annotated[int | None, typer.Option(min=0, help="Blocks inside blocks.")] = None,
    share: Annotated[int, typer.Option(min=0, help="Paths read each other after so many.")] = 0,
    structure: Annotated[bool, typer.Option(help="Hold the model to the grammar.")] = True,
    live: Annotated[bool, typer.Option(help="Show the paths while they are written.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Append the trace to this .jsonl.")] = None,
    timeline: Timeline = None,
    as_json: Json = False,
) -> None:
    """Fill the holes of a document with a model, or let it write a turn; paths in parallel."""
    if not program.is_file():
        raise InputError(f"{program}: there is no such file")
    try:
        from mvspec.runtime import Options, Sampling
        from mvspec.runtime.console import jsonable, run_file
    except ImportError as error:
        raise InputError(f"run needs: pip install 'mvspec[engine]' ({error})") from None
    given = {"max_tokens": max_tokens, "max_seconds": max_seconds, "max_depth": max_depth}
    try:
        sampling = Sampling(
            temperature, top_p, top_k, min_p, repetition_penalty, tuple(stop or ()), seed
        )
        limits = Limits(**{name: value for name, value in given.items() if value is not None})
        options = Options(sampling, limits, structure, share)
        result = run_file(
            program, model, options, live=live, trace=trace, timeline=timeline, quiet=as_json
        )
    except MvspecError as error:  # no record is at fault: the command cannot be carried out
        raise InputError(str(error)) from error
    if as_json:
        print(json.dumps(jsonable(result)))


@app.command()
def plan(
    program: Annotated[Path, typer.Argument(help="As for run.")],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Print what a runtime would do, and what it costs; no weights are loaded."""
    if not program.is_file():
        raise InputError(f"{program}: there is no such file")
    try:
        from mvspec.runtime.console import cost_line, describe_plan
    except ImportError as error:
        raise InputError(f"plan needs: pip install 'mvspec[engine]' ({error})") from None
    try:
        found = describe_plan(program, model)
        print(found.to_json() if as_json else f"{found}\n{cost_line(found)}")
    except MvspecError as error:
        raise InputError(str(error)) from error


@app.command()
def demo(model: Model = None, timeline: Timeline = None) -> None:
    """Run eight questions about a text at once, and a verdict; measure it against one by one."""
    try:
        from mvspec.runtime.console import show_demo
        from mvspec.runtime.demo import document
    except ImportError as error:
        raise InputError(f"demo needs: pip install 'mvspec[engine]' ({error})") from None
    try:
        show_demo(document, model, timeline=timeline)
    except MvspecError as error:
        raise InputError(str(error)) from error


@app.command()
def schema() -> None:
    """Print the JSON Schema of a document."""
    print(document_schema(), end="")


PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>mvspec</title>
{}"""


def draw_masks(
    path: Path, documents: list[tuple[str, Document]], tokenizer: str, lowering: str
) -> None:
    """Write the pictures of titled documents' layouts to a file."""
    try:
        from mvspec.compiler import compile_document
        from mvspec.compiler.picture import write_pictures
        from mvspec.compiler.tokenizer import load_vocabulary
    except ImportError:
        raise InputError("show --mask needs: pip install 'mvspec[engine]'") from None
    vocabulary = load_vocabulary(tokenizer)
    layouts = [(title, compile_document(each, vocabulary, lowering)) for title, each in documents]
    write_pictures(path, layouts, vocabulary)


def counted_in(form: str) -> Syntax:
    """Return the form that lengths are counted in: its own where its text is the tree in order."""
    syntax = FORMS.get(form, MULTIVERSE)
    return syntax if syntax.ordered else MULTIVERSE


def text_length(record: Record) -> int:
    """Return the characters of a record's text, the cost of checking it."""
    return len(record.text)


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
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError("--count with a tokenizer needs: pip install 'mvspec[engine]'") from None
    try:
        return token_counter(Tokenizer.from_file(str(file))), "tokens"
    except Exception as error:  # tokenizers raises no narrower class
        raise InputError(f"--count {count}: not a tokenizer: {error}") from None


if __name__ == "__main__":
    app(prog_name="mvspec")
