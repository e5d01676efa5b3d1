"""Repair: the edits that turn any text into canonical text of its form.

The rule, in order:

1. Text is never dropped where a place can hold it. Text between the parts of a block goes to the
   path or the conclusion before it, or to a path of its own that its label or its closing tag
   shows; lines of a goal become outlines. What no place can hold is text before the first
   `<Outline>` or `<Path>` of a block.
2. A tag that the open structure expects is believed.
3. A tag that it does not expect is believed where it stands like a tag (before a newline or
   another tag, or, if it closes, after one) and closing what is open explains it.
4. Any other tag is a word, or stray: the tag is dropped, its surroundings are kept.
5. What is missing is written in its shortest form.
6. Paths match outlines by label, in order; then as they come. A path without an outline gets an
   empty outline, an outline without a path an empty path.

Edits are made where the text first departs from the grammar, so a text whose edits all stand at
its end is a prefix of a well-formed one: it was cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from mvspec.errors import Diagnostic, Source
from mvspec.forms.recovery.edits import Code, Edit
from mvspec.forms.recovery.hidden import hidden
from mvspec.forms.recovery.pairing import pair_labels
from mvspec.forms.recovery.reader import read
from mvspec.forms.recovery.scan import Scan
from mvspec.forms.recovery.writer import Writer
from mvspec.forms.syntax import Syntax
from mvspec.law.tags import TAG

__all__ = ["Code", "repair", "repairs"]

_SURROGATE = re.compile(r"[\ud800-\udfff]+")
_LAYOUT: tuple[Code, ...] = ("separator", "missing-newline")


def repair(source: Source, syntax: Syntax) -> tuple[Diagnostic, ...]:
    """Return the repairs of a text that is not canonical, in order, without overlap.

    Time and memory are linear in the text, but for sorting.
    """
    return tuple(repairs(source, syntax))


def repairs(source: Source, syntax: Syntax) -> Iterator[Diagnostic]:
    """Yield what `repair` returns; whoever wants the first alone leaves the others unlocated."""
    text = _SURROGATE.sub(lambda m: "\ufffd" * len(m.group()), source.text)
    scan = read(text, syntax.max_depth)
    dropped = [*scan.dropped, *hidden(text, scan.dropped, TAG)]
    edits = list(Writer(text, syntax, pair_labels(text, scan.events), dropped).run())
    if text is not source.text:
        edits += surrogates(source.text, edits)
    edits.sort(key=lambda edit: (edit.start, edit.end > edit.start))
    end = len(text)
    if edits and all(edit.start == end for edit in edits):
        missing = "".join(edit.insert for edit in edits)
        message = cut_message(scan, edits[0], missing)
        yield source.diagnostic(end, "cut", message, inserted=missing)
        return
    yield from merged(source, edits)


def surrogates(text: str, edits: list[Edit]) -> Iterator[Edit]:
    """Yield the replacement of lone surrogates that no other edit drops."""
    spans = iter(sorted((edit.start, edit.end) for edit in edits if edit.end > edit.start))
    span = next(spans, None)
    for match in _SURROGATE.finditer(text):
        while span and span[1] <= match.start():
            span = next(spans, None)
        if span is None or span[0] > match.start():
            start, end = match.span()
            message = "a lone surrogate is no character: U+FFFD stands for it"
            yield Edit(start, end, "\ufffd" * (end - start), "surrogate", message)


def cut_message(scan: Scan, first: Edit, missing: str) -> str:
    """Say where a text was cut, and what was to come next."""
    if first.message.startswith("the text ends"):
        return f"{first.message}: expected {first.insert}"
    line = next((part for part in missing.split("\n") if part), "a newline")
    inside = f" inside {scan.cut_inside}" if scan.cut_inside else ""
    return f"the text ends{inside}: expected {line}"


def merged(source: Source, edits: list[Edit]) -> Iterator[Diagnostic]:
    """Yield one diagnostic for each place: its first edit but white space names it."""
    for (start, end), group in groupby(edits, key=lambda edit: (edit.start, edit.end)):
        parts = list(group)
        lead = next((edit for edit in parts if edit.code not in _LAYOUT), parts[0])
        inserted = "".join(edit.insert for edit in parts)
        yield source.diagnostic(start, lead.code, lead.message, end=end, inserted=inserted)
