"""A record as the page shows it: text, tree, tokens with their threads and positions, repairs.

A `RecordView` is what the viewer knows of a record, whatever it was made from. Token i is
`text[sum(widths[:i]):][:widths[i]]`; runs of tokens say which thread owns them, who wrote them and
at which positions they sit. Offsets and widths count UTF-16 units, as the page's script does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mvspec.errors import Diagnostic, VerifyError
from mvspec.law.metrics import Metrics
from mvspec.law.tags import TAG
from mvspec.law.threads import law_of_threads

__all__ = [
    "AUTHORS",
    "FINISHES",
    "RecordView",
    "TokenRun",
    "TreeBranch",
    "TreeLeaf",
    "ViewedThread",
    "units",
]

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

    def row(self) -> list[Any]:
        return [self.start, self.stop]


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

    def row(self) -> list[Any]:
        inside = [child.row() for child in self.children]
        return [self.kind, self.title, self.text, self.start, self.stop, inside]


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
        ids, logprobs, steps, ends: of a trace, as there.
    """

    name: str
    place: str
    kind: str
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
    ids: Sequence[int] = ()
    logprobs: Sequence[float | None] = ()
    steps: Sequence[int] = ()
    ends: Sequence[float] = ()

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
            "tree": [node.row() for node in self.tree],
            "threads": self.threads,
            "runs": [part for run in self.runs for part in run],
            "widths": self.widths,
            "hidden": hidden,
            "diagnostics": [_diagnostic(each) for each in self.diagnostics],
            "places": list(self.places),
            "keys": [key for key, _ in self.fields],
            "facts": self.facts,
            "critical": metrics.critical_path,
        }
        for name in ("ids", "steps"):
            if values := getattr(self, name):
                rest[name] = ramps(values)
        if self.ends:
            rest["ends"] = [round(end, 6) for end in self.ends]
        if any(value is not None for value in self.logprobs):
            rest["logprobs"] = [v if v is None else round(v, 3) for v in self.logprobs]
        return json.dumps(searched), json.dumps(rest, separators=(",", ":"), allow_nan=False)


def _diagnostic(each: Diagnostic) -> dict[str, object]:
    return {**each.to_dict(), "end": each.end}


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
