"""Text to tree by a lark grammar: strict, and recovering by repair.

There is one parser a form. Recovery (mvspec/forms/recovery/) edits a malformed text into a
canonical one, which the same parser then reads; the edits are the diagnostics, so nothing is
lost silently.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from lark import Token, Transformer

from mvspec.errors import Diagnostic, ParseError, Source
from mvspec.forms.apr import APR
from mvspec.forms.grammar import (
    NO_CONCLUSION,
    Grammar,
    Mismatch,
    document_of,
    tagged_terminals,
    text_of,
)
from mvspec.forms.notations import NOTATIONS
from mvspec.forms.recovery import repair, repairs
from mvspec.forms.recovery.alignment import aligned
from mvspec.forms.recovery.edits import apply
from mvspec.forms.recovery.trim import trimmed
from mvspec.forms.syntax import MULTIVERSE, Syntax
from mvspec.tree.builder import number
from mvspec.tree.ir import Conclusion, Document, Goal, Outline, Parallel, Path, Think

__all__ = ["apply", "parse_text", "recover_text"]

WINDOW = 1 << 16
"""Characters within which a strict parse looks for its error before it reads further."""


def parse_text(text: str, syntax: Syntax = MULTIVERSE, name: str = "<text>") -> Document:
    """Parse canonical text, one assistant body.

    Raises:
        ParseError: the first violation, located; its `cut` tells a prefix from a mistake.
    """
    try:
        return read(text, syntax)
    except Mismatch:
        first = first_violation(text, syntax)
        raise ParseError(Source(text, name), first, cut=first.code == "cut") from None


def recover_text(
    text: str, syntax: Syntax = MULTIVERSE, name: str = "<text>"
) -> tuple[Document, tuple[Diagnostic, ...]]:
    """Parse any text into the best tree, with every repair; never raises on a str.

    Replacing each diagnostic's span by its `inserted` text gives the rendering of the tree.
    """
    try:
        return read(text, syntax), ()
    except Mismatch:
        source = Source(text, name)
    if syntax is MULTIVERSE or syntax.name in NOTATIONS:
        diagnostics = tuple(violations(source, syntax))
        return read(apply(text, diagnostics), syntax), diagnostics
    diagnostics, message = aligned(source, syntax, read, repair)
    return document_of(message.body), diagnostics


def read(text: str, syntax: Syntax) -> Document:
    """Return the document of canonical text.

    Raises:
        Mismatch: it is not canonical.
    """
    if syntax.name in NOTATIONS:
        return NOTATIONS[syntax.name].read(text)
    document: Document = _grammar(syntax).parse(_unfenced(text, syntax))
    return document


def first_violation(text: str, syntax: Syntax) -> Diagnostic:
    """Return the first violation of a text that is not canonical, in time linear in its offset.

    The beginning of a canonical text is canonical or cut. So where a beginning is malformed, its
    first violation is that of the text, unless it stands near the beginning's end.
    """
    size = WINDOW
    while size < len(text) and syntax.name != APR.name:  # no beginning of JSON is JSON
        first = next(iter(violations(Source(text[:size]), syntax)), None)
        if first and first.code != "cut" and first.offset < size // 2:
            return first
        size *= 4
    return next(iter(violations(Source(text), syntax)))


def violations(source: Source, syntax: Syntax) -> Iterable[Diagnostic]:
    """Return the repairs of a text that is not canonical, in order."""
    if syntax is MULTIVERSE:
        return repairs(source, syntax)
    if syntax.name in NOTATIONS:
        return trimmed(source, NOTATIONS[syntax.name].repair(source))
    return aligned(source, syntax, read, repair)[0]


@cache
def _grammar(syntax: Syntax) -> Grammar:
    return Grammar(("tagged", syntax.name), tagged_terminals(syntax), _Build(syntax))


def _unfenced(text: str, syntax: Syntax) -> str:
    """Write a fence as the tags that it stands for, which the grammar knows."""
    fence = syntax.fence
    if not fence or not f"{text}\n".startswith(f"{fence}\n"):
        return text
    if not text.endswith(f"\n{fence}") or len(text) < 2 * len(fence) + 1:
        raise Mismatch("the fence is not closed")
    return f"<Think>{text[len(fence) : -len(fence)]}</Think>"


class _Build(Transformer[Token, Document]):
    """Makes nodes as rules are reduced; labels are checked where the grammar cannot count."""

    def __init__(self, syntax: Syntax) -> None:
        super().__init__(visit_tokens=False)
        self.syntax = syntax

    def start(self, items: list[Any]) -> Document:
        body = tuple(
            text_of(item if item.type == "TAIL" else item[:-1]) if isinstance(item, Token) else item
            for item in self._counted(items)
        )
        return document_of(body)

    def _body(self, items: list[Any]) -> tuple[Any, ...]:
        return tuple(
            text_of(item[:-1]) if isinstance(item, Token) else item
            for item in items
            if not (isinstance(item, Token) and item.type == "BLANK")
        )

    def _counted(self, items: list[Any]) -> list[Any]:
        """Give the blocks inside of blocks their numbers, where the form writes none."""
        if self.syntax.labels != "none":
            return items
        return [
            number(item) if isinstance(item, Parallel) and item.depth > 1 else item
            for item in items
        ]

    def think(self, items: list[Any]) -> Think:
        return Think.trusted(kind="think", body=self._body(self._counted(items)))

    def outline(self, items: list[Token]) -> Outline:
        if self.syntax.labels == "tag":
            opening, line, closing = items
            label = digits(opening)
            if label != digits(closing):
                raise Mismatch("an outline's tags differ")
            return Outline.trusted(label=label, text=line[: -len(self.syntax.outline_gap)])
        lead, text = items[0].split(self.syntax.label_end, 1)
        gap = len(self.syntax.outline_gap)
        # Without labels the outlines of a block are counted by `goal`.
        label = lead if self.syntax.labels == "text" else "0"
        return Outline.trusted(label=label, text=text[: len(text) - gap])

    def goal(self, items: list[Outline]) -> Goal:
        if self.syntax.labels == "none":
            items = [
                Outline.trusted(label=str(k), text=each.text) for k, each in enumerate(items, 1)
            ]
        labels = [outline.label for outline in items]
        if self.syntax.counted and labels != [str(k + 1) for k in range(len(labels))]:
            raise Mismatch("labels do not count")
        if len(set(labels)) < len(labels):
            raise Mismatch("labels repeat")
        return Goal.trusted(outlines=tuple(items))

    def path(self, items: list[Any]) -> Path:
        if self.syntax.labels == "none":
            return Path.trusted(label="0", body=self._body(items))
        label, *body = items
        if self.syntax.labels == "tag":
            closing = body.pop()
            if digits(label) != digits(closing):
                raise Mismatch("a path's tags differ")
            return Path.trusted(label=digits(label), body=self._body(body))
        return Path.trusted(label=label.removesuffix(self.syntax.label_end), body=self._body(body))

    def conclusion(self, items: list[Any]) -> Conclusion:
        return Conclusion.trusted(body=self._body(items))

    def block(self, items: list[Any]) -> Parallel:
        goal, *paths = items
        conclusion = paths.pop() if isinstance(paths[-1], Conclusion) else NO_CONCLUSION
        if self.syntax.labels == "none" and len(paths) == len(goal.outlines):
            paths = [
                Path.trusted(label=outline.label, body=path.body)
                for outline, path in zip(goal.outlines, paths, strict=True)
            ]
        if [o.label for o in goal.outlines] != [p.label for p in paths]:
            raise Mismatch("labels differ")
        if self.syntax.optional_join and not conclusion.body and len(items) > len(paths) + 1:
            raise Mismatch("an empty conclusion is written")
        inner = (item.depth for p in paths for item in p.body if isinstance(item, Parallel))
        if max(inner, default=0) >= self.syntax.max_depth:
            raise Mismatch("too deep")
        return Parallel.trusted(goal=goal, paths=tuple(paths), conclusion=conclusion)


def digits(tag: str) -> str:
    """Return the label that stands in a tag."""
    return tag[tag.index(" ") + 1 : tag.index(">")]
