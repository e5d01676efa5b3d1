"""What a client is told of its request: tokens in order, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from mvspec.runtime.events import Event, Written
from mvspec.runtime.result import result_of
from mvspec.runtime.serving.family import Family
from mvspec.runtime.serving.order import KEY, Order
from mvspec.runtime.thread import Live, Token

__all__ = ["Answer", "encode_event"]


class Answer:
    """The answer to one request.

    Args:
        family: whose tokens it tells.
        order: whether they come as they are written or in the order of the surface form.
    """

    def __init__(self, family: Family, order: Order) -> None:
        self.family = family
        self.order = order
        self.over = False
        """Whether it was told how it ended."""
        self._stack: list[tuple[Live, int]] = [(family.run.root, 0)]
        self._events: list[dict[str, Any]] = []
        self._sent = False
        face = family.face
        if order.live:
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
        if self.order.live:
            self._tell_events()
        else:
            self.family.run.events.clear()
            for token in self._settled():
                self._add(token.id, token.logprob, token.top)
        self._sent = self.over
        return self.over or len(self.family.face.output_ids) > before

    def _add(self, id: int, logprob: float | None, top: Any) -> None:
        face = self.family.face
        face.output_ids.append(id)
        if not face.return_logprob:
            return
        # What was written by force is certain.
        face.logprob.output_token_logprobs_val.append(0.0 if logprob is None else logprob)
        face.logprob.output_token_logprobs_idx.append(id)
        if face.logprob.top_logprobs_num > 0:
            face.logprob.output_top_logprobs_val.append([value for _, value in top] or [0.0])
            face.logprob.output_top_logprobs_idx.append([other for other, _ in top] or [id])

    def _settled(self) -> Iterator[Token]:
        """Yield new tokens in surface order, as far as they cannot be taken back."""
        run = self.family.run
        while True:
            live, at = self._stack[-1]
            held = 0
            if not run.finish:
                held = len(live.hole.ids) if live.hole else 0
                held = max(held, len(live.run) if run.options.sampling.stop else 0)
            if at < len(live.items) - held:
                item = live.items[at]
                self._stack[-1] = (live, at + 1)
                if isinstance(item, Token):
                    if item.author != "prompt":
                        yield item
                else:
                    self._stack += [(path, 0) for path in reversed(item)]
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
                self._add(event.id, event.logprob, ())
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
        self.over = True
        tokens = [token for _, token in run.root.tokens()]
        extra = None
        if not self.order.native:
            result = result_of(run, "")
            extra = {
                "trace": result.trace.model_dump(mode="json", exclude_none=True),
                "texts": dict(result.texts),
                "errors": dict(result.errors),
                "diagnostics": [asdict(each) for each in result.diagnostics],
                "top_logprobs": [list(each) for each in result.top_logprobs],
            }
        self.grow_to_end()
        if extra is not None and self._events:
            extra["events"] = self._events
        last = tokens[-1].id if tokens and tokens[-1].id in run.lexicon.ends else None
        reason = "stop" if run.finish == "end" else "length"
        self.family.adapter.finish(self.family.face, reason, matched=last, extra=extra)

    def grow_to_end(self) -> None:
        """Add all that is left."""
        self.grow()
        self._sent = False

    def abort(self, message: str) -> None:
        """Say that it did not come to an end."""
        self.over = True
        self.family.run.finish = self.family.run.finish or "interrupted"
        self.family.adapter.finish(self.family.face, "abort", matched=message)


def encode_event(event: Event) -> dict[str, Any]:
    """Return an event as JSON, with its kind.

    >>> from mvspec.runtime.events import PathEnded
    >>> encode_event(PathEnded("0", 2, 7))
    {'kind': 'PathEnded', 'request': '0', 'thread': 2, 'step': 7}
    """
    return {"kind": type(event).__name__, **asdict(event)}
