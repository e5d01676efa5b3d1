"""How fast requests may go out: so many, and so many tokens, in any minute."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

__all__ = ["Pace"]

WINDOW = 60.0


class Pace:
    """Lets requests through so that no window of a minute holds more than the limits.

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
