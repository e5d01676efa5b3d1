"""Tagged forms, whose text is the tree in its order: tags, and runs of text between them.

Strict reading is a lark grammar (mvspec/forms/grammar.py). Recovery (mvspec/forms/recovery/) edits
a malformed text into a canonical one, which the same parser then reads; the edits are the
diagnostics, so nothing is lost silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from mvspec.errors import Diagnostic, ParseError, Source
from mvspec.forms.can_hold import check_turn, hole_refusal, only_turn
from mvspec.forms.form import Mismatch, check_characters, document_of
from mvspec.forms.recovery.canonical import canonical_repairs
from mvspec.forms.recovery.edits import apply, only_space
from mvspec.forms.recovery.transcript import AlignedRepair
from mvspec.forms.syntax import Syntax
from mvspec.law.tags import Tag
from mvspec.tree.ir import Document, Message

if TYPE_CHECKING:
    from mvspec.forms.grammar import StrictReader

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
        """Read one assistant's turn: canonical text, or what differs by white space at tags alone.

        Raises:
            ParseError: the first violation, located; its `cut` tells a prefix from a mistake.
        """
        try:
            return self.read(source.text)
        except Mismatch:
            first = self._first_violation(source)
        if first is None:
            return self._repaired(source)[0]
        raise ParseError(source, first, cut=first.code == "cut")

    def repair(self, source: Source) -> tuple[Document, tuple[Diagnostic, ...]]:
        """Read any text into the best tree, with every repair; never raises on a str.

        Replacing each diagnostic's span by its `inserted` text gives the rendering of the tree;
        where a form is loose and nothing but white space differs from it, there is none.
        """
        try:
            return self.read(source.text), ()
        except Mismatch:
            document, found = self._repaired(source)
        return document, () if all(self._silent(each) for each in found) else found

    def _silent(self, diagnostic: Diagnostic) -> bool:
        """Whether a difference from canonical text is none for the form."""
        space = only_space(diagnostic.code, diagnostic.dropped, diagnostic.inserted)
        return self.syntax.loose and space and diagnostic.code != "cut"

    def _repaired(self, source: Source) -> tuple[Document, tuple[Diagnostic, ...]]:
        """Return the tree of a text, and every edit that makes the text canonical."""
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
        if fence and (Tag.THINK in text or Tag.END_THINK in text):
            raise Mismatch("a fence stands for the tags of the reasoning")
        if fence and f"{text}\n".startswith(f"{fence}\n"):
            if not text.endswith(f"\n{fence}") or len(text) < 2 * len(fence) + 1:
                raise Mismatch("the fence is not closed")
            text = f"{Tag.THINK}{text[len(fence) : -len(fence)]}{Tag.END_THINK}"
        check_characters(text)
        return self._reader.read(text)

    def _first_violation(self, source: Source) -> Diagnostic | None:
        """Return the first violation of a text, if it has any, in time linear in its offset.

        The beginning of a canonical text is canonical or cut. So where a beginning is malformed,
        its first violation is that of the text, unless it stands near the beginning's end.
        """
        text, size = source.text, WINDOW
        while size < len(text):
            for first in islice(self._repairs(Source(text[:size]), whole=False), 1):
                if first.code != "cut" and first.offset < size // 2:
                    return first
            size *= 4
        return next(self._repairs(source), None)

    def _repairs(self, source: Source, *, whole: bool = True) -> Iterator[Diagnostic]:
        found: Iterable[Diagnostic] = (
            canonical_repairs(source, self.syntax)
            if self._aligned is None
            else self._aligned.repair(source, whole=whole)[0]
        )
        return (each for each in found if not self._silent(each))

    @cached_property
    def _reader(self) -> StrictReader:
        from mvspec.forms.grammar import StrictReader

        return StrictReader(self.syntax)

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
