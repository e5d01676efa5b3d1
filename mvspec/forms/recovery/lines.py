"""What the forms of curation's first step share when they are repaired: they are made of lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from mvspec.errors import Source
from mvspec.forms.recovery.edits import Code, Edit
from mvspec.forms.recovery.hidden import without_tags
from mvspec.forms.syntax import Syntax

__all__ = ["Line", "Lines", "completed_reason", "source_lines"]

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_REASON = re.compile(r"\s*\[\s*parallel reason\s*:?[ \t]*(.*?)[ \t]*\]?\s*", re.IGNORECASE)
_OPENING = "[parallel reason: "


class Line(NamedTuple):
    """A line of a text: where it starts and ends, and what it says without its newline."""

    start: int
    end: int
    text: str
    whole: bool


def source_lines(source: Source) -> Iterator[Line]:
    """Yield the lines of a text; only the last may lack its newline."""
    # A surrogate is one character, and so is what stands for it: places stay as they are.
    at = 0
    for said in _SURROGATE.sub("\ufffd", source.text).split("\n"):
        end = at + len(said)
        whole = end < len(source.text)
        if whole or said:
            yield Line(at, end + whole, said, whole)
        at = end + 1


def completed_reason(text: str, *, whole: bool) -> str | None:
    """Return the reason behind a tag as it is to be written, "" for none; None for other text.

    Args:
        text: what stands behind the tag.
        whole: whether the line has ended, so that nothing of it can be still to come.
    """
    if not text.strip():
        return ""
    if not whole and _OPENING.startswith(text):
        return f"{_OPENING}]"
    match = _REASON.fullmatch(text)
    if not match:
        return None
    exact = text.startswith(_OPENING) and (text.endswith("]") or not whole)
    said = text[len(_OPENING) :].removesuffix("]") if exact else match.group(1)
    return f"{_OPENING}{said}]"


class Lines:
    """The edits that make lines canonical: each line of the text is one, kept or not."""

    def __init__(self, source: Source, syntax: Syntax) -> None:
        self.source = source
        self.syntax = syntax
        self.edits: list[Edit] = []

    def put(self, line: Line, text: str, code: Code, message: str) -> None:
        """Write `text`, with its newline, for a line; the code counts where they differ."""
        raw = self.source.text[line.start : line.end]
        if raw == text:
            return
        if line.whole or text:
            only = _SURROGATE.sub("\ufffd", raw) == text
            if only and raw != text:
                code, message = "surrogate", "a lone surrogate is no character: U+FFFD stands here"
        self.edits.append(Edit(line.start, line.end, text, code, message))

    def add(self, at: int, text: str, code: Code, message: str) -> None:
        """Write lines that the text lacks, at a place where a line starts."""
        self.edits.append(Edit(at, at, text, code, message))

    def without_tags(self, text: str) -> str:
        """Return a line without the tags that may not stand in text."""
        return without_tags(text, self.syntax.marker)
