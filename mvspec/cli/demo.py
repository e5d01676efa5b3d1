"""`mvspec demo`: paths at once, live, and measured against one after the other."""

from __future__ import annotations

from typing import Annotated

import typer

from mvspec.cli.options import Model, Timeline, as_given, needs

__all__ = ["demo"]


def demo(
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive", help="Let a small model that comes along decide by itself when to fork."
        ),
    ] = False,
    problems: Annotated[
        int, typer.Option(min=1, help="How many the model is asked, with --adaptive.")
    ] = 4,
    model: Model = None,
    timeline: Timeline = None,
) -> None:
    """Run eight questions about a text at once, and a verdict; measure it against one by one."""
    with needs("engine", "demo"):
        from mvspec.runtime.console import show_demo
        from mvspec.runtime.tasks.adaptive_demo import show_adaptive_demo
        from mvspec.runtime.tasks.demo import document
    with as_given():
        if adaptive:
            show_adaptive_demo(model, count=problems, timeline=timeline)
        else:
            show_demo(document, model, timeline=timeline)
