"""A record as the page shows it: text, tree, tokens with their threads and positions, repairs.

A `RecordView` is what the viewer knows of a record, whatever it was made from. Token i is
`text[sum(widths[:i]):][:widths[i]]`; runs of tokens say which thread owns them, who wrote them and
at which positions they sit. Offsets and widths count UTF-16 units, as the page's script does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mvspec.data.measure import author_runs, has_prompt
from mvspec.errors import Diagnostic, VerifyError
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.law.automaton import TagReader
from mvspec.law.metrics import Metrics
from mvspec.law.tags import TAG, Tag
from mvspec.law.threads import law_of_threads
from mvspec.tree.ir import Document, Message, Parallel, Text
from mvspec.view.terminal import entry

AUTHORS = ("prompt", "engine", "model")
"""Who wrote a token: what a run was given, what a runtime writes (forced), the model (free)."""

FINISHES = {
    "end": "",
    "limit": "closed at a limit",
    "time": "closed when time was up",
    "interrupted": "interrupted",
}
"""What is said of how a run ended."""

SNIPPET = 160
"""Characters of a record that the list of records shows, at most."""


class ViewedThread(NamedTuple):
    """The root thread, or one path; as in a trace."""

    label: str = ""
    title: str = ""
    parent: int = -1
    block: int = -1


class TokenRun(NamedTuple):
    """Tokens of one thread and one author, at positions that rise by one."""

    thread: int
    author: int
    size: int
    position: int


class TreeLeaf(NamedTuple):
    """A text of the tree: the characters [start, stop) of the view's text."""

    start: int
    stop: int


class TreeBranch(NamedTuple):
    """A node of the tree that holds others.

    Args:
        kind: document, message, think, parallel, path, conclusion, or gen for a hole.
        title: what it is called: a role, a path's label, a hole's name.
        text: a path's outline, a hole's terms.
        start, stop: the characters that it covers, its tags included.
    """

    kind: str
    title: str
    text: str
    start: int
    stop: int
    children: tuple[TreeBranch | TreeLeaf, ...] = ()


@dataclass(slots=True)
class OpenBranch:
    """A branch of a tree that is being built; `number` is that of a block."""

    kind: str
    title: str
    text: str
    start: int
    stop: int = 0
    number: int = -1
    children: list[OpenBranch | TreeLeaf] = field(default_factory=list)

    def block(self, number: int, start: int) -> OpenBranch:
        """Return the block of this number: the last child, or else a new one."""
        last = self.children[-1] if self.children else None
        if isinstance(last, OpenBranch) and last.number == number:
            return last
        self.children.append(OpenBranch("parallel", "", "", start, number=number))
        return self.block(number, start)

    def closed(self) -> TreeBranch:
        """Return the branch as it stays."""
        inside = tuple(
            each if isinstance(each, TreeLeaf) else each.closed() for each in self.children
        )
        stop = max([self.stop, *(each.stop for each in inside)])
        return TreeBranch(self.kind, self.title, self.text, self.start, stop, inside)


