"""Renderings by type, and texts made visible: in a terminal, in a notebook, as a tree or layout.

A value knows no renderer. The room that draws it, or that makes a layout of it, registers a
function for its type here, so that imports between rooms point one way; `_repr_html_` and
`__str__` call what was registered. `mvspec/view/__init__.py` and `compiler/__init__.py` register.
"""

from __future__ import annotations

from functools import singledispatch
from importlib import import_module
from typing import Any

from mvspec.errors import Unsupported


@singledispatch
def as_html(value: Any) -> str:
    """Return a value as one HTML element, for notebooks and pages."""
    html: str = _registered(as_html, "mvspec.view", value)
    return html


@singledispatch
def as_text(value: Any) -> str:
    """Return a value as text for a terminal, its structure drawn as a tree."""
    text: str = _registered(as_text, "mvspec.view", value)
    return text


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


def visible(text: str) -> str:
    """Return `text` with every character that cannot be seen written out, newlines kept.

    Control characters become their pictures (NUL is ␀, a carriage return ␍); what is invisible
    or reorders a line becomes an escape; joiners, which build visible characters, stay.

    >>> visible("a\\x00b\\u202e")
    'a␀b\\\\u202e'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\u200c\u200d" else _picture(c) for c in text)


def _picture(character: str) -> str:
    code = ord(character)
    if character == "\t":
        return "    "
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if character.isspace() and character not in "\x85\u2028\u2029":
        return character
    return f"\\U{code:08x}" if code > 0xFFFF else f"\\u{code:04x}"


SCREEN = 24, 100
"""Lines and columns of what `print` and `repr` show of a value, however large it is."""


REPR_LIMIT = 2_000
"""Characters of a `repr`, which has no lines."""


def screen(text: str) -> str:
    """Return as much of a text as a screen shows, and how much is left out."""
    height, width = SCREEN
    lines = text.split("\n")
    shown = [each if len(each) <= width else each[: width - 1] + "…" for each in lines]
    if len(shown) > height:
        left = len(shown) - height + 1
        shown = [*shown[: height - 1], f"… ({left:,} more lines)"]
    return "\n".join(shown)


def excerpt(text: str, limit: int | None) -> str:
    """Return at most `limit` characters of `text`, made visible, and how many are left out."""
    if limit is None or len(text) <= limit:
        return visible(text)
    return f"{visible(text[:limit])}… ({len(text) - limit:,} more characters)"
