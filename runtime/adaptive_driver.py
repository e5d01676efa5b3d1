"""Adaptive generation: the model decides when to fork, and is held to the grammar."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from mvspec.errors import LimitExceeded, VerifyError
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Piece
from mvspec.law.automaton import PlacedEvent, TagAutomaton, TagOrText
from mvspec.law.limits import Limits
from mvspec.law.tags import Tag
from mvspec.runtime.hole_driver import cut_at_stop, longest_stop
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.options import Options
from mvspec.runtime.sampling import DrawnToken
from mvspec.runtime.thread_state import (
    Action,
    AllowedTokens,
    AwaitRound,
    CloseByForce,
    EndPath,
    EndRun,
    ForkThread,
    KeepToken,
    NewPath,
    TakeBack,
    ThreadState,
    WriteTokens,
)

# What follows the tag `<Outline>`: label and title.
_OUTLINE = re.compile(r"\s*([0-9.]*[0-9])\s*:\s*(.*?)\s*</Outline>", re.DOTALL)

_KEEP = KeepToken()


class AdaptiveTurn:
    """A turn that the model writes by itself: what its threads share.

    Args:
        limits: of the op; those of the run go before them.
        options: how the plan is run.
        lexicon: of the engine's tokenizer.
        context: how many positions the model has; None where it does not say.
        thread: that the turn begins in.

    Attributes:
        strict: whether the model is held to the grammar.
        machine: of the structure.
        most, last: tokens and positions of a turn that is not held to it.
        violations: how often the model wrote a tag that may not stand there, where structure is
            not enforced.
        stopped: the stop string that ended the turn; "" for none.
    """

    def __init__(
        self,
        limits: Limits,
        options: Options,
        lexicon: Lexicon,
        context: int | None,
        thread: ThreadState,
    ) -> None:
        self.lexicon = lexicon
        self.strict = options.structure
        self.stops = options.sampling.stop
        self.violations = 0
        self.stopped = ""
        self.most: int | None = None
        self.last: int | None = None
        limits = limits.model_copy(update=options.limits.model_dump(exclude_unset=True))
        ends = [n for n in (limits.max_position, context) if n is not None]
        limits = limits.model_copy(update={"max_position": min(ends) if ends else None})
        if limits.max_tokens is not None:  # holes before this turn have taken their share
            own = sum(t.author != "prompt" for _, found in thread.stretches() for t in found)
            limits = limits.model_copy(update={"max_tokens": max(limits.max_tokens - own, 0)})
        if not self.strict:
            # Nothing is closed by force, so nothing is held back for closing either.
            self.most, self.last = limits.max_tokens, limits.max_position
            limits = limits.model_copy(update={"max_tokens": None, "max_position": None})
        self.machine = TagAutomaton(
            limits,
            position=thread.position,
            tokens=lexicon.width,
            strict=self.strict,
        )

    def is_over(self, thread: ThreadState, width: int = 1) -> bool:
        """Whether so many tokens pass a limit, where nothing is closed by force."""
        over = self.most is not None and self.machine.count + width > self.most
        return over or (self.last is not None and thread.position + width > self.last)


class AdaptiveDriver:
    """Lets one thread go on as the model decides.

    Args:
        turn: that the thread belongs to.
        id: the thread's number in the turn's machine.
        header: what is written at its start.
    """

    draws = True
    given = None
    sampling = None

    def __init__(self, turn: AdaptiveTurn, id: int, header: Iterable[Piece] = ()) -> None:
        self._turn = turn
        self._id = id
        self._header = header
        self._run: list[int] = []
        """Its free tokens since the last tag, for stop strings."""
        self._outlines: list[list[int]] = []
        """Ids of each outline of the block that it is opening."""

    def __str__(self) -> str:
        return str(self._turn.machine.expect(self._id))

    @property
    def revocable(self) -> int:
        """How many of the thread's last tokens a stop string may take back."""
        stops = self._turn.stops
        return min(len(self._run), longest_stop(stops)) if stops else 0

    def allowed(self, thread: ThreadState) -> AllowedTokens:
        """See `Driver`."""
        turn = self._turn
        if not turn.strict:
            return AllowedTokens(turn.lexicon.known, lasting=True)
        return AllowedTokens(turn.lexicon.in_structure(turn.machine, self._id), lasting=True)

    # Writing by force: headers and closings

    def advance(self, thread: ThreadState) -> Iterator[Action]:
        """See `Driver`: write the header of a path or of a join."""
        header, self._header = self._header, ()
        events: list[TagOrText] = []
        text = ""  # texts that touch are tokenised as one
        for piece in header:
            if piece.tag is None:
                text += piece.text
                continue
            events += [text, piece.tag] if text else [piece.tag]
            text = ""
        return self._force(thread, [*events, text] if text else events)

    def close(self, thread: ThreadState, cut: str) -> Iterable[Action] | None:
        """See `Driver`: close what is open, up to the next fork."""
        turn = self._turn
        if thread.unread:
            return None
        if not turn.strict:
            return (EndRun(cut or "limit"),) if cut or turn.is_over(thread) else None
        expect = turn.machine.expect(self._id)
        goes_on = not expect.closing and (expect.tags or expect.fixed or expect.free)
        if goes_on and not cut and turn.lexicon.in_structure(turn.machine, self._id).any():
            return None
        return self._close(thread, cut)

    def _close(self, thread: ThreadState, cut: str) -> Iterator[Action]:
        yield CloseByForce()
        events = self._turn.machine.closing(self._id)
        if not events:  # nothing is open: this is the root thread
            yield EndRun(cut or "limit")
        yield from self._force(thread, events)

    def _force(self, thread: ThreadState, events: Sequence[TagOrText]) -> Iterator[Action]:
        turn = self._turn
        for event in events:
            ids = turn.lexicon.encode_event(event)
            yield AwaitRound()
            if turn.is_over(thread, len(ids)):
                yield EndRun("limit")
            step = turn.machine.push(self._id, event, len(ids))
            yield WriteTokens(ids)
            yield from self._follow(thread, event, ids, step)

    # Taking what was drawn

    def take(self, thread: ThreadState, drawn: DrawnToken) -> KeepToken | Iterable[Action] | None:
        """See `Driver`."""
        turn, id = self._turn, drawn.id
        if turn.is_over(thread):  # other paths took the last of it in this step
            return (EndRun("limit"),)
        if id in turn.lexicon.ends:
            return self._end_of_turn()
        event = turn.lexicon.rules.event(id)
        tagged = isinstance(event, Tag)
        if not tagged and (stopped := self._stop(thread, id)):
            return stopped
        try:
            step = turn.machine.push(self._id, event, 1)
        except (VerifyError, LimitExceeded) as error:
            if not turn.strict:
                return self._misplaced(error, tagged)
            if not tagged:
                del self._run[-1:]
            return None
        if tagged:
            self._run.clear()
            return self._keep(thread, event, id, step)
        if self._outlines:
            self._outlines[-1].append(id)
        return _KEEP

    def _keep(
        self, thread: ThreadState, event: TagOrText, id: int, step: PlacedEvent
    ) -> Iterator[Action]:
        yield _KEEP
        yield from self._follow(thread, event, (id,), step)

    def _follow(
        self, thread: ThreadState, event: TagOrText, ids: Sequence[int], step: PlacedEvent
    ) -> Iterator[Action]:
        """Note what was written; where it forks or joins, the headers come next."""
        turn = self._turn
        if self._outlines:
            self._outlines[-1] += ids
        if event is Tag.OUTLINE:
            self._outlines.append([])
        if step.forked:
            texts = map(turn.lexicon.vocabulary.decode, self._outlines)
            paths = [self._path(*each) for each in zip(step.forked, texts, strict=True)]
            self._header = MULTIVERSE.join_header()
            self._run.clear()
            self._outlines = []
            yield ForkThread(paths)
        elif event is Tag.END_PATH and thread.parent is not None:
            yield EndPath()

    def _path(self, id: int, outline: str) -> NewPath:
        found = _OUTLINE.match(outline)
        label = self._turn.machine.threads[id].label
        if found and not self._turn.strict:
            label = found[1]
        title = found[2] if found else ""
        driver = AdaptiveDriver(self._turn, id, MULTIVERSE.fork_header(label, title))
        return NewPath(driver, label, title)

    def _stop(self, thread: ThreadState, id: int) -> Iterator[Action] | None:
        """Return what ends the turn where a stop string has come: never inside a structure."""
        turn = self._turn
        if not turn.stops or not turn.machine.threads[self._id].may_end():
            return None
        self._run.append(id)
        stopped = cut_at_stop(self._run, turn.stops, turn.lexicon.vocabulary)
        return None if stopped is None else self._cut(thread, *stopped)

    def _cut(self, thread: ThreadState, keep: int, rest: str) -> Iterator[Action]:
        turn, machine = self._turn, self._turn.machine
        text = turn.lexicon.vocabulary.decode(self._run)
        turn.stopped = min((stop for stop in turn.stops if stop in text), key=text.find)
        gone = len(self._run) - 1 - keep
        yield TakeBack(gone)
        # What is left of a token may be several tokens, for which there has to be room as well.
        ids = turn.lexicon.vocabulary.encode_outside(rest)
        bounds = (
            (turn.most, machine.count - gone),
            (machine.limits.max_tokens, machine.count - gone),
            (turn.last, thread.position),
            (machine.limits.max_position, thread.position),
        )
        room = max(min((n - at for n, at in bounds if n is not None), default=len(ids)), 0)
        yield WriteTokens(ids[:room])
        yield EndRun("limit" if room < len(ids) else "end")

    def _end_of_turn(self) -> Iterable[Action] | None:
        turn = self._turn
        whole = turn.machine.threads[self._id].may_end()
        if turn.strict and not whole:
            return None
        turn.violations += not whole
        return _KEEP, EndRun("end")

    def _misplaced(self, error: Exception, tagged: bool) -> KeepToken | Iterable[Action]:
        """Without enforcement a misplaced tag is just a token, and a limit just the end."""
        if tagged:
            self._run.clear()
        if isinstance(error, VerifyError):
            self._turn.violations += 1
            try:
                self._turn.machine.push(self._id, "x", 1)
            except (VerifyError, LimitExceeded):
                pass
            else:
                return _KEEP
        return (EndRun("limit"),)
