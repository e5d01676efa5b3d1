"""Documents, and whatever else has a `_repr_html_`, as HTML without scripts.

An element stands for itself: its style is inside and reaches nothing else, so any number of them
are on one page, and colours come from the page (currentColor), so it may be light or dark. Tree
and style are those of the page of `mvspec view`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from html import escape
from importlib.resources import files

from mvspec.shown import excerpt, visible
from mvspec.trace import Result, Trace
from mvspec.tree.node import Node
from mvspec.view.terminal import OutlineEntry, entry

HTML_LIMIT = 20_000
"""Characters of one text that are shown; a long text scrolls."""


def tree_html(node: Node, limit: int | None = HTML_LIMIT) -> str:
    """Return a node as one self-contained HTML element, for notebooks and pages.

    Args:
        limit: characters shown of each text; None shows all.

    >>> import mvspec
    >>> "&lt;b&gt;" in tree_html(mvspec.user("<b>"))
    True
    """
    return _framed(_html(entry(node), limit))


def panel_html(title: str, facts: Iterable[tuple[str, str]], bodies: Iterable[str] = ()) -> str:
    """Return a heading, a line of names with values, and elements below them, as one element.

    Args:
        bodies: HTML, such as `tree_html` and `text_html` return.

    >>> "<b>&lt;script&gt;</b>" in panel_html("<script>", [("model", "m")])
    True
    """
    line = " &nbsp; ".join(
        f'<span style="opacity:.75">{escape(visible(name))}</span> {escape(visible(value))}'
        for name, value in facts
    )
    head = f'<div class="h"><b>{escape(visible(title))}</b> &nbsp; {line}</div>'
    return _framed(head + "".join(bodies))


def text_html(text: str, title: str = "", limit: int | None = HTML_LIMIT) -> str:
    """Return a text with a title, as part of a panel."""
    said = OutlineEntry("text", "", text)
    return _html(OutlineEntry("node", title, "", (said,)) if title else said, limit)


@cache
def _style() -> str:
    return files("mvspec.view").joinpath("tree.css").read_text("utf-8")


def _framed(inside: str) -> str:
    return f'<div class="mvspec"><style>\n{_style()}</style>{inside}</div>'


def _html(item: OutlineEntry, limit: int | None) -> str:
    shown = escape(excerpt(item.text, limit))
    if not item.title:
        return f'<div class="t" dir="auto">{shown}</div>'
    head = f"<b>{escape(visible(item.title))}</b>" + (f": {shown}" if shown else "")
    below = [(child.kind, _html(child, limit)) for child in item.children]
    inside = "".join(html for kind, html in below if kind != "path")
    paths = "".join(html for kind, html in below if kind == "path")
    if paths:
        inside = f'<div class="g">{paths}</div>{inside}'
    if inside and item.kind in ("message", "think"):
        inside = f'<div class="b">{inside}</div>'
    return f'<div class="{item.kind}"><div class="h">{head}</div>{inside}</div>'


def trace_html(trace: Trace) -> str:
    """Return a trace as one element: its timeline, and the document or text that it made."""
    from mvspec.view.timeline import timeline_svg

    facts = [("model", trace.model)] if trace.model else []
    facts += [("tokens", f"{trace.answer:,}"), ("critical path", f"{trace.critical_path:,}")]
    facts += [("degree of parallelism", f"{trace.parallelism:.3f}"), ("finish", trace.finish)]
    facts += [("share", str(trace.share))] if trace.share else []
    bodies = [f'<div style="overflow-x:auto">{timeline_svg(trace)}</div>']
    bodies += [tree_html(trace.document)] if trace.document else [text_html(trace.text)]
    return panel_html("trace", facts, bodies)


def result_html(result: Result) -> str:
    """Return a result as one element: its holes, and its trace."""
    filled = [text_html(text, name) for name, text in result.texts.items()]
    failed = [text_html(why, f"{name}: no value") for name, why in result.errors.items()]
    return panel_html("result", [], [*filled, *failed, trace_html(result.trace)])
