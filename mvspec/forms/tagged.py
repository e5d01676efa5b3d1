"""Tagged forms, whose text is the tree in its order: tags, and runs of text between them.

A strict reader takes the tags through the law's table of what may follow, and a text is canonical
where it is the rendering of the tree that was read. Recovery (mvspec/forms/recovery/) edits a
malformed text into a canonical one, which the same reader then reads; the edits are the
diagnostics, so nothing is lost silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

from mvspec.errors import Diagnostic, ParseError, Source
from mvspec.forms.can_hold import check_turn, hole_refusal, only_turn
from mvspec.forms.form import NO_CONCLUSION, Mismatch, check_characters, document_of, text_of
from mvspec.forms.recovery.canonical import canonical_repairs
from mvspec.forms.recovery.edits import apply
from mvspec.forms.recovery.transcript import AlignedRepair
from mvspec.forms.syntax import Syntax
from mvspec.law.automaton import MOVES, Place
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


@dataclass(frozen=True)
class TaggedForm:
    """A form whose text is the tree in its order.

    Args:
        syntax: its tags and the fixed text around them.
        repaired_as: the canonical form, in which malformed texts are repaired; None for that one.
    """

    syntax: Syntax
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
        whole, fence = text, self.syntax.fence
        if fence and f"{text}\n".startswith(f"{fence}\n"):
            if not text.endswith(f"\n{fence}") or len(text) < 2 * len(fence) + 1:
                raise Mismatch("the fence is not closed")
            text = f"{Tag.THINK}{text[len(fence) : -len(fence)]}{Tag.END_THINK}"
        check_characters(text)
        message = TreeReader(self.syntax).read(text)
        # What the reader passed over is what rendering writes there, or the text is another.
        if "".join([piece.text for piece in self.syntax.pieces(message)]) != whole:
            raise Mismatch("not as the form writes it")
        return document_of(message.body)

    def _first_violation(self, source: Source) -> Diagnostic:
        """Return the first violation of a text that is not canonical, in time linear in its offset.

        The beginning of a canonical text is canonical or cut. So where a beginning is malformed,
        its first violation is that of the text, unless it stands near the beginning's end.
        """
        text, size = source.text, WINDOW
        while size < len(text):
            for first in islice(self._repairs(Source(text[:size]), whole=False), 1):
                if first.code != "cut" and first.offset < size // 2:
                    return first
            size *= 4
        return next(self._repairs(source))

    def _repairs(self, source: Source, *, whole: bool = True) -> Iterator[Diagnostic]:
        if self._aligned is None:
            return canonical_repairs(source, self.syntax)
        return iter(self._aligned.repair(source, whole=whole)[0])

    @cached_property
    def _aligned(self) -> AlignedRepair | None:
        if self.repaired_as is None:
            return None
        return AlignedRepair(self.syntax, self.repaired_as.syntax, self.repaired_as.read)


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


class _OpenBlock:
    """Parts of a block so far, and the place that it is in."""

    def __init__(self, around: Place) -> None:
        self.around = around
        self.outlines: list[Outline] = []
        self.paths: list[Path] = []
        self.label = ""
        self.conclusion = NO_CONCLUSION


class TreeReader:
    """Reader of one text, tag by tag: the law's table says which may come.

    It passes over the text that the form fixes; whether that was there, rendering the tree tells.
    """

    def __init__(self, syntax: Syntax) -> None:
        self.syntax = syntax
        self.place = Place.TURN
        self.bodies: list[list[Any]] = [[]]
        self.blocks: list[_OpenBlock] = []
        self.lead = ""  # the fixed text before the run of text at hand

    def read(self, text: str) -> Message:
        """Return the turn of a text.

        Raises:
            Mismatch: a tag may not come where it stands, or labels do not agree.
        """
        own, after = self.syntax.by_text, self.syntax.texts_after
        numbered, prefix = self.syntax.labels == "tag", self.syntax.label_prefix
        at = 0
        for match in self.syntax.marker.finditer(text):
            name, label = match.group(), ""
            if numbered and name[-2].isdigit():
                head, _, label = name[:-1].partition(" ")
                name = head + " {}>"
            tag = own.get(name)
            if tag is None:
                raise Mismatch(f"{name} is no tag of the form")
            run = text[at : match.start()]
            at = match.end()
            following = MOVES[self.place].get(tag) or self.pass_unwritten(tag)
            self.lead, lead = after[tag], self.lead
            if tag is Tag.PARALLEL:
                self.text(run[len(lead) : -1])
                if len(self.blocks) == self.syntax.max_depth:
                    raise Mismatch("too deep")
                self.blocks.append(_OpenBlock(self.place))
            elif tag is Tag.END_OUTLINE:
                self.outline(run, label)
            elif tag is Tag.END_GOAL:
                self.end_goal(run)
                following = Place.BETWEEN
            elif tag is Tag.PATH:
                if prefix:
                    found = prefix.match(text, at)
                    if not found:
                        raise Mismatch("a path has no label")
                    self.lead, label = found.group(0, 1)
                self.blocks[-1].label = label
                self.bodies.append([])
            elif tag is Tag.END_PATH:
                self.text(run[len(lead) : -1])
                following = self.end_path()
            elif tag is Tag.CONCLUSION:
                self.bodies.append([])
            elif tag is Tag.END_CONCLUSION:
                self.text(run[len(lead) : -1])
                self.blocks[-1].conclusion = Conclusion.trusted(body=tuple(self.bodies.pop()))
            elif tag is Tag.END_PARALLEL:
                following = self.end_block()
            elif tag is Tag.THINK:
                if at > len(name):
                    raise Mismatch("the reasoning comes first")
                self.bodies.append([])
            elif tag is Tag.END_THINK:
                self.text(run[len(lead) : -1])
                self.bodies[0].append(Think.trusted(kind="think", body=self.counted()))
            self.place = following
        if self.place is not Place.TURN:
            raise Mismatch("the text ends inside a construct")
        self.text(text[at + len(self.lead) :])
        return Message.trusted(role="assistant", body=self.counted())

    def pass_unwritten(self, tag: Tag) -> Place:
        """Take the tags that the form does not write before this one, and say where it leads."""
        place = self.place
        if place is Place.OPENED and not self.syntax.written(Tag.GOAL):
            place = Place.GOAL
        elif place is Place.GOAL and not self.syntax.written(Tag.END_GOAL):
            self.end_goal("")
            place = Place.BETWEEN
        elif place is Place.JOINED and self.syntax.optional_join:
            place = Place.CONCLUDED
        if tag not in MOVES[place]:
            raise Mismatch(f"{tag} may not come here")
        return MOVES[place][tag]

    def text(self, text: str) -> None:
        """Add a run of text, without what the form fixes around it."""
        if text:
            self.bodies[-1].append(text_of(text))

    def counted(self) -> tuple[Any, ...]:
        """Return the innermost body, its blocks inside of blocks numbered where no labels are."""
        body = self.bodies.pop()
        if self.syntax.labels == "none":
            body = [
                number(item) if isinstance(item, Parallel) and item.depth > 1 else item
                for item in body
            ]
        return tuple(body)

    def outline(self, run: str, label: str) -> None:
        gap = len(self.syntax.outline_gap)
        line = run[gap : len(run) - gap]
        if self.syntax.labels == "text":
            label, _, line = line.partition(self.syntax.label_end)
            if not LABEL.fullmatch(label):
                raise Mismatch("an outline has no label")
        if "\n" in line:
            raise Mismatch("an outline is one line")
        self.blocks[-1].outlines.append(Outline.trusted(label=label, text=line))

    def end_goal(self, run: str) -> None:
        outlines = self.blocks[-1].outlines
        if self.syntax.labels == "none":
            opening = self.syntax.written(Tag.OUTLINE)
            lines = [line.removeprefix(opening) for line in run.split("\n") if line]
            for label, line in enumerate(lines, 1):
                outlines.append(Outline.trusted(label=str(label), text=line))
        labels = [outline.label for outline in outlines]
        if self.syntax.counted and labels != [str(k + 1) for k in range(len(labels))]:
            raise Mismatch("labels do not count")
        if not labels or len(set(labels)) < len(labels):
            raise Mismatch("labels lack or repeat")

    def end_path(self) -> Place:
        block = self.blocks[-1]
        expected = block.outlines[len(block.paths)].label
        if self.syntax.labels != "none" and block.label != expected:
            raise Mismatch("labels differ")
        block.paths.append(Path.trusted(label=expected, body=tuple(self.bodies.pop())))
        return Place.JOINED if len(block.paths) == len(block.outlines) else Place.BETWEEN

    def end_block(self) -> Place:
        block = self.blocks.pop()
        goal = Goal.trusted(outlines=tuple(block.outlines))
        self.bodies[-1].append(
            Parallel.trusted(goal=goal, paths=tuple(block.paths), conclusion=block.conclusion)
        )
        return block.around
