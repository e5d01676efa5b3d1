"""Repair of the other tagged forms, by way of a transcript in the canonical one.

So one set of rules decides for every tagged form what is structure. What the canonical repair of a
transcript keeps of the text is found again in the form's own rendering of the tree; where the two
differ in between is an edit. A rendering is canonical by law 1, so the edits are complete whatever
the rules decided.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, cast

from mvspec.errors import Diagnostic, Source
from mvspec.forms.recovery.canonical import canonical_repairs, split_at_end
from mvspec.forms.recovery.edits import Code, TextEdit, apply, left_over_tags, only_space
from mvspec.forms.syntax import Piece, Syntax
from mvspec.law.tags import TAG, Tag
from mvspec.tree.builder import number
from mvspec.tree.ir import LABEL, Document, Message, Parallel, Text, Think
from mvspec.tree.node import Node

_PASSES = 3
"""Times that a text is read again without the numbered tags that turned out to be words."""

_SHOWN = 60
"""Characters of what is missing that a message shows; JSON has it all in one line."""

_ANY = "0"
"""The label of paths and outlines in a form that writes none: recovery pairs them as they come."""

_BARE_GOAL = f"{Tag.GOAL}\n{Tag.OUTLINE}\n{_ANY}: \n{Tag.END_OUTLINE}\n{Tag.END_GOAL}\n"
"""The goal of a block in a form that writes none; recovery adds outlines for further paths."""

_LINE_END = re.compile(r"[ \t\r]*\n")
_NUMBER = re.compile(LABEL.pattern)
_PATH_LINE = re.compile(r"^[ \t]*path[^\n:]*:[ \t]?", re.MULTILINE | re.IGNORECASE)
_OPENING_FENCE = re.compile(r"\s*```[a-z]*[ \t\r]*(?:\n|\Z)")
_CLOSING_FENCE = re.compile(r"```\s*\Z")
_BARE_JOIN = re.compile(r"(?:<C[a-z]*|<Conclusion>\s*(?:</?[A-Za-z]*)?)\Z")
_OUTLINES = (Tag.OUTLINE, Tag.END_OUTLINE)
_WORDS = ("tag-as-word", "stray-tag", "too-deep")
_SPACE: tuple[Code, ...] = ("separator", "missing-newline", "cut")
_LABELS: tuple[Code, ...] = ("missing-label", "wrong-label")

_PartialTag = tuple[int, Tag]
"""A place where a text ends in the beginning of a tag, and the tag."""


class SharedRun(NamedTuple):
    """A run of text that stands in two texts: where in each, and its size in characters."""

    at: int
    source: int
    size: int


class _TagMark(NamedTuple):
    """A tag of the form in a text: its span, its label or "", and its number among all tags."""

    start: int
    end: int
    tag: Tag
    label: str
    number: int


class Transcript:
    """A text of a tagged form, written in the canonical form; takes time linear in the text.

    Args:
        source: the text.
        syntax: its form.
        canonical: the form to write.
        words: numbers of tags that are words of the text.
        partial: the tag to which the last characters are completed.

    Attributes:
        text: the text in the canonical form; what no run holds was written for a tag.
        runs: its runs that were taken as they are, in order.
        drops: what the form has no place for, in order.
        tags: where each tag was written, its number, and whether a label came with it, which is
            left over where recovery takes the tag for a word.
    """

    def __init__(
        self,
        source: str,
        syntax: Syntax,
        canonical: Syntax,
        words: set[int],
        partial: _PartialTag | None = None,
    ) -> None:
        self.source = source
        self.syntax = syntax
        self.canonical = canonical
        self.runs: list[SharedRun] = []
        self.drops: list[TextEdit] = []
        self.tags: list[tuple[int, int, bool]] = []
        self._parts: list[str] = []
        self._size = self._at = self._dropped = 0
        self._transcribe(words, partial)
        self.text = "".join(self._parts)

    def _transcribe(self, words: set[int], partial: _PartialTag | None) -> None:
        source, numbered = self.source, self.syntax.labels == "tag"
        stop = partial[0] if partial else len(source)
        closing = None
        if self.syntax.fence and (opening := _OPENING_FENCE.match(source)):
            self._write(f"{Tag.THINK}\n")
            self._at = opening.end()
            closing = _CLOSING_FENCE.search(source, max(self._at, stop - 80), stop)
            stop = closing.start() if closing else stop
        marks = self._marks(stop, words)
        bare_goal = not self.syntax.written(Tag.OUTLINE)
        bare_block = not self.syntax.written(Tag.PARALLEL)
        joining = False
        end = _TagMark(stop, stop, partial[1] if partial else Tag.CONCLUSION, "", -1)
        before: Tag | None = None
        for place, mark in enumerate(marks):
            self._copy_text(mark.start, before)
            following = marks[place + 1] if place + 1 < len(marks) else end
            after = following.tag if place + 1 < len(marks) else None
            apart = self._stands_alone(mark)
            if self.syntax.outside and mark.tag is Tag.END_PARALLEL:
                skipped, joining = self._skipped(mark, following)
                if skipped:
                    continue
            if bare_block and mark.tag is Tag.GOAL and (apart or after is Tag.OUTLINE):
                self._write(Tag.PARALLEL if before is not Tag.GOAL else "")
            # Where labels stand in the tags no tag is around the outlines.
            first = mark.tag is Tag.OUTLINE and before not in _OUTLINES
            if numbered and first and apart:
                self._write(f"{Tag.GOAL}\n")
            self._tag(mark, between=self.syntax.outside and before in (Tag.PARALLEL, Tag.END_PATH))
            if numbered and mark.tag is Tag.END_OUTLINE and after not in _OUTLINES:
                self._write(f"{Tag.END_GOAL}\n" if after else "")
            if bare_goal and mark.tag is Tag.PARALLEL and apart and after is not Tag.PARALLEL:
                self._write(_BARE_GOAL)
            if joining and mark.tag is Tag.END_CONCLUSION:
                self._write(f"{Tag.END_PARALLEL}\n")
            if mark.tag in (Tag.CONCLUSION, Tag.END_CONCLUSION, Tag.GOAL, Tag.PARALLEL):
                joining = mark.tag is Tag.CONCLUSION and (bare_block or self.syntax.outside)
            before = mark.tag
        self._copy_text(stop, before)
        if closing:
            self._write(f"{Tag.END_THINK}\n\n")
        elif partial:
            head = self.syntax.written(partial[1], "{}").partition("{}")[0]
            label = _ANY if self.syntax.labels == "none" else source[partial[0] + len(head) :]
            self._write(partial[1].value)
            if partial[1] is Tag.OUTLINE and label[:1].isdigit():
                self._write(f"\n{label}")

    def _skipped(self, mark: _TagMark, following: _TagMark) -> tuple[bool, bool]:
        """Pass over a `</Parallel>` before its conclusion, or before another one.

        Returns:
            (whether it was passed over, whether a conclusion was opened in its place).
        """
        bare = not self.source[mark.end : following.start].strip()
        joins = following.number >= 0 and following.tag in (Tag.CONCLUSION, Tag.END_CONCLUSION)
        if bare and following.tag in (Tag.CONCLUSION, Tag.END_PARALLEL):
            self._at = max(self._at, following.start)
            return True, False
        if not joins:
            return False, False
        line_end = _LINE_END.match(self.source, mark.end)
        self._at = max(self._at, line_end.end() if line_end else mark.end)
        self._write(f"{Tag.CONCLUSION}\n")
        return True, True

    def _marks(self, stop: int, words: set[int]) -> list[_TagMark]:
        """Return the tags of the form up to `stop`; those that it does not have are dropped."""
        syntax, source = self.syntax, self.source
        own = {syntax.written(tag, "{}"): tag for tag in Tag if syntax.written(tag)}
        digits = ""
        out: list[_TagMark] = []
        drops: list[TextEdit] = []
        for index, match in enumerate(syntax.marker.finditer(source, self._at, stop)):
            start, end = match.span()
            name = match.group()
            if syntax.labels == "tag":
                label = _NUMBER.search(name)
                digits = label.group() if label else ""
                name = name.replace(digits, "{}") if digits else name
            tag = own.get(name)
            if tag and index not in words:
                out.append(_TagMark(start, end, tag, digits, index))
                continue
            message = f"{match.group()} stands in the text like a word: left out"
            alone = source.startswith("\n", end) and source[start - 1 : start] in ("", "\n")
            drops.append(TextEdit(start, end + alone, "", "tag-as-word", message))
        self.drops = sorted([*drops, *left_over_tags(source, drops, syntax.marker)])
        return out

    def _write(self, text: str) -> None:
        """Write what has no source."""
        self._parts.append(text)
        self._size += len(text)

    def _copy(self, end: int) -> None:
        """Take the text up to `end` as it is, without what is dropped."""
        drops = self.drops
        while self._dropped < len(drops) and drops[self._dropped].start < end:
            drop = drops[self._dropped]
            self._dropped += 1
            self._take(drop.start)
            self._at = max(self._at, drop.end)
        self._take(end)

    def _take(self, end: int) -> None:
        if end > self._at:
            self.runs.append(SharedRun(self._size, self._at, end - self._at))
            self._write(self.source[self._at : end])
            self._at = end

    def _copy_text(self, end: int, before: Tag | None) -> None:
        """Take the text up to the next tag; in a goal, lines may be outlines."""
        source = self.source
        if before is Tag.GOAL and self.syntax.labels == "none":
            while line := _PATH_LINE.search(source, self._at, end):
                self._copy(line.start())
                self._write(f"{Tag.OUTLINE}\n{_ANY}: ")
                self._at = max(self._at, line.end())
                stop = source.find("\n", self._at, end)
                self._copy(end if stop < 0 else stop)
                if stop >= 0 or end < len(source):
                    self._write(f"\n{Tag.END_OUTLINE}")
        self._copy(end)

    def _stands_alone(self, mark: _TagMark) -> bool:
        """Whether a tag stands like one: in a line's middle it may be a word, without a label."""
        before = self.source[mark.start - 1 : mark.start]
        return before in ("", "\n", ">") or _LINE_END.match(self.source, mark.end) is not None

    def _tag(self, mark: _TagMark, *, between: bool) -> None:
        """Write a tag with the white space and the label that the canonical form has there.

        Args:
            between: whether it can only be a path's opening if it is one.
        """
        source, tag = self.source, mark.tag
        if tag is Tag.END_OUTLINE and not source.endswith("\n", 0, mark.start):
            self._write("\n")  # so that spaces at the end of its line are text, as the form has it
        self._write(tag.value)
        self._at = max(self._at, mark.end)
        opens = tag in (Tag.OUTLINE, Tag.PATH)
        label = {"text": "", "tag": mark.label, "none": _ANY}[self.syntax.labels] if opens else ""
        self.tags.append((self._size - len(tag.value), mark.number, bool(label)))
        found = False
        for _ in self.syntax.after(tag):
            if source.startswith("\n", self._at):
                self._at, found = self._at + 1, True
                continue
            line_end = _LINE_END.match(source, self._at)
            if not line_end:
                break
            self._at, found = line_end.end(), True
        if found:
            self._write(self.canonical.after(tag))
        if label and (between or self._stands_alone(mark)):
            self._write(f"{label}: " if found else f"\n{label}: ")


