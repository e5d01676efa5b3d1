"""What is open in a text, tag by tag, and the verbs that the rules of recovery are made of."""

from __future__ import annotations

import re

from mvspec.forms.recovery.edits import LABEL, LEAD, Code, Edit, Event, Frame
from mvspec.law.limits import MAX_DEPTH
from mvspec.law.tags import Tag

__all__ = ["Scan"]

_BLANK = re.compile(r"\s*+")


class Scan:
    """The stack of what is open, and the decisions made so far.

    The stack is never higher than a few frames for each of `MAX_DEPTH` blocks, so that a search
    of it takes bounded time.

    Args:
        text: the whole text, of which `run_start:at` is the run before the tag at hand.
        max_depth: the most levels of blocks.
    """

    def __init__(self, text: str, max_depth: int = MAX_DEPTH) -> None:
        self.text = text
        self.max_depth = max_depth
        self.events: list[Event] = []
        self.dropped: list[Edit] = []
        self.stack: list[Frame] = [Frame(None)]
        self.had_think = False
        self.too_deep = 0
        self.run_start = self.at = self.end = 0  # the tag at hand is text[at:end]
        self.next_at = -1  # where the next tag starts
        self.following: Tag | None = None  # the next tag that does not stand like a word
        self.following_end = len(text)
        self.last_end_think = text.rfind(Tag.END_THINK)
        self.cut_inside: Tag | None = None  # what is open where the text ends

    # What is open

    @property
    def top(self) -> Tag | None:
        """The kind of the innermost open construct; None at the top level."""
        return self.stack[-1].kind

    @property
    def parent(self) -> Frame:
        """The construct around the innermost one."""
        return self.stack[-2]

    def find(self, kind: Tag) -> int:
        """Return the stack index of the innermost open construct of this kind, or -1."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index].kind is kind:
                return index
        return -1

    def block(self) -> Frame | None:
        """Return the innermost open block."""
        index = self.find(Tag.PARALLEL)
        return self.stack[index] if index >= 0 else None

    def wanting(self, label: str) -> int:
        """Return the stack index of the innermost block that lacks a path of this label, or -1."""
        for index in range(len(self.stack) - 1, -1, -1) if label else ():
            frame = self.stack[index]
            if (
                frame.kind is Tag.PARALLEL
                and not frame.conclusion_end
                and label in frame.outlines
                and label not in frame.paths
            ):
                return index
        return -1

    def depth(self) -> int:
        """Return how many blocks are open."""
        return sum(frame.kind is Tag.PARALLEL for frame in self.stack)

    def in_body(self) -> bool:
        """Whether text and blocks may stand here."""
        return self.top in (None, Tag.THINK, Tag.PATH)

    def expected(self) -> tuple[Tag, ...]:
        """Return the tags that may come next where only tags may."""
        frame = self.stack[-1]
        if frame.kind is Tag.GOAL:
            return (Tag.END_GOAL, Tag.OUTLINE) if self.parent.outline_count else (Tag.OUTLINE,)
        if frame.kind is not Tag.PARALLEL:
            return ()
        if frame.conclusion_end:
            return (Tag.END_PARALLEL,)
        if not frame.goal:
            return (Tag.GOAL,)
        return (Tag.PATH if frame.path_count < frame.outline_count else Tag.CONCLUSION,)

    # What the text says at the tag at hand

    @property
    def name(self) -> str:
        """The tag at hand as it is written; the end of the text where there is none."""
        return self.text[self.at : self.end] or "the end of the text"

    def place(self) -> str:
        """Return where the tag at hand stands, in words."""
        return f"inside {self.top}" if self.top else "at the top level"

    def label_after(self, at: int) -> str:
        """Return the label that stands at `at`, or ""."""
        match = LABEL.match(self.text, at)
        return match.group(1) if match else ""

    def has_text(self, start: int, end: int) -> bool:
        """Whether `text[start:end]` holds more than white space."""
        match = _BLANK.match(self.text, start, end)
        return match is not None and match.end() < end

    def empty(self) -> bool:
        """Whether the construct that the last tag opened holds nothing so far."""
        last = self.events[-1]
        return self.stack[-1].opened is last and not self.has_text(last.end, self.at)

    def doubled(self) -> bool:
        """Whether the tag at hand opens again what the last one opened, with its label or none."""
        last = self.stack[-1].opened
        if last is None or last is not self.events[-1] or last.tag.value != self.name:
            return False
        between = self.text[last.end : self.at].strip()
        return not between or between == f"{self.label_after(self.end)}:"

    def stands_alone(self) -> bool:
        """Whether the tag at hand stands like structure: a newline or a tag at its open side."""
        if self.end == len(self.text) or LEAD.match(self.text, self.end):
            return True
        if self.next_at >= 0 and not self.has_text(self.end, self.next_at):
            return True
        if not self.text.startswith("/", self.at + 1):
            return False
        return self.text[self.at - 1] == "\n" or not self.has_text(self.run_start, self.at)

    # Deciding

    def accept(self, tag: Tag) -> None:
        """Take the tag at hand as structure."""
        self.emit(Event(tag, self.at, self.end))

    def write(self, tag: Tag, code: Code, message: str, at: int | None = None) -> None:
        """Add a tag that the text lacks."""
        at = self.at if at is None else at
        self.emit(Event(tag, at, at, code, message))

    def emit(self, event: Event) -> None:
        """Append a tag to the repaired text, which it must continue well-formed."""
        self.events.append(event)
        tag = event.tag
        if not tag.closes:
            if tag is Tag.PATH:
                self.stack[-1].paths.add(self.label_after(event.end))
                self.stack[-1].path_count += 1
            elif tag is Tag.OUTLINE:
                self.parent.outlines.add(self.label_after(event.end))
                self.parent.outline_count += 1
            self.had_think |= tag is Tag.THINK
            self.stack.append(Frame(tag, event))
            return
        self.stack.pop()
        owner = self.stack[-1]
        if tag is Tag.END_GOAL:
            owner.goal = event
        elif tag is Tag.END_PATH:
            owner.path_end = event
        elif tag is Tag.END_CONCLUSION:
            owner.conclusion_end = event

    def drop(self, code: Code, message: str) -> None:
        """Leave the tag at hand out."""
        self.leave_out(self.at, self.end, code, message)

    def leave_out(self, start: int, end: int, code: Code, message: str) -> None:
        """Drop a tag, and with a tag that has a line to itself the line."""
        if self.text.startswith("\n", end) and (not start or self.text[start - 1] == "\n"):
            end += 1
        self.dropped.append(Edit(start, end, "", code, message))
        self.run_start = max(self.run_start, end)

    def stray(self) -> None:
        """Leave the tag at hand out, which may not come here."""
        if not self.stands_alone():
            self.word()
            return
        tag = Tag(self.name)
        if tag.closes and self.find(tag.partner) < 0:
            why = f"{tag} closes nothing, no {tag.partner} is open"
        else:
            expected = " or ".join(self.expected())
            why = f"{tag} may not come {self.place()}"
            why += f" where {expected} was expected" if expected else ""
        self.drop("stray-tag", f"{why}: left out")

    def word(self) -> None:
        """Leave the tag at hand out, which stands among text."""
        message = f"{self.name} stands in the text {self.place()} like a word: left out"
        self.drop("tag-as-word", message)

    def deep(self) -> None:
        """Leave the tag at hand out, and all up to the end of the block that it would open."""
        self.drop(
            "too-deep", f"{self.name} stands more than {self.max_depth} blocks deep: left out"
        )

    def reopen(self, message: str) -> None:
        """Leave out the last tag taken as structure: a closing, or an opening with nothing in it.

        What a closing closed is open again.
        """
        event = self.events.pop()
        if event.end > event.start:
            self.leave_out(event.start, event.end, "stray-tag", message)
        if not event.tag.closes:
            self.stack.pop()
            if event.tag is Tag.PATH:
                self.stack[-1].paths.discard(self.label_after(event.end))
                self.stack[-1].path_count -= 1
            elif event.tag is Tag.OUTLINE:
                self.parent.outlines.discard(self.label_after(event.end))
                self.parent.outline_count -= 1
            return
        owner = self.stack[-1]
        self.stack.append(Frame(event.tag.partner))
        if event.tag is Tag.END_GOAL:
            owner.goal = None
        elif event.tag is Tag.END_PATH:
            owner.path_end = None
        elif event.tag is Tag.END_CONCLUSION:
            owner.conclusion_end = None

    def once(self) -> None:
        """Leave out the last tag, which the tag at hand doubles, with its label."""
        last = self.events[-1]
        self.reopen(f"{self.name} is doubled: left out")
        if self.has_text(last.end, self.at):
            *_, drop = self.dropped
            self.dropped[-1] = drop._replace(end=self.at)

    # Writing what is missing

    def open_think(self) -> None:
        """Put all that came so far into a <Think> that the text does not open; at most once."""
        message = "nothing opens the reasoning: expected <Think> at the start"
        event = Event(Tag.THINK, 0, 0, "missing-opening", message)
        self.events.insert(0, event)
        self.stack.insert(1, Frame(Tag.THINK, event))
        self.had_think = True

    def open_block(self) -> bool:
        """Write a <Parallel>; where blocks are too deep, leave the tag at hand out instead."""
        if self.depth() >= self.max_depth:
            self.deep()
            self.too_deep = 1
            return False
        message = f"{self.name} stands in no block: expected <Parallel> before it"
        self.write(Tag.PARALLEL, "missing-opening", message)
        return True

    def open_goal(self) -> None:
        """Write the <Goal> that the innermost block lacks."""
        message = f"the block has no goal: expected <Goal> before {self.name}"
        self.write(Tag.GOAL, "missing-opening", message)

    def need_goal(self, index: int) -> None:
        """Write a whole goal where the block at stack `index`, the innermost, has none."""
        if not self.stack[index].goal:
            self.open_goal()
            self.close_to(index)

    def close_inside(self, index: int) -> None:
        """Bring the block at stack `index` to the point where only its </Parallel> lacks."""
        self.close_to(index)
        self.need_goal(index)
        if not self.stack[index].conclusion_end:
            message = f"the block has no conclusion: expected <Conclusion> before {self.name}"
            self.write(Tag.CONCLUSION, "missing-conclusion", message)
            self.close_to(index)

    def close_to(self, depth: int) -> None:
        """Close every construct above stack index `depth`, writing what they lack."""
        while len(self.stack) > depth + 1:
            index = len(self.stack) - 1
            kind = self.stack[index].kind
            if kind is Tag.GOAL and not self.parent.outline_count:
                message = f"the goal has no outline: expected <Outline> before {self.name}"
                self.write(Tag.OUTLINE, "missing-outline", message)
            elif kind is Tag.PARALLEL and not self.stack[index].conclusion_end:
                self.close_inside(index)
            elif kind is not None:
                message = f"{kind} is not closed: expected {kind.partner} before {self.name}"
                self.write(kind.partner, "missing-closing", message)
