"""Edits of a text: the kinds of violation, their repairs, and tags that repairs leave behind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from mvspec.errors import Diagnostic

Code = Literal[
    "cut",
    "missing-closing",
    "missing-conclusion",
    "missing-label",
    "missing-newline",
    "missing-opening",
    "missing-outline",
    "missing-path",
    "not-a-document",
    "other-form",
    "outline-line",
    "outline-order",
    "separator",
    "stray-tag",
    "strict-only",
    "surrogate",
    "tag-as-word",
    "text-outside",
    "too-deep",
    "wrong-label",
]
"""Every kind of violation; docs/diagnostics.md explains each."""

NUMBER = r"[0-9]++(?:\.[0-9]++)*+"
LABEL = re.compile(rf"\s*+({NUMBER})[ \t]*+:")
LEAD = re.compile(r"[ \t\r]*+\n")

_LONGEST_TAG = 80
"""Characters in which a tag ends; labels of more digits than this are no tags of a model."""


class TextEdit(NamedTuple):
    """Replacement of `text[start:end]` by `insert`."""

    start: int
    end: int
    insert: str
    code: Code
    message: str


def only_space(code: str, dropped: str, inserted: str) -> bool:
    """Whether an edit changes nothing but white space that is no part of an outline's line."""
    return code != "outline-line" and "".join(dropped.split()) == "".join(inserted.split())


def apply(text: str, diagnostics: tuple[Diagnostic, ...]) -> str:
    """Return `text` with the repairs of `diagnostics` made."""
    out: list[str] = []
    at = 0
    for diagnostic in diagnostics:
        out += (text[at : diagnostic.offset], diagnostic.inserted)
        at = diagnostic.end
    return "".join((*out, text[at:]))


def left_over_tags(text: str, drops: Iterable[TextEdit], tag: re.Pattern[str]) -> list[TextEdit]:
    """Return the drops of tags that come about where others are left out of their middle.

    Takes time linear in the text.

    >>> first = TextEdit(3, 9, "", "tag-as-word", "")
    >>> [text[e.start : e.end] for text in ["<Pa<Goal>th>"]
    ...  for e in left_over_tags(text, [first], re.compile("<Path>|<Goal>"))]
    ['<Pa', 'th>']
    """
    spans = sorted((drop.start, drop.end) for drop in drops)
    if not spans:
        return []
    kept_spans: list[tuple[int, int]] = []
    at = 0
    for start, end in (*spans, (len(text), len(text))):
        if start > at:
            kept_spans.append((at, start))
        at = max(at, end)
    edges = [end for _, end in kept_spans[:-1]]
    if not any("<" in text[max(0, edge - _LONGEST_TAG) : edge] for edge in edges):
        return []
    kept: list[int] = []  # the places of the characters that stay
    gone: list[int] = []
    for start, end in kept_spans:
        for at in range(start, end):
            kept.append(at)
            if text[at] != ">":
                continue
            size = 1
            while size < min(len(kept), _LONGEST_TAG) and text[kept[-size]] != "<":
                size += 1
            whole = kept[-1] - kept[-size] == size - 1
            if not whole and tag.fullmatch("".join(text[place] for place in kept[-size:])):
                gone += kept[-size:]
                del kept[-size:]
    message = "what is left around a tag reads as another one: left out"
    out: list[TextEdit] = []
    for place in sorted(gone):
        if out and out[-1].end == place:
            out[-1] = out[-1]._replace(end=place + 1)
        else:
            out.append(TextEdit(place, place + 1, "", "tag-as-word", message))
    return out


def without_tags(text: str, tag: re.Pattern[str]) -> str:
    """Return a text without tags, and without those that come about as they are left out.

    >>> without_tags("a <Pa<Goal>th> b", re.compile("<Path>|<Goal>"))
    'a  b'
    """
    if "<" not in text:
        return text
    drops = [TextEdit(*found.span(), "", "tag-as-word", "") for found in tag.finditer(text)]
    kept: list[str] = []
    at = 0
    for drop in sorted((*drops, *left_over_tags(text, drops, tag))):
        kept.append(text[at : drop.start])
        at = max(at, drop.end)
    return "".join((*kept, text[at:]))
