"""The command line: `mvspec check`, `convert`, `show`, `stats`, `compile`, `run`, `plan`, ...

A command is a module of this package with the function that typer reads; one more is a module
and its name in `COMMANDS`. What stands above the core is imported when its command is called.

Exit status: 0 all is well, 1 some record is not, 2 the command cannot be carried out as given,
130 interrupted, 141 the reader of the output has gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from mvspec.cli import (
    bench,
    check,
    compile,
    convert,
    curate,
    demo,
    eval,
    plan,
    run,
    schema,
    serve,
    show,
    stats,
    train,
    view,
)
from mvspec.cli.console import Commands

__all__ = ["app"]

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Generation that forks and joins: check it, look at it, measure it.",
)

COMMANDS: dict[str, Callable[..., None]] = {
    "check": check.check,
    "convert": convert.convert,
    "show": show.show,
    "stats": stats.stats,
    "view": view.view,
    "compile": compile.compile_records,
    "run": run.run,
    "plan": plan.plan,
    "serve": serve.serve,
    "curate": curate.curate,
    "train": train.train,
    "bench": bench.bench,
    "demo": demo.demo,
    "schema": schema.schema,
}
"""Every command, in the order of `mvspec --help`."""

PASSED_ON: dict[str, Any] = {
    "train": {"ignore_unknown_options": True, "help_option_names": []},
}
"""Settings of commands that hand their options, `--help` too, to another command line."""

for name, command in COMMANDS.items():
    app.command(name, context_settings=PASSED_ON.get(name))(command)
app.add_typer(eval.app, name="eval")
