"""Records as views: texts, documents and traces, with what is wrong and what else they say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from math import isfinite
from operator import itemgetter, sub
from typing import Any

from mvspec.data.check import warnings
from mvspec.data.columns import COLUMNS
from mvspec.data.records import Record, read_text
from mvspec.errors import Diagnostic, MvspecError, Source, VerifyError
from mvspec.forms import FORMS, JSON, render
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.law.limits import MAX_DEPTH
from mvspec.trace import VERSION_1, Trace
from mvspec.tree.ir import Document
from mvspec.view.record_view import (
    AUTHORS,
    FINISHES,
    OpenBranch,
    RecordView,
    TokenRun,
    TreeBranch,
    TreeLeaf,
    ViewedThread,
    lay_words,
    trees,
    units,
)
from mvspec.view.timeline import timeline_rows

LayDocument = Callable[[Document], RecordView]
"""Lays a document out in tokens, in the form multiverse; words need no tokenizer."""


def view_of(record: Record, lay: LayDocument | None = None) -> RecordView:
    """Return the view of a record; never raises on what a record holds.

    Args:
        lay: counts in tokens where there is a tokenizer.

    >>> view_of(Record("a.txt", "<Think>\\nHm")).verdict
    'cut'
    """
    if record.trouble is not None:
        return unread(record, (record.trouble,))
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
        return unread(record, (Diagnostic(0, 0, 1, 1, "not-a-trace", str(error)),))
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
        return unread(record, found)
    verdict = "cut" if reading.cut else "malformed" if found else "ok"
    syntax = MULTIVERSE if record.kind == "chat" else FORMS[record.form].syntax
    own = syntax if syntax.tagged and syntax.ordered else MULTIVERSE
    view = None
    if lay is not None:
        try:
            view, own = lay(document), MULTIVERSE
        except MvspecError:  # holes have no tokens yet: words do
            view = None
    if view is None:
        view = lay_words(document, own)
    text = record.kind in ("text", "apr")
    view.kind = kind = "text" if text and record.form != JSON else "document"
    view.name, view.place, view.verdict = _name(record), record.place, verdict
    view.diagnostics = found or warnings(record, reading)
    if kind == "document":
        return view
    if view.text != record.text:
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


def unread(record: Record, found: tuple[Diagnostic, ...]) -> RecordView:
    """Return the view of a record that has no tree: its text, and why."""
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
        if record.kind == "trace" and key in COLUMNS["text"]:
            continue  # what its tokens say
        if key in COLUMNS["right"] and isinstance(value, bool | int | float):
            view.right = value == 1 if view.right is None else view.right
        if key in COLUMNS["group"] and isinstance(value, str) and not view.label:
            view.label = value
        if key in COLUMNS["question"] and isinstance(value, str):
            view.lead = value
        told = value if isinstance(value, str) else _json(value)
        if key in ASKED and not isinstance(value, dict | list) and value not in (None, ""):
            view.asked.append((str(key), told))
        view.fields.append((str(key), told))


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "nested too deep to be shown"


FIELDS = frozenset(Trace.model_fields)
"""Fields of a trace."""

ASKED = (*COLUMNS["question"], *COLUMNS["answer"], "extracted")
"""Columns that an answer is shown beside: what was asked, what is right, what was taken of it."""

UNUSED = ("document", "holes")
"""Fields that are not looked at: the tree is that of the text."""


def trace_view(name: str, place: str, value: dict[str, Any]) -> RecordView:
    """Return the view of a trace.

    Args:
        value: the object that a line of JSON holds.

    Raises:
        VerifyError: it is no trace; the address says where.

    >>> trace_view("a", "a:1", {"ids": [5], "token_texts": ["Hi", "!"]})
    Traceback (most recent call last):
    mvspec.errors.VerifyError: token_texts has 2 of 1 tokens
    """
    trace = Trace.from_dict({key: each for key, each in value.items() if key not in UNUSED})
    texts, n = trace.token_texts, len(trace)
    authors = [AUTHORS.index(author) for author in trace.authors]
    view = RecordView(name, place, "trace", unit="tokens", text="".join(texts))
    view.threads = _threads(trace)
    view.widths = [units(text) for text in texts]
    offsets = map(sub, trace.position_ids, range(n))
    places = zip(trace.thread_ids, authors, offsets, range(n), strict=True)
    for (thread, author, offset), group in groupby(places, key=itemgetter(0, 1, 2)):
        places_here = [index for _, _, _, index in group]
        position = offset + places_here[0]
        view.runs.append(TokenRun(thread, author, len(places_here), position))
    view.ids, view.ends = trace.ids, trace.forward_seconds
    if view.ends:
        view.steps = trace.forward_ids
        view.bars = [
            [
                (AUTHORS.index(bar.kind), bar.start, bar.stop, bar.first, bar.last)
                for bar in row.bars
                if bar.kind in AUTHORS
            ]
            for row in sorted(timeline_rows(trace), key=lambda row: row.thread.id)
        ]
    view.logprobs = [p if p is not None and isfinite(p) else None for p in trace.logprobs]
    view.facts = list(_facts(trace))
    _read(view, texts, authors, trace.form)
    if trace.finish == "interrupted" and view.verdict == "ok":
        view.verdict = "cut"
    return view


def _threads(trace: Trace) -> list[ViewedThread]:
    if not trace.threads:
        raise VerifyError("threads", "is empty: the root is missing")
    threads: list[ViewedThread] = []
    depths: list[int] = []
    for each in trace.threads:
        depths.append(0 if each.parent is None else depths[each.parent] + 1)
        if depths[-1] > MAX_DEPTH:
            raise VerifyError(f"threads[{each.id}]", f"blocks nest deeper than {MAX_DEPTH}")
        parent = -1 if each.parent is None else each.parent
        threads.append(ViewedThread(each.label, each.title, parent, each.block))
    return threads


def _facts(trace: Trace) -> Iterator[tuple[str, str]]:
    if trace.model:
        yield "model", trace.model
    if "seed" in trace.model_fields_set:
        yield "seed", str(trace.seed)
    if trace.share:
        yield "share", f"paths read each other every {trace.share} tokens: not in the mask"
    if trace.forward_seconds:
        yield "forwards", f"{len(trace.forward_seconds):,}"
    if "seconds" in trace.model_fields_set:
        yield "seconds", f"{trace.seconds:.3g}"
    if finish := FINISHES[trace.finish]:
        yield "finish", finish
    if trace.form != "multiverse":
        yield "form", trace.form


def _read(view: RecordView, texts: Sequence[str], authors: Sequence[int], form: str) -> None:
    """Read the assistant's turns as the form says, and set tree, verdict and diagnostics.

    A turn that is not well-formed, or whose form writes no tags, is shown by its threads.
    """
    spans = list(_turns(texts, authors))
    syntax = FORMS[form].syntax if form in FORMS else None
    readable = syntax is not None and syntax.tagged and syntax.ordered
    tree: list[TreeBranch | TreeLeaf] = []
    own = "".join(text for author, text, _ in spans if author)
    source, before = Source(own), 0
    firm = True
    for author, text, start in spans:
        stop = start + units(text)
        if not author:
            tree.append(TreeBranch("message", "prompt", "", start, stop, (TreeLeaf(start, stop),)))
            continue
        inside: tuple[TreeBranch | TreeLeaf, ...] | None = None
        if readable and syntax is not None:
            document, found, cut = read_text(text, form, recover=True)
            if cut:
                view.verdict = "cut" if view.verdict == "ok" else view.verdict
            elif found:
                view.verdict = "malformed"
            view.diagnostics += tuple(_moved(each, source, before) for each in found)
            view.places = [*view.places, *[stop] * len(found)]  # what was cut lacks its end
            if document is not None and (cut or not found):
                (message,) = document.messages
                if not render(message, form).startswith(text):  # white space at tags is another
                    continue
                inside = tuple(_clipped(trees(message, syntax, start), stop))
        firm &= inside is not None
        before += len(text)
        tree.append(TreeBranch("message", "assistant", "", start, stop, inside or ()))
    view.tree = tuple(tree) if firm else thread_tree(view)
    view.places = view.places if firm else ()
    view.lead = own
    if view.diagnostics and view.text != own:
        view.source = own


def _moved(each: Diagnostic, source: Source, by: int) -> Diagnostic:
    """Return a diagnostic of a turn as one of all turns, which stand `by` characters in."""
    line, column = source.position(each.offset + by)
    return replace(each, offset=each.offset + by, end=each.end + by, line=line, column=column)


def _turns(texts: Sequence[str], authors: Sequence[int]) -> Iterator[tuple[bool, str, int]]:
    """Cut the tokens where prompts and turns meet: (whether it is a turn, its text, its place)."""
    at = place = 0
    for author, group in groupby(map(bool, authors)):
        stop = at + sum(1 for _ in group)
        text = "".join(texts[at:stop])
        yield author, text, place
        at, place = stop, place + units(text)


def _clipped(nodes: Sequence[TreeBranch | TreeLeaf], stop: int) -> Iterator[TreeBranch | TreeLeaf]:
    """Yield the nodes of a cut text's tree that begin before its end."""
    for node in nodes:
        if node.start >= stop and node.stop > node.start:
            continue
        node = node._replace(stop=min(node.stop, stop))
        if isinstance(node, TreeBranch):
            node = node._replace(children=tuple(_clipped(node.children, stop)))
        yield node


def thread_tree(view: RecordView) -> tuple[TreeBranch | TreeLeaf, ...]:
    """Return what each thread wrote, tags and all, with the paths of a block side by side.

    Args:
        view: its text, widths, threads and runs.
    """
    ends = [0]
    for width in view.widths:
        ends.append(ends[-1] + width)
    root = OpenBranch("", "", "", 0)
    opened = [root]
    chain: list[int] = []  # the paths that are open, outermost first
    at = 0
    for run in view.runs:
        wanted: list[int] = []
        thread = run.thread
        while thread > 0:
            wanted.insert(0, thread)
            thread = view.threads[thread].parent
        common = 0
        while chain[common : common + 1] == wanted[common : common + 1] != []:
            common += 1
        del chain[common:], opened[1 + common :]
        for path in wanted[common:]:
            label, title, _, block = view.threads[path]
            made = OpenBranch("path", label, title, ends[at])
            opened[-1].block(block, ends[at]).children.append(made)
            chain.append(path)
            opened.append(made)
        stop = at + run.size
        for node in opened:
            node.stop = ends[stop]
        if ends[stop] > ends[at]:
            opened[-1].children.append(TreeLeaf(ends[at], ends[stop]))
        at = stop
    return root.closed().children
