"""Money: what a request may cost at most, before it is sent, and what it did cost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mvspec.curation.request import Request, Stopped, Usage
from mvspec.data.records import InputError

__all__ = ["Budget", "Price", "dollars"]

UNIT = 10**12
"""Money is counted in whole millionths of a millionth of a dollar: sums have no rounding."""


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars for a million tokens that are read, and that are written (thoughts included).

    >>> Price(0.30, 2.50).of(Usage(prompt=1_000_000, output=100_000)) / UNIT
    0.55
    """

    read: float = 0.0
    written: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.read < 1e6 and 0 <= self.written < 1e6):
            raise InputError("--price: two numbers from 0, in dollars for a million tokens")

    @classmethod
    def parse(cls, text: str) -> Price:
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

    def of(self, usage: Usage) -> int:
        """Return what an answer cost; cached tokens are counted in full."""
        return self._cost(usage.prompt, usage.output + usage.thoughts)

    def most(self, request: Request) -> int:
        """Return what a request can cost at most: a token holds at least one byte."""
        return self._cost(request.size, request.max_tokens)

    def _cost(self, read: int, written: int) -> int:
        # Dollars for a million tokens are millionths of a dollar for one.
        scale = UNIT // 10**6
        return read * round(self.read * scale) + written * round(self.written * scale)


def dollars(money: int) -> str:
    """Return money for people.

    >>> dollars(1_234_560_000_000)
    '$1.2346'
    """
    return f"${money / UNIT:,.4f}"


class Budget:
    """A hard stop: what is spent and what is on its way never pass the limit together.

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
            Stopped: the limit does not allow it, whatever the others cost.
        """
        async with self._settled:
            while self.limit is not None:
                if self.spent + self.doubtful + most > self.limit:
                    raise Stopped(
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
