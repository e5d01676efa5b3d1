"""Lark parsers made of a grammar file and the terminals that a `Syntax` gives it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedInput

from mvspec.errors import MvspecError
from mvspec.forms.syntax import Syntax
from mvspec.law.tags import Tag
from mvspec.tree.ir import LABEL, Conclusion, Document, Message, Text

__all__ = [
    "NO_CONCLUSION",
    "Grammar",
    "Mismatch",
    "document_of",
    "line_pattern",
    "raw_pattern",
    "run_pattern",
    "tagged_terminals",
    "text_of",
]

NO_CONCLUSION = Conclusion()
"""The conclusion of a block that a form writes without one."""


class Mismatch(MvspecError):
    """A text is not of its form; where it departs, recovery tells."""


class Grammar:
    """A lark grammar that builds documents.

    Args:
        names: files of mvspec/grammars, joined.
        terminals: regular expressions by name; the grammar accepts canonical text only.
        build: makes the nodes as rules are reduced.
    """

    def __init__(
        self, names: tuple[str, ...], terminals: Mapping[str, str], build: Transformer[Token, Any]
    ) -> None:
        folder = files("mvspec.forms").joinpath("grammars")
        rules = [folder.joinpath(f"{name}.lark").read_text("utf-8") for name in names]
        made = [f"{name}: /{escaped(pattern)}/" for name, pattern in terminals.items()]
        self.lark = Lark("\n".join((*rules, *made)), parser="lalr", transformer=build)

    def parse(self, text: str) -> Any:
        """Return what the transformer makes of a text.

        Raises:
            Mismatch: the text is not of the form.
        """
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise Mismatch(str(error)) from None
        try:
            return self.lark.parse(text)
        except UnexpectedInput:
            pass
        raise Mismatch("not of the form")


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


def tagged_terminals(syntax: Syntax) -> dict[str, str]:
    """Return the terminals of a form whose text is tags and runs between them.

    A tag stands with the fixed text after it, so that white space is read only where it is
    text; one that bears a label is no filtered terminal: its name has no leading underscore.
    """
    tag, run = syntax.marker.pattern, run_pattern(syntax)
    label = LABEL.pattern + syntax.label_end
    line = line_pattern(syntax)
    lead = {"text": label, "tag": "", "none": syntax.written(Tag.OUTLINE)}[syntax.labels]
    terminals = {
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
            terminals[name] = written.replace("{}", LABEL.pattern) + gap
    return terminals
