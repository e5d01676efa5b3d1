"""Lark parsers, made of the rules of a form and the terminals that its `Syntax` gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedInput

from mvspec.errors import MvspecError
from mvspec.forms.syntax import Syntax
from mvspec.tree.ir import Conclusion, Document, Message, Text

__all__ = [
    "NO_CONCLUSION",
    "Grammar",
    "Mismatch",
    "document_of",
    "line_pattern",
    "raw_pattern",
    "run_pattern",
    "text_of",
]

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


class Grammar:
    """A lark grammar that builds documents.

    Args:
        rules: the rules, in lark's notation.
        terminals: regular expressions by name; the grammar accepts canonical text only.
        build: makes the nodes as rules are reduced.
    """

    def __init__(
        self, rules: str, terminals: Mapping[str, str], build: Transformer[Token, Any]
    ) -> None:
        made = [f"{name}: /{escaped(pattern)}/" for name, pattern in terminals.items()]
        self.lark = Lark("\n".join((rules, *made)), parser="lalr", transformer=build)

    def parse(self, text: str) -> Any:
        """Return what the transformer makes of a text.

        Raises:
            Mismatch: the text is not of the form.
        """
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise Mismatch("half of a surrogate pair is no character", error.start) from None
        try:
            return self.lark.parse(text)
        except UnexpectedInput as error:
            token = getattr(error, "token", None)
            ended = token is not None and token.type == "$END"
            at = len(text) if ended else error.pos_in_stream
        raise Mismatch("this is not of the form", at or 0)


def document_of(body: tuple[Any, ...]) -> Document:
    """Return the document of an assistant's turn that a grammar has read."""
    turn: Message = Message.trusted(role="assistant", body=body)
    return Document.trusted(messages=(turn,))


def text_of(text: str) -> Text:
    """Return a run of text that a grammar has read as a node; lark's own kind of str does not."""
    return Text.trusted(kind="text", text=str(text))


def escaped(pattern: str) -> str:
    """Return a regular expression as a grammar file writes it."""
    return pattern.replace("/", r"\/").replace("\n", r"\n")


def raw_pattern(syntax: Syntax) -> str:
    """Return the pattern of a less-than sign that begins no tag."""
    return f"(?!{syntax.marker.pattern})<"


def line_pattern(syntax: Syntax) -> str:
    """Return the pattern of what a line holds without a tag, its newline not among it."""
    return rf"[^<\n]*+(?:{raw_pattern(syntax)}[^<\n]*+)*+"


def run_pattern(syntax: Syntax) -> str:
    """Return the pattern of a run of text without a tag, at least one character."""
    raw = raw_pattern(syntax)
    # Possessive repeats: a run ends at a tag or at the end, so backtracking can never help.
    return f"(?:[^<]|{raw})[^<]*+(?:{raw}[^<]*+)*+"
