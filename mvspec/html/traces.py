"""Traces as sheets, read as the JSON that a runtime writes: no room above the core is needed.

The shape is that of `mvspec.runtime.trace.Trace`, a line of its `save`. What is checked here is
what a sheet relies on; a line that lacks it says what and where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mvspec.check import read_document
from mvspec.errors import Diagnostic, VerifyError
from mvspec.forms import FORMS
from mvspec.html.sheet import AUTHORS, Branch, Leaf, Run, Sheet, SheetThread, units
from mvspec.html.turns import add_run, trees
from mvspec.records import Record

__all__ = ["is_trace", "trace_sheet"]

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
    for thread, author, position in zip(owners, authors, positions, strict=True):
        add_run(sheet.runs, Run(thread, author, 1, position))
    sheet.ids = _column(value, "ids", len(texts)) if value.get("ids") else ()
    sheet.ends = _numbers(value, "ends")
    sheet.steps = _column(value, "steps", len(texts)) if sheet.ends else ()
    if any(step >= len(sheet.ends) for step in sheet.steps):
        raise VerifyError("steps", "a token's step is not among the ends")
    logprobs = value.get("logprobs") or ()
    if logprobs and len(logprobs) != len(texts):
        raise VerifyError("logprobs", f"has {len(logprobs)} of {len(texts)} tokens")
    if any(each is not None and not _number(each) for each in logprobs):
        raise VerifyError("logprobs", "holds something that is no number")
    sheet.logprobs = logprobs
    sheet.facts = list(_facts(value))
    form = value.get("form", "multiverse")
    _read(sheet, texts, authors, form if isinstance(form, str) else "")
    if value.get("finish") == "interrupted" and sheet.verdict == "ok":
        sheet.verdict = "cut"
    return sheet


def _texts(value: dict[str, Any]) -> list[str]:
    texts = value.get("texts")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise VerifyError("texts", "expected a list of the tokens' texts")
    return texts


def _column(value: dict[str, Any], name: str, length: int) -> list[int]:
    column = value.get(name)
    if not isinstance(column, list) or not all(type(item) is int for item in column):
        raise VerifyError(name, "expected a list of whole numbers")
    if len(column) != length:
        raise VerifyError(name, f"has {len(column)} of {length} tokens")
    return column


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _numbers(value: dict[str, Any], name: str) -> list[float]:
    column = value.get(name) or []
    if not isinstance(column, list) or not all(map(_number, column)):
        raise VerifyError(name, "expected a list of numbers")
    return column


def _authors(value: dict[str, Any], length: int) -> list[int]:
    names = value.get("authors")
    if not isinstance(names, list) or len(names) != length:
        raise VerifyError("authors", f"expected one for each of {length} tokens")
    if any(name not in AUTHORS for name in names):
        raise VerifyError("authors", f"expected {', '.join(AUTHORS)}")
    return [AUTHORS.index(name) for name in names]


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
    if any(not 0 <= owner < len(threads) for owner in owners):
        raise VerifyError("owners", "a token's thread is not listed")
    return threads


def _facts(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if value.get("model"):
        yield "model", str(value["model"])
    if "seed" in value:
        yield "seed", str(value["seed"])
    if isinstance(value.get("ends"), list) and value["ends"]:
        yield "forwards", f"{len(value['ends']):,}"
    if _number(value.get("seconds")) and value["seconds"] > 0:
        yield "seconds", f"{value['seconds']:.3g}"
    if value.get("finish") in _FINISHES:
        yield "finish", _FINISHES[value["finish"]]
    if value.get("form", "multiverse") != "multiverse":
        yield "form", str(value["form"])


def _read(sheet: Sheet, texts: list[str], authors: list[int], form: str) -> None:
    """Read the assistant's turns as the form says, and set tree, verdict and diagnostics.

    A turn that is not well-formed, or whose form writes no tags, is shown by its threads.
    """
    spans = _turns(texts, authors)
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


def _turns(texts: list[str], authors: list[int]) -> list[tuple[bool, str, int]]:
    """Cut the tokens where prompts and turns meet: (whether it is a turn, its text, its place)."""
    out: list[tuple[bool, list[str], int]] = []
    at = 0
    for text, author in zip(texts, authors, strict=True):
        if not out or out[-1][0] != bool(author):
            out.append((bool(author), [], at))
        out[-1][1].append(text)
        at += units(text)
    return [(author, "".join(parts), start) for author, parts, start in out]


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
