"""`mvspec run`: a model fills the holes of a document; what a run looks like at a terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvspec.cli.console import tell
from mvspec.cli.options import (
    Json,
    Model,
    TemplateArgs,
    Timeline,
    as_given,
    from_options,
    needs,
    template_arguments,
)
from mvspec.data.records import InputError
from mvspec.errors import MvspecError

if TYPE_CHECKING:
    from rich.console import Console

    from mvspec.runtime.options import Options
    from mvspec.runtime.protocol import Engine, Runnable
    from mvspec.trace import Result


def run(
    program: Annotated[
        Path,
        typer.Argument(
            help="A .py file that binds `document`; a document or a plan as .json; a .jsonl file "
            "of traces; or a text in the multiverse form, which is replayed."
        ),
    ],
    model: Model = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A server that `mvspec serve` started, not a model."),
    ] = None,
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
    template_arg: TemplateArgs = None,
    live: Annotated[bool, typer.Option(help="Show the paths while they are written.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Append the trace to this .jsonl.")] = None,
    timeline: Timeline = None,
    as_json: Json = False,
) -> None:
    """Fill the holes of a document with a model, or let it write a turn; paths in parallel."""
    given = locals()
    if not program.is_file():
        raise InputError(f"{program}: there is no such file")
    if engine and model:
        raise typer.BadParameter("the server has its model: give one", param_hint="--engine")
    with needs("engine", "run"):
        from mvspec.law.limits import Limits
        from mvspec.runtime import Options, Sampling
    with as_given():
        sampling = from_options(Sampling, given, stop=tuple(stop or ()))
        options = Options(sampling, from_options(Limits, given), structure, share)
        result = run_file(
            program, model, options,
            engine=engine, live=live, trace=trace, timeline=timeline, quiet=as_json,
            chat_template_kwargs=template_arguments(template_arg),
        )  # fmt: skip
    if as_json:
        print(json.dumps(jsonable(result)))


def run_file(
    path: Path,
    model: str | None,
    options: Options,
    *,
    engine: str | None = None,
    live: bool = False,
    trace: Path | None = None,
    timeline: Path | None = None,
    quiet: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Result:
    """Run a file and print the result.

    Args:
        path: what `load_program` reads.
        model: folder or hub name; by default SmolLM2-135M-Instruct, fetched once.
        engine: the URL of a server of SGLang, instead of a model.
        live: show the paths side by side while they are written, on standard error.
        trace: a JSONL file that the trace is appended to, also after Ctrl-C.
        timeline: an .svg or .png file that the timeline is drawn to.
        quiet: print nothing.
        chat_template_kwargs: the chat template's own arguments.

    Raises:
        MvspecError: as `mvspec.run`.
    """
    from rich.console import Console

    from mvspec.runtime.program import load_program
    from mvspec.view.timeline import check_timeline, write_timeline

    check_timeline(timeline)
    if trace is not None:
        _check_trace(trace)
    program = load_program(path)
    errors = Console(stderr=True)
    runner = load_engine(model, errors, engine, chat_template_kwargs)
    result = run_live(runner, program, options, errors, live=live and not quiet, trace=trace)
    if trace is not None:
        result.trace.save(trace)
    write_timeline(timeline, result.trace)
    if not quiet:
        show_result(result, Console())
    return result


def _check_trace(path: Path) -> None:
    """Refuse a file that a trace cannot be appended to, before there is one to lose."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a .jsonl file to append the trace to")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path}: cannot be written")


def load_engine(
    model: str | None,
    console: Console,
    url: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Engine:
    """Return an engine; a model is loaded behind a status line, without progress bars."""
    from mvspec.runtime.program import engine_of

    if url is not None:
        return engine_of(url, chat_template_kwargs=chat_template_kwargs)
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with console.status("loading the model"):
        return engine_of(model=model, chat_template_kwargs=chat_template_kwargs)


def run_live(
    engine: Engine,
    program: Runnable,
    options: Options,
    console: Console,
    *,
    live: bool,
    trace: Path | None = None,
) -> Result:
    """Run a program, shown while it goes on; Ctrl-C leaves the trace so far in its file."""
    from mvspec.events import Finished
    from mvspec.view.live import LiveColumns

    request = engine.submit(program, options)
    try:
        with LiveColumns(console) if live else console.status("running") as shown:
            for event in engine.follow(request):
                if isinstance(shown, LiveColumns):
                    shown.show(event)
                if isinstance(event, Finished):
                    return event.result
    except KeyboardInterrupt:  # wherever it came: in the model, or while the screen was drawn
        if trace is not None:
            engine.result(request).trace.save(trace)
            tell(f"mvspec: interrupted; the trace so far is in {trace}")
        raise
    raise MvspecError("the engine ended its events without a result: this is a bug of mvspec")


def jsonable(result: Result) -> dict[str, Any]:
    """Return what `mvspec run --json` prints."""
    from pydantic_core import to_jsonable_python

    values = to_jsonable_python(dict(result.values))
    document = None if result.document is None else json.loads(result.document.to_json())
    return {
        "values": values,
        "errors": dict(result.errors),
        "finish": result.trace.finish,
        "document": document,
    }


def show_result(result: Result, console: Console) -> None:
    """Print each hole's value, or else the text that was written; then the size of the run."""
    from pydantic import BaseModel
    from rich.table import Table
    from rich.text import Text

    from mvspec.shown import visible
    from mvspec.view.timeline import captions

    table = Table("hole", "value", show_lines=True)
    for name in result.texts:
        value = result.values.get(name)
        shown = value.model_dump_json() if isinstance(value, BaseModel) else result.texts[name]
        text = Text(visible(shown.strip()))
        if name in result.errors:
            text.append(f"\n{visible(result.errors[name])}", style="red")
        table.add_row(Text(name, style="bold"), text)
    if result.texts:
        console.print(table)
    else:
        console.print(Text(visible(result.text)))
    console.print("; ".join(captions(result.trace)), highlight=False, markup=False)