@dataclass(frozen=True)
class AlignedRepair:
    """Repair of the texts of a tagged form by way of the canonical form.

    Args:
        syntax: the form.
        canonical: the canonical form, whose rules decide.
        read: text of the canonical form to a document.
    """

    syntax: Syntax
    canonical: Syntax
    read: Callable[[str], Document]

    def repair(
        self, source: Source, *, whole: bool = True
    ) -> tuple[tuple[Diagnostic, ...], Message]:
        """Return the repairs that make a text canonical in its form, and the turn it then is.

        Args:
            whole: whether the text ends where it does; else no tag is sought that its end begins.
        """
        if whole:
            edits, message = self._edits(source.text)
        else:
            edits, _, message = self._attempt(source.text, None)
        found = located(source, edits, loose=self.syntax.loose)
        if not whole or (found and found[-1].code == "cut"):
            return found, message
        return self._bare_join(source) or (found, message)

    def _bare_join(self, source: Source) -> tuple[tuple[Diagnostic, ...], Message] | None:
        """Return the repair of a text that ends in a conclusion of which nothing stands there.

        Where the form does not write a conclusion that is empty, what there is of it is left out,
        for no text of the tree could follow. None where the text is not cut there.
        """
        text, optional = source.text, self.syntax.optional_join
        tail = _BARE_JOIN.match(text, max(0, text.rfind("<C"))) if optional else None
        if not tail:
            return None
        start, end = tail.span()
        head = Source(text[:start], source.name)
        edits, message = self._edits(head.text)
        found = located(head, edits, loose=self.syntax.loose)
        missing = found[-1].inserted if found and found[-1].code == "cut" else ""
        if not missing.lstrip().startswith(self.syntax.written(Tag.END_PARALLEL)):
            return None
        said = f"the text ends where a conclusion begins: expected {Tag.END_PARALLEL} or its text"
        cut = source.diagnostic(start, "cut", said, end=end, inserted=missing)
        return (*found[:-1], cut), message

    def _edits(self, text: str) -> tuple[list[TextEdit], Message]:
        """Return the edits that make a text canonical in its form, and the turn that it then is."""
        edits, _, message = self._attempt(text, None)
        end = len(text)
        if not edits or split_at_end(text, edits, loose=self.syntax.loose)[1]:
            return edits, message
        for partial in self._partial_tags(text):
            found, rendered, completed = self._attempt(text, partial)
            if rendered.startswith(text):
                cut = TextEdit(end, end, rendered[end:], "cut", "the text ends inside a tag")
                return [cut], completed
            if self.syntax.loose and split_at_end(text, found, loose=True)[1]:
                return found, completed
        return edits, message

    def _partial_tags(self, text: str) -> Iterator[_PartialTag]:
        """Yield the tags that the last characters of a text can be the beginning of."""
        for tag in Tag:
            head, labelled, tail = self.syntax.written(tag, "{}").partition("{}")
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

    def _attempt(
        self, text: str, partial: _PartialTag | None
    ) -> tuple[list[TextEdit], str, Message]:
        """Return the edits of a text, the rendering that they make of it, and the turn.

        Args:
            partial: the tag that the last characters are read as the beginning of.
        """
        rules = replace(self.canonical, max_depth=self.syntax.max_depth, loose=False)
        words: set[int] = set()
        for left in range(_PASSES, -1, -1):
            script = Transcript(text, self.syntax, self.canonical, words, partial)
            found = tuple(canonical_repairs(Source(script.text), rules))
            canonical = apply(script.text, found)
            # Around a tag that is left out another may come about, which then is left out too.
            new = _words(script, found, every=bool(self._foreign.search(canonical)))
            if not new:
                break
            words |= new if left > 1 else {number for _, number, _ in script.tags}
        (message,) = self.read(canonical).messages
        _, places = _placed(self.canonical.pieces(message))
        message = self._fitted(message)
        rendered, own = _placed(self.syntax.pieces(message))
        placed = [
            SharedRun(at, source, size) for (at, size), (source, _) in zip(own, places, strict=True)
        ]
        runs = list(_joined(list(_joined(placed, _kept(script.text, found))), script.runs))
        edits = list(_gaps(text, rendered, runs, self._reasons(script, found), self.syntax))
        edits = _parted(text, edits) if self.syntax.loose else edits
        return edits, rendered, message

    @cached_property
    def _foreign(self) -> re.Pattern[str]:
        """The tags of the form that are none of the canonical form."""
        others = (tag for tag in self.syntax.tags if tag.startswith("<") and not TAG.match(tag))
        labelled = (re.escape(tag).replace(r"\{\}", LABEL.pattern) for tag in others)
        return re.compile("|".join(labelled) or r"(?!)")

    def _fitted(self, message: Message) -> Message:
        """Return a turn with its numbers, and text like a fence, put right for the form."""
        body = message.body
        if self.syntax.counted:
            body = tuple(_counted(item) for item in body)  # type: ignore[misc]
        first = body[0] if body else None
        fence = f"{self.syntax.fence}\n"
        if self.syntax.fence and isinstance(first, Text) and f"{first.text}\n".startswith(fence):
            body = (Think.build(body=body),)
        return Message(role="assistant", body=body)

    def _reasons(
        self, script: Transcript, found: tuple[Diagnostic, ...]
    ) -> list[tuple[int, Code, str]]:
        """Return what was decided at which place of the text, in order."""
        starts = [run.at for run in script.runs]
        reasons = [(edit.start, edit.code, edit.message) for edit in script.drops]
        for each in found:
            place = bisect_right(starts, each.offset) - 1
            run = script.runs[place] if place >= 0 else SharedRun(0, 0, 0)
            at = min(run.source + run.size, run.source + each.offset - run.at)
            said = TAG.sub(
                lambda tag: self.syntax.written(Tag(tag.group()), "N") or tag.group(), each.message
            )
            reasons.append((at, cast(Code, each.code), said))
        return sorted(reasons, key=lambda reason: reason[0])


