"""`mvspec serve`: a server of SGLang that forks and joins."""

from __future__ import annotations

from typing import Annotated

import typer

from mvspec.cli.options import TemplateArgs, as_given, needs, template_arguments
from mvspec.law.limits import Limits


def serve(
    model: Annotated[str, typer.Argument(help="Folder or hub name of a model.")],
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- FLAGS]", help="SGLang's own flags, such as --port 30000."),
    ] = None,
    template_arg: TemplateArgs = None,
    native: Annotated[
        bool, typer.Option("--native", help="Let the model fork in every request that can.")
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="With --native: tokens of all threads of a request.")
    ] = None,
    max_depth: Annotated[
        int | None, typer.Option(min=0, help="With --native: blocks inside blocks.")
    ] = None,
    max_paths: Annotated[
        int | None, typer.Option(min=1, help="With --native: paths of one block.")
    ] = None,
    max_position: Annotated[
        int | None, typer.Option(min=1, help="With --native: end of the critical path.")
    ] = None,
) -> None:
    """Start a server of SGLang that forks and joins; it ends as SGLang's own does."""
    given = {
        "max_tokens": max_tokens,
        "max_depth": max_depth,
        "max_paths": max_paths,
        "max_position": max_position,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen and not native:
        name = next(iter(chosen)).replace("_", "-")
        raise typer.BadParameter("needs --native: plans bring their limits", param_hint=f"--{name}")
    with needs("sglang", "serve"):
        from mvspec.runtime.serving.launch import ServerLaunch
    with as_given():
        limits = Limits(**chosen) if native else None
        launch = ServerLaunch(model, flags or [], limits, template_arguments(template_arg))
    for note in launch.notes:
        typer.echo(f"mvspec: {note}", err=True)
    launch.execute()
