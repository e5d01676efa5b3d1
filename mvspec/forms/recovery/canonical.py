"""Repair of the canonical form: its structure, its labels, and the white space between its tags."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from itertools import groupby

from mvspec.errors import Diagnostic, Source
from mvspec.forms.recovery.edits import (
    LABEL,
    LEAD,
    Code,
    TextEdit,
    left_over_tags,
    only_space,
)
from mvspec.forms.recovery.labels import pair_labels
from mvspec.forms.recovery.structure import RecoveringParser, TagToken, read_structure
from mvspec.forms.syntax import Syntax
from mvspec.law.tags import TAG, Tag

_NEWLINE = re.compile("\n")
_TAIL_SPACE = re.compile(r"\n[ \t\r]++\Z")
_SURROGATE = re.compile(r"[\ud800-\udfff]+")
_LAYOUT: tuple[Code, ...] = ("separator", "missing-newline")


def canonical_repairs(source: Source, syntax: Syntax) -> Iterator[Diagnostic]:
    """Yield the repairs of a text that is not canonical, in order, without overlap.

    Time and memory are linear in the text, but for sorting; whoever wants the first repair alone
    leaves the others unlocated.

    Args:
        syntax: the canonical form; its `max_depth` may be that of another one.
    """
    text = _SURROGATE.sub(lambda m: "\ufffd" * len(m.group()), source.text)
    parser = read_structure(text, syntax.max_depth)
    dropped = [*parser.dropped, *left_over_tags(text, parser.dropped, TAG)]
    edits = list(CanonicalWriter(text, syntax, pair_labels(text, parser.tokens), dropped).edits())
    if text is not source.text:
        edits += surrogates(source.text, edits)
    edits.sort(key=lambda edit: (edit.start, edit.end > edit.start))
    before, after = split_at_end(text, edits, loose=syntax.loose)
    yield from merged(source, before)
    if after:
        missing = "".join(edit.insert for edit in after)
        message = cut_message(parser, after[0], missing)
        yield source.diagnostic(len(text), "cut", message, inserted=missing)


def split_at_end(
    text: str, edits: list[TextEdit], *, loose: bool
) -> tuple[list[TextEdit], list[TextEdit]]:
    """Return edits, and those at the end of a text that is cut; none where it is malformed.

    Args:
        loose: white space before the end is no mistake.
    """
    end = len(text)
    last = next((n for n, edit in enumerate(edits) if edit.start == end), len(edits))
    before = edits[:last]
    space = (only_space(edit.code, text[edit.start : edit.end], edit.insert) for edit in before)
    return (before, edits[last:]) if not before or (loose and all(space)) else (edits, [])


def surrogates(text: str, edits: list[TextEdit]) -> Iterator[TextEdit]:
    """Yield the replacement of lone surrogates that no other edit drops."""
    spans = iter(sorted((edit.start, edit.end) for edit in edits if edit.end > edit.start))
    span = next(spans, None)
    for match in _SURROGATE.finditer(text):
        while span and span[1] <= match.start():
            span = next(spans, None)
        if span is None or span[0] > match.start():
            start, end = match.span()
            message = "a lone surrogate is no character: U+FFFD stands for it"
            yield TextEdit(start, end, "\ufffd" * (end - start), "surrogate", message)


def cut_message(parser: RecoveringParser, first: TextEdit, missing: str) -> str:
    """Say where a text was cut, and what was to come next."""
    if first.message.startswith("the text ends"):
        return f"{first.message}: expected {first.insert}"
    line = next((part for part in missing.split("\n") if part), "a newline")
    inside = f" inside {parser.cut_inside}" if parser.cut_inside else ""
    return f"the text ends{inside}: expected {line}"


def merged(source: Source, edits: list[TextEdit]) -> Iterator[Diagnostic]:
    """Yield one diagnostic for each place: its first edit but white space names it."""
    for (start, end), group in groupby(edits, key=lambda edit: (edit.start, edit.end)):
        parts = list(group)
        lead = next((edit for edit in parts if edit.code not in _LAYOUT), parts[0])
        inserted = "".join(edit.insert for edit in parts)
        yield source.diagnostic(start, lead.code, lead.message, end=end, inserted=inserted)


class TextRun:
    """The text between two tags of the repaired text, without the tags dropped from it."""

    def __init__(self, text: str, start: int, end: int, dropped: list[TextEdit]) -> None:
        self.end = end
        self.edits: list[TextEdit] = []
        self.places: list[int] = []  # where each part starts in `self.text`, and in the source
        self.starts: list[int] = []
        parts: list[str] = []
        at, place = start, 0
        for stop, after in (*((edit.start, edit.end) for edit in dropped), (end, end)):
            if stop > at or not parts:
                parts.append(text[at:stop])
                self.places.append(place)
                self.starts.append(at)
                place += stop - at
            at = after
        self.text = "".join(parts)

    def replace(self, start: int, end: int, insert: str, code: Code, message: str) -> None:
        """Replace `self.text[start:end]`, a span that may hold dropped tags."""
        part = bisect.bisect_right(self.places, start) - 1
        if start == end:
            at = self.starts[part] + start - self.places[part]
            at = self.end if start == len(self.text) else at
            self.edits.append(TextEdit(at, at, insert, code, message))
        while start < end:
            last = part + 1 == len(self.places)
            stop = end if last else min(end, self.places[part + 1])
            shift = self.starts[part] - self.places[part]
            self.edits.append(TextEdit(start + shift, stop + shift, insert, code, message))
            start, part, insert = stop, part + 1, ""


class CanonicalWriter:
    """Makes every run between two tags canonical, and writes the tags that are missing."""

    def __init__(
        self, text: str, syntax: Syntax, tokens: list[TagToken], dropped: list[TextEdit]
    ) -> None:
        self.text = text
        self.syntax = syntax
        self.tokens = tokens
        self.dropped = sorted(dropped)

    def edits(self) -> Iterator[TextEdit]:
        """Yield every edit; those of one place in the order in which they are to be made."""
        yield from self.dropped
        before: TagToken | None = None
        at = low = 0
        stack: list[Tag] = []
        for token in (*self.tokens, None):
            end = token.start if token else len(self.text)
            high = low
            while high < len(self.dropped) and self.dropped[high].start < end:
                high += 1
            run = TextRun(self.text, at, end, self.dropped[low:high])
            self.canonical(run, before, token, stack[-1] if stack else None)
            yield from run.edits
            if not token:
                return
            if token.missing:
                message = token.message or f"the text ends inside the tag {token.tag}"
                yield TextEdit(token.end, token.end, token.missing, token.code, message)
            at, before, low = token.end, token, high
            if token.tag.closes:
                stack.pop()
            else:
                stack.append(token.tag)

    def canonical(
        self, run: TextRun, before: TagToken | None, after: TagToken | None, inside: Tag | None
    ) -> None:
        """TextEdit the run between two tags into what the syntax has there."""
        cut = run.end == len(self.text)
        if inside in (Tag.PARALLEL, Tag.GOAL):
            self.structural(run, cut)
            return
        if before and before.line is not None:
            label = self.syntax.after(Tag.OUTLINE) + before.label + self.syntax.label_end
            message = f"the paths come in another order: outline {before.label} stands here"
            run.replace(0, len(run.text), f"{label}{before.line}\n", "outline-order", message)
            return
        lead = 0
        tag = before.tag if before else None
        if before and cut and tag in (Tag.PATH, Tag.OUTLINE) and self.label_cut(run, before):
            lead = len(run.text)
        elif before:
            for _ in self.syntax.after(before.tag):
                lead = self.newline(run, lead, before.tag)
            if tag in (Tag.PATH, Tag.OUTLINE):
                lead = self.label(run, lead, before.label, cut)
        if inside is Tag.OUTLINE:
            self.line(run, lead, cut)
        elif after and after.tag is Tag.THINK:
            if run.text:
                message = "white space stands before <Think>"
                run.replace(0, len(run.text), "", "separator", message)
        elif after:
            self.trail(run, lead, tag in (Tag.PATH, Tag.CONCLUSION), after.tag, cut)

    def structural(self, run: TextRun, cut: bool) -> None:
        """Between two tags that hold no text stands one separator."""
        want = self.syntax.separator
        if run.text == want:
            return
        if run.text.strip():
            message = "text stands where only tags may: left out"
            run.replace(0, len(run.text), want, "text-outside", message)
        elif cut and not run.text:
            run.replace(0, 0, want, "separator", "expected a newline after the tag")
        else:
            message = f"expected one newline between two tags, found {found(run.text)}"
            run.replace(0, len(run.text), want, "separator", message)

    def newline(self, run: TextRun, at: int, tag: Tag) -> int:
        """A tag is followed by a newline."""
        if run.text.startswith("\n", at):
            return at + 1
        match = LEAD.match(run.text, at)
        if not match:
            run.replace(at, at, "\n", "separator", f"expected a newline after {tag}")
            return at
        stop = match.end() - 1
        if stop > at:
            space = found(run.text[at : stop + 1])
            message = f"expected a newline right after {tag}, found {space}"
            run.replace(at, stop, "", "separator", message)
        return match.end()

    def label_cut(self, run: TextRun, opening: TagToken) -> bool:
        """Complete the label in which a text ends that has other white space before it."""
        after = self.syntax.after(opening.tag)
        want = after + opening.label + self.syntax.label_end
        begun, end = run.text.strip(), len(run.text)
        if not want[len(after) :].startswith(begun) or want.startswith(run.text):
            return False
        message = f"expected a newline right after {opening.tag}, found {found(run.text)}"
        run.replace(0, end, after + begun, "separator", message)
        missing = want[len(after + begun) :]
        run.replace(end, end, missing, "missing-label", f"expected {missing!r}")
        return True

    def label(self, run: TextRun, at: int, label: str, cut: bool) -> int:
        """An outline and a path begin with their label."""
        want = label + self.syntax.label_end
        if run.text.startswith(want, at):
            return at + len(want)
        rest = run.text[at : at + len(want)]
        if cut and want.startswith(rest):
            end = len(run.text)
            run.replace(end, end, want[len(rest) :], "missing-label", f"expected {want!r}")
            return end
        match = LABEL.match(run.text, at)
        if not match:
            run.replace(at, at, want, "missing-label", f"expected the label {want!r}")
            return at
        written = run.text[at : match.end()]
        space = self.syntax.label_end[1:]
        stop = match.end()
        if match.group(1) != label:
            message = f"the label is {match.group(1)}: expected {label}"
            run.replace(at, stop, label + ":", "wrong-label", message)
        elif written != label + ":":
            message = f"expected {want!r}, found {written!r}"
            run.replace(at, stop, label + ":", "separator", message)
        if not run.text.startswith(space, stop):
            run.replace(stop, stop, space, "separator", f"expected a space after {label + ':'!r}")
            return stop
        return stop + len(space)

    def line(self, run: TextRun, at: int, cut: bool) -> None:
        """An outline is one line, and a newline."""
        rest = run.text[at:]
        first = rest.find("\n")
        if 0 <= first == len(rest) - 1:
            return
        stop = len(rest) if cut and first < 0 else len(rest.rstrip("\n \t\r"))
        for match in _NEWLINE.finditer(rest, 0, stop):
            message = "an outline is one line: its newline becomes a space"
            run.replace(at + match.start(), at + match.end(), " ", "outline-line", message)
        if rest[stop:] != "\n":
            message = "expected a newline after the outline's line"
            run.replace(at + stop, len(run.text), "\n", "separator", message)

    def trail(self, run: TextRun, at: int, inline: bool, tag: Tag, cut: bool) -> None:
        """Text before a tag ends in a newline; in line with a label it is there without text."""
        end = len(run.text)
        size = end - at
        if run.text.endswith("\n", at) and (inline or size > 1):
            return
        if not size and not inline:
            return
        if cut:
            run.replace(end, end, "\n", "missing-newline", f"expected a newline before {tag}")
        elif size and not run.text[at:].strip("\n \t\r"):
            want = "\n" if inline else ""
            message = f"expected {tag}, found {found(run.text[at:])}"
            run.replace(at, end, want, "separator", message)
        elif match := _TAIL_SPACE.search(run.text, at):
            run.replace(match.start() + 1, end, "", "separator", f"spaces stand before {tag}")
        else:
            message = f"expected a newline before {tag}"
            run.replace(end, end, "\n", "missing-newline", message)


def found(space: str) -> str:
    """Return white space as a message shows it."""
    shown = repr(space[:12]) + ("..." if len(space) > 12 else "")
    return shown + (": line ends are CRLF, not LF" if space.startswith("\r\n") else "")