@dataclass(slots=True)
class RecordView:
    """One record for the page.

    Args:
        name, place: as `mvspec check` calls it.
        kind: "text", "document", "trace", "sample", or "settings" of an evaluation.
        verdict: "ok", "cut", "malformed", or "unread" where nothing could be read; "" where
            there is nothing to judge.
        right: whether a sample's answer is; None where nobody judged.
        label: what the record belongs to, such as its task.
        lead: what the list shows of it; by default its text's beginning.
        text: all tokens, end to end.
        source: the record's own text, where `text` is not that.
        unit: what the tokens are: "tokens" or "words".
        tree, threads, runs, widths: see the module.
        diagnostics: what is wrong, located in `source`, or else in `text`.
        places: for each diagnostic the character of `text` that it is at; none where the text
            has no such place.
        fields: what else its row says.
        facts: what is said of it beside its name, such as its model.
        asked: of its fields, those that an answer is read beside: question and gold answer.
        ids, logprobs, steps, ends: of a trace, as there.
        bars: of a trace, for each thread its bars in the timeline: author, first boundary of
            forwards, last, first token, the one after the last.
    """

    name: str = ""
    place: str = ""
    kind: str = "document"
    verdict: str = "ok"
    right: bool | None = None
    label: str = ""
    lead: str = ""
    text: str = ""
    source: str | None = None
    unit: str = "words"
    tree: tuple[TreeBranch | TreeLeaf, ...] = ()
    threads: list[ViewedThread] = field(default_factory=lambda: [ViewedThread()])
    runs: list[TokenRun] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    diagnostics: tuple[Diagnostic, ...] = ()
    places: Sequence[int] = ()
    fields: list[tuple[str, str]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    ids: Sequence[int] = ()
    logprobs: Sequence[float | None] = ()
    steps: Sequence[int] = ()
    ends: Sequence[float] = ()
    bars: Sequence[Sequence[tuple[int, int, int, int, int]]] = ()

    def law(self) -> tuple[Metrics, list[list[int]]]:
        """Return the counts of the assistant's tokens, and for each thread what it may not see.

        The second are tokens lo, hi, lo, hi, ...: in the order of the surface form the siblings
        before a path stand together, one interval a level (law, rule 3). A trace whose tokens
        stand in another order has no law: it counts as plain text, and hides nothing.

        >>> threads = [ViewedThread(), ViewedThread("1", "", 0, 0), ViewedThread("2", "", 0, 0)]
        >>> runs = [TokenRun(0, 2, 5, 0), TokenRun(1, 2, 3, 5), TokenRun(2, 2, 4, 5)]
        >>> RecordView("", "", "text", threads=threads, runs=runs).law()[1]
        [[], [], [5, 8]]
        """
        runs = [(run.thread, run.size, run.author > 0) for run in self.runs]
        try:
            law, known = law_of_threads(self.threads, runs)
        except VerifyError:
            own = sum(size for _, size, own in runs if own)
            return Metrics(own, own), [[] for _ in self.threads]
        hidden = [known[n].hidden if n in known else () for n in range(len(self.threads))]
        return law.metrics, [[n for pair in each if any(pair) for n in pair] for each in hidden]

    def index(self) -> list[Any]:
        """Return what the list of records knows of it."""
        metrics, _ = self.law()
        lead = TAG.sub(" ", (self.lead or self.text or self.source or "")[: 3 * SNIPPET])
        blocks = len({thread.block for thread in self.threads} - {-1})
        codes = list(dict.fromkeys(each.code for each in self.diagnostics))
        return [
            self.name, self.kind, self.verdict, self.right, self.label,
            " ".join(lead.split())[:SNIPPET], metrics.tokens, metrics.parallelism, blocks, codes,
        ]  # fmt: skip

    def lines(self) -> tuple[str, str]:
        """Return two lines of JSON: what a search reads, and all else."""
        searched = [self.text, self.source, *(value for _, value in self.fields)]
        metrics, hidden = self.law()
        rest = {
            "place": self.place,
            "unit": self.unit,
            "tree": self.tree,
            "threads": self.threads,
            "runs": [part for run in self.runs for part in run],
            "widths": self.widths,
            "hidden": hidden,
            "diagnostics": [{**each.to_dict(), "end": each.end} for each in self.diagnostics],
            "places": list(self.places),
            "keys": [key for key, _ in self.fields],
            "facts": self.facts,
            "asked": self.asked,
            "critical": metrics.critical_path,
        }
        for name in ("ids", "steps"):
            if values := getattr(self, name):
                rest[name] = ramps(values)
        if self.ends:
            rest |= {"ends": [round(end, 6) for end in self.ends], "bars": self.bars}
        if any(value is not None for value in self.logprobs):
            rest["logprobs"] = [v if v is None else round(v, 3) for v in self.logprobs]
        return json.dumps(searched), json.dumps(rest, separators=(",", ":"), allow_nan=False)


def ramps(values: Sequence[int]) -> list[int]:
    """Return numbers as (first, step, count), end to end: positions and threads hardly change.

    >>> ramps([4, 5, 6, 9, 9])
    [4, 1, 3, 9, 0, 2]
    """
    out: list[int] = []
    index, n = 0, len(values)
    while index < n:
        first, stop = values[index], index + 1
        step = values[stop] - first if stop < n and abs(values[stop] - first) <= 1 else 0
        while stop < n and values[stop] == first + step * (stop - index):
            stop += 1
        out += (first, step, stop - index)
        index = stop
    return out


def units(text: str) -> int:
    """Return the length of a text in UTF-16 units, which is how a page's script counts.

    >>> units("é"), units("👍")
    (1, 2)
    """
    if text.isascii():
        return len(text)
    return len(text) + sum(character > "\uffff" for character in text)


_WORD = re.compile(r"\S+\s*")
_OPENS = {
    Tag.THINK: "think",
    Tag.PARALLEL: "parallel",
    Tag.PATH: "path",
    Tag.CONCLUSION: "conclusion",
}


def words(text: str) -> tuple[str, list[str]]:
    """Cut a text into the words that `mvspec stats` counts, each with the white space behind it.

    Returns:
        The white space before the first word, and the words.

    >>> words("two  words\\n")
    ('', ['two  ', 'words\\n'])
    """
    return text[: len(text) - len(text.lstrip())], _WORD.findall(text)


def trees(message: Message, syntax: Syntax, start: int = 0) -> tuple[TreeBranch | TreeLeaf, ...]:
    """Return the tree of an assistant's turn over the characters of its rendering.

    Args:
        start: where the rendering begins, in UTF-16 units.
    """
    at = start
    opened = [OpenBranch("message", "", "", start)]
    # Paths come in the order of their blocks; those of inner blocks in between.
    blocks = message.walk(Parallel)
    paths: list[Iterator[tuple[str, str]]] = []
    in_outline = False
    for piece in syntax.pieces(message):
        tag, stop = piece.tag, at + units(piece.text)
        if piece.hole is not None:
            hole = OpenBranch("gen", piece.hole.name, entry(piece.hole).text, at, stop)
            opened[-1].children.append(hole)
        elif tag in (Tag.OUTLINE, Tag.END_OUTLINE):
            in_outline = tag is Tag.OUTLINE
        elif tag in _OPENS:
            title = text = ""
            if tag is Tag.PARALLEL:
                outlines = next(blocks).goal.outlines
                paths.append(iter([(each.label, each.text) for each in outlines]))
            elif tag is Tag.PATH:
                title, text = next(paths[-1])
            opened.append(OpenBranch(_OPENS[tag], title, text, at))
        elif tag is not None and tag.closes and tag.partner in _OPENS:
            done = opened.pop()
            done.stop = stop
            opened[-1].children.append(done)
            if tag is Tag.END_PARALLEL:
                paths.pop()
        elif tag is None and piece.content and not in_outline:
            opened[-1].children.append(TreeLeaf(at, stop))
        at = stop
    return opened[0].closed().children


def lay_words(document: Document, syntax: Syntax = MULTIVERSE) -> RecordView:
    """Lay a document out in words: the law on a unit that needs no tokenizer.

    The machine places every word as if it were a token; a tag is one word.

    Args:
        syntax: the form in which the assistant's turns are written.

    >>> import mvspec
    >>> block = mvspec.parallel(mvspec.branch("A", "x y"), mvspec.branch("B", "z"))
    >>> view = lay_words(mvspec.document(mvspec.assistant(block)))
    >>> [thread.label for thread in view.threads], sum(run.size for run in view.runs)
    (['', '1', '2'], 23)
    """
    laid = _Laid(RecordView())
    for message in document.messages:
        start = laid.chars
        if message.role == "assistant":
            inside = trees(message, syntax, start)
            laid.turn(message, syntax)
            if has_prompt(document):  # its end is a token that has no text
                laid.tokens([""], 0, AUTHORS.index("model"), laid.position)
        else:
            for part in message.body:
                if isinstance(part, Text):
                    laid.words(part.text, 0, AUTHORS.index("prompt"), laid.position)
            inside = (TreeLeaf(start, laid.chars),) if laid.chars > start else ()
        branch = TreeBranch("message", message.role, "", start, laid.chars, inside)
        laid.view.tree += (branch,)
    if laid.before:  # a text of white space alone
        laid.tokens([""], 0, AUTHORS.index("prompt"), laid.position)
    laid.view.text = "".join(laid.parts)
    return laid.view


@dataclass(slots=True)
class _Laid:
    """Words, placed one after the other.

    White space belongs to the word before it, whichever thread that is of; `before` is what
    stands before the first.
    """

    view: RecordView
    parts: list[str] = field(default_factory=list)
    chars: int = 0
    before: int = 0
    position: int = 0
    blocks: int = 0

    def words(self, text: str, thread: int, author: int, position: int) -> int:
        """Place the words of a text, and return how many they are."""
        space, found = words(text)
        self.parts.append(text)
        self.chars += units(text)
        if self.view.widths:
            self.view.widths[-1] += units(space)
        else:
            self.before += units(space)
        self.tokens(found, thread, author, position)
        return len(found)

    def tokens(self, found: Sequence[str], thread: int, author: int, position: int) -> None:
        for word in found:
            self.view.widths.append(self.before + units(word))
            self.before = 0
        add_run(self.view.runs, TokenRun(thread, author, len(found), position))
        if thread == 0:
            self.position = position + len(found)

    def turn(self, message: Message, syntax: Syntax) -> None:
        reader = TagReader(self.position)
        law = reader.law
        names = {law.here: 0}
        blocks = message.walk(Parallel)
        for text, tag, forced in author_runs(message, syntax):
            author = AUTHORS.index("engine" if forced else "model")
            here = law.here
            law.tokens(self.words(text, names[here], author, here.position))
            if tag is not None:
                reader.take(tag)
            if tag is Tag.END_GOAL:
                for outline, thread in zip(next(blocks).goal.outlines, here.paths, strict=True):
                    names[thread] = len(self.view.threads)
                    path = ViewedThread(outline.label, outline.text, names[here], self.blocks)
                    self.view.threads.append(path)
                self.blocks += 1
        self.position = law.here.position


def add_run(runs: list[TokenRun], run: TokenRun) -> None:
    """Add a run, to the one before where it goes on there."""
    last = runs[-1] if runs else run
    if runs and run[:2] == last[:2] and run.position == last.position + last.size:
        runs[-1] = last._replace(size=last.size + run.size)
    elif run.size:
        runs.append(run)
