"""One line of generation: what it has open, and what the grammar lets come next.

A thread never holds two open blocks: a block inside a path is the path's thread forking again.
So its state is small and its transitions are a table, shared by reading, generating and closing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from operator import attrgetter

from mvspec.errors import VerifyError
from mvspec.forms.syntax import Syntax
from mvspec.law.tags import TAG, Tag

__all__ = ["Event", "Thread"]

Event = Tag | str
"""A tag, or a run of text between tags."""

_BODIES = (None, Tag.THINK, Tag.PATH)
_NONE: frozenset[Tag] = frozenset()
_NEXT = {Tag.PARALLEL: Tag.GOAL, Tag.GOAL: Tag.OUTLINE, Tag.END_CONCLUSION: Tag.END_PARALLEL}


@dataclass(slots=True)
class Thread:
    """State of the root thread or of one path.

    Args:
        id: 0 for the root; others in the order in which they were forked.
        position: position id of its next token.
        chain: (block, path) for every path that the thread stands in, outermost first.
        label: of its path; "" at the root.
        parent: the thread that forked it; None at the root.
        last: index of its latest token, -1 before the first.
        frames: open constructs, innermost last; None is the turn, PATH a thread's own path.
        pending: the fixed events that must come before anything is chosen.
        outlines: how many outlines the open block has so far.
        forks: how many paths the open block has, from its fork to its join; else 0.
        children: their threads; this one waits for them.
    """

    id: int = 0
    position: int = 0
    chain: tuple[tuple[int, int], ...] = ()
    label: str = ""
    parent: int | None = None
    last: int = -1
    frames: tuple[Tag | None, ...] = (None,)
    pending: tuple[Event, ...] = ()
    outlines: int = 0
    forks: int = 0
    children: tuple[int, ...] = ()
    done: bool = False
    # The run of free text since the last fixed text.
    length: int = 0
    tail: str = ""
    inline: bool = False  # the run follows a label or a join header: its newline is always there
    lead: str = ""  # what the run starts with
    fresh: bool = True  # nothing was written yet
    strict: bool = True  # texts between the tags are known and held to the grammar as well

    @property
    def top(self) -> Tag | None:
        """The innermost open construct."""
        return self.frames[-1]

    def copy(self) -> Thread:
        """Return a copy whose changes do not show here."""
        return Thread(*_values(self))

    def state(self) -> tuple[object, ...]:
        """What decides how the thread may go on and what closing it costs."""
        run = (min(self.length, 2), self.tail.endswith("\n"), self.inline, self.lead)
        counts = (self.outlines, self.forks, bool(self.children), self.done)
        return (self.frames, self.pending, self.label, self.fresh, *counts, *run)

    # What may come

    def text_ends(self) -> bool:
        """Whether a tag may follow the text so far: a tag stands on a line of its own."""
        if self.length == 0:
            return not self.inline or not self.strict
        return self.tail.endswith("\n") and (self.inline or self.length > 1) and not self.lead

    def tags(self) -> frozenset[Tag]:
        """The tags that may come next, limits aside."""
        if self.done or self.forks:
            return _NONE
        if self.pending:
            first = self.pending[0]
            return frozenset({first}) if isinstance(first, Tag) else _NONE
        top = self.top
        if top is Tag.GOAL:
            return frozenset({Tag.OUTLINE, Tag.END_GOAL})
        if top is Tag.OUTLINE:
            ends = self.tail.endswith("\n") or not self.strict
            return frozenset({Tag.END_OUTLINE}) if ends else _NONE
        if not self.text_ends():
            return _NONE
        if top is Tag.CONCLUSION:
            return frozenset({Tag.END_CONCLUSION})
        allowed = {Tag.PARALLEL}
        if top is not None:
            allowed.add(top.partner)
        elif self.fresh:
            allowed.add(Tag.THINK)
        return frozenset(allowed)

    def may_end(self) -> bool:
        """Whether the turn may end here."""
        return self.frames == (None,) and not self.pending and not self.forks

    def fixed(self) -> str | None:
        """The text that must come next, if it is fixed."""
        first = self.pending[0] if self.pending else None
        return None if first is None or isinstance(first, Tag) else first

    def free(self) -> bool:
        """Whether text of the model's choice may come, after the fixed text if there is some."""
        if self.done or self.forks or any(isinstance(e, Tag) for e in self.pending):
            return False
        if self.top is Tag.OUTLINE:
            return not self.tail.endswith("\n")
        return self.top in _BODIES or self.top is Tag.CONCLUSION

    # What came

    def text(self, text: str) -> None:
        """Take text, fixed or free.

        Raises:
            VerifyError: the text may not come here; the thread is unchanged.
        """
        if not self.strict:
            if self.done or self.forks:
                raise self._refuse(f"text {text!r}", "nothing: the thread waits or has ended")
            self.fresh = False
            return
        rest = text
        pending = self.pending
        while rest and pending and not isinstance(pending[0], Tag):
            fixed = pending[0]
            if rest.startswith(fixed):
                rest, pending = rest[len(fixed) :], pending[1:]
            elif fixed.startswith(rest):
                rest, pending = "", (fixed[len(rest) :], *pending[1:])
            else:
                raise self._refuse(f"text {text!r}", f"{fixed!r}")
        if rest:
            if not self.free():
                raise self._refuse(f"text {text!r}", "a tag")
            if self.lead and not rest.startswith(self.lead):
                raise self._refuse(f"text {text!r}", f"text that starts with {self.lead!r}")
            if self.top is Tag.OUTLINE and "\n" in rest[:-1]:
                raise self._refuse(f"text {text!r}", "one line and its newline")
            tag = TAG.search(self.tail + rest) if ">" in rest else None
            if tag:
                raise self._refuse(f"{tag.group()} in plain characters", "the tag's own token")
            self.lead = ""
            self.length += len(rest)
            self.tail = (self.tail + rest)[-16:]
        self.pending = pending
        self.fresh = False

    def tag(self, tag: Tag, syntax: Syntax) -> None:
        """Take a tag.

        Raises:
            VerifyError: the tag may not come here; the thread is unchanged.
        """
        allowed = self.tags()
        if tag not in allowed or (tag is Tag.END_GOAL and not self.outlines):
            expected = " or ".join(sorted(allowed)) or (
                f"{self.fixed()!r}" if self.pending else "text and a newline"
            )
            raise self._refuse(tag, expected)
        self.pending = self.pending[1:]
        self.fresh = False
        separator = syntax.separator
        if tag is Tag.OUTLINE:
            self.outlines += 1
        if tag is Tag.END_GOAL:
            self.forks = self.outlines
        if tag is Tag.END_PATH:
            self.done = True
        elif tag.closes:
            self.frames = self.frames[:-1]
        elif tag is not Tag.PATH:  # a path's thread is made with its frame
            self.frames = (*self.frames, tag)
        if tag in _NEXT:
            self.pending = (separator, _NEXT[tag])
        elif tag is Tag.OUTLINE:
            self.pending = (separator, self.number(self.outlines) + syntax.label_end)
        elif tag is Tag.PATH:
            self.pending = (separator, self.label + syntax.label_end.rstrip())
        else:
            forks = tag is Tag.END_GOAL or tag is Tag.END_PATH
            self.pending = () if forks else (syntax.after(tag),)
        self._tags_only()
        self.length, self.tail = 0, ""
        self.inline = tag in (Tag.PATH, Tag.CONCLUSION)
        self.lead = syntax.label_end.lstrip(":") if self.strict and tag is Tag.PATH else ""
        if tag is Tag.END_PARALLEL:
            self.outlines = 0

    def take(self, event: Event, syntax: Syntax) -> None:
        """Take a tag or text."""
        if isinstance(event, Tag):
            self.tag(event, syntax)
        else:
            self.text(event)

    def number(self, index: int) -> str:
        """Return the canonical label of the open block's path `index`, from 1."""
        return f"{self.label}.{index}" if self.label else str(index)

    def join(self, syntax: Syntax) -> None:
        """Go on after the paths of the open block have met: the join header comes next."""
        self.forks, self.children = 0, ()
        self.pending = (syntax.separator, Tag.CONCLUSION)
        self._tags_only()

    def _tags_only(self) -> None:
        if self.pending and not self.strict:
            self.pending = tuple([event for event in self.pending if isinstance(event, Tag)])

    def next_closing(self) -> Event | None:
        """The next event of the shortest way to close what is open, None at the end."""
        if self.pending:
            return self.pending[0]
        if self.top is None:
            return None
        if self.top is Tag.GOAL:
            return Tag.END_GOAL
        if self.top is Tag.OUTLINE:
            ends = self.tail.endswith("\n") or not self.strict
        else:
            ends = self.text_ends()
        return self.top.partner if ends else self.lead + "\n"

    def close(self, syntax: Syntax) -> Iterator[Event]:
        """Close up to the next fork or the end, the shortest way; touching texts come as one."""
        text = ""
        while not (self.done or self.forks):
            event = self.next_closing()
            if isinstance(event, Tag) or event is None:
                if text:
                    yield text
                if event is None:
                    return
                yield event
                text = ""
            else:
                text += event
            self.take(event, syntax)
            if text and self.inline and not self.length and not self.pending:
                yield text  # a header ends: what follows is another segment
                text = ""

    def _refuse(self, found: str, expected: str) -> VerifyError:
        return VerifyError(
            f"thread {self.id}, position {self.position}",
            f"{found} may not come here: expected {expected}",
        )


_values = attrgetter(*(field.name for field in fields(Thread)))
"""All fields of a thread: a copy is made for every token, and `replace` takes ten times as long."""
