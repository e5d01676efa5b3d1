"""Client of a model: stored answers first, then spending limit, rate limit and retries."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import re
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from mvspec.curation.request import (
    CurationStopped,
    ModelAnswer,
    ModelProvider,
    ModelRequest,
    RequestRefused,
    RequestUnanswered,
    TokenUsage,
)
from mvspec.curation.store import CurationStore
from mvspec.data.records import InputError

T = TypeVar("T")

UNIT = 10**12
"""Money is counted in whole millionths of a millionth of a dollar: sums have no rounding."""

WINDOW = 60.0
"""Seconds in which a rate limit counts."""

REFUSALS = 10
"""So many refused requests and not one answer: the requests are wrong, not the records."""

ALIKE = 3
"""So many refusals with the same words and no answer in between: they are of every record."""

BEYOND = 1_000
"""Tokens by which a count may pass what was sent or asked for, and twice that, to be believed."""

BYTES_PER_TOKEN = 4.0
"""The first guess for the rate limit; answers correct it."""


def dollars(money: int) -> str:
    """Return money for people.

    >>> dollars(1_234_560_000_000)
    '$1.2346'
    """
    return f"${money / UNIT:,.4f}"


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """Dollars for a million tokens that are read, and that are written (thoughts included).

    >>> TokenPrice(0.30, 2.50).of(TokenUsage(prompt=1_000_000, output=100_000)) / UNIT
    0.55
    """

    read: float = 0.0
    written: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.read < 1e6 and 0 <= self.written < 1e6):
            raise InputError("--price: two numbers from 0, in dollars for a million tokens")

    @classmethod
    def parse(cls, text: str) -> TokenPrice:
        """Read `0.30,2.50`.

        Raises:
            InputError: it is not two numbers.
        """
        try:
            read, written = (float(part) for part in text.split(","))
        except ValueError:
            raise InputError(
                f"--price {text}: give two numbers, dollars for a million tokens read and "
                "written, such as 0.30,2.50"
            ) from None
        return cls(read, written)

    def of(self, usage: TokenUsage) -> int:
        """Return what an answer cost; cached tokens are counted in full."""
        return self._cost(usage.prompt, usage.output + usage.thoughts)

    def most(self, request: ModelRequest) -> int:
        """Return what a request can cost at most: a token holds at least one byte."""
        return self._cost(request.size, request.max_tokens)

    def _cost(self, read: int, written: int) -> int:
        # Dollars for a million tokens are millionths of a dollar for one.
        scale = UNIT // 10**6
        return read * round(self.read * scale) + written * round(self.written * scale)


FREE = TokenPrice()


def believed(request: ModelRequest, answer: ModelAnswer) -> TokenUsage:
    """Return the tokens of an answer; for what cannot be, as many as there can be.

    What is not said (0), below 0, or more than the request allows would make a ledger wrong.
    """
    usage = answer.usage
    read, output, thoughts = usage.prompt, usage.output, usage.thoughts
    if not 0 < read <= 2 * request.size + BEYOND:
        read = request.size
    least = 1 if answer.text else 0
    most = 2 * request.max_tokens + BEYOND
    if output < least or thoughts < 0 or output + thoughts > most or not usage.prompt:
        output, thoughts = request.max_tokens, 0
    return TokenUsage(read, output, thoughts, min(max(usage.cached, 0), read))


class SpendingLimit:
    """A hard stop: money spent and money on its way never pass the limit together.

    Args:
        limit: in dollars; None for no limit.
        spent: what answers have cost before, in `UNIT`.
        doubtful: what requests that were never answered may have cost.
    """

    def __init__(self, limit: float | None, spent: int = 0, doubtful: int = 0) -> None:
        self.limit = None if limit is None else int(limit * UNIT)
        self.spent = spent
        self.doubtful = doubtful
        self.reserved = 0
        self._settled = asyncio.Condition()

    async def reserve(self, most: int) -> None:
        """Set money aside, waiting for what is on its way to cost less than it could have.

        Raises:
            CurationStopped: the limit does not allow it, whatever the others cost.
        """
        async with self._settled:
            while self.limit is not None:
                if self.spent + self.doubtful + most > self.limit:
                    raise CurationStopped(
                        f"the budget of {dollars(self.limit)} is used up: {dollars(self.spent)} "
                        f"spent, {dollars(self.doubtful)} in doubt, and the next request may "
                        f"cost {dollars(most)}"
                    )
                if self.spent + self.doubtful + self.reserved + most <= self.limit:
                    break
                await self._settled.wait()
            self.reserved += most

    async def settle(self, most: int, *, cost: int = 0, doubtful: int = 0) -> None:
        """Give back what was set aside; count what the request did cost, or may have."""
        async with self._settled:
            self.reserved -= most
            self.spent += cost
            self.doubtful += doubtful
            self._settled.notify_all()


class RateLimit:
    """Requests and tokens a minute: no window of 60 seconds holds more.

    A window and not a bucket: a bucket that was full lets twice its rate through in its first
    minute, which services answer with 429.

    Args:
        requests, tokens: the most in a minute; None for no limit.
        clock, sleep: the time, for tests.
    """

    def __init__(
        self,
        requests: int | None = None,
        tokens: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.requests = requests
        self.tokens = tokens
        self._clock = clock
        self._sleep = sleep
        self._sent: deque[tuple[float, int]] = deque()
        self._sum = 0
        self._paused = 0.0
        self._turn = asyncio.Lock()

    def pause(self, seconds: float) -> None:
        """Let nothing through for so long: the service has said that it is too much."""
        self._paused = max(self._paused, self._clock() + seconds)

    async def wait(self, tokens: int) -> None:
        """Return when a request of about so many tokens may go out; in order of asking."""
        async with self._turn:
            while (delay := self._delay(tokens)) > 0:
                await self._sleep(delay)
            self._sent.append((self._clock(), tokens))
            self._sum += tokens

    def _delay(self, tokens: int) -> float:
        now = self._clock()
        if now < self._paused:
            return self._paused - now
        while self._sent and self._sent[0][0] <= now - WINDOW:
            self._sum -= self._sent.popleft()[1]
        if not self._sent:
            return 0.0  # one that is larger than the limit goes alone
        many = self.requests is not None and len(self._sent) >= self.requests
        much = self.tokens is not None and self._sum + tokens > self.tokens
        return self._sent[0][0] + WINDOW - now if many or much else 0.0


@dataclass
class RequestTraffic:
    """Counts of a run's requests, for its progress and its log.

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
    usage: TokenUsage = field(default_factory=TokenUsage)
    in_flight: int = 0


