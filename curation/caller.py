"""One way to ask: the store first, then budget, pace and retries, then the provider."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import tenacity

from mvspec.curation.budget import Budget, Price
from mvspec.curation.pace import Pace
from mvspec.curation.request import (
    Answer,
    Provider,
    Refused,
    Request,
    Stopped,
    Unanswered,
    Usage,
)
from mvspec.curation.store import Store

__all__ = ["Caller", "Traffic"]

T = TypeVar("T")

FREE = Price()

REFUSALS = 10
"""So many refused requests and not one answer: the requests are wrong, not the records."""

BYTES_PER_TOKEN = 4.0
"""The first guess for the pace; answers correct it."""


@dataclass
class Traffic:
    """What this run has asked, for its progress and its log.

    Args:
        calls: requests that went out, again included.
        answered: of these, with an answer.
        stored: answers that were there before.
        failures: requests that went out and were not answered, by kind.
        usage: tokens of the answers of this run.
        in_flight: requests on their way.
    """

    calls: int = 0
    answered: int = 0
    stored: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)
    in_flight: int = 0


class Slots:
    """A semaphore that lets the lowest rank in first."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def taken(self, rank: int) -> AsyncIterator[None]:
        """Hold a slot."""
        if self._free:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (rank, next(self._order), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._pass_on()
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Caller:
    """Asks a provider, and pays for no request twice.

    Args:
        provider: who answers.
        store: where answers are kept.
        budget, price: what may be spent, and what tokens cost.
        pace: how fast requests may go out.
        concurrency: the most requests on their way at once.
        retries: how often a request goes out again that got no answer.
        once: the provider bills a request once however often it is asked, as a batch does.
        longest_wait: seconds between two tries at most, unless the service asks for more.
    """

    def __init__(
        self,
        provider: Provider,
        store: Store,
        *,
        budget: Budget,
        price: Price = FREE,
        pace: Pace | None = None,
        concurrency: int = 16,
        retries: int = 8,
        once: bool = False,
        first_wait: float = 1.0,
        longest_wait: float = 60.0,
    ) -> None:
        self.provider = provider
        self.store = store
        self.budget = budget
        self.price = price
        self.pace = pace or Pace()
        self.retries = retries
        self.once = once
        self.traffic = Traffic()
        self.stopped: str | None = None
        self.abandoned = False
        self._stopping = asyncio.Event()
        self._slots = Slots(concurrency)
        self._flights: dict[str, asyncio.Task[Answer]] = {}
        self._bytes_per_token = BYTES_PER_TOKEN
        self._refused = 0
        self._backoff = tenacity.wait_random_exponential(first_wait, longest_wait)

    def stop(self, reason: str, *, abandoned: bool = False) -> None:
        """Send nothing more; what is on its way is waited for, and kept.

        Args:
            abandoned: nobody wants verdicts any more.
        """
        self.stopped = self.stopped or reason
        self.abandoned |= abandoned
        self._stopping.set()

    async def ask(self, request: Request, rank: int = 0) -> Answer:
        """Return the answer to a request, from the store or from the provider.

        Args:
            rank: of those that wait, the lowest goes out first. With the number of the record,
                records are finished one after the other, and a budget that runs out leaves few
                of them half done.

        Raises:
            Stopped: nothing is sent any more.
            Unanswered: the service failed as often as `retries` allows.
            Refused: the service does not take this request.
        """
        stored = self.store.answer(request.key)
        if stored is not None:
            self.traffic.stored += 1
            return stored
        flight = self._flights.get(request.key)
        if flight is None:
            flight = asyncio.create_task(self._ask(request, rank))
            self._flights[request.key] = flight
            flight.add_done_callback(partial(self._land, request.key))
        # A record that gives up does not take an answer with it that is being paid for.
        return await asyncio.shield(flight)

    def _land(self, key: str, flight: asyncio.Task[Answer]) -> None:
        self._flights.pop(key, None)
        if not flight.cancelled():
            flight.exception()  # where the record has been given up, nobody else looks at it

    async def landed(self) -> None:
        """Return when nothing is on its way any more."""
        while self._flights:
            await asyncio.wait(list(self._flights.values()))

    async def _ask(self, request: Request, rank: int) -> Answer:
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.retries + 1),
            wait=self._wait,
            retry=tenacity.retry_if_exception_type(Unanswered),
            sleep=self._sleep,
            reraise=True,
        )
        return await retrying(self._ask_once, request, rank)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        after = error.after if isinstance(error, Unanswered) else None
        # Full jitter on top of what the service asks for: not all come back in one moment.
        jitter = self._backoff(state)
        return jitter if after is None else after + min(jitter, 1 + after / 4)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` does, or raise Stopped as soon as nothing more is to be sent."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._check()
            return await task
        finally:
            task.cancel()
            stop.cancel()

    async def _ask_once(self, request: Request, rank: int) -> Answer:
        async with self._slots.taken(rank):
            self._check()
            tokens = round(request.size / self._bytes_per_token)
            await self._unless_stopped(self.pace.wait(tokens))
            self._check()
            most = self.price.most(request)
            try:
                await self._unless_stopped(self.budget.reserve(most))
            except Stopped as error:
                self.stop(str(error))
                raise
            self.traffic.in_flight += 1
            cost = doubtful = 0
            try:
                sent = await self.store.send(request, most)
                self.traffic.calls += 1
                start = time.monotonic()
                try:
                    asking = self.provider.ask(request)
                    # A batch goes on without anybody waiting for it, and is found again.
                    answer = await (self._unless_stopped(asking) if self.once else asking)
                except Unanswered as error:
                    self.traffic.failures[str(error).partition(":")[0]] += 1
                    if error.crowded:
                        self.pace.pause(error.after or 1.0)
                    if error.paid:
                        doubtful = most
                    else:
                        await self.store.unsend(sent)
                    raise
                except Refused as error:
                    await self.store.unsend(sent)
                    self._refuse(error)
                    raise
                except (asyncio.CancelledError, Stopped):
                    doubtful = most
                    raise
                # An answer that says nothing of its tokens is taken to be as dear as it can be.
                cost = self.price.of(answer.usage) if answer.usage.prompt else most
                seconds = time.monotonic() - start
                await self.store.save(request, answer, cost, seconds, sent, once=self.once)
                self._count(request, answer)
                return answer
            finally:
                self.traffic.in_flight -= 1
                await self.budget.settle(most, cost=cost, doubtful=doubtful)

    def _check(self) -> None:
        if self.stopped:
            raise Stopped(self.stopped)

    def _refuse(self, error: Refused) -> None:
        self._refused += 1
        if error.all:
            self.stop(str(error))
        elif self._refused >= REFUSALS and not self.traffic.answered:
            self.stop(f"{self._refused} requests were refused and none answered: {error}")

    def _count(self, request: Request, answer: Answer) -> None:
        self.traffic.answered += 1
        one, all = answer.usage, self.traffic.usage
        self.traffic.usage = Usage(
            all.prompt + one.prompt,
            all.output + one.output,
            all.thoughts + one.thoughts,
            all.cached + one.cached,
        )
        if one.prompt:
            found = request.size / one.prompt
            self._bytes_per_token += (found - self._bytes_per_token) * 0.05
