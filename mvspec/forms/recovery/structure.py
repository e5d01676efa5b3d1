"""Structure of a malformed text: which tags are believed, which left out, which written.

A parser with a stack goes over the tags of the text once. For each of the twelve tags a rule reads
what is open and accepts, writes or drops tags, so that the tag at hand is dealt with; text that
stands where only tags may gets a place of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from mvspec.forms.recovery.edits import LABEL, LEAD, NUMBER, Code, TextEdit
from mvspec.law.automaton import LEADS_TO, Place, may_follow
from mvspec.law.limits import MAX_DEPTH
from mvspec.law.tags import TAG, Tag

_BLANK = re.compile(r"\s*+")
_LABEL_LINE = re.compile(rf"^[ \t]*+{NUMBER}[ \t]*+:", re.MULTILINE)
_FULL_LINE = re.compile(r"^[^\S\n]*+\S", re.MULTILINE)
_PARTIAL_TAG = re.compile(r"</?[A-Za-z]*\Z")
_TEXT_END = re.compile(r"\s*+(?:</?[A-Za-z]*)?\Z")
_TAGS = {tag.value: tag for tag in Tag}


@dataclass(slots=True)
class TagToken:
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
class OpenConstruct:
    """An entry of the stack: its place in the grammar of tags, and what a block has so far.

    Of a block the place is that between its parts; where paths are open or lack, it is `BETWEEN`.
    """

    kind: Tag | None
    place: Place
    opened: TagToken | None = None
    outlines: Counter[str] = field(default_factory=Counter)  # by label
    paths: Counter[str] = field(default_factory=Counter)
    outline_count: int = 0
    path_count: int = 0

    @property
    def has_goal(self) -> bool:
        """Whether a block's goal has ended."""
        return self.place is not Place.OPENED

    @property
    def concluded(self) -> bool:
        """Whether a block's conclusion has ended."""
        return self.place is Place.CONCLUDED


