"""Steps of the in-process engine: schedule, forward, apply."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mvspec.errors import LimitExceeded, MvspecError
from mvspec.runtime.engine.attention import TokenChunk
from mvspec.runtime.engine.kv_cache import KVCache
from mvspec.runtime.engine.model import EngineModel
from mvspec.runtime.interrupt import deferred
from mvspec.runtime.request import PlanRequest
from mvspec.runtime.sampling import DrawnToken, draw_tokens
from mvspec.runtime.thread_state import ThreadState, ThreadToken


class RequestScheduler:
    """Runs requests on one model, as many at once as there is place for.

    Args:
        model: reads their tokens.
        max_concurrent_requests: how many run at once; others wait.
        max_batched_tokens: how many tokens one forward reads; long prompts take several forwards.

    Attributes:
        steps: how many forwards there were.
    """

    def __init__(
        self, model: EngineModel, max_concurrent_requests: int, max_batched_tokens: int
    ) -> None:
        self.model = model
        self.max_concurrent_requests = max_concurrent_requests
        self.max_batched_tokens = max_batched_tokens
        self.steps = 0
        self.lock = threading.RLock()
        """Held during a step."""
        self._waiting: deque[PlanRequest] = deque()
        self._running: list[PlanRequest] = []

    def add(self, request: PlanRequest) -> None:
        """Let a request run when there is place."""
        with self.lock:
            self._waiting.append(request)

    def drop(self, request: PlanRequest) -> None:
        """Forget a request; its memory is free again."""
        with self.lock:
            if request in self._running:
                self._running.remove(request)
            if request in self._waiting:
                self._waiting.remove(request)
            request.kv.clear()

    def advance(self, request: PlanRequest) -> None:
        """Step once for a request that has not finished.

        Raises:
            LimitExceeded: there is not enough memory, or the request was dropped.
        """
        if not self.step() and not request.finish:
            with self.lock:
                lost = request not in self._running and request not in self._waiting
            if lost:
                raise LimitExceeded(
                    "the request was dropped when another one ended the engine's step"
                )
            raise MvspecError(f"request {request.name} waits for nothing: this is a bug of mvspec")

    def step(self) -> bool:
        """Read the waiting tokens of all running requests and draw the next; False if idle.

        Raises:
            LimitExceeded: there is not enough memory; all running requests are dropped.
        """
        with self.lock:
            self._admit()
            chunks, kept = self._schedule()
            if not chunks:
                return False
            try:
                logits = self.model.forward(chunks)
            except BaseException:
                # What the caches hold is unknown now, so no running request can go on.
                self._running.clear()
                raise
            with deferred():
                self.steps += 1
                first = 0
                for chunk, (request, tokens) in zip(chunks, kept, strict=True):
                    try:
                        request.read(tokens, logits, first, len(chunk.ids))
                    except Exception as error:
                        request.fail(error)
                    first += len(tokens)
                self._draw()
            return True

    def _admit(self) -> None:
        self._running = [request for request in self._running if not request.finish]
        while self._waiting and len(self._running) < self.max_concurrent_requests:
            request = self._waiting.popleft()
            if not request.finish:
                self._running.append(request)

    def _schedule(
        self,
    ) -> tuple[list[TokenChunk], list[tuple[PlanRequest, list[tuple[ThreadState, ThreadToken]]]]]:
        """Choose what this step reads: those with few tokens first, so that none waits long."""
        chunks, kept = [], []
        left = self.max_batched_tokens
        for request in sorted(self._running, key=lambda request: len(request.queue)):
            if request.queue and left:
                tokens, keep = request.schedule(left)
                left -= len(tokens)
                cache = request.kv
                assert isinstance(cache, KVCache)
                chunks.append(
                    TokenChunk(
                        cache,
                        [token.id for _, token in tokens],
                        [token.position for _, token in tokens],
                        [thread.row for thread, _ in tokens],
                        tokens[0][1].slot,
                        keep,
                    )
                )
                wanted = tokens if len(keep) == len(tokens) else [tokens[index] for index in keep]
                kept.append((request, wanted))
        return chunks, kept

    def _draw(self) -> None:
        """Draw until every request has tokens to read: a draw may only have ended a hole."""
        asking = [request for request in self._running if not request.finish]
        while asking:
            waiting = [(request, thread) for request in asking for thread in _waiting(request)]
            while waiting:
                again = []
                for request, thread, token in _drawn(waiting):
                    try:
                        if not request.finish and not request.take(thread, token):
                            again.append((request, thread))
                    except Exception as error:
                        request.fail(error)
                waiting = again
            for request in asking:
                try:
                    request.pump()
                except Exception as error:
                    request.fail(error)
            asking = [
                request
                for request in asking
                if not (request.finish or request.queue) and _waiting(request)
            ]


# What one request raises is its own.


def _waiting(request: PlanRequest) -> list[ThreadState]:
    try:
        return [] if request.finish else request.waiting()
    except Exception as error:
        request.fail(error)
        return []


def _drawn(
    waiting: Sequence[tuple[PlanRequest, ThreadState]],
) -> Iterator[tuple[PlanRequest, ThreadState, DrawnToken]]:
    """Yield a token of each thread: all are drawn at once, or where that fails one by one."""
    pairs, requests = [], []
    for request, thread in waiting:
        try:
            if not request.finish:
                draw = request.draw_request(thread)
                if draw.allowed is not None and not bool(draw.allowed.any()):
                    raise RuntimeError(f"nothing may come next in thread {thread.number}")
                requests.append(draw)
                pairs.append((request, thread))
        except Exception as error:
            request.fail(error)
    if not pairs:
        return
    try:
        drawn = draw_tokens(_predicting(pairs), requests)
    except Exception as error:
        if len(pairs) == 1:
            pairs[0][0].fail(error)
            return
        for pair in pairs:
            yield from _drawn([pair])
        return
    for (request, thread), token in zip(pairs, drawn, strict=True):
        yield request, thread, token


def _predicting(waiting: Sequence[tuple[PlanRequest, ThreadState]]) -> Tensor:
    """Return the logits that threads draw from: [threads, vocabulary]."""
    places = [thread.predicting for _, thread in waiting]
    rows = [place[1] for place in places if place is not None]
    sources = {id(place[0]): place[0] for place in places if place is not None}
    if len(sources) == 1:  # of the last forward, mostly
        (logits,) = sources.values()
        whole = rows == list(range(len(logits)))
        return logits if whole else logits[torch.tensor(rows, device=logits.device)]
    return torch.stack([place[0][place[1]] for place in places if place is not None])
