"""Traces as sheets, read as the JSON that a runtime writes: no room above the core is needed.

The shape is that of `mvspec.runtime.trace.Trace`, a line of its `save`. What is checked here is
what a sheet relies on; a line that lacks it says what and where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import isfinite
from operator import itemgetter, sub
from typing import Any

from mvspec.check import read_document
from mvspec.errors import Diagnostic, VerifyError
from mvspec.forms import FORMS
from mvspec.html.sheet import AUTHORS, Branch, Leaf, Run, Sheet, SheetThread, units
from mvspec.html.turns import trees
from mvspec.records import Record

__all__ = ["is_trace", "trace_sheet"]

_NUMBERS = {float, int}
_LARGEST = 2**31

_FINISHES = {
    "limit": "closed at a limit",
    "time": "closed when time was up",
    "interrupted": "interrupted",
}


def is_trace(value: Any) -> bool:
    """Whether an object of JSON means to be a trace."""
    return isinstance(value, dict) and "owners" in value and "texts" in value


def trace_sheet(name: str, place: str, value: dict[str, Any]) -> Sheet:
    """Return the sheet of a trace.

    Args:
        value: the object that a line of JSON holds.

    Raises:
        VerifyError: it is no trace; the address says where.

    >>> trace_sheet("a", "a:1", {"texts": ["Hi"], "owners": [0, 0]})
    Traceback (most recent call last):
    mvspec.errors.VerifyError: owners: has 2 of 1 tokens
    """
    texts = _texts(value)
    owners = _column(value, "owners", len(texts))
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
    sheet.ends = _numbers(value, "ends")
    sheet.steps = _column(value, "steps", len(texts)) if sheet.ends else ()
    if sheet.steps and max(sheet.steps) >= len(sheet.ends):
        raise VerifyError("steps", "a token's step is not among the ends")
    logprobs = value.get("logprobs") or ()
    if logprobs and len(logprobs) != len(texts):
        raise VerifyError("logprobs", f"has {len(logprobs)} of {len(texts)} tokens")
    if not isinstance(logprobs, list | tuple) or set(map(type, logprobs)) - _NUMBERS - {type(None)}:
        raise VerifyError("logprobs", "holds something that is no number")
    sheet.logprobs = [None if each is None or not isfinite(each) else each for each in logprobs]
    sheet.facts = list(_facts(value))
    form = value.get("form", "multiverse")
    _read(sheet, texts, authors, form if isinstance(form, str) else "")
    if value.get("finish") == "interrupted" and sheet.verdict == "ok":
        sheet.verdict = "cut"
    return sheet


def _texts(value: dict[str, Any]) -> list[str]:
    texts = value.get("texts")
    if not isinstance(texts, list) or set(map(type, texts)) - {str}:
        raise VerifyError("texts", "expected a list of the tokens' texts")
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
    if not all(map(isfinite, column)):
        raise VerifyError(name, "holds a number that is not finite")
    return column


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
    for index, row in enumerate(rows):
        row = row if isinstance(row, dict) else {}
        parent, block = row.get("parent"), row.get("block", -1)
        good = parent is None if index == 0 else type(parent) is int and 0 <= parent < index
        if row.get("id") != index or not good or type(block) is not int:
            raise VerifyError(f"threads[{index}]", "is not in order")
        label, title = row.get("label", ""), row.get("title", "")
        if not isinstance(label, str) or not isinstance(title, str):
            raise VerifyError(f"threads[{index}]", "expected texts for label and title")
        threads.append(SheetThread(label, title, -1 if parent is None else parent, block))
    if owners and not 0 <= min(owners) <= max(owners) < len(threads):
        raise VerifyError("owners", "a token's thread is not listed")
    return threads


def _facts(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if value.get("model"):
        yield "model", str(value["model"])
    if "seed" in value:
        yield "seed", str(value["seed"])
    if isinstance(value.get("ends"), list) and value["ends"]:
        yield "forwards", f"{len(value['ends']):,}"
    if type(value.get("seconds")) in _NUMBERS and value["seconds"] > 0:
        yield "seconds", f"{value['seconds']:.3g}"
    if value.get("finish") in _FINISHES:
        yield "finish", _FINISHES[value["finish"]]
    if value.get("form", "multiverse") != "multiverse":
        yield "form", str(value["form"])


def _read(sheet: Sheet, texts: list[str], authors: list[int], form: str) -> None:
    """Read the assistant's turns as the form says, and set tree, verdict and diagnostics.

    A turn that is not well-formed, or whose form writes no tags, is shown by its threads.
    """
    spans = list(_turns(texts, authors))
    syntax = FORMS.get(form)
    readable = syntax is not None and syntax.tagged and syntax.ordered
    tree: list[Branch | Leaf] = []
    problems: list[Diagnostic] = []
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
            problems += found
            if document is not None and (cut or not found):
                (message,) = document.messages
                inside = tuple(_clipped(trees(message, syntax, start), stop))
        firm &= inside is not None
        tree.append(Branch("message", "assistant", "", start, stop, inside or ()))
    sheet.tree = tuple(tree) if firm else _by_threads(sheet)
    own = [text for author, text, _ in spans if author]
    sheet.lead = own[0] if own else ""
    if problems and (len(own) > 1 or sheet.text != own[0]):
        sheet.source = own[0] if len(own) == 1 else "".join(own)
    sheet.diagnostics = tuple(problems) if len(own) == 1 else ()
    if firm:  # what was cut is missing at the end
        sheet.places = [units(sheet.text)] * len(sheet.diagnostics)


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


def _by_threads(sheet: Sheet) -> tuple[Branch | Leaf, ...]:
    """Return the tree that the threads alone tell: what each wrote, tags and all."""
    ends = [0]
    for width in sheet.widths:
        ends.append(ends[-1] + width)
    levels: list[list[Branch | Leaf]] = [[]]
    chain: list[int] = []  # the paths that are open, outermost first
    starts: list[int] = []
    blocks: dict[int, int] = {}
    at = 0

    def close(until: int) -> None:
        while len(chain) > until:
            inside, path = tuple(levels.pop()), chain.pop()
            thread = sheet.threads[path]
            start = starts.pop()
            made = Branch("path", thread.label, thread.title, start, ends[at], inside)
            _beside(levels[-1], made, thread.block, blocks)

    for run in sheet.runs:
        wanted: list[int] = []
        thread = run.thread
        while thread > 0:
            wanted.insert(0, thread)
            thread = sheet.threads[thread].parent
        common = 0
        while chain[common : common + 1] == wanted[common : common + 1] != []:
            common += 1
        close(common)
        for path in wanted[common:]:
            chain.append(path)
            starts.append(ends[at])
            levels.append([])
        stop = at + run.size
        if ends[stop] > ends[at]:
            levels[-1].append(Leaf(ends[at], ends[stop]))
        at = stop
    close(0)
    return tuple(levels[0])


def _beside(level: list[Branch | Leaf], path: Branch, block: int, blocks: dict[int, int]) -> None:
    """Put a path into its block, which is the last of the level once its first path is there."""
    if level and isinstance(level[-1], Branch) and blocks.get(block) == level[-1].start:
        last = level[-1]
        level[-1] = last._replace(stop=path.stop, children=(*last.children, path))
        return
    blocks[block] = path.start
    level.append(Branch("parallel", "", "", path.start, path.stop, (path,)))