class RankedSemaphore:
    """A semaphore that lets the lowest rank in first."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def taken(self, rank: int) -> AsyncIterator[None]:
        """Hold a slot."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._order), turn))
        self._let_in()
        try:
            await turn
            yield
        finally:
            if not turn.cancelled():  # it was let in, perhaps in the moment that it gave up
                self._free += 1
                self._let_in()

    def _let_in(self) -> None:
        while self._free and self._waiting:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                self._free -= 1


class ModelClient:
    """Client of one provider: stored, limited and retried requests, none of them paid twice.

    Args:
        provider: who answers.
        store: where answers are kept.
        budget, price: what may be spent, and what tokens cost.
        pace: the most requests and tokens a minute.
        concurrency: the most requests on their way at once.
        retries: how often a request goes out again that got no answer.
        once: the provider bills a request once however often it is asked, as a batch does.
        first_wait, longest_wait: seconds between two tries at most, unless the service asks for
            more; they double from try to try.
    """

    def __init__(
        self,
        provider: ModelProvider,
        store: CurationStore,
        *,
        budget: SpendingLimit,
        price: TokenPrice = FREE,
        pace: RateLimit | None = None,
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
        self.pace = pace or RateLimit()
        self.retries = retries
        self.first_wait = first_wait
        self.longest_wait = longest_wait
        self.once = once
        self.traffic = RequestTraffic()
        self.stopped: str | None = None
        self.abandoned = False
        self._stopping = asyncio.Event()
        self._slots = RankedSemaphore(concurrency)
        self._flights: dict[str, asyncio.Task[ModelAnswer]] = {}
        self._bytes_per_token = BYTES_PER_TOKEN
        self._refused = 0
        self._alike: Counter[str] = Counter()

    def stop(self, reason: str, *, abandoned: bool = False) -> None:
        """Send nothing more; what is on its way is waited for, and kept.

        Args:
            abandoned: nobody wants verdicts any more.
        """
        self.stopped = self.stopped or reason
        self.abandoned |= abandoned
        self._stopping.set()

    async def ask(self, request: ModelRequest, rank: int = 0) -> ModelAnswer:
        """Return the answer to a request, from the store or from the provider.

        Args:
            rank: of those that wait, the lowest goes out first. With the number of the record,
                records are finished one after the other, and a budget that runs out leaves few
                of them half done.

        Raises:
            CurationStopped: nothing is sent any more.
            RequestUnanswered: the service failed as often as `retries` allows.
            RequestRefused: the service does not take this request.
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

    def _land(self, key: str, flight: asyncio.Task[ModelAnswer]) -> None:
        self._flights.pop(key, None)
        if not flight.cancelled():
            flight.exception()  # where the record has been given up, nobody else looks at it

    async def landed(self) -> None:
        """Return when nothing is on its way any more."""
        while self._flights:
            await asyncio.wait(list(self._flights.values()))

    async def _ask(self, request: ModelRequest, rank: int) -> ModelAnswer:
        retry = 0
        while True:
            try:
                return await self._ask_once(request, rank)
            except RequestUnanswered as error:
                if retry == self.retries:
                    raise
                wait = random.uniform(0, min(self.longest_wait, self.first_wait * 2**retry))
                if error.after is not None:
                    # Jitter on top of what the service asks for: not all come back in one moment.
                    wait = error.after + min(wait, 1 + error.after / 4)
            retry += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` does, or raise CurationStopped as soon as nothing is to be sent."""
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

    async def _ask_once(self, request: ModelRequest, rank: int) -> ModelAnswer:
        async with self._slots.taken(rank):
            self._check()
            tokens = round(request.size / self._bytes_per_token)
            await self._unless_stopped(self.pace.wait(tokens))
            self._check()
            most = self.price.most(request)
            try:
                await self._unless_stopped(self.budget.reserve(most))
            except CurationStopped as error:
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
                except RequestUnanswered as error:
                    self.traffic.failures[str(error).partition(":")[0]] += 1
                    if error.crowded:
                        self.pace.pause(error.after or 1.0)
                    if error.paid:
                        doubtful = most
                    else:
                        await self.store.unsend(sent)
                    raise
                except RequestRefused as error:
                    await self.store.unsend(sent)
                    self._refuse(error)
                    raise
                except (asyncio.CancelledError, CurationStopped):
                    doubtful = most
                    raise
                said = answer.usage.prompt
                answer = replace(answer, usage=believed(request, answer))
                cost = self.price.of(answer.usage)
                seconds = time.monotonic() - start
                await self.store.save(request, answer, cost, seconds, sent, once=self.once)
                self._count(request, answer, said)
                return answer
            finally:
                self.traffic.in_flight -= 1
                await self.budget.settle(most, cost=cost, doubtful=doubtful)

    def _check(self) -> None:
        if self.stopped:
            raise CurationStopped(self.stopped)

    def _refuse(self, error: RequestRefused) -> None:
        self._refused += 1
        same = re.sub(r"[0-9]+", "0", str(error))
        self._alike[same] += not error.one
        if error.all or self._alike[same] >= ALIKE:
            self.stop(str(error))
        elif self._refused >= REFUSALS and not self.traffic.answered:
            self.stop(f"{self._refused} requests were refused and none answered: {error}")

    def _count(self, request: ModelRequest, answer: ModelAnswer, said: int) -> None:
        self._alike.clear()
        self.traffic.answered += 1
        self.traffic.usage += answer.usage
        if said == answer.usage.prompt:
            found = request.size / answer.usage.prompt
            self._bytes_per_token += (found - self._bytes_per_token) * 0.05
