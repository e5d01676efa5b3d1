"""Filling the holes of a static plan: what may be drawn for them, and where they end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mvspec.compiler.plan import ExecutionPlan, Fork, Generate, Join
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import Unsupported, VerifyError
from mvspec.law.tags import TAG
from mvspec.runtime.budget import HoleBudget
from mvspec.runtime.constraint import REVOCABLE, Constraint, Spelling
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.sampling import DrawnToken, Sampling
from mvspec.runtime.thread_state import (
    Action,
    AllowedTokens,
    CloseByForce,
    Driver,
    FillHole,
    HandOver,
    KeepToken,
    ReadAgain,
    TakeBack,
    ThreadState,
    ThreadToken,
    WriteTokens,
)
from mvspec.tree.ir import Gen

_RECENT = 32
"""Tokens of a hole in which a tag in plain characters may begin: one has fewer characters."""


class FilledHoles:
    """The holes of one request that have their texts, and what is left for the others.

    Args:
        plan: verified.
        lexicon: of the engine's tokenizer.
        budget: what the holes may take.
        share: whether paths read each other's tokens.

    Attributes:
        texts: of the holes filled so far, by name.
        values: likewise; a hole that was cut inside its constraint has none.
        errors: why a hole has no value.
        cut: those that were ended inside their constraint.
        drawn: tokens of all holes so far; a lead's is left out, since it is written anyway.

    Raises:
        MvspecError: a hole cannot be filled, or the document has no room for what fills it.
    """

    def __init__(
        self, plan: ExecutionPlan, lexicon: Lexicon, budget: HoleBudget, *, share: bool
    ) -> None:
        self.budget = budget
        self.texts: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self.errors: dict[str, str] = {}
        self.cut: set[str] = set()
        self.drawn = 0
        depth = 0
        for op in plan.ops:
            depth += isinstance(op, Fork) - isinstance(op, Join)
            if isinstance(op, Generate):
                lexicon.constraints.check(op.hole, op.lead)
                if share and depth:
                    _check_stops(op.hole)
        if plan.document is not None:
            try:
                plan.document.fill({hole.name: "" for hole in plan.document.holes})
            except VerifyError as error:
                raise VerifyError(error.address, f"with its holes empty, {error}") from None


class HoleDriver:
    """Fills one hole.

    What only one continuation is legal for is written, not drawn: names, quotes and colons of a
    schema, the rest of a choice once it is decided. Where max_tokens would cut a constraint, the
    cheapest ending that is known is written instead.

    Args:
        op: the hole, with what its tokens begin with before its value.
        before: the end of the text before it, since the last control token.
        after: the beginning of the fixed text after it.
        predicts: whether its last token has to predict what follows it: nothing is written there.
        sampling: how its tokens are drawn.
        shared: whether other paths read its tokens, so that none can be taken back.
        back: goes on after it.
        holes: of the request.
        lexicon: of the engine's tokenizer.
    """

    given = None
    draws = True

    def __init__(
        self,
        op: Generate,
        before: str,
        after: str,
        predicts: bool,
        sampling: Sampling,
        shared: bool,
        back: Driver,
        holes: FilledHoles,
        lexicon: Lexicon,
    ) -> None:
        hole = op.hole
        self.hole = hole
        self.lead = op.lead
        self.ids: list[int] = []
        self.sampling = sampling
        self.constraint = (
            lexicon.constraints.open(hole, op.lead, revocable=not shared)
            if hole.constraint
            else None
        )
        self._before = before
        self._after = after
        self._predicts = predicts
        self._back = back
        self._holes = holes
        self._lexicon = lexicon
        self._decode = lexicon.vocabulary.decode
        self._keep = KeepToken(hole.name)
        self._most = hole.max_tokens
        self._stopped = self._limited = False
        limits = holes.budget.limits
        self._bounded = limits.max_tokens is not None or limits.max_position is not None
        self._ending = self.constraint.ending() if self.constraint else None
        """The cheapest ending that is known."""
        # Far from the end nobody looks whether what was begun can still be ended.
        self._near = 2 * self._ending.cost + 32 if self._ending else 0

    @property
    def revocable(self) -> int:
        """How many of the thread's last tokens may be taken back: for a stop string, a newline, or
        to be spelled again.
        """
        least = REVOCABLE if self.constraint else 0
        return min(len(self.ids), max(longest_stop(self.hole.stop), least))

    def advance(self, thread: ThreadState) -> Iterator[Action]:
        """See `Driver`: write what only can come first."""
        if self.constraint is not None:
            forced = self._forced(self._left(thread))
            if forced.ids:
                yield from self._write(thread, forced)

    def allowed(self, thread: ThreadState) -> AllowedTokens:
        """See `Driver`."""
        if self.constraint is None:
            return self._lexicon.starting("" if self.ids else self.lead)
        # A whole match may end here: it does where the model would rather say something
        # that cannot continue it.
        if self.constraint.complete:
            return AllowedTokens(self._lexicon.known, lasting=True)
        return AllowedTokens(self.constraint.allowed())

    def take(self, thread: ThreadState, drawn: DrawnToken) -> KeepToken | Iterable[Action] | None:
        """See `Driver`."""
        id, ids, constraint = drawn[0], self.ids, self.constraint
        if constraint is None:
            ended = id in self._lexicon.ends_hole
        else:
            # Where the pattern asks for what may not stand, such as a tag, nothing is left to
            # draw, and the hole is cut.
            ended = id in thread.refused or not bool(constraint.allowed()[id])
        stopped = None
        if self.hole.stop and id not in self._lexicon.control:
            stopped = self._stop_in([*ids, id])
        if ended and stopped is None:
            return self._end(thread, newline=id in self._lexicon.closes)
        text = thread.tail + self._lexicon.texts[id]
        if stopped is not None:
            keep, rest = stopped
            text = self._before + self._decode(ids[:keep]) + rest
        # A token before may end inside the character that this one ends, before a stop string.
        read = stopped is not None and stopped[0] < len(ids) and thread.shared
        # Filled so far, the text must hold no tag in plain characters.
        if read or ("<" in text and TAG.search(text + self._after)):
            if constraint is not None:
                left = constraint.allowed()
                left[[*thread.refused, id]] = False
                if constraint.complete or not bool(left.any()):
                    return self._end(thread)
            return None
        if stopped is not None:
            return self._stop(thread, *stopped)
        if self._bounded and self._room(thread) <= 0:  # other paths took the last of it
            return self._run_out(thread)
        if constraint is not None:
            return self._go_on(thread, constraint, id)
        self._count(1)
        ids.append(id)
        if len(ids) < self._most:
            return self._keep
        return self._fill_up(thread)

    def _stop_in(self, ids: list[int]) -> tuple[int, str] | None:
        """Return what `cut_at_stop` does; a constraint has to be whole before a stop string."""
        vocabulary = self._lexicon.vocabulary
        stopped = cut_at_stop(ids, self.hole.stop, vocabulary, len(self.lead))
        if stopped is not None and self.constraint is not None:
            keep, rest = stopped
            text = self._decode(ids[:keep]) + rest
            try:
                self.hole.read(text.removeprefix(self.lead))
            except VerifyError:
                return None
        return stopped

    def _go_on(
        self, thread: ThreadState, constraint: Constraint, id: int
    ) -> KeepToken | Iterable[Action]:
        """Take a token of a constraint, with what only can follow it."""
        left = self._left(thread)
        ending = after = None
        if left <= self._near:
            ending = self._ending or constraint.ending()
        constraint.accept(id)
        if ending is not None:
            after = constraint.ending()
            fits = ending.cost <= left and not self._makes_tag(ending)
            if fits and (after is None or after.cost >= left):
                constraint.undo()
                return self._write_ending(thread, ending)
        self._ending = after
        self._count(1)
        self.ids.append(id)
        forced = self._forced(left - 1)
        if forced.ids:
            return self._write(thread, forced, drawn=True)
        return self._fill_up(thread) if self._full else self._keep

    def _forced(self, left: int) -> Spelling:
        """Return what only can come next, as far as there is room, and where it makes no tag."""
        assert self.constraint is not None
        forced = self.constraint.forced()
        if not forced.ids:
            return forced
        if self._makes_tag(forced):
            return Spelling()
        ids = [*forced.ids[: max(left + forced.back, 0)]]
        return Spelling(ids, forced.back) if len(ids) >= forced.back else Spelling()

    def _makes_tag(self, spelling: Spelling) -> bool:
        """Whether the text around the hole would hold a tag in plain characters."""
        ids = [*self.ids[: len(self.ids) - spelling.back][-_RECENT:], *spelling.ids]
        text = self._before + self._decode(ids)
        return "<" in text and TAG.search(text + self._after) is not None

    def _write(
        self, thread: ThreadState, spelling: Spelling, *, drawn: bool = False
    ) -> Iterator[Action]:
        """Write tokens of the constraint, in the place of those that they join.

        Args:
            drawn: whether the last of its tokens was drawn now, and is not in the thread.
        """
        assert self.constraint is not None
        if drawn and not spelling.back:
            yield self._keep
        self._count(spelling.cost)
        self.constraint.respell(spelling)
        self._ending = None
        if spelling.back > drawn:
            yield TakeBack(spelling.back - drawn)
        if spelling.back:
            del self.ids[-spelling.back :]
            thread.tail = (self._before + self._decode(self.ids))[-32:]
        self.ids += spelling.ids
        yield WriteTokens(spelling.ids, "engine", self.hole.name)
        if self._full:
            yield from self._end(thread)

    def _write_ending(self, thread: ThreadState, ending: Spelling) -> Iterator[Action]:
        """End a hole, as its constraint has it, where what was drawn cannot be ended in time."""
        if self._left(thread) < self._most - len(self.ids):
            yield CloseByForce()
        yield from self._write(thread, ending)
        if not self._full:
            yield from self._end(thread)

    def close(self, thread: ThreadState, cut: str) -> Iterable[Action] | None:
        """See `Driver`."""
        if not cut and self._room(thread) > 0:
            return None
        return self._run_out(thread)

    @property
    def _full(self) -> bool:
        """Whether it takes no more tokens, whatever the model would say."""
        ended = self.constraint is not None and self.constraint.ended
        return ended or len(self.ids) >= self._most

    def _left(self, thread: ThreadState) -> int:
        """Return how many tokens more it takes at most."""
        left = self._most - len(self.ids)
        return min(left, self._room(thread)) if self._bounded else left

    def _room(self, thread: ThreadState) -> int:
        """Return how many tokens more the limits of the run allow the hole."""
        drawn = self._holes.drawn - bool(self.lead and not self.ids)
        return self._holes.budget.room(self.hole.name, thread.law.position, drawn)

    def _count(self, more: int) -> None:
        """Count tokens before they are in `ids`; the lead's is the plan's own."""
        count = len(self.ids)
        lead = bool(self.lead)
        self._holes.drawn += more + (lead and count > 0) - (lead and count + more > 0)

    # How it ends

    def _fill_up(self, thread: ThreadState) -> Iterator[Action]:
        yield self._keep
        yield from self._end(thread)

    def _run_out(self, thread: ThreadState) -> Iterator[Action]:
        self._limited = True
        yield CloseByForce()
        yield from self._end(thread)

    def _stop(self, thread: ThreadState, keep: int, rest: str) -> Iterator[Action]:
        self._stopped = True
        yield from self._take_back(thread, keep)
        yield from self._end(thread, rest)

    def _take_back(self, thread: ThreadState, keep: int) -> Iterator[Action]:
        """Take all but the first `keep` tokens back."""
        gone = len(self.ids) - keep
        yield TakeBack(gone)
        self._count(-gone)
        del self.ids[keep:]
        thread.tail = (self._before + self._decode(self.ids))[-32:]

    def _end(
        self, thread: ThreadState, rest: str = "", *, newline: bool = False
    ) -> Iterator[Action]:
        """End the hole: write what a stop string left of its last token, and hand over.

        Args:
            newline: whether the model closed what is around the hole, on a line of its own: the
                plan writes that newline.
        """
        hole, decode = self.hole, self._decode
        text = decode(self.ids)
        ours = newline and self.constraint is None and not thread.shared
        if ours and self._after.startswith("\n") and text.endswith("\n"):
            whole = text[:-1]
            keep = len(self.ids) - 1
            while not whole.startswith(decode(self.ids[:keep])):
                keep -= 1
            yield from self._take_back(thread, keep)
            text = decode(self.ids)
            rest = whole[len(text) :]
        if not (text + rest).startswith(self.lead):
            rest = self.lead + rest
        if rest:
            # What is left of a token may be several tokens, for which there has to be room too.
            ids = self._lexicon.vocabulary.encode_outside(rest)
            room = max(self._room(thread), 0)
            if len(ids) > room:
                yield CloseByForce()
            ids = ids[: min(room, hole.max_tokens - len(self.ids))]
            self._count(len(ids))
            yield WriteTokens(ids, "engine", hole.name)
            self.ids += ids
            text = decode(self.ids)
        unpredicted = thread.count and thread.logits is None and not thread.unread
        if self._predicts and unpredicted and isinstance(thread.items[-1], ThreadToken):
            yield ReadAgain()
        yield self._record(text[len(self.lead) :])
        yield HandOver(self._back)

    def _record(self, text: str) -> FillHole:
        name, holes = self.hole.name, self._holes
        cut = self.constraint is not None and not (self.constraint.complete or self._stopped)
        holes.texts[name] = text
        if cut:
            what = "what could come next would make a tag: change the text around it"
            if self._full:
                what = "raise its max_tokens"
            elif self._limited:
                what = "raise the limits of the run"
            holes.cut.add(name)
            holes.errors[name] = (
                f"after {len(self.ids)} tokens it was cut inside its constraint, at "
                f"{text[-40:]!r}: {what}"
            )
        else:
            try:
                holes.values[name] = self.hole.read(text)
            except VerifyError as error:
                holes.errors[name] = str(error).removeprefix(f"{error.address}: ")
        return FillHole(name, text, holes.values.get(name), cut)


def longest_stop(stops: Iterable[str]) -> int:
    """Return how many tokens a stop string, or a newline that is written anyway, may take back.

    Every token but control tokens writes at least a byte, and a character has up to four.
    """
    return max((len(stop.encode()) for stop in stops), default=1) + 4


def cut_at_stop(
    ids: list[int], stops: tuple[str, ...], vocabulary: Vocabulary, start: int = 0
) -> tuple[int, str] | None:
    """Return (tokens to keep, text to write after them) where a stop string has come.

    The stop string may begin inside a token: that token goes, and what it says before the stop
    string is written again.

    Args:
        ids: of the text so far; only its last token is new.
        start: how many characters stand before the text in which stop strings count.

    >>> from tokenizers import Tokenizer, decoders, models
    >>> tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "Ċ": 3}, [("a", "b")]))
    >>> tokenizer.decoder = decoders.ByteLevel()
    >>> vocabulary = Vocabulary.__new__(Vocabulary)
    >>> vocabulary.backend = tokenizer
    >>> cut_at_stop([0, 2], ("b",), vocabulary)
    (1, 'a')
    """
    if not stops:
        return None
    # A stop string that the last token completes lies in the last few.
    recent = vocabulary.decode(ids[-longest_stop(stops) :])
    if not any(stop in recent for stop in stops):
        return None
    text = vocabulary.decode(ids)
    found = [at for stop in stops if (at := text.find(stop, start)) >= 0]
    if not found:
        return None
    value = text[: min(found)]
    keep = len(ids) - 1
    while not value.startswith(vocabulary.decode(ids[:keep])):
        keep -= 1
    return keep, value[len(vocabulary.decode(ids[:keep])) :]


def _check_stops(hole: Gen) -> None:
    """Refuse stop strings that may be several tokens, which paths with `share` have read.

    Raises:
        Unsupported: a stop string is longer than one byte.
    """
    for stop in hole.stop:
        if len(stop.encode()) > 1:
            raise Unsupported(
                f"hole {hole.name!r}: with share, other paths read a path's tokens, so none can be "
                f"taken back; the stop string {stop!r} may be several: use stop strings of one "
                "ASCII character, a regex, or share=0"
            )
