"""The steps of an engine: which requests run, and what they read together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from mvspec.errors import LimitExceeded, MvspecError
from mvspec.runtime.engine.model import Model, Part
from mvspec.runtime.interrupt import deferred
from mvspec.runtime.request import Request
from mvspec.runtime.sampling import draw
from mvspec.runtime.thread import Live, Token

__all__ = ["Scheduler"]


class Scheduler:
    """Runs requests on one model, as many at once as there is place for.

    Args:
        model: what reads their tokens.
        max_requests: how many run at once; others wait.
        max_rows: how many tokens one forward reads.

    Attributes:
        steps: how many forwards there were.
    """

    def __init__(self, model: Model, max_requests: int, max_rows: int) -> None:
        self.model = model
        self.max_requests = max_requests
        self.max_rows = max_rows
        self.steps = 0
        self._lock = threading.RLock()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    def add(self, request: Request) -> None:
        """Let a request run when there is place."""
        with self._lock:
            self._waiting.append(request)

    def drop(self, request: Request) -> None:
        """Forget a request; its memory is free again."""
        with self._lock:
            if request in self._running:
                self._running.remove(request)
            if request in self._waiting:
                self._waiting.remove(request)
            request.store.clear()

    def advance(self, request: Request) -> None:
        """Step once for a request that has not finished.

        Raises:
            LimitExceeded: there is not enough memory, or the request was dropped.
        """
        if not self.step() and not request.finish:
            with self._lock:
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
        with self._lock:
            self._admit()
            parts, kept = self._schedule()
            if not parts:
                return False
            try:
                logits = self.model.forward(parts)
            except BaseException:
                # What the stores hold is unknown now, so no running request can go on.
                self._running.clear()
                raise
            with deferred():
                self.steps += 1
                for part, (request, tokens), rows in zip(parts, kept, logits, strict=True):
                    with self._alone(request):
                        request.read(tokens, rows, len(part.ids))
                self._draw()
            return True

    @contextmanager
    def _alone(self, request: Request) -> Iterator[None]:
        """Let an error of one request, such as a full store, end that request alone."""
        try:
            yield
        except MvspecError as error:
            request.error = error
            request.finish = "limit"

    def _admit(self) -> None:
        self._running = [request for request in self._running if not request.finish]
        while self._waiting and len(self._running) < self.max_requests:
            request = self._waiting.popleft()
            if not request.finish:
                self._running.append(request)

    def _schedule(self) -> tuple[list[Part], list[tuple[Request, list[tuple[Live, Token]]]]]:
        """Choose what this step reads: those with few tokens first, so that none waits long."""
        parts, kept = [], []
        left = self.max_rows
        for request in sorted(self._running, key=lambda request: request.waiting):
            if request.waiting and left:
                part, tokens = request.take(left)
                left -= len(part.ids)
                parts.append(part)
                kept.append((request, tokens))
        return parts, kept

    def _draw(self) -> None:
        """Draw until every request has tokens to read: a draw may only have ended a hole."""
        asking = [request for request in self._running if not request.finish]
        while asking:
            wanted = [(r, live, want) for r in asking for live, want in r.wanted()]
            while wanted:
                draws = draw([want for _, _, want in wanted])
                again = []
                for (request, live, _), drawn in zip(wanted, draws, strict=True):
                    with self._alone(request):
                        if not request.finish and not request.choose(live, drawn):
                            again.append((request, live, request.want(live)))
                wanted = again
            for request in asking:
                with self._alone(request):
                    request.pump()
            asking = [
                request
                for request in asking
                if not request.finish and not request.waiting and request.wanted()
            ]
