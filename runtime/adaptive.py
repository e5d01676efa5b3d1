"""Adaptive generation: the model decides when to fork, the structural machine interprets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mvspec.errors import LimitExceeded, VerifyError
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Piece
from mvspec.law.automaton import TagAutomaton, TagOrText
from mvspec.law.limits import Limits
from mvspec.law.tags import Tag
from mvspec.runtime.hole import cut_at_stop
from mvspec.runtime.sampling import Draw
from mvspec.runtime.thread import Forced, Live

if TYPE_CHECKING:
    from mvspec.runtime.request import Request

__all__ = ["Interpreter"]

# What follows the tag `<Outline>`: label and title.
_OUTLINE = re.compile(r"\s*([0-9.]*[0-9])\s*:\s*(.*?)\s*</Outline>", re.DOTALL)


class Interpreter:
    """Lets the threads of one request go on as the model decides.

    Args:
        request: whose threads they are.
        context: how many positions the model has; None where it does not say.

    Attributes:
        violations: how often the model wrote a tag that may not stand there, where structure is
            not enforced.
        stopped: the stop string that ended the turn; "" for none.
    """

    def __init__(self, request: Request, context: int | None) -> None:
        self.request = request
        self.context = context
        self.violations = 0
        self.stopped = ""
        self.most: int | None = None
        self.last: int | None = None

    @property
    def strict(self) -> bool:
        """Whether the model is held to the grammar."""
        return self.request.options.structure

    def begin(self, live: Live, limits: Limits) -> None:
        """Let the model decide from here on."""
        update = self.request.options.limits.model_dump(exclude_unset=True)
        limits = limits.model_copy(update=update)
        ends = [n for n in (limits.max_position, self.context) if n is not None]
        limits = limits.model_copy(update={"max_position": min(ends) if ends else None})
        if limits.max_tokens is not None:  # holes before this turn have taken their share
            stretches = self.request.root.stretches()
            own = sum(token.author != "prompt" for _, found in stretches for token in found)
            limits = limits.model_copy(update={"max_tokens": max(limits.max_tokens - own, 0)})
        lexicon = self.request.lexicon
        if not self.strict:
            # Nothing is closed by force, so nothing is held back for closing either.
            self.most = limits.max_tokens
            self.last = limits.max_position
            limits = limits.model_copy(update={"max_tokens": None, "max_position": None})
        live.machine = TagAutomaton(
            limits,
            position=live.position,
            tokens=lexicon.width,
            strict=self.strict,
        )
        live.id = 0
        live.adaptive = True

    def allowed(self, live: Live) -> Tensor | None:
        """Return what may be drawn: bool [vocabulary]; None for anything."""
        if not self.strict:
            return None
        return torch.tensor(self.request.lexicon.rules.allowed(live.machine, live.id))

    # Writing by force: headers and closings

    def close(self, live: Live) -> bool:
        """Close a thread that is out of budget, up to its next fork; say whether it was."""
        request = self.request
        if live.script:
            return False
        if not self.strict:
            if request.cut or self._is_over(live):
                request.end(request.cut or "limit")
            return bool(request.finish)
        expect = live.machine.expect(live.id)
        if not request.cut and not expect.closing:
            allowed = request.lexicon.rules.allowed(live.machine, live.id)
            if allowed.any() and (expect.tags or expect.fixed or expect.free):
                return False
        request.ending = request.cut or "limit"
        events = live.machine.closing(live.id)
        for event in events:
            self._force(live, event)
        if events:
            request.ready.append(live)
        else:  # nothing is open: this is the root thread
            request.end(request.ending)
        return True

    def _is_over(self, live: Live, width: int = 1) -> bool:
        """Whether so many tokens pass a limit, where nothing is closed by force."""
        over = self.most is not None and live.machine.count + width > self.most
        return over or (self.last is not None and live.position + width > self.last)

    def _force(self, live: Live, event: TagOrText) -> None:
        ids = self.request.lexicon.encode_event(event)
        live.script += [Forced(id, event if not n else None, len(ids)) for n, id in enumerate(ids)]

    def _header(self, live: Live, pieces: Iterable[Piece]) -> None:
        """Force a header: texts that touch are tokenised as one."""
        text = ""
        for piece in pieces:
            if piece.tag is None:
                text += piece.text
                continue
            if text:
                self._force(live, text)
            self._force(live, piece.tag)
            text = ""
        if text:
            self._force(live, text)
        self.request.ready.append(live)

    def advance(self, live: Live) -> None:
        """Write what is forced, as far as the thread's round goes."""
        while live.script and self.request.room(live) > 0 and not self.request.finish:
            forced = live.script.popleft()
            if forced.event is not None and self._is_over(live, forced.width):
                self.request.end("limit")
                return
            if forced.event is None:
                self._append(live, forced.id, forced.position, "engine")
                continue
            for offset, later in zip(range(1, forced.width), live.script, strict=False):
                later.position = live.machine.threads[live.id].position + offset
            self._take(live, forced.event, forced.id, forced.width, "engine")

    # Taking what was drawn

    def choose(self, live: Live, draw: Draw) -> bool:
        """Take a drawn token; False where it may not stand, and another has to be drawn."""
        lexicon = self.request.lexicon
        if self._is_over(live):  # other paths took the last of it in this step
            self.request.end("limit")
            return True
        if draw.id in lexicon.ends:
            return self._end_of_turn(live, draw)
        event = lexicon.rules.event(draw.id)
        if not isinstance(event, Tag) and self._stops(live, draw):
            return True
        try:
            self._take(live, event, draw.id, 1, "model", draw)
        except (VerifyError, LimitExceeded) as error:
            if self.strict:
                live.banned.append(draw.id)
                if not isinstance(event, Tag):
                    del live.run[-1:]
                return False
            self._misplaced(live, draw, error)
        if isinstance(event, Tag):
            live.run.clear()
        return True

    def _stops(self, live: Live, draw: Draw) -> bool:
        """Whether a stop string ends the turn here: never inside a structure."""
        request, machine = self.request, live.machine
        thread = machine.threads[live.id]
        stops = request.options.sampling.stop
        if not stops or not thread.may_end():
            return False
        live.run.append(draw.id)
        stopped = cut_at_stop(live.run, stops, request.lexicon.vocabulary)
        if stopped is None:
            return False
        keep, rest = stopped
        text = request.lexicon.vocabulary.decode(live.run)
        self.stopped = min((stop for stop in stops if stop in text), key=text.find)
        gone = len(request.rewind(live, len(live.run) - 1 - keep))
        # What is left of a token may be several tokens, for which there has to be room as well.
        ids = request.lexicon.vocabulary.encode_outside(rest)
        start = thread.position - gone
        bounds = (
            (self.most, machine.count - gone),
            (machine.limits.max_tokens, machine.count - gone),
            (self.last, start),
            (machine.limits.max_position, start),
        )
        room = max(min((n - at for n, at in bounds if n is not None), default=len(ids)), 0)
        request.extend(live, ids[:room], start, "engine")
        request.end("limit" if room < len(ids) else "end")
        return True

    def _end_of_turn(self, live: Live, draw: Draw) -> bool:
        whole = live.machine.threads[live.id].may_end()
        if self.strict and not whole:
            live.banned.append(draw.id)
            return False
        self.violations += not whole
        self.request.append(live, draw.id, live.position, "model", draw=draw)
        self.request.end("end")
        return True

    def _misplaced(self, live: Live, draw: Draw, error: VerifyError | LimitExceeded) -> None:
        """Without enforcement a misplaced tag is just a token, and a limit just the end."""
        if isinstance(error, VerifyError):
            self.violations += 1
            try:
                step = live.machine.push(live.id, "x", 1)
            except (VerifyError, LimitExceeded):
                pass
            else:
                self.request.append(live, draw.id, step.position, "model", draw=draw)
                return
        self.request.end("limit")

    def _append(
        self, live: Live, id: int, position: int, author: str, draw: Draw | None = None
    ) -> None:
        self.request.append(live, id, position, author, draw=draw)
        if live.outlines:
            live.outlines[-1].append(id)

    def _take(
        self,
        live: Live,
        event: TagOrText,
        id: int,
        width: int,
        author: str,
        draw: Draw | None = None,
    ) -> None:
        """Write an event's first token; where it forks or joins, force the headers."""
        request = self.request
        step = live.machine.push(live.id, event, width)
        self._append(live, id, step.position, author, draw)
        if event is Tag.OUTLINE:
            live.outlines.append([])
        if step.forked:
            texts = map(request.lexicon.vocabulary.decode, live.outlines)
            found = [_OUTLINE.match(text) for text in texts]
            threads = [live.machine.threads[id] for id in step.forked]
            names = [
                (match[1] if match and not self.strict else thread.label, match[2] if match else "")
                for thread, match in zip(threads, found, strict=True)
            ]
            for path in request.fork(live, step.forked, names):
                self._header(path, MULTIVERSE.fork_header(path.label, path.title))
        elif event is Tag.END_PATH and live.parent is not None:
            parent = live.parent
            if request.join(live, last=step.joined is not None):
                self._header(parent, MULTIVERSE.join_header())
