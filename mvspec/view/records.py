"""Records as views: what a row is, what is wrong with it, and what else it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from mvspec.data.check import warnings
from mvspec.data.columns import COLUMNS
from mvspec.data.records import Record
from mvspec.errors import Diagnostic, MvspecError
from mvspec.forms import FORMS, JSON
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.trace import VERSION_1
from mvspec.tree.ir import Document
from mvspec.view.record_view import RecordView, units
from mvspec.view.token_view import TokenView, lay_words
from mvspec.view.traces import FIELDS, trace_view

__all__ = ["LayDocument", "view_of"]

LayDocument = Callable[[Document], TokenView]
"""Lays a document out in tokens, in the form multiverse; words need no tokenizer."""


def view_of(record: Record, lay: LayDocument | None = None) -> RecordView:
    """Return the view of a record; never raises on what a record holds.

    Args:
        lay: counts in tokens where there is a tokenizer.

    >>> view_of(Record("a.txt", "<Think>\\nHm")).verdict
    'cut'
    """
    if record.trouble is not None:
        return _unread(record, (record.trouble,))
    row = record.row or {}
    shown = None
    try:
        if record.kind == "settings":
            view = RecordView("settings", record.place, "settings", "", lead="of the evaluation")
        elif record.kind == "trace":
            view = trace_view(_name(record), record.place, record.value)
        else:
            view = _document_view(record, lay)
    except (MvspecError, RecursionError) as error:
        return _unread(record, (Diagnostic(0, 0, 1, 1, "not-a-trace", str(error)),))
    if record.path and record.kind != "chat" and record.fields.field in (None, "."):
        shown, view.kind = str(record.path[0]), "sample"
    elif record.kind == "trace":
        row = {key: row[key] for key in row if key not in FIELDS and key not in VERSION_1}
    _say(view, row, shown, record)
    return view


def _name(record: Record) -> str:
    if record.name == record.place:  # the head of a view says the folder too
        return re.split(r"[/\\]", record.place)[-1]
    row = record.row or {}
    parts = [f"{name} {row[name]}" for name in ("sample", "cap") if type(row.get(name)) is int]
    return " ".join([record.name, *parts])


def _document_view(record: Record, lay: LayDocument | None) -> RecordView:
    reading = record.read(recover=True)
    document, found = reading.document, reading.diagnostics
    if document is None:
        return _unread(record, found)
    verdict = "cut" if reading.cut else "malformed" if found else "ok"
    syntax = MULTIVERSE if record.kind == "chat" else FORMS[record.form].syntax
    own = syntax if syntax.tagged and syntax.ordered else MULTIVERSE
    pages, unit = None, "words"
    if lay is not None:
        try:
            pages, unit, own = lay(document), "tokens", MULTIVERSE
        except MvspecError:  # holes have no tokens yet: words do
            pages = None
    if pages is None:
        pages = lay_words(document, own)
    text = record.kind in ("text", "apr")
    kind = "text" if text and record.form != JSON else "document"
    unusual = () if found else warnings(record, reading)
    view = RecordView(_name(record), record.place, kind, verdict, unit=unit)
    view.diagnostics = found + unusual
    view.text, view.tree, view.threads = pages.text, pages.tree, pages.threads
    view.runs, view.widths, view.ids = pages.runs, pages.widths, pages.ids
    if kind == "document":
        return view
    if pages.text != record.text:
        view.source = record.text
    if own is syntax:
        view.places = places(record.text, view.diagnostics)
    return view


def places(text: str, diagnostics: Sequence[Diagnostic]) -> list[int]:
    """Return where in the repaired text each repair stands, in UTF-16 units.

    >>> from mvspec.forms import parse
    >>> text = "<Think>\\nHm"
    >>> places(text, parse(text, recover=True)[1])
    [10]
    """
    out: list[int] = []
    length = at = 0
    for each in diagnostics:
        length += units(text[at : each.offset])
        out.append(length)
        if each.severity == "error":
            length += units(each.inserted)
            at = each.end
        else:
            at = each.offset
    return out


def _unread(record: Record, found: tuple[Diagnostic, ...]) -> RecordView:
    text = record.text if isinstance(record.value, str) else ""
    if not text and record.row is not None:
        text = _json(record.row)
    view = RecordView(_name(record), record.place, "text", "unread", source=text, diagnostics=found)
    view.lead = found[0].message if found else ""
    return view


def _say(view: RecordView, row: dict[str, Any], shown: str | None, record: Record) -> None:
    """Add what a row says beside its text: its label, whether it is right, its other fields."""
    own = "messages" if shown is None else shown
    if record.kind == "chat":
        own = str(record.path[0] if record.path else own)
    for key, value in row.items():
        if key == own or (record.kind == "text" and value == record.value):
            continue
        if key in COLUMNS["right"] and isinstance(value, bool | int | float):
            view.right = value == 1 if view.right is None else view.right
        if key in COLUMNS["group"] and isinstance(value, str) and not view.label:
            view.label = value
        if key in COLUMNS["question"] and isinstance(value, str):
            view.lead = value
        view.fields.append((str(key), value if isinstance(value, str) else _json(value)))


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "nested too deep to be shown"
