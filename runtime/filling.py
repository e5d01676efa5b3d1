"""The holes of a static plan: what may be drawn for them, and where they end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mvspec.compiler.plan import Extend, Fork, Generate, Join, Op
from mvspec.errors import Unsupported, VerifyError
from mvspec.events import HoleFilled
from mvspec.law.tags import TAG
from mvspec.runtime.budget import Budget
from mvspec.runtime.constraint import value_of
from mvspec.runtime.hole import OpenHole, cut_at_stop
from mvspec.runtime.sampling import Draw
from mvspec.runtime.thread import Live, Token
from mvspec.tree.ir import Gen

if TYPE_CHECKING:
    from mvspec.runtime.request import Request

__all__ = ["Filling"]


class Filling:
    """Fills the holes of one request.

    Args:
        request: whose threads they are in.
        budget: what they may take.

    Attributes:
        texts: of the holes filled so far, by name.
        values: likewise; a hole that was cut inside its constraint has none.
        errors: why a hole has no value.
        cut: those that were ended inside their constraint.
    """

    def __init__(self, request: Request, budget: Budget) -> None:
        self.request = request
        self.budget = budget
        self.texts: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self.errors: dict[str, str] = {}
        self.cut: set[str] = set()
        self.drawn = 0
        """Tokens of all holes so far; a lead's is left out, since it is written anyway."""
        depth = 0
        for op in request.plan.ops:
            depth += isinstance(op, Fork) - isinstance(op, Join)
            if isinstance(op, Generate):
                request.lexicon.constraints.check(op.hole, op.lead)
                if request.options.share and depth:
                    _check_stops(op.hole)
        document = request.plan.document
        if document is not None:
            try:
                document.fill({hole.name: "" for hole in document.holes})
            except VerifyError as error:
                raise VerifyError(error.address, f"with its holes empty, {error}") from None

    def open(self, live: Live, op: Generate) -> None:
        """Begin a hole."""
        hole = op.hole
        constrained = hole.regex is not None or hole.choices is not None or hole.json_schema
        lexicon = self.request.lexicon
        constraint = lexicon.constraints.open(hole, op.lead) if constrained else None
        live.hole = OpenHole(hole, op.lead, live.tail, self._after(live.ops), constraint)

    def _after(self, ops: Iterable[Op]) -> str:
        """Return the beginning of the fixed text that ops write; other holes may stay empty."""
        lexicon = self.request.lexicon
        for op in ops:
            if isinstance(op, Extend):
                ids = op.tokens[:16]
                text = next((i for i, id in enumerate(ids) if id in lexicon.control), len(ids))
                return lexicon.vocabulary.decode(ids[:text])
            if not isinstance(op, Generate):
                break
        return ""

    def close(self, live: Live) -> bool:
        """End a hole that may not grow; say whether it was ended."""
        hole = live.hole
        assert hole is not None
        if hole.rest or (self._room(live, hole) > 0 and not self.request.cut):
            return False
        self.request.ending = self.request.cut or "limit"
        self._end(live, hole)
        return True

    def allowed(self, live: Live) -> Tensor | None:
        """Return what may be drawn: bool [vocabulary]; None for anything."""
        hole = live.hole
        assert hole is not None
        if hole.constraint is not None:
            # A whole match may end here: it does where the model would rather say something
            # that cannot continue it.
            return None if hole.constraint.complete else hole.constraint.allowed()
        return self.request.lexicon.starting("" if hole.ids else hole.lead)

    def choose(self, live: Live, draw: Draw) -> bool:
        """Take a drawn token, or end the hole; False where the token may not stand."""
        hole = live.hole
        assert hole is not None
        lexicon = self.request.lexicon
        if hole.constraint is not None:
            # Where the pattern asks for what may not stand, such as a tag, nothing is left to
            # draw, and the hole is cut.
            ended = draw.id in live.banned or not bool(hole.constraint.allowed()[draw.id])
        else:
            ended = draw.id in lexicon.ends or draw.id in lexicon.closes
        if ended:
            self._end(live, hole, newline=draw.id in lexicon.closes)
            return True
        stopped = None
        if hole.constraint is None:
            ids = [*hole.ids, draw.id]
            stopped = cut_at_stop(ids, hole.hole.stop, lexicon.vocabulary, len(hole.lead))
        # A token before may end inside the character that this one ends, before a stop string.
        read = stopped is not None and stopped[0] < len(hole.ids) and self.request.is_shared(live)
        if read or self._completes_tag(live, hole, draw.id, stopped):
            live.banned.append(draw.id)
            if hole.constraint is not None:
                allowed = hole.constraint.allowed()
                allowed[live.banned] = False
                if hole.constraint.complete or not bool(allowed.any()):
                    self._end(live, hole)
                    return True
            return False
        if stopped is not None:
            keep, rest = stopped
            self._keep(live, hole, keep)
            self._end(live, hole, rest)
            return True
        if self._room(live, hole) <= 0:  # other paths took the last of it in this step
            self.request.ending = "limit"
            self._end(live, hole)
            return True
        name = hole.hole.name
        self.request.append(live, draw.id, live.position, "model", hole=name, draw=draw)
        self.drawn += bool(hole.ids or not hole.lead)
        hole.ids.append(draw.id)
        if hole.constraint is not None:
            hole.constraint.accept(draw.id)
        if hole.full:
            self._end(live, hole)
        return True

    def _completes_tag(
        self, live: Live, hole: OpenHole, id: int, stopped: tuple[int, str] | None
    ) -> bool:
        """Whether the text, filled so far, would hold a tag in plain characters."""
        decode = self.request.lexicon.vocabulary.decode
        if stopped is None:
            text = live.tail + decode([id])
        else:
            keep, rest = stopped
            text = hole.before + decode(hole.ids[:keep]) + rest
        return "<" in text and TAG.search(text + hole.after) is not None

    def _room(self, live: Live, hole: OpenHole) -> int:
        """Return how many tokens more the limits of the run allow a hole."""
        drawn = self.drawn - bool(hole.lead and not hole.ids)
        return self.budget.room(hole.hole.name, live.position, drawn)

    def _keep(self, live: Live, hole: OpenHole, keep: int) -> None:
        """Take all but the first `keep` tokens of a hole back."""
        gone = self.request.rewind(live, len(hole.ids) - keep)
        self.drawn -= len(gone) - bool(gone and hole.lead and not keep)
        del hole.ids[keep:]
        live.tail = (hole.before + self.request.lexicon.vocabulary.decode(hole.ids))[-32:]

    def _end(self, live: Live, hole: OpenHole, rest: str = "", *, newline: bool = False) -> None:
        """End a hole, write what a stop string left of its last token, and go on.

        Args:
            newline: whether the model closed what is around the hole, on a line of its own: the
                plan writes that newline.
        """
        request = self.request
        decode = request.lexicon.vocabulary.decode
        doubled = newline and hole.after.startswith("\n") and decode(hole.ids).endswith("\n")
        if doubled and not request.is_shared(live):
            whole = decode(hole.ids)[:-1]
            keep = len(hole.ids) - 1
            while not whole.startswith(decode(hole.ids[:keep])):
                keep -= 1
            self._keep(live, hole, keep)
            rest = whole[len(decode(hole.ids)) :]
        if not (decode(hole.ids) + rest).startswith(hole.lead):
            rest = hole.lead + rest
        # What is left of a token may be several tokens, for which there has to be room as well.
        ids = request.lexicon.vocabulary.encode_outside(rest)
        room = max(self._room(live, hole), 0)
        if len(ids) > room:
            request.ending = request.cut or "limit"
        hole.rest = ids[: min(room, hole.hole.max_tokens - len(hole.ids))]
        self.drawn += len(hole.rest) - bool(hole.rest and hole.lead and not hole.ids)
        live.banned.clear()
        self.write(live)

    def write(self, live: Live) -> None:
        """Write what a stop string left of a token, as far as the thread's round goes."""
        hole, request = live.hole, self.request
        assert hole is not None
        room = max(request.room(live), 0)
        now, hole.rest = hole.rest[:room], hole.rest[room:]
        for id in now:
            request.append(live, id, live.position, "engine", hole=hole.hole.name)
            hole.ids.append(id)
            hole.written += 1
        if hole.rest:
            return
        live.hole = None
        if hole.ids:
            request.push(live, len(hole.ids))
        if live.count and live.logits is None and not live.unread:
            self._read_again(live)
        text = request.lexicon.vocabulary.decode(hole.ids)
        self._record(live, hole, text[len(hole.lead) :])
        request.ready.append(live)

    def _read_again(self, live: Live) -> None:
        """Let the model read the last token once more, where it has to predict what follows."""
        following = live.ops[0] if live.ops else None
        written = isinstance(following, Extend) and following.tokens
        if following is not None and not written and isinstance(live.items[-1], Token):
            self.request.read_again(live)

    def _record(self, live: Live, hole: OpenHole, text: str) -> None:
        name = hole.hole.name
        cut = hole.constraint is not None and not hole.constraint.complete
        self.texts[name] = text
        if cut:
            what = "its max_tokens" if hole.full else "the limits of the run"
            self.cut.add(name)
            self.errors[name] = (
                f"after {len(hole.ids) - hole.written} tokens it was cut inside its constraint, at "
                f"{text[-40:]!r}: raise {what}"
            )
        else:
            try:
                self.values[name] = value_of(hole.hole, text, hole.hole.type)
            except VerifyError as error:
                self.errors[name] = str(error).removeprefix(f"{error.address}: ")
        request, value = self.request, self.values.get(name)
        request.events.append(
            HoleFilled(request.name, live.number, name, text, value, cut, request.step)
        )


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
