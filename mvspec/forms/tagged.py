"""Tagged forms, whose text is the tree in its order: tags, and runs of text between them.

Strict reading is a lark grammar over terminals that the form's `Syntax` gives. Recovery
(mvspec/forms/recovery/) edits a malformed text into a canonical one, which the same parser then
reads; the edits are the diagnostics, so nothing is lost silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedInput

from mvspec.errors import Diagnostic, ParseError, Source
from mvspec.forms.can_hold import check_turn, hole_refusal, only_turn
from mvspec.forms.form import NO_CONCLUSION, Mismatch, check_characters, document_of, text_of
from mvspec.forms.recovery.canonical import canonical_repairs
from mvspec.forms.recovery.edits import apply
from mvspec.forms.recovery.transcript import AlignedRepair
from mvspec.forms.syntax import Syntax
from mvspec.law.tags import Tag
from mvspec.tree.builder import number
from mvspec.tree.ir import (
    LABEL,
    Conclusion,
    Document,
    Goal,
    Message,
    Outline,
    Parallel,
    Path,
    Think,
)

__all__ = ["WINDOW", "TaggedForm"]

WINDOW = 1 << 16
"""Characters within which a strict parse looks for its error before it reads further."""

RULES = """
start: think? (TEXT | block)* TAIL?
think: _THINK (TEXT | block)* _END_THINK
conclusion: _CONCLUSION (BLANK | TEXT) _END_CONCLUSION
"""
"""The grammar that tagged forms share.

Each adds its block, goal, outline and path. Tags with the fixed text after them (_THINK,
_END_THINK, ...) and the tag-free runs (TEXT, TAIL, BLANK, LABEL, LINE) come from the `Syntax`.
"""


@dataclass(frozen=True)
class TaggedForm:
    """A form whose text is the tree in its order.

    Args:
        syntax: its tags and the fixed text around them.
        rules: its block, goal, outline and path, in lark's notation.
        repaired_as: the canonical form, in which malformed texts are repaired; None for that one.
    """

    syntax: Syntax
    rules: str
    repaired_as: TaggedForm | None = None
    readable: ClassVar[bool] = True

    def parse(self, source: Source) -> Document:
        """Read canonical text, one assistant's turn.

        Raises:
            ParseError: the first violation, located; its `cut` tells a prefix from a mistake.
        """
        try:
            return self.read(source.text)
        except Mismatch:
            first = self._first_violation(source)
        raise ParseError(source, first, cut=first.code == "cut")

    def repair(self, source: Source) -> tuple[Document, tuple[Diagnostic, ...]]:
        """Read any text into the best tree, with every repair; never raises on a str.

        Replacing each diagnostic's span by its `inserted` text gives the rendering of the tree.
        """
        try:
            return self.read(source.text), ()
        except Mismatch:
            pass
        if self._aligned is not None:
            diagnostics, message = self._aligned.repair(source)
            return document_of(message.body), diagnostics
        diagnostics = tuple(canonical_repairs(source, self.syntax))
        return self.read(apply(source.text, diagnostics)), diagnostics

    def render(self, document: Document | Message) -> str:
        """Write one assistant's turn.

        Raises:
            Unsupported: the first node that the form cannot hold, and what to do.
        """
        return render_pieces(document, self.syntax)

    def read(self, text: str) -> Document:
        """Return the document of canonical text.

        Raises:
            Mismatch: it is not canonical; recovery tells where it departs.
        """
        fence = self.syntax.fence
        if fence and f"{text}\n".startswith(f"{fence}\n"):
            if not text.endswith(f"\n{fence}") or len(text) < 2 * len(fence) + 1:
                raise Mismatch("the fence is not closed")
            text = f"{Tag.THINK}{text[len(fence) : -len(fence)]}{Tag.END_THINK}"
        check_characters(text)
        try:
            # Its transformer makes the nodes as rules are reduced, so no tree of tokens is built.
            return cast(Document, self._grammar.parse(text))
        except UnexpectedInput:
            pass
        raise Mismatch("not of the form")

    def _first_violation(self, source: Source) -> Diagnostic:
        """Return the first violation of a text that is not canonical, in time linear in its offset.

        The beginning of a canonical text is canonical or cut. So where a beginning is malformed,
        its first violation is that of the text, unless it stands near the beginning's end.
        """
        text, size = source.text, WINDOW
        while size < len(text):
            beginning = Source(text[:size])
            found = (
                canonical_repairs(beginning, self.syntax)
                if self._aligned is None
                else iter(self._aligned.first_repairs(beginning))
            )
            first = next(found, None)
            if first and first.code != "cut" and first.offset < size // 2:
                return first
            size *= 4
        if self._aligned is not None:
            return self._aligned.repair(source)[0][0]
        return next(canonical_repairs(source, self.syntax))

    @cached_property
    def _aligned(self) -> AlignedRepair | None:
        canonical = self.repaired_as
        return canonical and AlignedRepair(self.syntax, canonical.syntax, canonical.read)

    @cached_property
    def _grammar(self) -> Lark:
        rules = [RULES, self.rules]
        for name, pattern in terminals(self.syntax).items():
            escaped = pattern.replace("/", r"\/").replace("\n", r"\n")
            rules.append(f"{name}: /{escaped}/")
        return Lark("\n".join(rules), parser="lalr", transformer=_TreeBuilder(self.syntax))


def render_pieces(document: Document | Message, syntax: Syntax) -> str:
    """Write one assistant's turn piece by piece; see `TaggedForm.render`."""
    message, address = only_turn(document, syntax)
    check_turn(message, syntax, address)
    parts: list[str] = []
    for piece in syntax.pieces(message):
        if piece.hole is not None:
            raise hole_refusal(message, piece.hole, syntax, address)
        parts.append(piece.text)
    return "".join(parts)


def terminals(syntax: Syntax) -> dict[str, str]:
    """Return the terminals of a form whose text is tags and runs between them.

    A tag stands with the fixed text after it, so that white space is read only where it is
    text; one that bears a label is no filtered terminal: its name has no leading underscore.
    """
    tag, run = syntax.marker.pattern, syntax.run_pattern
    label = LABEL.pattern + syntax.label_end
    line = syntax.line_pattern
    lead = {"text": label, "tag": "", "none": syntax.written(Tag.OUTLINE)}[syntax.labels]
    out = {
        "TEXT": rf"(?!\n(?:{tag})){run}(?<=\n)(?=<)",
        "TAIL": rf"(?:{run})\Z",
        "BLANK": rf"\n(?={tag})",
        "LABEL": label,
        "LINE": lead + line + syntax.outline_gap,
    }
    for place, each in enumerate(Tag):
        written = syntax.tags[place]
        gap = syntax.after(each)
        if each is Tag.END_PATH and syntax.path_gap != syntax.separator:
            path = syntax.written(Tag.PATH)
            gap = f"(?:{syntax.path_gap}(?={path})|{syntax.separator}(?!{path}))"
        if written + gap:
            name = each.name if "{}" in written else f"_{each.name}"
            out[name] = written.replace("{}", LABEL.pattern) + gap
    return out


class _TreeBuilder(Transformer[Token, Document]):
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
