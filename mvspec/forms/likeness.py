"""Likeness of a text to a form: the one whose tags carry the structure of the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from mvspec.forms.form import Form
from mvspec.forms.syntax import Syntax
from mvspec.law.tags import Tag

AUTO = "auto"
"""The name that stands for the form that a text looks like."""

RECOGNISED = {
    "MedVerse": re.compile(r"<(?:Plan|Execution)>"),
    "ParaThinker": re.compile(r"<think[0-9]+>"),
    "AsyncThink": re.compile(r"<(?:FORK|JOIN)-[0-9]+>"),
}
"""Formats that are known and read by no form, by what only they write: paths of MedVerse wait for
others, ParaThinker numbers its thoughts, AsyncThink forks and joins by number."""

_STRUCTURE = tuple(tag for tag in Tag if tag not in (Tag.THINK, Tag.END_THINK))
_BEFORE = re.compile(r"[>\n][ \t\r]*\Z")
_AFTER = re.compile(r"[ \t\r]*(?:[\n<]|\Z|[0-9]+:)")


class Likeness(NamedTuple):
    """Form of `FORMS` that a text looks like, or one of `RECOGNISED`, and where it begins."""

    name: str
    offset: int
    readable: bool = True

    def __str__(self) -> str:
        """What to do about it."""
        if self.readable:
            return f"the tags are those of form {self.name!r}: read it with --form {self.name}"
        return f"the tags are those of {self.name}, which no form reads: convert it first"


def likeness_of(text: str, forms: Mapping[str, Form], own: str = "") -> Likeness | None:
    """Return what a text looks like by the tags that stand in it like tags; None without structure.

    The form most of whose tags there are; of equal ones `own`, then the first. Two kinds of tags
    are structure, one may be a word. Takes time linear in the text.

    >>> from mvspec.forms import FORMS
    >>> str(likeness_of("<guideline>\\n<plan>1: a</plan>\\n", FORMS))
    "the tags are those of form 'npr': read it with --form npr"
    """
    if "<" not in text:
        return None
    for name, pattern in RECOGNISED.items():
        if name == "MedVerse" and "Dependency:" not in text:
            continue
        if found := next((each for each in pattern.finditer(text) if _stands(text, each)), None):
            return Likeness(name, found.start(), readable=False)
    best, most = None, 0
    for name, form in sorted(forms.items(), key=lambda item: item[0] != own):
        if not form.readable or not form.syntax.tagged or not form.syntax.ordered:
            continue
        kinds: set[str] = set()
        count, first = 0, len(text)
        for found in _pattern(form.syntax).finditer(text):
            if _stands(text, found):
                kinds.add(re.sub("[^A-Za-z]", "", found.group()))
                count, first = count + 1, min(first, found.start())
        if len(kinds) > 1 and count > most:
            best, most = Likeness(name, first), count
    return best


def _stands(text: str, found: re.Match[str]) -> bool:
    """Whether a tag stands like one: at a line's edge, by another tag, or before a label."""
    start, end = found.span()
    return (
        not start
        or _BEFORE.search(text, max(0, start - 8), start) is not None
        or _AFTER.match(text, end) is not None
    )


@cache
def _pattern(syntax: Syntax) -> re.Pattern[str]:
    """The structural tags that a form writes."""
    written = (syntax.written(tag, "{}") for tag in _STRUCTURE)
    names = {re.escape(text).replace(r"\{\}", "[0-9.]+") for text in written if text[:1] == "<"}
    return re.compile("|".join(sorted(names)) or "(?!)")