def _parted(text: str, edits: list[TextEdit]) -> list[TextEdit]:
    """Return edits, the last one in two where it adds to the end and before that changes space."""
    *before, last = edits or [TextEdit(0, 0, "", "cut", "")]
    have, want, end = text[last.start : last.end], last.insert, len(text)
    at = 0
    for character in "".join(have.split()):
        while want[at : at + 1].isspace():
            at += 1
        if not want.startswith(character, at):
            return edits
        at += 1
    if have[-1:].isspace():
        at += len(want[at:]) - len(want[at:].lstrip())
    if not have or last.end < end or at == len(want):
        return edits
    space = last._replace(insert=want[:at], code="separator")
    return [*before, *[space] * (have != want[:at]), last._replace(start=end, insert=want[at:])]


def located(
    source: Source, edits: list[TextEdit], *, loose: bool = False
) -> tuple[Diagnostic, ...]:
    """Return edits in order as diagnostics; those at the end of a text that was cut are one."""
    edits, after = split_at_end(source.text, edits, loose=loose)
    out = [
        source.diagnostic(edit.start, edit.code, edit.message, end=edit.end, inserted=edit.insert)
        for edit in edits
    ]
    end = len(source.text)
    if after:
        missing = "".join(edit.insert for edit in after)
        line = next((part for part in missing.split("\n") if part), "a newline")
        shown = line[:_SHOWN] + "..." * (len(line) > _SHOWN)
        message = f"the text ends: expected {shown}"
        out.append(source.diagnostic(end, "cut", message, inserted=missing))
    return tuple(out)


