"""Repair: the edits that turn any text into canonical text of its form.

The rule, in order: text is never dropped where a place can hold it; a tag that the open
structure expects is believed; a tag that it does not expect is believed where it stands like a
tag (on its own line) and closing what is open explains it; any other tag is a word and is
dropped, its surroundings kept; what is missing is written in its shortest form. Paths match
outlines by label, in order. Edits are made where the text first departs from the grammar, so a
text whose edits all stand at its end is a prefix of a well-formed one: it was cut.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from mvspec.errors import Diagnostic, Source
from mvspec.ir import MAX_DEPTH, TAG
from mvspec.syntax import Syntax, Tag

__all__ = ["repair"]

_NUMBER = r"[0-9]+(?:\.[0-9]+)*"
_LABEL = re.compile(rf"\s*({_NUMBER})[ \t]*:")
_LABEL_LINE = re.compile(rf"^[ \t]*{_NUMBER}[ \t]*:", re.MULTILINE)
_LEAD = re.compile(r"[ \t\r]*\n")
_TAIL_SPACE = re.compile(r"\n[ \t\r]+\Z")
_PARTIAL_TAG = re.compile(r"</?[A-Za-z]*\Z")
_SURROGATE = re.compile(r"[\ud800-\udfff]+")


def repair(source: Source, syntax: Syntax) -> tuple[Diagnostic, ...]:
    """Return the repairs of a text that is not canonical, in order, without overlap."""
    text = _SURROGATE.sub(lambda m: "\ufffd" * len(m.group()), source.text)
    scan = Scan(text)
    scan.run()
    edits = [
        Edit(m.start(), m.end(), "\ufffd" * len(m.group()), "surrogate",
             "a lone surrogate is no character: U+FFFD stands for it")
        for m in _SURROGATE.finditer(source.text)
    ]  # fmt: skip
    edits += Writer(text, syntax, Pairing(text, scan.events).run(), scan.dropped).run()
    edits.sort(key=lambda edit: (edit.start, edit.end > edit.start))
    end = len(text)
    if edits and all(edit.start == end for edit in edits):
        missing = "".join(edit.insert for edit in edits)
        return (source.diagnostic(end, "cut", _cut_message(scan, missing), inserted=missing),)
    return tuple(_merged(source, edits))


def _cut_message(scan: Scan, missing: str) -> str:
    line = next((part for part in missing.split("\n") if part), "a newline")
    inside = f" inside {scan.cut_inside}" if scan.cut_inside else ""
    return f"the text ends{inside}: expected {line}"


def _merged(source: Source, edits: list[Edit]) -> Iterator[Diagnostic]:
    # What is inserted at one place is one repair: its first tag names it.
    for place, group in groupby(edits, key=lambda e: (e.start, e.end)):
        parts = list(group)
        lead = next((e for e in parts if e.code not in ("separator", "missing-newline")), parts[0])
        inserted = "".join(edit.insert for edit in parts)
        yield source.diagnostic(
            place[0], lead.code, lead.message, end=place[1], inserted=inserted
        )


class Edit(NamedTuple):
    """Replace `text[start:end]` by `insert`."""

    start: int
    end: int
    insert: str
    code: str
    message: str


@dataclass(slots=True)
class Event:
    """A tag of the repaired text; empty span where the source lacks it, in part or whole."""

    tag: Tag
    start: int
    end: int
    code: str = ""
    message: str = ""

    @property
    def missing(self) -> str:
        return self.tag.value[self.end - self.start :]


@dataclass(slots=True)
class Frame:
    """An open construct: the opening tag that made it, and what a block has so far."""

    kind: Tag | None
    opened: Event | None = None
    goal: Event | None = None  # the last </Goal>
    outlines: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    path_end: Event | None = None
    conclusion_end: Event | None = None


class Scan:
    """Decides for every tag whether it is structure or a word, and where tags are missing."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.events: list[Event] = []
        self.dropped: dict[int, Edit] = {}
        self.stack: list[Frame] = [Frame(None)]
        self.had_think = False
        self.too_deep = 0
        self.cut_inside = ""

    # Reading

    def run(self) -> None:
        tags = list(TAG.finditer(self.text))
        at = 0
        for index, match in enumerate(tags):
            self.match = match
            self.run_start, self.at = at, match.start()
            self.following = self.next_tag(tags, index + 1)
            tag = Tag(match.group())
            if self.too_deep:
                self.too_deep += (tag is Tag.PARALLEL) - (tag is Tag.END_PARALLEL)
                self.drop("too-deep", f"{tag} stands more than {MAX_DEPTH} blocks deep")
            else:
                self.place_text(tag)
                getattr(self, f"on_{tag.name.lower()}")()
            at = match.end()
        self.finish(at)

    def next_tag(self, tags: list[re.Match[str]], index: int) -> Tag | None:
        """The next tag that does not stand in the text like a word."""
        for match in tags[index : index + 8]:
            if match.group()[1] == "/" or _LEAD.match(self.text, match.end()):
                return Tag(match.group())
        return None

    def finish(self, at: int) -> None:
        end = len(self.text)
        self.run_start, self.at, self.following = at, end, None
        partial = _PARTIAL_TAG.search(self.text, max(at, end - 14))
        self.place_text(None, "" if partial is None else partial.group())
        names = [frame.kind for frame in self.stack if frame.kind]
        self.cut_inside = str(names[-1]) if names else ""
        if partial:
            for tag in self.expected():
                if tag.value.startswith(partial.group()):
                    self.at = partial.start()
                    self.accept(tag, end)
                    break
        self.at = end
        self.close_to(0, "missing-closing")

    def expected(self) -> tuple[Tag, ...]:
        """The tags that may come next where only tags may."""
        frame = self.stack[-1]
        if frame.kind is Tag.OUTLINE:
            line_done = "\n" in self.text[self.run_start :].strip("\n ")
            return (Tag.END_OUTLINE,) if line_done else ()
        if frame.kind is Tag.GOAL:
            return (Tag.OUTLINE, Tag.END_GOAL) if self.parent.outlines else (Tag.OUTLINE,)
        if frame.kind is not Tag.PARALLEL:
            return ()
        if frame.conclusion_end:
            return (Tag.END_PARALLEL,)
        if not frame.goal:
            return (Tag.GOAL,)
        return (Tag.PATH if len(frame.paths) < len(frame.outlines) else Tag.CONCLUSION,)

    # The stack

    @property
    def top(self) -> Tag | None:
        return self.stack[-1].kind

    @property
    def parent(self) -> Frame:
        return self.stack[-2]

    def find(self, *kinds: Tag) -> int:
        """Index of the innermost open construct of one of these kinds, or -1."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index].kind in kinds:
                return index
        return -1

    def block(self) -> Frame | None:
        index = self.find(Tag.PARALLEL)
        return self.stack[index] if index >= 0 else None

    # Deciding

    def accept(self, tag: Tag, end: int | None = None) -> None:
        """Take the tag at hand as structure."""
        self.emit(Event(tag, self.at, self.match.end() if end is None else end))

    def write(self, tag: Tag, code: str, message: str, at: int | None = None) -> None:
        """Add a tag that the text lacks."""
        at = self.at if at is None else at
        self.emit(Event(tag, at, at, code, message))

    def emit(self, event: Event) -> None:
        self.events.append(event)
        tag = event.tag
        if not tag.closes:
            if tag is Tag.PATH:
                self.stack[-1].paths.append(self.label_after(event.end))
            elif tag is Tag.OUTLINE:
                self.parent.outlines.append(self.label_after(event.end))
            self.had_think |= tag is Tag.THINK
            self.stack.append(Frame(tag, event))
            return
        frame = self.stack.pop()
        owner = self.stack[-1]
        if tag is Tag.END_GOAL:
            owner.goal = event
        elif tag is Tag.END_PATH:
            owner.path_end = event
        elif tag is Tag.END_CONCLUSION:
            owner.conclusion_end = event
        del frame

    def label_after(self, at: int) -> str:
        match = _LABEL.match(self.text, at)
        return match.group(1) if match else ""

    def drop(self, code: str, message: str) -> None:
        """Leave the tag at hand out."""
        start, end = self.match.span()
        self.dropped[start] = Edit(start, end, "", code, message)

    def revoke(self, event: Event, code: str, message: str) -> None:
        """Leave out a tag that was taken as structure."""
        for index in range(len(self.events) - 1, -1, -1):
            if self.events[index] is event:
                del self.events[index]
                break
        if event.end > event.start:
            self.dropped[event.start] = Edit(event.start, event.end, "", code, message)

    def stray(self) -> None:
        self.drop("stray-tag", f"{self.match.group()} may not come here: left out")

    def word(self) -> None:
        self.drop("tag-as-word", f"{self.match.group()} stands in the text like a word: left out")

    def stands_alone(self) -> bool:
        """Whether the tag at hand stands like structure: a newline at its open side."""
        start, end = self.match.span()
        after = end == len(self.text) or bool(_LEAD.match(self.text, end))
        if self.match.group()[1] != "/":
            return after
        return after or start == 0 or self.text[start - 1] == "\n"

    def close_to(self, depth: int, code: str = "missing-closing") -> None:
        """Close every construct above stack index `depth`, writing what they lack."""
        while len(self.stack) > depth + 1:
            frame = self.stack[-1]
            kind = frame.kind
            if kind is None:
                raise AssertionError("the root is never closed")
            if kind is Tag.GOAL and not self.parent.outlines:
                self.write(Tag.OUTLINE, "missing-outline", "the goal has no outline")
            elif kind is Tag.PARALLEL and not frame.goal:
                self.write(Tag.GOAL, "missing-opening", "the block has no <Goal>")
            elif kind is Tag.PARALLEL and not frame.conclusion_end:
                self.write(Tag.CONCLUSION, "missing-conclusion", "the block has no <Conclusion>")
            else:
                where = f" before {self.match.group()}" if self.at < len(self.text) else ""
                self.write(kind.partner, code, f"{kind} is not closed: expected {kind.partner}{where}")

    def open_goal(self) -> None:
        self.write(Tag.GOAL, "missing-opening", f"expected <Goal> before {self.match.group()}")

    def open_block(self) -> None:
        if self.depth() >= MAX_DEPTH:
            self.too_deep += 1
            return
        self.write(Tag.PARALLEL, "missing-opening", f"expected <Parallel> before {self.match.group()}")

    def depth(self) -> int:
        return sum(frame.kind is Tag.PARALLEL for frame in self.stack)

    def in_body(self) -> bool:
        return self.top in (None, Tag.THINK, Tag.PATH)

    # Text where only tags may stand

    def place_text(self, following: Tag | None, partial: str = "") -> None:
        """Make room for text that stands between structural tags, where there is a way."""
        stop = self.at - len(partial)
        frame = self.stack[-1]
        if frame.kind not in (Tag.PARALLEL, Tag.GOAL) or not self.text[self.run_start : stop].strip():
            return
        message = f"text stands where {' or '.join(self.expected())} was expected"
        start = self.run_start
        if frame.kind is Tag.GOAL:
            lines = list(_LABEL_LINE.finditer(self.text, start, stop))
            if following is Tag.END_OUTLINE and not lines:
                self.write(Tag.OUTLINE, "missing-opening", message, start)
            for index, line in enumerate(lines):
                if index:
                    self.write(Tag.END_OUTLINE, "missing-closing", message, line.start())
                self.write(Tag.OUTLINE, "missing-opening", message, line.start() if index else start)
            if lines and following is not Tag.END_OUTLINE:
                self.write(Tag.END_OUTLINE, "missing-closing", message, stop)
        elif not frame.goal and frame.opened:
            self.stack.pop()
            self.revoke(frame.opened, "stray-tag", "no <Goal> follows <Parallel>: left out")
        elif frame.conclusion_end:
            if following is Tag.END_PARALLEL:
                self.stack.append(Frame(Tag.CONCLUSION))
                self.revoke(frame.conclusion_end, "stray-tag", f"{message}: kept in the conclusion")
                frame.conclusion_end = None
            else:
                self.write(Tag.END_PARALLEL, "missing-closing", message, start)
        elif following is Tag.END_CONCLUSION and frame.paths:
            self.write(Tag.CONCLUSION, "missing-opening", message, start)
        elif following is Tag.END_PATH or self.label_after(start):
            self.write(Tag.PATH, "missing-opening", message, start)
        elif frame.path_end:
            self.stack.append(Frame(Tag.PATH))
            self.revoke(frame.path_end, "stray-tag", f"{message}: kept in the path before it")
            frame.path_end = None

    # One rule for each tag

    def on_think(self) -> None:
        if self.had_think or self.top is not None:
            self.stray()
        elif self.events or self.text[: self.at].strip():
            self.drop("stray-tag", "<Think> comes first: moved to the start")
            self.think_first()
        else:
            self.accept(Tag.THINK)

    def think_first(self) -> None:
        """Put all that came so far into a <Think> that the text does not open."""
        event = Event(Tag.THINK, 0, 0, "missing-opening", "expected <Think> at the start")
        self.events.insert(0, event)
        self.stack.insert(1, Frame(Tag.THINK, event))
        self.had_think = True

    def on_end_think(self) -> None:
        inside = self.find(Tag.PARALLEL) >= 0
        closed = self.had_think and self.find(Tag.THINK) < 0
        continues = self.following not in (None, Tag.PARALLEL, Tag.THINK, Tag.END_THINK)
        if closed or (inside and continues):
            self.stray()
        elif not self.stands_alone():
            self.word()
        else:
            if not self.had_think:
                self.think_first()
            self.close_to(self.find(Tag.THINK))
            self.accept(Tag.END_THINK)

    def on_parallel(self) -> None:
        block = self.block()
        if not self.in_body() and block:
            if self.top is Tag.PARALLEL and not block.goal:
                self.stray()
                return
            if not self.stands_alone():
                self.word()
                return
            self.close_to(self.find(Tag.PARALLEL) - 1)
        if not self.stands_alone() and self.following is not Tag.GOAL:
            self.word()
        elif self.depth() >= MAX_DEPTH:
            self.too_deep = 1
            self.drop("too-deep", f"{Tag.PARALLEL} stands more than {MAX_DEPTH} blocks deep")
        else:
            self.accept(Tag.PARALLEL)

    def on_end_parallel(self) -> None:
        index = self.find(Tag.PARALLEL)
        if index < 0:
            self.stray()
        elif self.top is not Tag.PARALLEL and not self.stands_alone():
            self.word()
        else:
            self.close_inside(index)
            self.accept(Tag.END_PARALLEL)

    def close_inside(self, index: int) -> None:
        """Bring the block at stack `index` to the point where only its </Parallel> lacks."""
        self.close_to(index)
        while not self.stack[index].conclusion_end:
            if not self.stack[index].goal:
                self.write(Tag.GOAL, "missing-opening", "the block has no <Goal>")
            else:
                self.write(Tag.CONCLUSION, "missing-conclusion", "the block has no <Conclusion>")
            self.close_to(index)

    def on_goal(self) -> None:
        block = self.block()
        if block and self.top is Tag.PARALLEL and not block.goal:
            self.accept(Tag.GOAL)
        elif self.top in (Tag.GOAL, Tag.OUTLINE) or (
            self.top is Tag.PARALLEL and block and block.goal and not block.paths
        ):
            self.stray()
        elif not self.stands_alone():
            self.word()
        else:
            if not self.in_body():
                self.close_to(self.find(Tag.PARALLEL) - 1)
            self.open_block()
            if self.too_deep:
                self.drop("too-deep", f"<Goal> stands more than {MAX_DEPTH} blocks deep")
            else:
                self.accept(Tag.GOAL)

    def on_end_goal(self) -> None:
        index = self.find(Tag.GOAL)
        if index < 0 or self.top not in (Tag.GOAL, Tag.OUTLINE):
            self.stray()
        else:
            self.close_to(index)
            if not self.parent.outlines:
                self.write(Tag.OUTLINE, "missing-outline", "the goal has no outline")
                self.close_to(index)
            self.accept(Tag.END_GOAL)

    def on_outline(self) -> None:
        frame = self.stack[-1]
        if self.top is Tag.GOAL:
            self.accept(Tag.OUTLINE)
        elif not self.stands_alone():
            self.word()
        elif self.top is Tag.OUTLINE:
            self.close_to(self.find(Tag.GOAL))
            self.accept(Tag.OUTLINE)
        elif self.top is Tag.PARALLEL and not frame.paths and not frame.conclusion_end:
            if frame.goal:
                self.stack.append(Frame(Tag.GOAL))
                self.revoke(frame.goal, "stray-tag", "</Goal> comes after the last </Outline>")
                frame.goal = None
            else:
                self.open_goal()
            self.accept(Tag.OUTLINE)
        elif self.in_body() and self.following is Tag.END_OUTLINE:
            self.open_block()
            if self.too_deep:
                self.drop("too-deep", f"<Outline> stands more than {MAX_DEPTH} blocks deep")
            else:
                self.open_goal()
                self.accept(Tag.OUTLINE)
        else:
            self.stray()

    def on_end_outline(self) -> None:
        if self.top is Tag.OUTLINE:
            self.accept(Tag.END_OUTLINE)
        else:
            self.stray()

    def on_path(self) -> None:
        label = self.label_after(self.match.end())
        if self.top is Tag.PARALLEL and self.stack[-1].conclusion_end is None:
            wanted = self.wanting(label)
            if wanted >= 0 and wanted != len(self.stack) - 1:
                self.close_to(wanted)
            if not self.stack[-1].goal:
                self.open_goal()
                self.close_to(len(self.stack) - 2)
            self.accept(Tag.PATH)
            return
        if not (self.stands_alone() and label):
            self.word()
            return
        index = self.wanting(label)
        if index < 0 and self.top is Tag.PATH:
            index = self.find(Tag.PARALLEL)
        if index >= 0:
            self.leave_for_path(index)
        elif self.top is Tag.CONCLUSION:
            self.stray()
        elif self.in_body():
            self.open_block()
            if self.too_deep:
                self.drop("too-deep", f"<Path> stands more than {MAX_DEPTH} blocks deep")
                return
            self.open_goal()
            self.close_to(len(self.stack) - 2)
            self.accept(Tag.PATH)
        else:
            self.close_to(self.find(Tag.PARALLEL))
            self.accept(Tag.PATH)

    def leave_for_path(self, index: int) -> None:
        """Close what is open inside the block at stack `index`, and open its next path."""
        frame = self.stack[index]
        inner = self.stack[index + 1] if index + 1 < len(self.stack) else None
        if inner and inner.kind is Tag.CONCLUSION:
            if self.text[self.run_start : self.at].strip() or not inner.opened:
                self.stray()
                return
            self.stack.pop()
            self.revoke(inner.opened, "stray-tag", "paths are still to come: <Conclusion> left out")
        elif inner:
            self.close_to(index)
        if not frame.goal:
            self.open_goal()
            self.close_to(index)
        self.accept(Tag.PATH)

    def wanting(self, label: str) -> int:
        """Stack index of the innermost block that still lacks a path of this label, or -1."""
        for index in range(len(self.stack) - 1, -1, -1):
            frame = self.stack[index]
            if frame.kind is Tag.PARALLEL and not frame.conclusion_end:
                if label in frame.outlines and label not in frame.paths:
                    return index
        return -1

    def on_end_path(self) -> None:
        outer = self.find(Tag.PATH)
        if self.top is Tag.PATH:
            if self.stands_alone():
                self.accept(Tag.END_PATH)
            else:
                self.word()
        elif outer >= 0 and (
            self.top is Tag.CONCLUSION
            or (self.top is Tag.PARALLEL and self.stack[-1].conclusion_end)
        ):
            self.close_to(outer)
            self.accept(Tag.END_PATH)
        else:
            self.stray()

    def on_conclusion(self) -> None:
        block = self.block()
        if block is None or self.top is Tag.CONCLUSION:
            self.stray()
        elif self.top is Tag.PARALLEL and block.conclusion_end:
            self.write(Tag.END_PARALLEL, "missing-closing", "expected </Parallel> before <Conclusion>")
            self.stray()
        elif self.top is not Tag.PARALLEL and not self.stands_alone():
            self.word()
        else:
            index = self.find(Tag.PARALLEL)
            self.close_to(index)
            if not block.goal:
                self.open_goal()
                self.close_to(index)
            self.accept(Tag.CONCLUSION)

    def on_end_conclusion(self) -> None:
        if self.top is not Tag.CONCLUSION:
            self.stray()
        elif self.stands_alone():
            self.accept(Tag.END_CONCLUSION)
        else:
            self.word()


class Pairing:
    """Gives every outline and path its label, and every outline exactly one path.

    Equal labels pair in order, as many as can (longest increasing run); between two pairs, what
    is left pairs as it comes; then outlines without a path get an empty one, and paths without
    an outline an empty outline.
    """

    def __init__(self, text: str, events: list[Event]) -> None:
        self.text = text
        self.events = events
        self.before: dict[int, list[Labelled]] = {}

    def run(self) -> list[Labelled]:
        labelled = [Labelled(event) for event in self.events]
        blocks: list[tuple[list[int], list[int], list[int]]] = []
        for index, event in enumerate(self.events):
            if event.tag is Tag.PARALLEL:
                blocks.append(([], [], []))
            elif event.tag is Tag.OUTLINE:
                blocks[-1][0].append(index)
            elif event.tag is Tag.PATH:
                blocks[-1][1].append(index)
            elif event.tag in (Tag.END_GOAL, Tag.CONCLUSION):
                blocks[-1][2].append(index)
            elif event.tag is Tag.END_PARALLEL:
                self.pair(labelled, *blocks.pop())
        out: list[Labelled] = []
        for index, item in enumerate(labelled):
            out += self.before.get(index, ())
            out.append(item)
        return out

    def pair(
        self, labelled: list[Labelled], outlines: list[int], paths: list[int], ends: list[int]
    ) -> None:
        goal_end, conclusion = ends
        names = [self.label(index) for index in outlines]
        used: set[str] = set()
        prefix = names[0][: names[0].rfind(".") + 1] if names else ""
        for index, name in zip(outlines, names, strict=True):
            if not name or name in used:
                name = self.partial(index, used) or fresh(prefix, used)
            used.add(name)
            labelled[index].label = name
        matched = longest_pairs(names, [self.label(index) for index in paths])
        o = p = 0
        for next_o, next_p in (*matched, (len(outlines), len(paths))):
            while o < next_o and p < next_p:
                labelled[paths[p]].label = labelled[outlines[o]].label
                o, p = o + 1, p + 1
            while o < next_o:  # an outline without a path
                at = paths[p] if p < len(paths) else conclusion
                message = f"outline {labelled[outlines[o]].label} has no path"
                self.add(at, Tag.PATH, labelled[outlines[o]].label, "missing-path", message)
                o += 1
            while p < next_p:  # a path without an outline
                at = outlines[o] if o < len(outlines) else goal_end
                label = fresh(prefix, used)
                used.add(label)
                labelled[paths[p]].label = label
                self.add(at, Tag.OUTLINE, label, "missing-outline", f"path {label} has no outline")
                p += 1
            if o < len(outlines):
                labelled[paths[p]].label = labelled[outlines[o]].label
                o, p = o + 1, p + 1

    def add(self, index: int, tag: Tag, label: str, code: str, message: str) -> None:
        at = self.events[index].start
        self.before.setdefault(index, []).extend(
            Labelled(Event(t, at, at, code, message), label) for t in (tag, tag.partner)
        )

    def label(self, index: int) -> str:
        match = _LABEL.match(self.text, self.events[index].end)
        end = self.events[index + 1].start
        return match.group(1) if match and match.end() <= end else ""

    def partial(self, index: int, used: set[str]) -> str:
        """The label that a text cut inside of it can still become, or ""."""
        rest = self.text[self.events[index].end :]
        match = re.fullmatch(rf"\n({_NUMBER}\.?)", rest)
        if not match:
            return ""
        label = match.group(1) + ("1" if rest.endswith(".") else "")
        while label in used:
            label += "0"
        return label


@dataclass(slots=True)
class Labelled:
    event: Event
    label: str = ""


def fresh(prefix: str, used: set[str]) -> str:
    """The first number at `prefix` that is not in use."""
    number = len(used) + 1
    while f"{prefix}{number}" in used:
        number += 1
    return f"{prefix}{number}"


def longest_pairs(outlines: list[str], paths: list[str]) -> list[tuple[int, int]]:
    """Pair equal labels so that both rise, as many as can: O(n log n)."""
    places: dict[tuple[str, int], int] = {}
    count: dict[str, int] = {}
    for index, name in enumerate(outlines):
        count[name] = count.get(name, 0) + 1
        places[name, count[name]] = index
    count.clear()
    tails: list[int] = []  # the smallest last outline of a run of each length
    tail_path: list[int] = []
    back: dict[int, tuple[int, int]] = {}
    for path, name in enumerate(paths):
        count[name] = count.get(name, 0) + 1
        place = places.get((name, count[name])) if name else None
        if place is None:
            continue
        k = bisect.bisect_left(tails, place)
        back[path] = (place, tail_path[k - 1] if k else -1)
        tails[k:] = [place] if k == len(tails) else [place, *tails[k + 1 :]]
        tail_path[k:] = [path] if k == len(tail_path) else [path, *tail_path[k + 1 :]]
    out: list[tuple[int, int]] = []
    path = tail_path[-1] if tail_path else -1
    while path >= 0:
        place, before = back[path]
        out.append((place, path))
        path = before
    return out[::-1]


class Run:
    """The text between two tags of the repaired text, without the tags dropped from it."""

    def __init__(self, text: str, start: int, end: int, dropped: list[Edit]) -> None:
        self.start, self.end = start, end
        self.parts: list[tuple[int, int, int]] = []  # (place in `self.text`, start, end)
        kept: list[str] = []
        at, place = start, 0
        for edit in (*dropped, Edit(end, end, "", "", "")):
            if edit.start > at or not self.parts:
                kept.append(text[at : edit.start])
                self.parts.append((place, at, edit.start))
                place += edit.start - at
            at = edit.end
        self.text = "".join(kept)
        self.edits: list[Edit] = []

    def source(self, place: int) -> int:
        index = bisect.bisect_right(self.parts, (place, self.end + 1)) - 1
        begin, start, _ = self.parts[max(index, 0)]
        return start + place - begin

    def replace(self, start: int, end: int, insert: str, code: str, message: str) -> None:
        """Replace `self.text[start:end]`, a span that may hold dropped tags."""
        pieces = [
            (first + max(start, place) - place, first + min(end, place + last - first) - place)
            for place, first, last in self.parts
            if max(start, place) < min(end, place + last - first)
        ]
        if not pieces:
            at = self.end if start == len(self.text) else self.source(start)
            pieces = [(at, at)]
        for first, last in pieces:
            self.edits.append(Edit(first, last, insert, code, message))
            insert = ""


class Writer:
    """Makes every run between two tags canonical, and writes the tags that are missing."""

    def __init__(
        self, text: str, syntax: Syntax, events: list[Labelled], dropped: dict[int, Edit]
    ) -> None:
        self.text = text
        self.syntax = syntax
        self.events = events
        self.dropped = [dropped[start] for start in sorted(dropped)]
        self.starts = [edit.start for edit in self.dropped]

    def run(self) -> Iterator[Edit]:
        yield from self.dropped
        before: Labelled | None = None
        at = 0
        stack: list[Tag] = []
        for item in (*self.events, None):
            event = item.event if item else None
            end = event.start if event else len(self.text)
            low = bisect.bisect_left(self.starts, at)
            high = bisect.bisect_left(self.starts, end)
            run = Run(self.text, at, end, self.dropped[low:high])
            self.canonical(run, before, event, stack[-1] if stack else None)
            yield from run.edits
            if not event:
                return
            if event.missing:
                code = event.code or "missing-closing"
                message = event.message or f"{event.tag} is cut"
                yield Edit(event.end, event.end, event.missing, code, message)
            at, before = event.end, item
            if event.tag.closes:
                stack.pop()
            else:
                stack.append(event.tag)

    def canonical(
        self, run: Run, before: Labelled | None, after: Event | None, inside: Tag | None
    ) -> None:
        cut = run.end == len(self.text)
        if inside in (Tag.PARALLEL, Tag.GOAL):
            self.structural(run, cut)
            return
        lead = 0
        tag = before.event.tag if before else None
        if before and tag:
            for _ in self.syntax.after(tag):
                lead = self.newline(run, lead, cut)
            if tag in (Tag.PATH, Tag.OUTLINE):
                lead = self.label(run, lead, before.label, cut)
        if inside is Tag.OUTLINE:
            self.line(run, lead, cut)
        elif after:
            self.trail(run, lead, tag in (Tag.PATH, Tag.CONCLUSION), after.tag, cut)

    def structural(self, run: Run, cut: bool) -> None:
        want = self.syntax.separator
        if run.text == want:
            return
        if cut and not run.text:
            run.replace(0, 0, want, "separator", "expected a newline")
        elif not run.text.strip():
            run.replace(0, len(run.text), want, "separator", "expected one newline between tags")
        else:
            run.replace(
                0, len(run.text), want, "text-outside", "text between tags belongs to no part"
            )

    def newline(self, run: Run, at: int, cut: bool) -> int:
        match = _LEAD.match(run.text, at)
        if match and match.end() - at == 1:
            return match.end()
        if match:
            run.replace(at, match.end() - 1, "", "separator", "spaces between a tag and its newline")
            return match.end()
        run.replace(at, at, "\n", "separator", "expected a newline after the tag")
        return at

    def label(self, run: Run, at: int, label: str, cut: bool) -> int:
        want = label + self.syntax.label_end
        if run.text.startswith(want, at):
            return at + len(want)
        rest = run.text[at:]
        if cut and want.startswith(rest):
            run.replace(len(run.text), len(run.text), want[len(rest) :], "missing-label",
                        f"expected {want!r}")  # fmt: skip
            return len(run.text)
        match = _LABEL.match(run.text, at)
        if not match:
            run.replace(at, at, want, "missing-label", f"expected the label {want!r}")
            return at
        if match.group(1) != label:
            message = f"label {match.group(1)} where {label} was expected"
            run.replace(at, match.end(), label + ":", "wrong-label", message)
        elif match.group() != label + ":":
            run.replace(at, match.end(), label + ":", "separator", f"expected {want!r}")
        space = self.syntax.label_end[1:]
        if not run.text.startswith(space, match.end()):
            run.replace(match.end(), match.end(), space, "separator", "expected a space after the label")
            return match.end()
        return match.end() + len(space)

    def line(self, run: Run, at: int, cut: bool) -> None:
        rest = run.text[at:]
        stop = len(rest.rstrip("\n \t\r")) if rest.count("\n") != 1 or rest[-1] != "\n" else len(rest) - 1
        if cut and "\n" not in rest:
            stop = len(rest)
        for match in re.finditer("\n", rest[:stop]):
            run.replace(at + match.start(), at + match.end(), " ", "outline-line",
                        "an outline is one line")  # fmt: skip
        if rest[stop:] != "\n":
            run.replace(at + stop, len(run.text), "\n", "separator", "expected a newline before the tag")

    def trail(self, run: Run, at: int, inline: bool, tag: Tag, cut: bool) -> None:
        rest = run.text[at:]
        if rest.endswith("\n") and (inline or rest != "\n"):
            return
        if not rest and not inline:
            return
        end = len(run.text)
        if cut:
            run.replace(end, end, "\n", "missing-newline", f"expected a newline before {tag}")
        elif rest == "\n":
            run.replace(at, end, "", "separator", f"blank line before {tag}")
        elif match := _TAIL_SPACE.search(run.text, at):
            run.replace(match.start() + 1, end, "", "separator", f"spaces before {tag}")
            self.trail_blank(run, at, match.start() + 1, inline, tag)
        else:
            run.replace(end, end, "\n", "missing-newline", f"expected a newline before {tag}")

    def trail_blank(self, run: Run, at: int, end: int, inline: bool, tag: Tag) -> None:
        if not inline and end - at == 1:
            run.replace(at, end, "", "separator", f"blank line before {tag}")
