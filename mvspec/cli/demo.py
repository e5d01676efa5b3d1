"""`mvspec demo`: paths at once, live, and measured against one after the other."""

from __future__ import annotations

from mvspec.cli.options import Model, Timeline, as_given, needs

__all__ = ["demo"]


def demo(model: Model = None, timeline: Timeline = None) -> None:
    """Run eight questions about a text at once, and a verdict; measure it against one by one."""
    with needs("engine", "demo"):
        from mvspec.runtime.console import show_demo
        from mvspec.runtime.demo import document
    with as_given():
        show_demo(document, model, timeline=timeline)