def _words(script: Transcript, found: tuple[Diagnostic, ...], *, every: bool) -> set[int]:
    """Return the numbers of the tags that the repair drops: all, or those with a label."""
    out: set[int] = set()
    if not any(each.code in _WORDS for each in found):
        return out
    starts = [each.offset for each in found]
    for at, index, labelled in script.tags:
        place = bisect_right(starts, at) - 1
        drops = place >= 0 and found[place].code in _WORDS and at < found[place].end
        if drops and (every or labelled):
            out.add(index)
    return out


def _counted(item: Node) -> Node:
    if isinstance(item, Think):
        return Think(body=tuple(_counted(each) for each in item.body))
    return number(item) if isinstance(item, Parallel) else item


def _placed(pieces: Iterable[Piece]) -> tuple[str, list[tuple[int, int]]]:
    """Return a rendering, and where each text of the tree stands in it, with its size."""
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    at = 0
    for piece in pieces:
        if piece.content:
            places.append((at, len(piece.text)))
        parts.append(piece.text)
        at += len(piece.text)
    return "".join(parts), places


def _kept(text: str, found: tuple[Diagnostic, ...]) -> list[SharedRun]:
    """Return the runs of a repaired text that the repairs keep."""
    out: list[SharedRun] = []
    at = place = 0
    for each in found:
        out.append(SharedRun(place, at, each.offset - at))
        place += each.offset - at + len(each.inserted)
        at = each.end
    return [*out, SharedRun(place, at, len(text) - at)]


