"""Records as sheets: what a row is, what is wrong with it, and what else it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mvspec.data.check import read_document
from mvspec.data.numbering import numbering_warnings
from mvspec.data.records import Record
from mvspec.errors import Diagnostic, MvspecError, Source
from mvspec.forms import FORMS
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.trace import VERSION_1
from mvspec.tree.ir import Document
from mvspec.view.record_view import Sheet, units
from mvspec.view.traces import FIELDS, is_trace, trace_sheet
from mvspec.view.turns import Pages, lay_words

__all__ = ["Lay", "holds", "sheet_of"]

Lay = Callable[[Document], Pages]
"""Lays a document out in tokens, in the form multiverse; words need no tokenizer."""

_TEXTS = ("output", "text", "completion", "response")
"""Fields that hold the text of a row whose field nobody named, the first that is there."""

_LABELS = ("group", "task", "source", "dataset", "label", "model")
_LEADS = ("question", "problem", "prompt", "instruction")
_RIGHT = ("correct", "is_correct", "right", "score")


def holds(row: dict[str, Any]) -> str | None:
    """Return what a row is when it is neither a text nor a document: "trace" or "sample".

    >>> holds({"output": "Answer: 4", "correct": True}), holds({"x": 1})
    ('sample', None)
    """
    if is_trace(row):
        return "trace"
    if is_trace(row.get("trace")) or isinstance(row.get("document"), dict):
        return "sample"
    if isinstance(row.get("settings"), dict):
        return "settings"  # the first line of an evaluation
    return "sample" if any(isinstance(row.get(name), str) for name in _TEXTS) else None


def sheet_of(record: Record, form: str = "multiverse", lay: Lay | None = None) -> Sheet:
    """Return the sheet of a record; never raises on what a record holds.

    Args:
        record: from `mvspec.data.records.read_records`, with `holds` for its objects.
        form: the surface form of texts.
        lay: counts in tokens where there is a tokenizer.

    >>> sheet_of(Record("a", "a.txt", "<Think>\\nHm")).verdict
    'cut'
    """
    if record.name == record.place:  # the head of a sheet says the folder too
        record = replace(record, name=re.split(r"[/\\]", record.place)[-1])
    if record.error is not None:
        return _unread(record, (record.error,))
    row = record.row or {}
    field = None
    try:
        if record.form == "trace":
            sheet = trace_sheet(record.name, record.place, row)
            row = {
                key: value
                for key, value in row.items()
                if key not in FIELDS and key not in VERSION_1
            }
        elif record.form == "settings":
            sheet = Sheet("settings", record.place, "settings", "", lead="of the evaluation")
        elif record.form == "sample":
            field, sheet = _sample(record, row, form, lay)
        else:
            sheet = _document_sheet(record, form, lay)
    except (MvspecError, RecursionError) as error:
        return _unread(record, (Diagnostic(0, 0, 1, 1, "not-a-trace", str(error)),))
    _say(sheet, row, field, record.text)
    return sheet


def _sample(record: Record, row: dict[str, Any], form: str, lay: Lay | None) -> tuple[str, Sheet]:
    """Return the field that holds what a row is a sample of, and its sheet."""
    parts = [f"{name} {row[name]}" for name in ("sample", "cap") if type(row.get(name)) is int]
    record = replace(record, name=" ".join([record.name, *parts]))
    if is_trace(row.get("trace")):
        return "trace", replace(trace_sheet(record.name, record.place, row["trace"]), kind="sample")
    if isinstance(row.get("document"), dict):
        whole = replace(record, text=json.dumps(row["document"]), form="json")
        return "document", replace(_document_sheet(whole, form, lay), kind="sample")
    field = next(name for name in _TEXTS if isinstance(row.get(name), str))
    one = replace(record, text=row[field], form=None)
    return field, replace(_document_sheet(one, form, lay), kind="sample")


def _document_sheet(record: Record, form: str, lay: Lay | None) -> Sheet:
    form = record.form or form
    document, found, cut = read_document(record, form, recover=True)
    if document is None:
        return _unread(record, found)
    verdict = "cut" if cut else "malformed" if found else "ok"
    syntax = FORMS[form].syntax if form in FORMS else MULTIVERSE
    warnings = () if found else numbering_warnings(document, Source(record.text), syntax)
    own = syntax if syntax.tagged and syntax.ordered else MULTIVERSE
    pages, unit = None, "words"
    if lay is not None:
        try:
            pages, unit, own = lay(document), "tokens", MULTIVERSE
        except MvspecError:  # holes have no tokens yet: words do
            pages = None
    if pages is None:
        pages = lay_words(document, own)
    kind = "document" if form == "json" else "text"
    sheet = Sheet(record.name, record.place, kind, verdict, unit=unit, diagnostics=found + warnings)
    sheet.text, sheet.tree, sheet.threads = pages.text, pages.tree, pages.threads
    sheet.runs, sheet.widths, sheet.ids = pages.runs, pages.widths, pages.ids
    if form == "json":
        return sheet
    if pages.text != record.text:
        sheet.source = record.text
    if own is syntax:
        sheet.places = places(record.text, sheet.diagnostics)
    return sheet


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


def _unread(record: Record, found: tuple[Diagnostic, ...]) -> Sheet:
    text = record.text
    if not text and record.row is not None:
        text = _json(record.row)
    sheet = Sheet(record.name, record.place, "text", "unread", source=text, diagnostics=found)
    sheet.lead = found[0].message if found else ""
    return sheet


def _say(sheet: Sheet, row: dict[str, Any], field: str | None, text: str) -> None:
    """Add what a row says beside its text: its label, whether it is right, its other fields."""
    for key, value in row.items():
        if key == field or value == text or (key == "messages" and field is None):
            continue
        if key in _RIGHT and sheet.right is None and isinstance(value, bool | int | float):
            sheet.right = value == 1
        if key in _LABELS and isinstance(value, str) and not sheet.label:
            sheet.label = value
        if key in _LEADS and isinstance(value, str):
            sheet.lead = value
        sheet.fields.append((str(key), value if isinstance(value, str) else _json(value)))


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "nested too deep to be shown"
