"""Tags to the events of the law, and which tag may come next.

The grammar of the twelve tags is one table, `MOVES`. Read through it, a form's tags become forks
and ends of paths: `TagReader` takes those of a text that exists; `TagAutomaton` takes the events
of every thread by itself, for generation, says what may come next, and keeps what closing takes
within the limits. None of it knows a tokenizer.

A thread never holds two open blocks: a block inside a path is the path's thread forking again.
So its state is small: a place in the table, and the fixed text that must come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from operator import attrgetter
from typing import NamedTuple

from mvspec.errors import LimitExceeded, VerifyError
from mvspec.law.limits import Limits
from mvspec.law.tags import TAG, Tag
from mvspec.law.threads import Chain, LawThread, StructuralLaw, SurfaceLaw

TagOrText = Tag | str
"""A tag, or a run of text between tags."""


class Place(StrEnum):
    """Places of a thread between two tags."""

    TURN = "in text"
    THINK = "in <Think>"
    PATH = "in <Path>"
    OPENED = "after <Parallel>"
    GOAL = "in <Goal>"
    OUTLINE = "in <Outline>"
    FORKED = "between </Goal> and the join"
    BETWEEN = "between paths"
    JOINED = "after the last path"
    CONCLUSION = "in <Conclusion>"
    CONCLUDED = "after </Conclusion>"
    BODY = "after </Parallel>"
    ENDED = "after </Path>"


# In Python 3.11, `Place.TURN` takes ten times as long as a name of the module.
(
    _TURN, _THINK, _PATH, _OPENED, _GOAL, _OUTLINE, _FORKED, _BETWEEN, _JOINED, _CONCLUSION,
    _CONCLUDED, _BODY, _ENDED,
) = Place  # fmt: skip

MOVES: dict[Place, dict[Tag, Place]] = {
    _TURN: {Tag.THINK: _THINK, Tag.PARALLEL: _OPENED},
    _THINK: {Tag.END_THINK: _TURN, Tag.PARALLEL: _OPENED},
    _PATH: {Tag.END_PATH: _ENDED, Tag.PARALLEL: _OPENED},
    _OPENED: {Tag.GOAL: _GOAL},
    _GOAL: {Tag.OUTLINE: _OUTLINE, Tag.END_GOAL: _FORKED},
    _OUTLINE: {Tag.END_OUTLINE: _GOAL},
    _FORKED: {},
    _BETWEEN: {Tag.PATH: _PATH},
    _JOINED: {Tag.CONCLUSION: _CONCLUSION},
    _CONCLUSION: {Tag.END_CONCLUSION: _CONCLUDED},
    _CONCLUDED: {Tag.END_PARALLEL: _BODY},
    _ENDED: {},
}
"""Of each place the tags that may come and where they lead; `BODY` stands for the turn, thoughts
or path that the block is in. At `FORKED` a thread waits for its paths, which start at `BETWEEN`;
when the last has ended it goes on at `JOINED`."""

LEADS_TO = {tag: place for moves in MOVES.values() for tag, place in moves.items()}
"""Of each tag the place that it leads to, from wherever it may come."""


def may_follow(place: Place) -> frozenset[Tag]:
    """Return the tags that may come next at a place; `</Goal>` needs an outline before it.

    >>> [str(tag) for tag in may_follow(Place.CONCLUDED)]
    ['</Parallel>']
    """
    return _FOLLOWING[place]


_FOLLOWING = {place: frozenset(moves) for place, moves in MOVES.items()}
_BODIES = (_TURN, _THINK, _PATH)
_NONE: frozenset[Tag] = frozenset()
_TAG_STARTS = frozenset(tag[:n] for tag in Tag for n in range(1, len(tag)))
_PLAIN = {_GOAL, _PATH, _CONCLUSION, _CONCLUDED}  # nothing else to do there


class TagReader:
    """Reads the tags of a text that exists, in surface order, into the law.

    Thoughts are no structure here, since every turn of a conversation may have some.

    >>> reader = TagReader()
    >>> for tag in (Tag.PARALLEL, Tag.GOAL, Tag.OUTLINE, Tag.END_OUTLINE, Tag.END_GOAL, Tag.PATH):
    ...     reader.take(tag)
    >>> reader.law.here.chain
    ((0, 0),)
    """

    def __init__(self, position: int = 0) -> None:
        self.law = SurfaceLaw(position)
        self.places = [_TURN]
        """Of the thread at hand and of all around it, the root first."""
        self._outlines = 0

    def take(self, tag: Tag) -> None:
        """Take a tag, whose own tokens the law has.

        Raises:
            VerifyError: it may not come here; the address is its last token.
        """
        self.read((tag,), (self.law.law.count,), (0,))

    def read(self, tags: Iterable[Tag], ends: Iterable[int], own: Iterable[int]) -> None:
        """Take the tags of a token sequence.

        Args:
            tags: in the order of the surface form.
            ends: of each the index of the token after it.
            own: of each how many of the tokens before that one are the assistant's, from where
                the reading starts.

        Raises:
            VerifyError: one may not come there; the address is its last token.
        """
        places, law, outlines = self.places, self.law, self._outlines
        take, place = law.law.tokens, places[-1]
        at, counted = law.law.count, 0
        for tag, end, after in zip(tags, ends, own, strict=True):
            following = MOVES[place].get(tag)
            if following in _PLAIN:
                place = following
                continue
            if following is _OUTLINE:
                outlines += 1
            elif following is _ENDED:
                path = law.here
                take(path, end - at, after - counted)
                at, counted = end, after
                law.end()
                following = _BETWEEN
                if law.here is path.parent:
                    places.pop()
                    following = _JOINED
            elif following is _OPENED:
                outlines = 0
            elif following is _BODY:
                following = _PATH if len(places) > 1 else _TURN
            elif following is _FORKED and outlines:
                take(law.here, end - at, after - counted)
                at, counted = end, after
                law.fork(outlines)
                places[-1] = following
                following = _BETWEEN
                places.append(following)
            elif place is _TURN and (tag is Tag.THINK or tag is Tag.END_THINK):
                continue
            elif following is _FORKED:
                raise VerifyError(f"token {end - 1}", "</Goal> without an outline")
            else:
                raise VerifyError(f"token {end - 1}", f"{tag} may not come here ({place})")
            place = following
        places[-1] = place
        self._outlines = outlines


@dataclass(frozen=True, slots=True)
class FixedText:
    """The texts that a form writes at its tags.

    Args:
        separator: the white space between two structural tags.
        after_think: what follows `</Think>`.
        label_end: what stands between a label and its text.
    """

    separator: str = "\n"
    after_think: str = "\n\n"
    label_end: str = ": "

    def after(self, tag: Tag) -> str:
        """Return the text that follows a tag, where nothing else decides it."""
        if tag is Tag.END_THINK:
            return self.after_think
        return "\n" if tag in (Tag.THINK, Tag.PATH, Tag.CONCLUSION) else self.separator


class Expect(NamedTuple):
    """Expected next in a thread: all that decides which tokens it may take.

    Args:
        tags: the tags that may come.
        end: whether the turn may end.
        fixed: text that must come first.
        free: whether text of the model's choice may come, after `fixed` if there is some; if
            not, the rest has its defaults.
        lead: what free text starts with.
        one_line: free text ends with its first newline.
        begun: there is free text already.
        start: the start of a tag that the free text ends with so far.
        strict: whether texts are held to the grammar at all.
        closing: where no free token fits the budget any more: what to write, in order, up to
            the thread's next fork or its end.
    """

    tags: frozenset[Tag] = _NONE
    end: bool = False
    fixed: str = ""
    free: bool = False
    lead: str = ""
    one_line: bool = False
    begun: bool = False
    start: str = ""
    strict: bool = True
    closing: tuple[TagOrText, ...] = ()


class PlacedEvent(NamedTuple):
    """Tokens of one event: where they sit, and what it started or joined.

    Args:
        thread: the thread that took it.
        token: number of its first token, counted over all threads in the order of the pushes.
        position: position id of its first token; the next ones rise by one.
        parent: number of the token whose logits predict the first one; -1 if there is none.
        chain: what decides whom it sees, with `sees`.
        forked: the threads that it started, in surface order.
        joined: the thread that goes on because this was the last path to end.
    """

    thread: int
    token: int
    position: int
    parent: int
    chain: Chain
    forked: tuple[int, ...] = ()
    joined: int | None = None


@dataclass(slots=True)
class GrammarThread:
    """The root thread or one path in the grammar: its place, and what must come there.

    Args:
        id: 0 for the root; others in the order in which they were forked.
        law: the thread in the law.
        parent: the thread that forked it; None at the root.
        label: of its path; "" at the root.
        body: where its blocks stand: the turn, its thoughts or its path.
        place: in the table.
        fixed: text that must come before anything is chosen.
        outlines: how many outlines the open block has so far.
        children: the threads of its open block: they count for themselves.
        length, tail: of the run of free text since the last fixed text: its characters, its end.
        inline: whether the run follows a label or a join header: its newline is always there.
        lead: what the run starts with.
        fresh: whether nothing was written yet.
        texts: what the grammar holds texts to; None where texts may be any (reading).
    """

    id: int
    law: LawThread
    parent: int | None = None
    label: str = ""
    body: Place = _TURN
    place: Place = _TURN
    fixed: str = ""
    outlines: int = 0
    children: tuple[int, ...] = ()
    length: int = 0
    tail: str = ""
    inline: bool = False
    lead: str = ""
    fresh: bool = True
    texts: FixedText | None = None

    @property
    def position(self) -> int:
        """Position id of its next token."""
        return self.law.position

    def copy(self) -> GrammarThread:
        """Return a copy whose changes do not show here; the law's thread is shared."""
        return GrammarThread(*_values(self))

    def state(self) -> tuple[object, ...]:
        """Return what decides how the thread may go on and what closing it costs."""
        run = (min(self.length, 2), self.tail.endswith("\n"), self.inline, self.lead)
        return (
            self.body, self.place, self.fixed, self.label, self.outlines, bool(self.children), *run
        )  # fmt: skip

    # What may come

    def expect(self) -> Expect:
        """Say what may come next, limits aside."""
        tags, end = self.tags(), self.may_end()
        if self.texts is None:
            waits = self.place is _FORKED or self.place is _ENDED
            return Expect(tags, end, free=not waits, strict=False)
        if not self.free():
            return Expect(tags, end, self.fixed)
        # A tag has one "<", so what may still become a tag starts at the last one.
        tail = self.tail
        start = tail[tail.rindex("<") :] if "<" in tail else ""
        start = start if start in _TAG_STARTS else ""
        one_line, begun = self.place is _OUTLINE, self.length > 0
        return Expect(tags, end, self.fixed, True, self.lead, one_line, begun, start)

    def text_ends(self) -> bool:
        """Whether a tag may follow the text so far: a tag stands on a line of its own."""
        if self.texts is None:
            return True
        if self.place is _OUTLINE:
            return self.tail.endswith("\n")
        if not self._free_text:
            return True
        if self.length == 0:
            return not self.inline
        return self.tail.endswith("\n") and (self.inline or self.length > 1) and not self.lead

    def tags(self) -> frozenset[Tag]:
        """Return the tags that may come next, limits aside."""
        if self.fixed or not self.text_ends():
            return _NONE
        place = self.place
        allowed = _FOLLOWING[place]
        if place is _TURN and not self.fresh:
            return allowed - {Tag.THINK}
        return allowed - {Tag.END_GOAL} if place is _GOAL and not self.outlines else allowed

    @property
    def _free_text(self) -> bool:
        return self.place in _BODIES or self.place is _CONCLUSION

    def may_end(self) -> bool:
        """Whether the turn may end here."""
        return self.place is _TURN and not self.fixed

    def free(self) -> bool:
        """Whether text of the model's choice may come, after the fixed text if there is some."""
        if self.place is _OUTLINE:
            return not self.tail.endswith("\n")
        return self._free_text

    # What came

    def text(self, text: str) -> None:
        """Take text, fixed or free.

        Raises:
            VerifyError: the text may not come here; the thread is unchanged.
        """
        if self.texts is None:
            if self.place is _FORKED or self.place is _ENDED:
                raise self._refuse(f"text {text!r}", "nothing: the thread waits or has ended")
            self.fresh = False
            return
        rest, fixed = text, self.fixed
        if fixed:
            if rest.startswith(fixed):
                rest, fixed = rest[len(fixed) :], ""
            elif fixed.startswith(rest):
                rest, fixed = "", fixed[len(rest) :]
            else:
                same = next(n for n, (a, b) in enumerate(zip(fixed, rest, strict=False)) if a != b)
                raise self._refuse(f"text {text!r}", f"{fixed[same:]!r}")
        if rest:
            if not self.free():
                raise self._refuse(f"text {text!r}", "a tag")
            if self.lead and not rest.startswith(self.lead):
                raise self._refuse(f"text {text!r}", f"text that starts with {self.lead!r}")
            if self.place is _OUTLINE and "\n" in rest[:-1]:
                raise self._refuse(f"text {text!r}", "one line and its newline")
            tag = TAG.search(self.tail + rest) if ">" in rest else None
            if tag:
                raise self._refuse(f"{tag.group()} in plain characters", "the tag's own token")
            self.lead = ""
            self.length += len(rest)
            self.tail = (self.tail + rest)[-16:]
        self.fixed = fixed
        self.fresh = False

    def tag(self, tag: Tag) -> None:
        """Take a tag.

        Raises:
            VerifyError: the tag may not come here; the thread is unchanged.
        """
        allowed = self.tags()
        if tag not in allowed:
            fixed = f"{self.fixed!r}" if self.fixed else "text and a newline"
            raise self._refuse(tag, " or ".join(sorted(allowed)) or fixed)
        following = MOVES[self.place][tag]
        self.place = self.body if following is _BODY else following
        if self.place in _BODIES:
            self.body = self.place
        self.fresh = False
        if tag is Tag.OUTLINE:
            self.outlines += 1
        elif tag is Tag.END_PARALLEL:
            self.outlines = 0
        self.length, self.tail, self.lead = 0, "", ""
        self.inline = tag is Tag.PATH or tag is Tag.CONCLUSION
        texts = self.texts
        if texts is None:
            return
        if tag is Tag.OUTLINE:
            self.fixed = texts.separator + self.number(self.outlines) + texts.label_end
        elif tag is Tag.PATH:
            self.fixed = texts.separator + self.label + texts.label_end.rstrip()
            self.lead = texts.label_end.lstrip(":")
        elif tag is not Tag.END_GOAL and tag is not Tag.END_PATH:
            self.fixed = texts.after(tag)

    def take(self, event: TagOrText) -> None:
        """Take a tag or text."""
        if isinstance(event, Tag):
            self.tag(event)
        else:
            self.text(event)

    def number(self, index: int) -> str:
        """Return the canonical label of the open block's path `index`, from 1."""
        return f"{self.label}.{index}" if self.label else str(index)

    def begin(self, index: int, law: LawThread, id: int = -1) -> GrammarThread:
        """Return the thread of the open block's path `index`, from 0."""
        return GrammarThread(
            id, law, self.id, self.number(index + 1), _PATH, _BETWEEN,
            self.texts.separator if self.texts else "", fresh=False, texts=self.texts,
        )  # fmt: skip

    def join(self) -> None:
        """Go on after the paths of the open block have met: the join header comes next."""
        self.children = ()
        self.place = _JOINED
        self.fixed = self.texts.separator if self.texts else ""

    # Closing

    def next_closing(self) -> TagOrText | None:
        """Return the next event of the shortest way to close what is open, None at the end."""
        if self.fixed:
            return self.fixed
        place = self.place
        if place is _TURN:
            return None
        if place is _GOAL and self.outlines:
            return Tag.END_GOAL
        if not self.text_ends():
            return self.lead + "\n"
        return next(tag for tag in MOVES[place] if tag is not Tag.PARALLEL)

    def close(self) -> Iterator[TagOrText]:
        """Close up to the next fork or the end, the shortest way; touching texts come as one."""
        text = ""
        while self.place is not _ENDED and self.place is not _FORKED:
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
            self.take(event)
            if text and self.inline and not self.length and not self.fixed:
                yield text  # a header ends: what follows is another segment
                text = ""

    def _refuse(self, found: str, expected: str) -> VerifyError:
        return VerifyError(
            f"thread {self.id}, position {self.position}",
            f"{found} may not come here: expected {expected}",
        )


