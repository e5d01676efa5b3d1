"""Renderings by type: how a value is shown in a terminal, in a notebook, as a tree or as a layout.

A value knows no renderer. The room that draws it, or that makes a layout of it, registers a
function for its type here, so that imports between rooms point one way; `_repr_html_` and
`__str__` call what was registered. `mvspec/view/__init__.py` and `compiler/__init__.py` register.
"""

from __future__ import annotations

from functools import singledispatch
from importlib import import_module
from typing import Any

from mvspec.errors import Unsupported

__all__ = ["as_html", "as_layout", "as_plan", "as_rich", "as_text"]


@singledispatch
def as_html(value: Any) -> str:
    """Return a value as one HTML element, for notebooks and pages."""
    raise Unsupported(f"{type(value).__name__} has no rendering in HTML")


@singledispatch
def as_text(value: Any) -> str:
    """Return a value as text for a terminal, its structure drawn as a tree."""
    raise Unsupported(f"{type(value).__name__} has no rendering as text")


@singledispatch
def as_rich(value: Any) -> Any:
    """Return a value as what `rich` prints."""
    raise Unsupported(f"{type(value).__name__} has no rendering for rich")


@singledispatch
def as_plan(value: Any) -> Any:
    """Return the plan that runs a value again."""
    return _of_compiler("as_plan", value)


@singledispatch
def as_layout(value: Any) -> Any:
    """Return the layout of a value's tokens."""
    return _of_compiler("as_layout", value)


def _of_compiler(name: str, value: Any) -> Any:
    """Call what the compiler registers when it is imported."""
    function = {"as_plan": as_plan, "as_layout": as_layout}[name]
    before = len(function.registry)
    import_module("mvspec.compiler")
    if len(function.registry) == before:
        raise Unsupported(f"{type(value).__name__} has no {name.removeprefix('as_')}")
    return function(value)
