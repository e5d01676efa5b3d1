"""Protocol of a surface form, what forms are read with, and forms that are read strictly only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from mvspec.errors import Diagnostic, MvspecError, ParseError, Source
from mvspec.forms.can_hold import check_turn, only_turn
from mvspec.forms.recovery.edits import Code
from mvspec.forms.syntax import Syntax
from mvspec.tree.ir import Conclusion, Document, Message, Text

NO_CONCLUSION = Conclusion()
"""The conclusion of a block that a form writes without one."""


class Mismatch(MvspecError):
    """Departure of a text from its form.

    Attributes:
        offset: where the text departs, as far as that is known.
    """

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


def check_characters(text: str) -> None:
    """Raise Mismatch for half of a surrogate pair, which UTF-8 cannot hold."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Mismatch("half of a surrogate pair is no character", error.start) from None


def document_of(body: tuple[Any, ...]) -> Document:
    """Return the document of an assistant's turn that was read."""
    turn: Message = Message.trusted(role="assistant", body=body)
    return Document.trusted(messages=(turn,))


def text_of(text: str) -> Text:
    """Return a run of text that was read as a node."""
    return Text.trusted(kind="text", text=text)


class Form(Protocol):
    """One way to write a document as text.

    A form is one module of `mvspec.forms` with one object of this protocol, which
    `mvspec.forms.FORMS` lists.
    """

    @property
    def syntax(self) -> Syntax:
        """Its name, its tags, the fixed text around them, and its limits."""

    @property
    def readable(self) -> bool:
        """Whether its texts can be read back."""

    def parse(self, source: Source) -> Document:
        """Read canonical text.

        Raises:
            ParseError: the first violation, located.
            VerifyError: JSON that is no document.
            Unsupported: the form is written and never read.
        """

    def repair(self, source: Source) -> tuple[Document, tuple[Diagnostic, ...]]:
        """Read any text into the best tree, with every repair; raises only `Unsupported`."""

    def render(self, document: Document | Message) -> str:
        """Write a document, or one assistant's turn.

        Raises:
            Unsupported: the first node that the form cannot hold, by its place, and what to do.
        """


@dataclass(frozen=True)
class StrictForm:
    """A form that is read strictly only: a text that departs from it is no document.

    Args:
        syntax: its name, its tags and its limits.
        read: canonical text to a document; raises `Mismatch` on any other.
        write: a turn that the form can hold, to text.
        check: raises `Unsupported` for a turn that the form cannot hold, beyond what the syntax
            tells; given the turn's address.
    """

    syntax: Syntax
    read: Callable[[str], Document]
    write: Callable[[Message], str]
    check: Callable[[Message, str], None]
    readable: ClassVar[bool] = True

    def parse(self, source: Source) -> Document:
        """Read canonical text; see `Form`."""
        document, diagnostics = self.repair(source)
        if diagnostics:
            raise ParseError(source, diagnostics[0])
        return document

    def repair(self, source: Source) -> tuple[Document, tuple[Diagnostic, ...]]:
        """Read canonical text; any other is one diagnostic, and the document is empty."""
        try:
            check_characters(source.text)
            return self.read(source.text), ()
        except Mismatch as mismatch:
            message = f"{mismatch}; form {self.syntax.name!r} is read strictly only: mend the text"
            code: Code = "strict-only"
            end = len(source.text)
            return Document(), (source.diagnostic(mismatch.offset, code, message, end=end),)

    def render(self, document: Document | Message) -> str:
        """Write one assistant's turn; see `Form`."""
        message, address = only_turn(document, self.syntax)
        check_turn(message, self.syntax, address)
        self.check(message, address)
        return self.write(message)
