"""What a client is told of its request: tokens in order, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mvspec.events import Forked, Joined, Written
from mvspec.runtime.result import result_of
from mvspec.runtime.serving.counters import Counters
from mvspec.runtime.serving.family import Family
from mvspec.runtime.serving.order import KEY, Order
from mvspec.runtime.serving.wire import encode_event, encode_result
from mvspec.runtime.thread import Live, Token

__all__ = ["Answer"]


def _held(stops: Sequence[str]) -> int:
    """Return how many tokens a stop string, or a newline that is written anyway, may take back.

    Every token but control tokens writes at least a byte, and a character has up to four.
    """
    return max((len(stop.encode()) for stop in stops), default=1) + 4


class Answer:
    """The answer to one request.

    Args:
        family: whose tokens it tells.
        order: whether they come as they are written or in the order of the surface form.
        counters: the server's.
    """

    def __init__(self, family: Family, order: Order, counters: Counters) -> None:
        self.family = family
        self.order = order
        self.over = False
        """Whether it was told how it ended."""
        self._stack: list[tuple[Live, int]] = [(family.run.root, 0)]
        self._events: list[dict[str, Any]] = []
        self._sent = False
        self._counters = counters
        stops = family.run.options.sampling.stop
        self._longest = _held(stops) if stops else 0
        """How many tokens of a turn a stop string may take back."""
        face = family.face
        if not order.native:  # empty or not, it says that this server knows of plans
            face.customized_info = {KEY: []}
        if face.return_logprob:
            face.logprob.input_token_logprobs_val = []
            face.logprob.input_token_logprobs_idx = []
            face.logprob.input_top_logprobs_val = []
            face.logprob.input_top_logprobs_idx = []
            face.logprob.input_token_ids_logprobs_val = []
            face.logprob.input_token_ids_logprobs_idx = []

    def grow(self) -> bool:
        """Add what is new to the client's request; say whether there is something to send."""
        if self._sent:
            return False
        before = len(self.family.face.output_ids)
        events = self.family.run.events
        if events:
            self._counters.forks += sum(isinstance(event, Forked) for event in events)
            self._counters.joins += sum(isinstance(event, Joined) for event in events)
        if self.order.live:
            self._tell_events()
        else:
            events.clear()
            if self.family.face.stream or self.family.run.finish:
                for tokens in self._settled():
                    self._add(tokens)
        self._sent = self.over
        return self.over or len(self.family.face.output_ids) > before

    def _add(self, tokens: Sequence[Token | Written]) -> None:
        face = self.family.face
        ids = [token.id for token in tokens]
        face.output_ids.extend(ids)
        if not face.return_logprob:
            return
        held = face.logprob
        # What was written by force is certain.
        held.output_token_logprobs_val += [token.logprob or 0.0 for token in tokens]
        held.output_token_logprobs_idx += ids
        if held.top_logprobs_num > 0:
            tops = [getattr(token, "top", ()) for token in tokens]
            held.output_top_logprobs_val += [[value for _, value in top] or [0.0] for top in tops]
            held.output_top_logprobs_idx += [
                [other for other, _ in top] or [id] for top, id in zip(tops, ids, strict=True)
            ]

    def _settled(self) -> Iterator[list[Token]]:
        """Yield new tokens in surface order, as far as they cannot be taken back."""
        run = self.family.run
        while True:
            live, at = self._stack[-1]
            tokens, paths = live.stretch(at)
            if paths is None and not (live.ended or run.finish):
                held = min(len(live.run), self._longest)
                if live.hole:
                    held = min(len(live.hole.ids), _held(live.hole.hole.stop))
                tokens = tokens[: max(len(tokens) - held, 0)]
            at += len(tokens)
            self._stack[-1] = (live, at + (paths is not None))
            yield [token for token in tokens if token.author != "prompt"]
            if paths is not None:
                self._stack += [(path, 0) for path in reversed(paths)]
            elif (live.ended or run.finish) and len(self._stack) > 1:
                self._stack.pop()
            else:
                return

    def _tell_events(self) -> None:
        face, events = self.family.face, self.family.run.events
        while events:
            event = events.popleft()
            self._events.append(encode_event(event))
            if isinstance(event, Written):
                self._add([event])
                face.customized_info[KEY].append(self._events)
                self._events = []

    # The end

    def check(self) -> None:
        """Say how the run ended, once it has."""
        run = self.family.run
        if self.over or not run.finish:
            return
        if run.error is not None:
            self.abort(str(run.error))
            return
        self._counters.forced += run.finish != "end"
        self.grow()
        extra = None if self.order.native else encode_result(result_of(run, ""), self._events)
        reason = "stop" if run.finish == "end" else "length"
        self.family.adapter.finish(self.family.face, reason, matched=self._matched(), extra=extra)
        self.over = True

    def _matched(self) -> int | str | None:
        """Return the token or the string that ended the turn, as far as SGLang may know it."""
        run, ids = self.family.run, self.family.face.output_ids
        stopped = run.interpreter.stopped
        if stopped:
            # SGLang would cut the text where the string first stands, which may be in a block.
            return stopped if stopped not in run.lexicon.vocabulary.decode(ids) else None
        return ids[-1] if ids and ids[-1] in run.lexicon.ends else None

    def abort(self, message: str, *, asked: bool = False) -> None:
        """Say that it did not come to an end.

        Args:
            asked: whether its client wanted that: then it gets what was done so far.
        """
        run = self.family.run
        extra = None
        if asked and not (run.finish or self.order.native):
            extra = encode_result(result_of(run, ""))
        run.finish = run.finish or "interrupted"
        self.family.adapter.finish(self.family.face, "abort", matched=message, extra=extra)
        self.over = True
