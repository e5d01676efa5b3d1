"""Filling the holes of a static plan: what may be drawn for them, and where they end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mvspec.compiler.plan import ExecutionPlan, Fork, Generate, Join
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import Unsupported, VerifyError
from mvspec.law.tags import TAG
from mvspec.runtime.budget import HoleBudget
from mvspec.runtime.constraint import value_of
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.sampling import DrawnToken
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

    Args:
        op: the hole, with what its tokens begin with before its value.
        before: the end of the text before it, since the last control token.
        after: the beginning of the fixed text after it.
        predicts: whether its last token has to predict what follows it: nothing is written there.
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
        back: Driver,
        holes: FilledHoles,
        lexicon: Lexicon,
    ) -> None:
        hole = op.hole
        constrained = hole.regex is not None or hole.choices is not None or hole.json_schema
        self.hole = hole
        self.lead = op.lead
        self.ids: list[int] = []
        self.written = 0
        """How many of its tokens the engine wrote."""
        self.constraint = lexicon.constraints.open(hole, op.lead) if constrained else None
        self._before = before
        self._after = after
        self._predicts = predicts
        self._back = back
        self._holes = holes
        self._lexicon = lexicon
        self._decode = lexicon.vocabulary.decode
        self._keep = KeepToken(hole.name)
        self._most = hole.max_tokens
        self._stops = () if constrained else hole.stop
        limits = holes.budget.limits
        self._bounded = limits.max_tokens is not None or limits.max_position is not None

    @property
    def revocable(self) -> int:
        """How many of the thread's last tokens a stop string or a newline may take back."""
        return min(len(self.ids), longest_stop(self.hole.stop))

    def advance(self, thread: ThreadState) -> Iterable[Action]:
        """See `Driver`: the first token is drawn."""
        return ()

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
        if ended:
            return self._end(thread, newline=id in self._lexicon.closes)
        stopped = None
        if self._stops:
            stopped = cut_at_stop([*ids, id], self._stops, self._lexicon.vocabulary, len(self.lead))
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
        if ids or not self.lead:
            self._holes.drawn += 1
        ids.append(id)
        if constraint is not None:
            constraint.accept(id)
        elif len(ids) < self._most:
            return self._keep
        return self._fill_up(thread) if self._full else self._keep

    def close(self, thread: ThreadState, cut: str) -> Iterable[Action] | None:
        """See `Driver`."""
        if not cut and self._room(thread) > 0:
            return None
        return self._run_out(thread)

    @property
    def _full(self) -> bool:
        """Whether it takes no more tokens, whatever the model would say."""
        if self.constraint is not None and self.constraint.ended:
            return True
        return len(self.ids) - self.written >= self.hole.max_tokens

    def _room(self, thread: ThreadState) -> int:
        """Return how many tokens more the limits of the run allow the hole."""
        drawn = self._holes.drawn - bool(self.lead and not self.ids)
        return self._holes.budget.room(self.hole.name, thread.law.position, drawn)

    # How it ends

    def _fill_up(self, thread: ThreadState) -> Iterator[Action]:
        yield self._keep
        yield from self._end(thread)

    def _run_out(self, thread: ThreadState) -> Iterator[Action]:
        yield CloseByForce()
        yield from self._end(thread)

    def _stop(self, thread: ThreadState, keep: int, rest: str) -> Iterator[Action]:
        yield from self._take_back(thread, keep)
        yield from self._end(thread, rest)

    def _take_back(self, thread: ThreadState, keep: int) -> Iterator[Action]:
        """Take all but the first `keep` tokens back."""
        gone = len(self.ids) - keep
        yield TakeBack(gone)
        self._holes.drawn -= gone - bool(gone and self.lead and not keep)
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
        if newline and self._after.startswith("\n") and text.endswith("\n") and not thread.shared:
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
            self._holes.drawn += len(ids) - bool(ids and self.lead and not self.ids)
            yield WriteTokens(ids, "engine", hole.name)
            self.ids += ids
            self.written += len(ids)
            text = decode(self.ids)
        unpredicted = thread.count and thread.logits is None and not thread.unread
        if self._predicts and unpredicted and isinstance(thread.items[-1], ThreadToken):
            yield ReadAgain()
        yield self._record(text[len(self.lead) :])
        yield HandOver(self._back)

    def _record(self, text: str) -> FillHole:
        name, holes = self.hole.name, self._holes
        cut = self.constraint is not None and not self.constraint.complete
        holes.texts[name] = text
        if cut:
            what = "its max_tokens" if self._full else "the limits of the run"
            holes.cut.add(name)
            holes.errors[name] = (
                f"after {len(self.ids) - self.written} tokens it was cut inside its constraint, at "
                f"{text[-40:]!r}: raise {what}"
            )
        else:
            try:
                holes.values[name] = value_of(self.hole, text, self.hole.type)
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
