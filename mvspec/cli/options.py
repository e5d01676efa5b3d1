"""Arguments and options that several commands share."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from mvspec.data.records import InputError
from mvspec.data.sources import is_readable
from mvspec.errors import MvspecError
from mvspec.forms import FORMS, READABLE
from mvspec.forms.likeness import AUTO

__all__ = [
    "READABLE",
    "Field",
    "Form",
    "Inputs",
    "Json",
    "Lowering",
    "Model",
    "OnlyRecords",
    "TemplateArgs",
    "Timeline",
    "Tokenizer",
    "Workers",
    "apart",
    "as_given",
    "from_options",
    "known_form",
    "needs",
    "numbers",
    "template_arguments",
]


def known_form(form: str) -> str:
    """Return `form` where it can be read; else a usage error."""
    if form in FORMS and form not in READABLE:
        raise typer.BadParameter(f"{form!r} is written, never read: use {', '.join(READABLE)}")
    if form not in (*READABLE, AUTO):
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
    typer.Option(help=f"Surface form: {', '.join(READABLE)}; auto looks.", callback=known_form),
]
OnlyRecords = Annotated[
    list[str] | None,
    typer.Option(
        "--record",
        help="Show only the record of this id or place (runs.jsonl:3); repeatable.",
    ),
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
Model = Annotated[
    str | None,
    typer.Option(help="Folder or hub name of a model; by default a small one, fetched once."),
]
TemplateArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--template-arg",
        metavar="NAME=JSON",
        help="Argument of the chat template, as enable_thinking=false; repeatable.",
    ),
]
Timeline = Annotated[
    Path | None, typer.Option(help="Draw threads over steps to this .svg or .png file.")
]


def apart(output: Path | None, inputs: list[str], option: str) -> None:
    """Refuse an output that the command reads too, now or when it is run again.

    Args:
        option: what names the output, such as --fix.
    """
    for name in inputs if output else ():
        source, target = Path(name).resolve(), Path(output or "").resolve()
        if target == source:
            raise InputError(f"{option} {output}: it is read too: name another file")
        if source.is_dir() and target.is_relative_to(source) and is_readable(target):
            raise InputError(f"{option} {output}: {name} is read, and it stands in there")


def template_arguments(given: list[str] | None) -> dict[str, Any]:
    """Return the arguments of a chat template that an option names.

    Raises:
        InputError: one has no name or no value of JSON, or is given twice.
    """
    found: dict[str, Any] = {}
    for each in given or ():
        name, there, text = each.partition("=")
        if not there or not name.isidentifier():
            raise InputError(f"--template-arg {each}: expected NAME=JSON: enable_thinking=false")
        if name in found:
            raise InputError(f"--template-arg {each}: {name} is given twice")
        try:
            found[name] = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(
                f"--template-arg {each}: {text!r} is not JSON: true, false, null, a number, or a "
                f"text in quotes: {name}='\"{text}\"'"
            ) from None
    return found


T = TypeVar("T")
N = TypeVar("N", int, float)


def numbers(given: str, option: str, kind: Callable[[str], N], expected: str) -> tuple[N, ...]:
    """Return the numbers of an option, several with commas, in order.

    Args:
        kind: int or float.
        expected: what is asked for, with an example.

    Raises:
        InputError: one is no such number, or not from 1 up.
    """
    try:
        found = sorted(set(map(kind, given.split(","))))
    except ValueError:
        found = []
    if not found or not 1 <= found[0] <= found[-1] < 1e9:
        raise InputError(f"{option} {given}: expected {expected}")
    return tuple(found)


def from_options(kind: Callable[..., T], given: Mapping[str, Any], **more: Any) -> T:
    """Make a settings object of a command's options that are named as its fields.

    Args:
        given: the options by name; None leaves a field its default.
        more: fields that no option is named for.
    """
    known = inspect.signature(kind).parameters
    found = {name: value for name, value in given.items() if name in known and value is not None}
    return kind(**{**found, **more})


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Say which extra is to be installed where an import inside fails.

    Args:
        extra: a name of `[project.optional-dependencies]`.
        what: the command, or its option, that imports.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(f"{what} needs: pip install 'mvspec[{extra}]' ({error})") from None


@contextmanager
def as_given() -> Iterator[None]:
    """Take an error inside for one of the command: no record is at fault."""
    try:
        yield
    except MvspecError as error:
        raise InputError(str(error)) from error
