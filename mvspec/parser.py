"""Text to tree by a lark grammar: strict, and recovering by repair.

There is one parser. Recovery (mvspec/recovery/) edits a malformed text into a canonical one,
which the same parser then reads; the edits are the diagnostics, so nothing is lost silently.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedInput

from mvspec.errors import Diagnostic, MvspecError, ParseError, Source
from mvspec.ir import (
    LABEL,
    MAX_DEPTH,
    Conclusion,
    Document,
    Goal,
    Message,
    Outline,
    Parallel,
    Path,
    Text,
    Think,
)
from mvspec.recovery import repair
from mvspec.syntax import MULTIVERSE, Syntax, Tag

__all__ = ["apply", "parse_text", "recover_text"]


def parse_text(text: str, syntax: Syntax = MULTIVERSE, name: str = "<text>") -> Document:
    """Parse canonical text, one assistant body.

    Raises:
        ParseError: the first violation, located; its `cut` tells a prefix from a mistake.
    """
    try:
        return _document(text, syntax)
    except (UnexpectedInput, _Mismatch):
        source = Source(text, name)
        diagnostics = repair(source, syntax)
        raise ParseError(source, diagnostics[0], cut=diagnostics[0].code == "cut") from None


def recover_text(
    text: str, syntax: Syntax = MULTIVERSE, name: str = "<text>"
) -> tuple[Document, tuple[Diagnostic, ...]]:
    """Parse any text into the best tree, with every repair; never raises on a str.

    Replacing each diagnostic's span by its `inserted` text gives the rendering of the tree.
    """
    try:
        return _document(text, syntax), ()
    except (UnexpectedInput, _Mismatch):
        diagnostics = repair(Source(text, name), syntax)
    return _document(apply(text, diagnostics), syntax), diagnostics


def apply(text: str, diagnostics: tuple[Diagnostic, ...]) -> str:
    """Return `text` with the repairs of `diagnostics` made."""
    out: list[str] = []
    at = 0
    for diagnostic in diagnostics:
        out += (text[at : diagnostic.offset], diagnostic.inserted)
        at = diagnostic.end
    return "".join((*out, text[at:]))


class _Mismatch(MvspecError):
    """The grammar accepts the text, an invariant of the tree does not."""


def _document(text: str, syntax: Syntax) -> Document:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _Mismatch(str(error)) from None
    tree: Document = _parser(syntax).parse(text)  # type: ignore[assignment]
    return tree


@cache
def _parser(syntax: Syntax) -> Lark:
    words = "|".join(tag.value[1:-1] for tag in Tag if not tag.closes)
    tag = rf"<\/?(?:{words})>"
    raw = rf"<(?!\/?(?:{words})>)"
    # Possessive repeats: a run ends at a tag or at the end, so backtracking can never help.
    run = rf"(?:[^<]|{raw})[^<]*+(?:{raw}[^<]*+)*+"
    number = LABEL.pattern
    colon = syntax.label_end
    terminals = {
        "TEXT": rf"/(?!\n{tag}){run}(?<=\n)(?=<)/",
        "TAIL": rf"/{run}\Z/",
        "BLANK": rf"/\n(?={tag})/",
        "LABEL": rf"/{number}{colon}/",
        "LINE": rf"/{number}{colon}(?:[^<\n]|{raw})*+\n/",
    }
    for each in Tag:
        escaped = (each.value + syntax.after(each)).replace("\n", "\\n")
        terminals[f"_{each.name}"] = f'"{escaped}"'
    rules = files("mvspec").joinpath(f"grammars/{syntax.name}.lark").read_text("utf-8")
    grammar = rules + "".join(f"\n{name}: {pattern}" for name, pattern in terminals.items())
    return Lark(grammar, parser="lalr", transformer=_Build(syntax))


class _Build(Transformer[Token, Document]):
    """Makes nodes as rules are reduced; labels are checked where the grammar cannot count."""

    def __init__(self, syntax: Syntax) -> None:
        super().__init__(visit_tokens=False)
        self.syntax = syntax

    def start(self, items: list[Any]) -> Document:
        body = tuple(
            item
            if not isinstance(item, Token)
            else Text(text=str(item) if item.type == "TAIL" else item[:-1])
            for item in items
        )
        return Document(messages=(Message(role="assistant", body=body),))

    def _body(self, items: list[Any]) -> tuple[Any, ...]:
        return tuple(
            Text(text=item[:-1]) if isinstance(item, Token) else item
            for item in items
            if not (isinstance(item, Token) and item.type == "BLANK")
        )

    def think(self, items: list[Any]) -> Think:
        return Think(body=self._body(items))

    def outline(self, items: list[Token]) -> Outline:
        label, text = items[0].split(self.syntax.label_end, 1)
        return Outline(label=label, text=text[:-1])

    def goal(self, items: list[Outline]) -> Goal:
        if len({outline.label for outline in items}) < len(items):
            raise _Mismatch("labels repeat")
        return Goal(outlines=tuple(items))

    def path(self, items: list[Any]) -> Path:
        label, *body = items
        return Path(label=label.removesuffix(self.syntax.label_end), body=self._body(body))

    def conclusion(self, items: list[Any]) -> Conclusion:
        return Conclusion(body=self._body(items))

    def block(self, items: list[Any]) -> Parallel:
        goal, *paths, conclusion = items
        if [o.label for o in goal.outlines] != [p.label for p in paths]:
            raise _Mismatch("labels differ")
        inner = (item.depth for p in paths for item in p.body if isinstance(item, Parallel))
        if max(inner, default=0) >= MAX_DEPTH:
            raise _Mismatch("too deep")
        return Parallel(goal=goal, paths=tuple(paths), conclusion=conclusion)
