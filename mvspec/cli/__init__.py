"""The command line: `mvspec check`, `convert`, `show`, `stats`, `compile`, `run`, `plan`, ...

A command is a module of this package with the function that typer reads, of the same name; one
more is a module and its name in `COMMANDS`. A command's module is imported when it is called, and
what it needs of the rooms when it runs.

Exit status: 0 all is well, 1 some record is not, 2 the command cannot be carried out as given,
130 interrupted, 141 the reader of the output has gone.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import mvspec
from mvspec.cli.console import discard_stdout, tell
from mvspec.errors import MvspecError

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = (
    "check",
    "convert",
    "show",
    "stats",
    "view",
    "compile",
    "run",
    "plan",
    "serve",
    "curate",
    "train",
    "bench",
    "demo",
    "schema",
    "eval",
)
"""Every command, in the order of `mvspec --help`."""

PASSED_ON: dict[str, Any] = {
    "train": {"ignore_unknown_options": True, "help_option_names": []},
}
"""Settings of commands that hand their options, `--help` too, to another command line."""


USAGE_ERROR: Any = typer.BadParameter.__base__
"""Click's, which typer brings along and does not name."""


class MvspecGroup(TyperGroup):
    """Commands by name: imported when they are asked for, and ended alike.

    Errors are one line; interrupts and closed pipes end in silence.
    """

    listing = False
    called = ""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands from their source: to import them all takes its time."""
        self.listing = True
        super().format_help(ctx, formatter)

    def get_command(self, ctx: Any, name: str) -> Any:
        if name not in COMMANDS:
            return None
        if self.listing:
            return TyperCommand(name, help=summary_of(name))
        self.called = name
        found = getattr(import_module(f"mvspec.cli.{name}"), name)
        if not isinstance(found, typer.Typer):
            one = typer.Typer(add_completion=False)
            one.command(name, context_settings=PASSED_ON.get(name))(found)
            found = one
        command = typer.main.get_command(found)
        command.name = name
        return command

    def make_context(self, *given: Any, **more: Any) -> Any:
        with usage_in_a_line():
            return super().make_context(*given, **more)

    def invoke(self, ctx: Any) -> Any:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by whoever started it
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr):
            # A name or a message may hold what the terminal's encoding cannot.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            try:
                with usage_in_a_line():
                    return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt:
            if self.called == "curate":  # money was spent, and nothing of it is lost
                tell("mvspec: interrupted: the same command goes on from here")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            discard_stdout()
            raise typer.Exit(141) from None
        except MvspecError as error:
            from mvspec.data.records import InputError

            tell(f"mvspec: {error}")
            raise typer.Exit(2 if isinstance(error, InputError) else 1) from None
        except OSError as error:
            # A folder that is not there, a full disk: the command's surroundings, not its records.
            # Whoever writes a file names it (mvspec/disk.py): what has no name was printed.
            unnamed = "" if error.errno is None or sys.stdout.isatty() else "standard output"
            name = error.filename or unnamed
            what = f"{name}: {error.strerror}" if name else str(error)
            tell(f"mvspec: {what}")
            discard_stdout()
            raise typer.Exit(2) from None


@contextmanager
def usage_in_a_line() -> Iterator[None]:
    """Tell what is wrong with a command's arguments as all other errors are told."""
    try:
        yield
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        path = error.ctx.command_path if error.ctx else "mvspec"
        said = " ".join(error.format_message().split()).rstrip(".")
        tell(f"mvspec: {said}: `{path} --help` lists what there is")
        raise typer.Exit(2) from None


def summary_of(name: str) -> str:
    """Return what a command's module says of it, without importing it."""
    tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_bytes())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) or ""
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            told = {each.arg: each.value for each in node.value.keywords}
            if "help" in told:
                return str(ast.literal_eval(told["help"]))
    return ""


app = typer.Typer(
    cls=MvspecGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def print_version(wanted: bool) -> None:
    """Print the version and end, where that is wanted."""
    if wanted:
        print(f"mvspec {mvspec.__version__}")
        raise typer.Exit


@app.callback()
def top_level(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Generation that forks and joins: check it, look at it, measure it."""


def main() -> None:
    """Be the command `mvspec`, in a process of its own."""
    if sys.argv[1:2] == ["compile"]:
        # transformers reads tokenizers without torch, but imports it where it can be found: most
        # of the seconds that a compilation takes to start. Its worker processes inherit this.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it says that it found none
    app(prog_name="mvspec")