def _joined(first: list[SharedRun], second: list[SharedRun]) -> Iterator[SharedRun]:
    """Yield the runs from the first of three texts to the last; both lists rise."""
    low = 0
    for run in first:
        end = run.source + run.size
        while low < len(second) and second[low].at + second[low].size <= run.source:
            low += 1
        index = low
        while index < len(second) and second[index].at < end:
            other = second[index]
            start = max(run.source, other.at)
            stop = min(end, other.at + other.size)
            if stop > start:
                at, source = run.at + start - run.source, other.source + start - other.at
                yield SharedRun(at, source, stop - start)
            index += 1


def _gaps(
    text: str,
    rendered: str,
    runs: list[SharedRun],
    reasons: list[tuple[int, Code, str]],
    syntax: Syntax,
) -> Iterator[TextEdit]:
    """Yield the smallest edit for each place between two runs where text and rendering differ."""
    low = at = start = 0
    for run in (*runs, SharedRun(len(rendered), len(text), 0)):
        want, have = rendered[at : run.at], text[start : run.source]
        while low < len(reasons) and reasons[low][0] < start:
            low += 1
        high = low
        while high < len(reasons) and reasons[high][0] <= run.source:
            high += 1
        if want != have:
            code: Code
            code, message = _reason(have, want, reasons[low:high], syntax)
            if run.source == len(text) and code == "separator" and want.strip():
                line = next(filter(None, want.split("\n")))
                code, message = "missing-closing", f"the text ends: expected {line}"
            same = _same_start(have, want)
            have, want = have[same:], want[same:]
            last = syntax.loose and run.source == len(text)
            after = 0 if last else _same_start(have[::-1], want[::-1])
            stop = run.source - after
            yield TextEdit(start + same, stop, want[: len(want) - after], code, message)
        at, start = run.at + run.size, run.source + run.size


