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
    return _registered(as_html, "mvspec.view", value)


@singledispatch
def as_text(value: Any) -> str:
    """Return a value as text for a terminal, its structure drawn as a tree."""
    return _registered(as_text, "mvspec.view", value)


@singledispatch
def as_rich(value: Any) -> Any:
    """Return a value as what `rich` prints."""
    return _registered(as_rich, "mvspec.view", value)


@singledispatch
def as_plan(value: Any) -> Any:
    """Return the plan that runs a value again."""
    return _registered(as_plan, "mvspec.compiler", value)


@singledispatch
def as_layout(value: Any) -> Any:
    """Return the layout of a value's tokens."""
    return _registered(as_layout, "mvspec.compiler", value)


def _registered(function: Any, room: str, value: Any) -> Any:
    """Call what a room registers when it is imported."""
    import_module(room)
    found = function.dispatch(type(value))
    if found is function.dispatch(object):
        raise Unsupported(f"{type(value).__name__} has no {function.__name__.removeprefix('as_')}")
    return found(value)
