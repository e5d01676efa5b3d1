"""A text of another tagged form, transcribed into the canonical one, and the way back.

So one set of rules decides for every tagged form what is structure. A transcript knows which of
its runs were taken from the text as they are, and which of its tags are written with a label
that is left over where recovery takes the tag for a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from mvspec.forms.recovery.edits import Edit
from mvspec.forms.recovery.hidden import hidden
from mvspec.forms.syntax import MULTIVERSE, Syntax
from mvspec.law.tags import Tag
from mvspec.tree.ir import LABEL

__all__ = ["ANY", "Run", "Transcript", "endings", "transcribe"]

ANY = "0"
"""The label of paths and outlines in a form that writes none: recovery pairs them as they come."""

_LINE_END = re.compile(r"[ \t\r]*\n")
_NUMBER = re.compile(LABEL.pattern)
_PATH_LINE = re.compile(r"^[ \t]*path[^\n:]*:[ \t]?", re.MULTILINE | re.IGNORECASE)
_OPENING_FENCE = re.compile(r"\s*```[a-z]*[ \t\r]*(?:\n|\Z)")
_CLOSING_FENCE = re.compile(r"```\s*\Z")
_OUTLINES = (Tag.OUTLINE, Tag.END_OUTLINE)

Ending = tuple[int, Tag]
"""Where a text ends in the beginning of a tag, and of which."""


class Run(NamedTuple):
    """A run of text that stands in two texts: where in each, and its size in characters."""

    at: int
    source: int
    size: int


class Mark(NamedTuple):
    """A tag of the form in a text: its span, its label or "", and its number among all tags."""

    start: int
    end: int
    tag: Tag
    label: str
    number: int


@dataclass
class Transcript:
    """A text in the canonical form.

    Args:
        text: the text; what no run holds was written for a tag.
        runs: its runs that were taken as they are, in order.
        drops: what the form has no place for, in order.
        tags: where each tag was written, its number, and whether a label came with it.
    """

    text: str = ""
    runs: list[Run] = field(default_factory=list)
    drops: list[Edit] = field(default_factory=list)
    tags: list[tuple[int, int, bool]] = field(default_factory=list)


def transcribe(
    text: str, syntax: Syntax, words: set[int], ending: Ending | None = None
) -> Transcript:
    """Return a text in the canonical form; takes time linear in the text.

    Args:
        words: numbers of tags that are words of the text.
        ending: the tag to which the last characters are completed.
    """
    scribe = _Scribe(text, syntax)
    stop = ending[0] if ending else len(text)
    closing = None
    if syntax.fence and (opening := _OPENING_FENCE.match(text)):
        scribe.write(f"{Tag.THINK}\n")
        scribe.at = opening.end()
        closing = _CLOSING_FENCE.search(text, max(scribe.at, stop - 80), stop)
        stop = closing.start() if closing else stop
    marks = scribe.marks(stop, words)
    before: Tag | None = None
    for place, mark in enumerate(marks):
        scribe.upto(mark.start, before)
        after = marks[place + 1].tag if place + 1 < len(marks) else None
        first = mark.tag is Tag.OUTLINE and before not in _OUTLINES
        if syntax.labels == "tag" and first and scribe.alone(mark):
            scribe.write(f"{Tag.GOAL}\n")
        scribe.tag(mark)
        if syntax.labels == "tag" and mark.tag is Tag.END_OUTLINE and after not in _OUTLINES:
            scribe.write(f"{Tag.END_GOAL}\n" if after else "")
        before = mark.tag
    scribe.upto(stop, before)
    if closing:
        scribe.write(f"{Tag.END_THINK}\n\n")
    elif ending:
        head = syntax.written(ending[1], "{}").partition("{}")[0]
        label = ANY if syntax.labels == "none" else text[ending[0] + len(head) :]
        scribe.write(ending[1].value)
        if ending[1] is Tag.OUTLINE and label[:1].isdigit():
            scribe.write(f"\n{label}")
    scribe.script.text = "".join(scribe.parts)
    return scribe.script


def endings(text: str, syntax: Syntax) -> Iterator[Ending]:
    """Yield the tags that the last characters of a text can be the beginning of."""
    for tag in Tag:
        head, labelled, tail = syntax.written(tag, "{}").partition("{}")
        longest = min(len(head + tail) + 12, len(text)) if head else 0
        for size in range(1, longest + 1):
            if text[-size] != head[0]:
                continue
            part = text[len(text) - size :]
            label = part.removeprefix(head).rstrip(".")
            if head.startswith(part) or (
                labelled and part.startswith(head) and _NUMBER.fullmatch(label)
            ):
                yield len(text) - size, tag


class _Scribe:
    """Writes a transcript from the start of a text on; `at` is how far it has come."""

    def __init__(self, text: str, syntax: Syntax) -> None:
        self.text = text
        self.syntax = syntax
        self.script = Transcript()
        self.parts: list[str] = []
        self.size = self.at = self.dropped = 0

    def marks(self, stop: int, words: set[int]) -> list[Mark]:
        """Return the tags of the form up to `stop`; those that it does not have are dropped."""
        syntax = self.syntax
        own = {syntax.written(tag, "{}"): tag for tag in Tag if syntax.written(tag)}
        digits = ""
        out = []
        for index, match in enumerate(syntax.marker.finditer(self.text, self.at, stop)):
            start, end = match.span()
            name = match.group()
            if syntax.labels == "tag":
                label = _NUMBER.search(name)
                digits = label.group() if label else ""
                name = name.replace(digits, "{}") if digits else name
            tag = own.get(name)
            if tag and index not in words:
                out.append(Mark(start, end, tag, digits, index))
                continue
            message = f"{match.group()} stands in the text like a word: left out"
            alone = self.text.startswith("\n", end) and self.text[start - 1 : start] in ("", "\n")
            self.script.drops.append(Edit(start, end + alone, "", "tag-as-word", message))
        drops = self.script.drops
        self.script.drops = sorted([*drops, *hidden(self.text, drops, syntax.marker)])
        return out

    def write(self, text: str) -> None:
        """Write what has no source."""
        self.parts.append(text)
        self.size += len(text)

    def copy(self, end: int) -> None:
        """Take the text up to `end` as it is, without what is dropped."""
        drops = self.script.drops
        while self.dropped < len(drops) and drops[self.dropped].start < end:
            drop = drops[self.dropped]
            self.dropped += 1
            self._take(drop.start)
            self.at = max(self.at, drop.end)
        self._take(end)

    def _take(self, end: int) -> None:
        if end > self.at:
            self.script.runs.append(Run(self.size, self.at, end - self.at))
            self.write(self.text[self.at : end])
            self.at = end

    def upto(self, end: int, before: Tag | None) -> None:
        """Take the text up to the next tag; in a goal, lines may be outlines."""
        if before is Tag.GOAL and self.syntax.labels == "none":
            while line := _PATH_LINE.search(self.text, self.at, end):
                self.copy(line.start())
                self.write(f"{Tag.OUTLINE}\n{ANY}: ")
                self.at = max(self.at, line.end())
                stop = self.text.find("\n", self.at, end)
                self.copy(end if stop < 0 else stop)
                if stop >= 0 or end < len(self.text):
                    self.write(f"\n{Tag.END_OUTLINE}")
        self.copy(end)

    def alone(self, mark: Mark) -> bool:
        """Whether a tag stands like one: in a line's middle it may be a word, without a label."""
        before = self.text[mark.start - 1 : mark.start]
        return before in ("", "\n", ">") or _LINE_END.match(self.text, mark.end) is not None

    def tag(self, mark: Mark) -> None:
        """Write a tag with the white space and the label that the canonical form has there."""
        if mark.tag is Tag.END_OUTLINE and not self.text.endswith("\n", 0, mark.start):
            self.write("\n")  # so that spaces at the end of its line are text, as the form has it
        self.write(mark.tag.value)
        self.at = max(self.at, mark.end)
        opens = mark.tag in (Tag.OUTLINE, Tag.PATH)
        label = {"text": "", "tag": mark.label, "none": ANY}[self.syntax.labels] if opens else ""
        self.script.tags.append((self.size - len(mark.tag.value), mark.number, bool(label)))
        found = False
        for _ in self.syntax.after(mark.tag):
            if self.text.startswith("\n", self.at):
                self.at, found = self.at + 1, True
                continue
            line_end = _LINE_END.match(self.text, self.at)
            if not line_end:
                break
            self.at, found = line_end.end(), True
        if found:
            self.write(MULTIVERSE.after(mark.tag))
        if label and self.alone(mark):
            self.write(f"{label}: ")
