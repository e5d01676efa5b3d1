"""`mvspec run`: a model fills the holes of a document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mvspec.cli.options import Json, Model, Timeline, as_given, needs
from mvspec.data.records import InputError
from mvspec.law.limits import Limits

__all__ = ["run"]


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
    live: Annotated[bool, typer.Option(help="Show the paths while they are written.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Append the trace to this .jsonl.")] = None,
    timeline: Timeline = None,
    as_json: Json = False,
) -> None:
    """Fill the holes of a document with a model, or let it write a turn; paths in parallel."""
    if not program.is_file():
        raise InputError(f"{program}: there is no such file")
    if engine and model:
        raise typer.BadParameter("the server has its model: give one", param_hint="--engine")
    with needs("engine", "run"):
        from mvspec.runtime import Options, Sampling
        from mvspec.runtime.console import jsonable, run_file
    given = {"max_tokens": max_tokens, "max_seconds": max_seconds, "max_depth": max_depth}
    with as_given():
        sampling = Sampling(
            temperature, top_p, top_k, min_p, repetition_penalty, tuple(stop or ()), seed
        )
        limits = Limits(**{name: value for name, value in given.items() if value is not None})
        options = Options(sampling, limits, structure, share)
        result = run_file(
            program, model, options,
            engine=engine, live=live, trace=trace, timeline=timeline, quiet=as_json,
        )  # fmt: skip
    if as_json:
        print(json.dumps(jsonable(result)))