class RecoveringParser:
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
        self.tokens: list[TagToken] = []
        self.dropped: list[TextEdit] = []
        self.stack: list[OpenConstruct] = [OpenConstruct(None, Place.TURN)]
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
    def parent(self) -> OpenConstruct:
        """The construct around the innermost one."""
        return self.stack[-2]

    def find(self, kind: Tag) -> int:
        """Return the stack index of the innermost open construct of this kind, or -1."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index].kind is kind:
                return index
        return -1

    def block(self) -> OpenConstruct | None:
        """Return the innermost open block."""
        index = self.find(Tag.PARALLEL)
        return self.stack[index] if index >= 0 else None

    def wanting(self, label: str) -> int:
        """Return the stack index of the innermost block that lacks a path of this label, or -1."""
        for index in range(len(self.stack) - 1, -1, -1) if label else ():
            frame = self.stack[index]
            if (
                frame.kind is Tag.PARALLEL
                and not frame.concluded
                and frame.outlines[label]
                and not frame.paths[label]
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
        block = self.stack[-1]
        if block.kind is Tag.GOAL:
            return (Tag.END_GOAL, Tag.OUTLINE) if self.parent.outline_count else (Tag.OUTLINE,)
        if block.kind is not Tag.PARALLEL:
            return ()
        paired = block.place is Place.BETWEEN and block.path_count >= block.outline_count
        return tuple(may_follow(Place.JOINED if paired else block.place))

    # What the text says at the tag at hand

    @property
    def name(self) -> str:
        """The tag at hand as it is written; the end of the text where there is none."""
        return self.text[self.at : self.end] or "the end of the text"

    def where(self) -> str:
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
        last = self.tokens[-1]
        return self.stack[-1].opened is last and not self.has_text(last.end, self.at)

    def doubled(self) -> bool:
        """Whether the tag at hand opens again what the last one opened, with its label or none."""
        last = self.stack[-1].opened
        if last is None or last is not self.tokens[-1] or last.tag.value != self.name:
            return False
        between = self.text[last.end : self.at].strip()
        return not between or between == f"{self.label_after(self.end)}:"

    def stands_alone(self) -> bool:
        """Whether the tag at hand stands like structure: a newline or a tag at its open side."""
        if LEAD.match(self.text, self.end):
            return True
        if self.next_at < 0 and _TEXT_END.match(self.text, self.end):
            return True
        if self.next_at >= 0 and not self.has_text(self.end, self.next_at):
            return True
        if not self.text.startswith("/", self.at + 1):
            return False
        return self.text[self.at - 1] == "\n" or not self.has_text(self.run_start, self.at)

    # Deciding

    def accept(self, tag: Tag) -> None:
        """Take the tag at hand as structure."""
        self.emit(TagToken(tag, self.at, self.end))

    def write(self, tag: Tag, code: Code, message: str, at: int | None = None) -> None:
        """Add a tag that the text lacks."""
        at = self.at if at is None else at
        self.emit(TagToken(tag, at, at, code, message))

    def emit(self, token: TagToken) -> None:
        """Append a tag to the repaired text, which it must continue well-formed."""
        self.tokens.append(token)
        tag = token.tag
        if not tag.closes:
            self.count(token, 1)
            self.had_think |= tag is Tag.THINK
            self.stack.append(OpenConstruct(tag, LEADS_TO[tag], token))
            return
        self.stack.pop()
        if self.top is Tag.PARALLEL:
            ended = tag is Tag.END_CONCLUSION
            self.stack[-1].place = Place.CONCLUDED if ended else Place.BETWEEN

    def count(self, token: TagToken, by: int) -> None:
        """Count an outline or a path that opens, or is left out again, for its block."""
        if token.tag is Tag.PATH:
            self.stack[-1].paths[self.label_after(token.end)] += by
            self.stack[-1].path_count += by
        elif token.tag is Tag.OUTLINE:
            self.parent.outlines[self.label_after(token.end)] += by
            self.parent.outline_count += by

    def drop(self, code: Code, message: str) -> None:
        """Leave the tag at hand out."""
        self.leave_out(self.at, self.end, code, message)

    def leave_out(self, start: int, end: int, code: Code, message: str) -> None:
        """Drop a tag, and with a tag that has a line to itself the line."""
        if self.text.startswith("\n", end) and (not start or self.text[start - 1] == "\n"):
            end += 1
        self.dropped.append(TextEdit(start, end, "", code, message))
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
            why = f"{tag} may not come {self.where()}"
            why += f" where {expected} was expected" if expected else ""
        self.drop("stray-tag", f"{why}: left out")

    def word(self) -> None:
        """Leave the tag at hand out, which stands among text."""
        message = f"{self.name} stands in the text {self.where()} like a word: left out"
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
        token = self.tokens.pop()
        if token.end > token.start:
            self.leave_out(token.start, token.end, "stray-tag", message)
        tag = token.tag
        if not tag.closes:
            self.stack.pop()
            self.count(token, -1)
            return
        if self.top is Tag.PARALLEL:
            self.stack[-1].place = Place.OPENED if tag is Tag.END_GOAL else Place.BETWEEN
        self.stack.append(OpenConstruct(tag.partner, LEADS_TO[tag.partner]))

    def once(self) -> None:
        """Leave out the last tag, which the tag at hand doubles, with its label."""
        last = self.tokens[-1]
        message = f"{self.name} is doubled: left out"
        self.reopen(message)
        if self.has_text(last.end, self.at):
            if last.end > last.start:
                del self.dropped[-1]
            self.leave_out(last.start, self.at, "stray-tag", message)

    # Writing what is missing

    def open_think(self) -> None:
        """Put all that came so far into a <Think> that the text does not open; at most once."""
        message = "nothing opens the reasoning: expected <Think> at the start"
        token = TagToken(Tag.THINK, 0, 0, "missing-opening", message)
        self.tokens.insert(0, token)
        self.stack.insert(1, OpenConstruct(Tag.THINK, Place.THINK, token))
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
        if not self.stack[index].has_goal:
            self.open_goal()
            self.close_to(index)

    def close_inside(self, index: int) -> None:
        """Bring the block at stack `index` to the point where only its </Parallel> lacks."""
        self.close_to(index)
        self.need_goal(index)
        if not self.stack[index].concluded:
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
            elif kind is Tag.PARALLEL and not self.stack[index].concluded:
                self.close_inside(index)
            elif kind is not None:
                message = f"{kind} is not closed: expected {kind.partner} before {self.name}"
                self.write(kind.partner, "missing-closing", message)


# Reading


def read_structure(text: str, max_depth: int = MAX_DEPTH) -> RecoveringParser:
    """Return the tags of the repaired text and those dropped; time is linear in the text."""
    parser = RecoveringParser(text, max_depth)
    tags = list(TAG.finditer(text))
    following = next_structural(text, tags)
    at = 0
    for index, match in enumerate(tags):
        parser.run_start = max(parser.run_start, at)
        parser.at, parser.end = match.span()
        parser.next_at = tags[index + 1].start() if index + 1 < len(tags) else -1
        after = following[index]
        parser.following = _TAGS[after.group()] if after else None
        parser.following_end = after.end() if after else len(text)
        tag = _TAGS[match.group()]
        if parser.too_deep and not (tag is Tag.END_THINK and parser.at == parser.last_end_think):
            parser.too_deep += (tag is Tag.PARALLEL) - (tag is Tag.END_PARALLEL)
            parser.deep()
        else:
            place_text(parser, tag, parser.at)
            _RULES[tag](parser)
        at = match.end()
    finish(parser, at)
    return parser


def next_structural(text: str, tags: list[re.Match[str]]) -> list[re.Match[str] | None]:
    """Return, for every tag, the next one that does not stand in the text like a word."""
    out: list[re.Match[str] | None] = [None] * len(tags)
    after: re.Match[str] | None = None
    for index in range(len(tags) - 1, -1, -1):
        out[index] = after
        match = tags[index]
        if text[match.start() + 1] == "/" or LEAD.match(text, match.end()):
            after = match
    return out


def finish(parser: RecoveringParser, at: int) -> None:
    """Close what is open where the text ends, after the tag that its last characters begin."""
    end = len(parser.text)
    parser.run_start = max(parser.run_start, at)
    parser.next_at, parser.following = -1, None
    partial = _PARTIAL_TAG.search(parser.text, max(at, end - 14))
    parser.at, parser.end = partial.start() if partial else end, end
    place_text(parser, None, parser.at)
    if partial:
        tag = completed(parser, partial.group())
        if tag:
            parser.accept(tag)
    parser.at = end
    parser.cut_inside = parser.top
    parser.close_to(0)


def completed(parser: RecoveringParser, partial: str) -> Tag | None:
    """Return the tag that the last characters of the text begin, if they can only be a tag."""
    expected = parser.expected()
    if parser.top in (Tag.THINK, Tag.PATH, Tag.OUTLINE, Tag.CONCLUSION):
        closing = Tag(f"</{parser.top.value[1:]}")
        full = parser.has_text(parser.run_start, parser.at) and parser.text[parser.at - 1] == "\n"
        certain = parser.top is Tag.OUTLINE or partial.startswith(closing.value[:3])
        expected = (closing,) if full and certain else ()
    return next((tag for tag in expected if tag.value.startswith(partial)), None)


def place_text(parser: RecoveringParser, tag: Tag | None, stop: int) -> None:
    """Make room for the text before `tag`, up to `stop`, where only tags may stand."""
    frame = parser.stack[-1]
    start = parser.run_start
    if frame.kind not in (Tag.PARALLEL, Tag.GOAL) or not parser.has_text(start, stop):
        return
    message = f"text stands where {' or '.join(parser.expected())} was expected"
    if frame.kind is Tag.PARALLEL and not frame.has_goal and tag is Tag.END_GOAL:
        parser.write(Tag.GOAL, "missing-opening", message, start)
        frame = parser.stack[-1]
    if frame.kind is Tag.GOAL:
        place_outlines(parser, tag, stop, message)
    elif not frame.has_goal:
        parser.reopen(f"{message}: <Parallel> left out")
    elif frame.concluded:
        if tag is Tag.END_PARALLEL:
            parser.reopen(f"{message}: kept in the conclusion")
        else:
            parser.write(Tag.END_PARALLEL, "missing-closing", message, start)
    elif tag is Tag.END_CONCLUSION:
        parser.write(Tag.CONCLUSION, "missing-opening", message, start)
    elif tag is Tag.END_PATH or parser.label_after(start):
        parser.write(Tag.PATH, "missing-opening", message, start)
    elif frame.path_count:
        parser.reopen(f"{message}: kept in the path before it")
    elif tag is not Tag.PATH:
        parser.write(Tag.PATH, "missing-opening", message, start)


def place_outlines(parser: RecoveringParser, tag: Tag | None, stop: int, message: str) -> None:
    """Make outlines of the lines of a goal that stand outside of one."""
    lines = list(_LABEL_LINE.finditer(parser.text, parser.run_start, stop))
    if not lines and tag is not Tag.OUTLINE and not parser.parent.outline_count:
        lines = list(_FULL_LINE.finditer(parser.text, parser.run_start, stop))
    if tag is Tag.END_OUTLINE and not lines:
        parser.write(Tag.OUTLINE, "missing-opening", message, parser.run_start)
    for index, line in enumerate(lines):
        if index:
            parser.write(Tag.END_OUTLINE, "missing-closing", message, line.start())
        parser.write(Tag.OUTLINE, "missing-opening", message, line.start())
    if lines and tag is not Tag.END_OUTLINE:
        parser.write(Tag.END_OUTLINE, "missing-closing", message, stop)


# The rules of the tags


def _think(parser: RecoveringParser) -> None:
    if parser.had_think or parser.top is not None:
        parser.stray()
    elif not parser.tokens and not parser.has_text(0, parser.at):
        parser.accept(Tag.THINK)
    elif parser.stands_alone() or parser.following is Tag.END_THINK:
        parser.drop("stray-tag", "<Think> comes first: moved to the start")
        parser.open_think()
    else:
        parser.word()


def _end_think(parser: RecoveringParser) -> None:
    inside = parser.find(Tag.PARALLEL) >= 0
    continues = parser.following not in (None, Tag.PARALLEL, Tag.THINK, Tag.END_THINK)
    if (parser.had_think and parser.find(Tag.THINK) < 0) or (inside and continues):
        parser.stray()
    elif not parser.stands_alone() and parser.at != parser.last_end_think:
        parser.word()
    else:
        if not parser.had_think:
            parser.open_think()
        parser.close_to(parser.find(Tag.THINK))
        parser.accept(Tag.END_THINK)
        parser.too_deep = 0


def _parallel(parser: RecoveringParser) -> None:
    block = parser.block()
    if not parser.stands_alone() and parser.following is not Tag.GOAL:
        parser.word()
        return
    if block and not parser.in_body():
        if parser.top is Tag.PARALLEL and not block.has_goal:
            parser.stray()
            return
        if parser.top is Tag.PARALLEL and 0 < block.path_count < block.outline_count:
            parser.reopen("a block follows where a path was expected: kept in the path before it")
        else:
            parser.close_to(parser.find(Tag.PARALLEL) - 1)
    if parser.depth() >= parser.max_depth:
        parser.deep()
        parser.too_deep = 1
    else:
        parser.accept(Tag.PARALLEL)


def _end_parallel(parser: RecoveringParser) -> None:
    index = parser.find(Tag.PARALLEL)
    continues = parser.following in (Tag.PATH, Tag.END_PATH, Tag.CONCLUSION)
    if index < 0 or (parser.top is Tag.PATH and continues):
        parser.stray()
    elif parser.top is not Tag.PARALLEL and not parser.stands_alone():
        parser.word()
    else:
        parser.close_inside(index)
        parser.accept(Tag.END_PARALLEL)


def _goal(parser: RecoveringParser) -> None:
    block = parser.block()
    if block and parser.top is Tag.PARALLEL and not block.has_goal:
        parser.accept(Tag.GOAL)
    elif parser.top in (Tag.GOAL, Tag.OUTLINE) or (
        parser.top is Tag.PARALLEL and block and not block.path_count and not block.concluded
    ):
        parser.stray()
    elif not parser.stands_alone() and parser.following is not Tag.OUTLINE:
        parser.word()
    else:
        if not parser.in_body():
            parser.close_to(parser.find(Tag.PARALLEL) - 1)
        if parser.open_block():
            parser.accept(Tag.GOAL)


def _end_goal(parser: RecoveringParser) -> None:
    if parser.top not in (Tag.GOAL, Tag.OUTLINE):
        parser.stray()
        return
    index = parser.find(Tag.GOAL)
    parser.close_to(index)
    if not parser.parent.outline_count:
        message = "the goal has no outline: expected <Outline> before </Goal>"
        parser.write(Tag.OUTLINE, "missing-outline", message)
        parser.close_to(index)
    parser.accept(Tag.END_GOAL)


def _outline(parser: RecoveringParser) -> None:
    block = parser.block()
    if parser.doubled():
        parser.once()
    if parser.top is Tag.GOAL:
        parser.accept(Tag.OUTLINE)
    elif not parser.stands_alone() and not parser.label_after(parser.end):
        parser.word()
    elif parser.top is Tag.OUTLINE:
        parser.close_to(parser.find(Tag.GOAL))
        parser.accept(Tag.OUTLINE)
    elif parser.top is Tag.PARALLEL and block and not block.path_count and not block.concluded:
        if block.has_goal:
            parser.reopen("</Goal> comes after the last </Outline>: left out")
        else:
            parser.open_goal()
        parser.accept(Tag.OUTLINE)
    elif parser.in_body() and parser.following is Tag.END_OUTLINE:
        if parser.open_block():
            parser.open_goal()
            parser.accept(Tag.OUTLINE)
    else:
        parser.stray()


def _end_outline(parser: RecoveringParser) -> None:
    if parser.top is Tag.OUTLINE:
        parser.accept(Tag.END_OUTLINE)
    else:
        parser.stray()


def _path(parser: RecoveringParser) -> None:
    label = parser.label_after(parser.end)
    if parser.doubled():
        parser.once()
    wanted = parser.wanting(label)
    block = parser.block()
    if parser.top is Tag.PARALLEL and block and not block.concluded:
        index = wanted if wanted >= 0 else len(parser.stack) - 1
    elif not label or (wanted < 0 and not parser.stands_alone()):
        parser.word()
        return
    elif wanted >= 0:
        index = wanted
    elif parser.top is Tag.CONCLUSION:
        parser.stray()
        return
    elif parser.top in (Tag.PATH, Tag.GOAL, Tag.OUTLINE):
        index = parser.find(Tag.PARALLEL)
    else:
        if parser.top is Tag.PARALLEL:
            parser.close_to(len(parser.stack) - 2)
        if not parser.open_block():
            return
        index = len(parser.stack) - 1
    if parser.top is Tag.CONCLUSION and index == len(parser.stack) - 2:
        if not parser.empty():
            parser.stray()
            return
        parser.reopen("paths are still to come: <Conclusion> left out")
    parser.close_to(index)
    parser.need_goal(index)
    parser.accept(Tag.PATH)


def _end_path(parser: RecoveringParser) -> None:
    outer = parser.find(Tag.PATH)
    block = parser.block()
    if parser.top is Tag.PATH or parser.top is Tag.CONCLUSION:
        if outer < 0:
            parser.stray()
        elif parser.stands_alone():
            parser.close_to(outer)
            parser.accept(Tag.END_PATH)
        else:
            parser.word()
    elif outer >= 0 and block and parser.top is Tag.PARALLEL and ends_inner(parser):
        parser.close_to(outer)
        parser.accept(Tag.END_PATH)
    else:
        parser.stray()


def ends_inner(parser: RecoveringParser) -> bool:
    """Whether a </Path> between the parts of a nested block ends the path around that block."""
    block = parser.stack[-1]
    if block.concluded:
        return True
    wanted = (
        parser.wanting(parser.label_after(parser.following_end))
        if parser.following is Tag.PATH
        else -1
    )
    return 0 <= wanted < len(parser.stack) - 1


def _conclusion(parser: RecoveringParser) -> None:
    block = parser.block()
    if block is None or parser.top is Tag.CONCLUSION:
        parser.stray()
    elif parser.top is Tag.PARALLEL and block.concluded:
        outer = parser.find(Tag.PATH)
        around = parser.stack[outer - 1] if outer >= 0 else None
        if around and around.path_count >= around.outline_count:
            parser.close_to(outer - 1)
            parser.accept(Tag.CONCLUSION)
        else:
            parser.reopen("the block has two conclusions: joined")
            parser.stray()
    elif (
        parser.top is not Tag.PARALLEL
        and not parser.stands_alone()
        and parser.following is not Tag.END_CONCLUSION
    ):
        parser.word()
    else:
        index = parser.find(Tag.PARALLEL)
        parser.close_to(index)
        parser.need_goal(index)
        parser.accept(Tag.CONCLUSION)


def _end_conclusion(parser: RecoveringParser) -> None:
    if parser.top is not Tag.CONCLUSION:
        parser.stray()
    elif parser.stands_alone():
        parser.accept(Tag.END_CONCLUSION)
    else:
        parser.word()


_RULES: dict[Tag, Callable[[RecoveringParser], None]] = {
    Tag.THINK: _think,
    Tag.END_THINK: _end_think,
    Tag.PARALLEL: _parallel,
    Tag.END_PARALLEL: _end_parallel,
    Tag.GOAL: _goal,
    Tag.END_GOAL: _end_goal,
    Tag.OUTLINE: _outline,
    Tag.END_OUTLINE: _end_outline,
    Tag.PATH: _path,
    Tag.END_PATH: _end_path,
    Tag.CONCLUSION: _conclusion,
    Tag.END_CONCLUSION: _end_conclusion,
}