def _same_start(one: str, other: str) -> int:
    """Return how many characters two texts have in common from the start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _reason(
    have: str, want: str, reasons: list[tuple[int, Code, str]], syntax: Syntax
) -> tuple[Code, str]:
    """Say why one place differs: as the rules did, where that holds for the form."""
    if syntax.loose and only_space("separator", have, want):
        return "separator", f"expected {_quoted(want)}, found {_quoted(have)}"
    silent = {*_SPACE}
    if syntax.labels == "none":
        silent |= {*_LABELS}
    if syntax.optional_join:
        silent.add("missing-conclusion")
    if not syntax.written(Tag.OUTLINE):
        silent.add("missing-outline")
    for _, code, said in reasons:
        if code not in silent:
            return code, said
    message = f"expected {_quoted(want)}, found {_quoted(have)}"
    if have.split() == want.split():
        glued = any(code == "missing-newline" for _, code, _ in reasons)
        return "missing-newline" if glued else "separator", message
    plain = (re.sub("[0-9.]", "", part).split() for part in (have, want))
    if next(plain) == next(plain):
        return "wrong-label", message
    tags = [Counter(syntax.marker.findall(part)) for part in (have, want)]
    if missing := next(iter(tags[1] - tags[0]), ""):
        return ("missing-closing" if missing.startswith("</") else "missing-opening"), message
    if tags[0] - tags[1]:
        return "stray-tag", message
    return "separator", message


def _quoted(text: str) -> str:
    """Return what stands between two runs as a message shows it."""
    return repr(text[:40]) + ("..." if len(text) > 40 else "") if text else "nothing"
