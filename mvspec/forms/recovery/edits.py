"""What recovery is made of: edits of the text, the tags of the repaired text, open constructs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mvspec.errors import Diagnostic
from mvspec.law.tags import Tag

__all__ = ["LABEL", "LEAD", "NUMBER", "Code", "Edit", "Event", "Frame", "apply"]

Code = Literal[
    "call-differs",
    "cut",
    "missing-closing",
    "missing-conclusion",
    "missing-label",
    "missing-newline",
    "missing-opening",
    "missing-outline",
    "missing-path",
    "not-a-document",
    "not-a-trace",
    "outline-line",
    "outline-order",
    "separator",
    "stray-tag",
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


class Edit(NamedTuple):
    """Replace `text[start:end]` by `insert`."""

    start: int
    end: int
    insert: str
    code: Code
    message: str


@dataclass(slots=True)
class Event:
    """A tag of the repaired text; an empty span where the source lacks it, in part or whole."""

    tag: Tag
    start: int
    end: int
    code: Code = "missing-closing"
    message: str = ""
    label: str = ""
    line: str | None = None  # of an outline that another one takes the place of

    @property
    def missing(self) -> str:
        """The characters of the tag that the source lacks."""
        return self.tag.value[self.end - self.start :]


@dataclass(slots=True)
class Frame:
    """An open construct: the opening tag that made it, and what a block has so far."""

    kind: Tag | None
    opened: Event | None = None
    goal: Event | None = None  # the last </Goal>
    outlines: set[str] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    outline_count: int = 0
    path_count: int = 0
    path_end: Event | None = None
    conclusion_end: Event | None = None


def apply(text: str, diagnostics: tuple[Diagnostic, ...]) -> str:
    """Return `text` with the repairs of `diagnostics` made."""
    out: list[str] = []
    at = 0
    for diagnostic in diagnostics:
        out += (text[at : diagnostic.offset], diagnostic.inserted)
        at = diagnostic.end
    return "".join((*out, text[at:]))
