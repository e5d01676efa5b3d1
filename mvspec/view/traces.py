"""Traces as sheets, read as the JSON that a runtime writes: no room above the core is needed.

The shape is that of `mvspec.trace.Trace`, a line of its `save`. What is checked here is
what a sheet relies on; a line that lacks it says what and where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from math import isfinite
from operator import itemgetter, sub
from typing import Any

from mvspec.data.check import read_document
from mvspec.data.records import Record
from mvspec.errors import Diagnostic, Source, VerifyError
from mvspec.forms import FORMS
from mvspec.law.limits import MAX_DEPTH
from mvspec.trace import current_names
from mvspec.view.record_view import AUTHORS, Branch, Leaf, Run, Sheet, SheetThread, units
from mvspec.view.threads import thread_tree
from mvspec.view.turns import trees

__all__ = ["FIELDS", "is_trace", "trace_sheet"]

FIELDS = frozenset(
    {
        "version", "model", "form", "seed", "share", "threads", "ids", "token_texts",
        "thread_ids", "position_ids", "authors", "logprobs", "forward_ids", "forward_seconds",
        "forward_tokens", "holes", "document", "finish", "seconds",
    }
)  # fmt: skip
"""What a trace holds."""

_NUMBERS = {float, int}
_LARGEST = 2**31

_FINISHES = {
    "limit": "closed at a limit",
    "time": "closed when time was up",
    "interrupted": "interrupted",
}


def is_trace(value: Any) -> bool:
    """Whether an object of JSON means to be a trace."""
    return isinstance(value, dict) and {"thread_ids", "token_texts"} <= current_names(value).keys()


def trace_sheet(name: str, place: str, value: dict[str, Any]) -> Sheet:
    """Return the sheet of a trace.

    Args:
        value: the object that a line of JSON holds.

    Raises:
        VerifyError: it is no trace; the address says where.

    >>> trace_sheet("a", "a:1", {"token_texts": ["Hi"], "thread_ids": [0, 0]})
    Traceback (most recent call last):
    mvspec.errors.VerifyError: thread_ids: has 2 of 1 tokens
    """
    value = current_names(value)
    texts = _texts(value)
    owners = _column(value, "thread_ids", len(texts))
    positions = _column(value, "position_ids", len(texts))
    authors = _authors(value, len(texts))
    threads = _threads(value, owners)
    sheet = Sheet(name, place, "trace", unit="tokens", threads=threads, text="".join(texts))
    sheet.widths = [units(text) for text in texts]
    offsets = map(sub, positions, range(len(positions)))
    places = zip(owners, authors, offsets, range(len(owners)), strict=True)
    for (thread, author, offset), group in groupby(places, key=itemgetter(0, 1, 2)):
        places_here = [index for _, _, _, index in group]
        position = offset + places_here[0]
        sheet.runs.append(Run(thread, author, len(places_here), position))
    sheet.ids = _column(value, "ids", len(texts)) if value.get("ids") else ()
    sheet.ends = _numbers(value, "forward_seconds")
    sheet.steps = _column(value, "forward_ids", len(texts)) if sheet.ends else ()
    if sheet.steps and max(sheet.steps) >= len(sheet.ends):
        raise VerifyError("forward_ids", "a token's forward is not listed")
    logprobs = value.get("logprobs") or ()
    if not isinstance(logprobs, list | tuple) or set(map(type, logprobs)) - _NUMBERS - {type(None)}:
        raise VerifyError("logprobs", "expected a list of numbers")
    if logprobs and len(logprobs) != len(texts):
        raise VerifyError("logprobs", f"has {len(logprobs)} of {len(texts)} tokens")
    sheet.logprobs = [each if _finite(each) else None for each in logprobs]
    sheet.facts = list(_facts(value))
    form = value.get("form", "multiverse")
    _read(sheet, texts, authors, form if isinstance(form, str) else "")
    if value.get("finish") == "interrupted" and sheet.verdict == "ok":
        sheet.verdict = "cut"
    return sheet


def _texts(value: dict[str, Any]) -> list[str]:
    texts = value.get("token_texts")
    if not isinstance(texts, list) or set(map(type, texts)) - {str}:
        raise VerifyError("token_texts", "expected a list of the tokens' texts")
    return texts


def _column(value: dict[str, Any], name: str, length: int) -> list[int]:
    column = value.get(name)
    if not isinstance(column, list) or set(map(type, column)) - {int}:
        raise VerifyError(name, "expected a list of whole numbers")
    if len(column) != length:
        raise VerifyError(name, f"has {len(column)} of {length} tokens")
    if column and not -_LARGEST <= min(column) <= max(column) < _LARGEST:
        raise VerifyError(name, "holds a number that no token has")
    return column


def _numbers(value: dict[str, Any], name: str) -> list[float]:
    column = value.get(name) or []
    if not isinstance(column, list) or set(map(type, column)) - _NUMBERS:
        raise VerifyError(name, "expected a list of numbers")
    if not all(map(_finite, column)):
        raise VerifyError(name, "holds a number that is not finite")
    return column


def _finite(value: float | None) -> bool:
    try:
        return value is not None and isfinite(value)
    except OverflowError:  # a whole number that no float is
        return False


def _authors(value: dict[str, Any], length: int) -> list[int]:
    names = value.get("authors")
    if not isinstance(names, list) or len(names) != length:
        raise VerifyError("authors", f"expected one for each of {length} tokens")
    if set(map(type, names)) - {str} or set(names) - set(AUTHORS):
        raise VerifyError("authors", f"expected {', '.join(AUTHORS)}")
    numbers = {name: number for number, name in enumerate(AUTHORS)}
    return [numbers[name] for name in names]


def _threads(value: dict[str, Any], owners: Sequence[int]) -> list[SheetThread]:
    rows = value.get("threads", [{"id": 0}])
    if not isinstance(rows, list) or not rows:
        raise VerifyError("threads", "expected a list that begins with the root")
    threads: list[SheetThread] = []
    depths: list[int] = []
    for index, row in enumerate(rows):
        row = row if isinstance(row, dict) else {}
        given, block = row.get("parent"), row.get("block", -1)
        parent = -1 if given is None and not index else given
        if type(parent) is not int or type(block) is not int:
            raise VerifyError(f"threads[{index}]", "expected whole numbers for parent and block")
        if row.get("id") != index or not parent < index or (parent < 0) != (not index):
            raise VerifyError(f"threads[{index}]", "is not in order")
        label, title = row.get("label", ""), row.get("title", "")
        if not isinstance(label, str) or not isinstance(title, str):
            raise VerifyError(f"threads[{index}]", "expected texts for label and title")
        depths.append(depths[parent] + 1 if index else 0)
        if depths[-1] > MAX_DEPTH:
            raise VerifyError(f"threads[{index}]", f"blocks nest deeper than {MAX_DEPTH}")
        threads.append(SheetThread(label, title, parent, block))
    if owners and not 0 <= min(owners) <= max(owners) < len(threads):
        raise VerifyError("thread_ids", "a token's thread is not listed")
    return threads


def _facts(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if value.get("model"):
        yield "model", str(value["model"])
    if "seed" in value:
        yield "seed", str(value["seed"])
    if value.get("share"):
        yield "share", f"paths read each other every {value['share']} tokens: not in the mask"
    if isinstance(value.get("forward_seconds"), list) and value["forward_seconds"]:
        yield "forwards", f"{len(value['forward_seconds']):,}"
    if type(value.get("seconds")) in _NUMBERS and _finite(value["seconds"]):
        yield "seconds", f"{value['seconds']:.3g}"
    if finish := _FINISHES.get(str(value.get("finish"))):
        yield "finish", finish
    if value.get("form", "multiverse") != "multiverse":
        yield "form", str(value["form"])


def _read(sheet: Sheet, texts: list[str], authors: list[int], form: str) -> None:
    """Read the assistant's turns as the form says, and set tree, verdict and diagnostics.

    A turn that is not well-formed, or whose form writes no tags, is shown by its threads.
    """
    spans = list(_turns(texts, authors))
    syntax = FORMS[form].syntax if form in FORMS else None
    readable = syntax is not None and syntax.tagged and syntax.ordered
    tree: list[Branch | Leaf] = []
    own = "".join(text for author, text, _ in spans if author)
    source, before = Source(own), 0
    firm = True
    for author, text, start in spans:
        stop = start + units(text)
        if not author:
            tree.append(Branch("message", "prompt", "", start, stop, (Leaf(start, stop),)))
            continue
        inside: tuple[Branch | Leaf, ...] | None = None
        if readable and syntax is not None:
            record = Record(sheet.name, sheet.place, text)
            document, found, cut = read_document(record, form, recover=True)
            if cut:
                sheet.verdict = "cut" if sheet.verdict == "ok" else sheet.verdict
            elif found:
                sheet.verdict = "malformed"
            sheet.diagnostics += tuple(_moved(each, source, before) for each in found)
            sheet.places = [*sheet.places, *[stop] * len(found)]  # what was cut lacks its end
            if document is not None and (cut or not found):
                (message,) = document.messages
                inside = tuple(_clipped(trees(message, syntax, start), stop))
        firm &= inside is not None
        before += len(text)
        tree.append(Branch("message", "assistant", "", start, stop, inside or ()))
    sheet.tree = tuple(tree) if firm else thread_tree(sheet)
    sheet.places = sheet.places if firm else ()
    sheet.lead = own
    if sheet.diagnostics and sheet.text != own:
        sheet.source = own


def _moved(each: Diagnostic, source: Source, by: int) -> Diagnostic:
    """Return a diagnostic of a turn as one of all turns, which stand `by` characters in."""
    line, column = source.position(each.offset + by)
    return replace(each, offset=each.offset + by, end=each.end + by, line=line, column=column)


def _turns(texts: list[str], authors: list[int]) -> Iterator[tuple[bool, str, int]]:
    """Cut the tokens where prompts and turns meet: (whether it is a turn, its text, its place)."""
    at = place = 0
    for author, group in groupby(map(bool, authors)):
        stop = at + sum(1 for _ in group)
        text = "".join(texts[at:stop])
        yield author, text, place
        at, place = stop, place + units(text)


def _clipped(nodes: Sequence[Branch | Leaf], stop: int) -> Iterator[Branch | Leaf]:
    """Yield the nodes of a cut text's tree that begin before its end."""
    for node in nodes:
        if node.start >= stop and node.stop > node.start:
            continue
        node = node._replace(stop=min(node.stop, stop))
        if isinstance(node, Branch):
            node = node._replace(children=tuple(_clipped(node.children, stop)))
        yield node