_values = attrgetter(*(field.name for field in fields(GrammarThread)))
"""All fields of a thread: a copy is made for every token, and `replace` takes ten times as long."""


class TagAutomaton:
    """The automaton of generation: every thread takes tags and texts, the law places them.

    Args:
        limits: what may be used; exceeding them is refused, with the state unchanged.
        position: position id of the first token, which is the length of the prompt.
        tokens: how many tokens a fixed text takes; for budgets only.
        strict: hold texts to the grammar too (generation). If not, only tags count and text
            may be any str (reading what exists, whose labels may be unusual).

    Attributes:
        law: where the tokens sit.
        threads: those that have not joined, by number.
        cursor: the thread that the next event of `feed` belongs to.

    >>> automaton = TagAutomaton(strict=False)
    >>> placed = [automaton.feed(event) for event in
    ...     (Tag.PARALLEL, Tag.GOAL, Tag.OUTLINE, Tag.END_OUTLINE, Tag.OUTLINE, Tag.END_OUTLINE,
    ...      Tag.END_GOAL, Tag.PATH, "a", "b", Tag.END_PATH, Tag.PATH, Tag.END_PATH,
    ...      Tag.CONCLUSION)]
    >>> [each.position for each in placed]
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 7, 8, 11]
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        position: int = 0,
        tokens: Callable[[str], int] = lambda text: 1,
        strict: bool = True,
    ) -> None:
        self.limits = limits or Limits()
        bounds = self.limits.max_position, self.limits.max_tokens
        self._bounded = any(bound is not None for bound in bounds)
        self.tokens = tokens
        self.strict = strict
        self.law = StructuralLaw(position)
        root = GrammarThread(0, self.law.root, texts=FixedText() if strict else None)
        self.threads: dict[int, GrammarThread] = {0: root}
        self.cursor = 0
        self._made = 1
        self._costs: dict[tuple[object, ...], tuple[int, int]] = {}
        self._reserve = 0
        if not self._fits(root, root, 0):
            raise LimitExceeded(f"the prompt alone passes the budget: {self.limits}")

    @property
    def count(self) -> int:
        """How many tokens all threads have taken."""
        return self.law.count

    @property
    def live(self) -> tuple[int, ...]:
        """The threads that can take a token now, in the order in which they were forked."""
        waits = (_ENDED, _FORKED)
        return tuple(t.id for t in self.threads.values() if t.place not in waits)

    # Taking events

    def feed(self, event: TagOrText, width: int = 1) -> PlacedEvent:
        """Take the next event of the surface form; `cursor` is the thread that it belongs to."""
        thread = self.threads[self.cursor]
        placed = self.push(self.cursor, event, width)
        if placed.forked:
            self.cursor = placed.forked[0]
        elif placed.joined is not None:
            self.cursor = placed.joined
        elif event is Tag.END_PATH and thread.parent is not None:
            siblings = self.threads[thread.parent].children
            self.cursor = siblings[thread.law.path + 1]
        return placed

    def push(self, thread: int, event: TagOrText, width: int = 1) -> PlacedEvent:
        """Take an event of one thread.

        Args:
            thread: a live thread.
            event: a tag, or text.
            width: how many tokens it is; 0 for a tag that the form does not write.

        Raises:
            VerifyError: the event may not come here; nothing has changed.
            LimitExceeded: what is open could not be closed within the limits any more.
        """
        before = self._thread(thread)
        # A thread that refuses an event is unchanged: a copy is for what is refused afterwards.
        limited = self._bounded or event is Tag.PARALLEL or event is Tag.OUTLINE
        after = self._take(before, before.copy() if limited else before, event, width)
        own = after.law
        token, parent = self.law.count, own.last
        position = self.law.tokens(own, width)
        self.threads[thread] = after
        forked = self._fork(after) if after.place is _FORKED else ()
        if self._bounded:
            self._reserve += self._total(after) - self._total(before)
            self._reserve += sum(self._total(self.threads[child]) for child in forked)
        joined = self._end(after) if after.place is _ENDED else None
        return PlacedEvent(thread, token, position, parent, own.chain, forked, joined)

    def _take(
        self, before: GrammarThread, after: GrammarThread, event: TagOrText, width: int
    ) -> GrammarThread:
        after.take(event)
        if isinstance(event, Tag):
            self._check_counts(after, event)
        if not self._fits(before, after, width):
            raise LimitExceeded(
                f"thread {before.id}, position {before.position}: after {event!r} what is open "
                f"cannot be closed within the budget (positions {self.limits.max_position}, "
                f"tokens {self.limits.max_tokens})"
            )
        return after

    def _thread(self, thread: int) -> GrammarThread:
        if thread not in self.threads:
            raise VerifyError(f"thread {thread}", "there is no such thread")
        return self.threads[thread]

    def _fork(self, parent: GrammarThread) -> tuple[int, ...]:
        paths = self.law.fork(parent.law, parent.outlines)
        made = tuple(range(self._made, self._made + len(paths)))
        self._made += len(paths)
        for index, (id, law) in enumerate(zip(made, paths, strict=True)):
            self.threads[id] = parent.begin(index, law, id)
        parent.children = made
        return made

    def _end(self, path: GrammarThread) -> int | None:
        if self.law.end(path.law) is None or path.parent is None:
            return None
        parent = self.threads[path.parent]
        for child in parent.children:
            del self.threads[child]
        parent.join()
        return parent.id

    # What may come

    def expect(self, thread: int) -> Expect:
        """Say what may come next in a thread, within the limits."""
        expect = self._thread(thread).expect()
        tags = frozenset(tag for tag in expect.tags if self.allows(thread, tag))
        text = self._bounded and expect.free and not expect.fixed
        if text and not self.allows(thread, expect.lead + "x"):
            return Expect(tags, expect.end, closing=self.closing(thread))
        return expect._replace(tags=tags)

    def allows(self, thread: int, event: TagOrText, width: int = 1) -> bool:
        """Whether `push` would take this event."""
        now = self._thread(thread)
        try:
            self._take(now, now.copy(), event, width)
        except (VerifyError, LimitExceeded):
            return False
        return True

    def closing(self, thread: int) -> tuple[TagOrText, ...]:
        """Return the shortest way to close a thread, up to its next fork or its end."""
        return tuple(self._thread(thread).copy().close())

    # Limits

    def _check_counts(self, thread: GrammarThread, tag: Tag) -> None:
        most = self.limits.max_paths
        if tag is Tag.PARALLEL and len(thread.law.chain) >= self.limits.max_depth:
            wrong = f"blocks nest deeper than {self.limits.max_depth}"
        elif tag is Tag.OUTLINE and most is not None and thread.outlines > most:
            wrong = f"more than {most} paths in a block"
        else:
            return
        raise LimitExceeded(f"thread {thread.id}, position {thread.position}: {wrong}")

    def _fits(self, before: GrammarThread, after: GrammarThread, width: int) -> bool:
        """Whether all that is open can still be closed once `before` has become `after`."""
        if not self._bounded:
            return True
        if self.limits.max_position is not None:
            end = after.position + width + self._cost(after)[0]
            over = after
            while over.parent is not None:
                over = self.threads[over.parent]
                end += self._cost(over)[0]
            if end > self.limits.max_position:
                return False
        if self.limits.max_tokens is not None:
            reserve = self._reserve - self._total(before) + self._total(after)
            return self.count + width + reserve <= self.limits.max_tokens
        return True

    def _total(self, thread: GrammarThread) -> int:
        return self._cost(thread)[1]

    def _cost(self, thread: GrammarThread) -> tuple[int, int]:
        """Tokens that closing a thread takes: (on its critical path, in all)."""
        state = thread.state()
        if state not in self._costs:
            self._costs[state] = self._measure(thread.copy())
        return self._costs[state]

    def _measure(self, probe: GrammarThread) -> tuple[int, int]:
        critical = total = 0
        while True:
            for event in probe.close():
                width = 1 if isinstance(event, Tag) else self.tokens(event)
                critical += width
                total += width
            if probe.place is not _FORKED:
                return critical, total
            if not probe.children:  # else the paths count for themselves
                paths = [
                    self._measure(probe.begin(index, probe.law))[1]
                    for index in range(probe.outlines)
                ]
                critical += max(paths)
                total += sum(paths)
            probe.join()
