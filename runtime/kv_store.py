"""Keys and values of one request, as the request sees them: slots of tokens and rows of threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class KVStore(Protocol):
    """Holds the keys and values of a request's tokens, and which of them each thread sees.

    A token has one slot; a thread has one row, which names the slots that its next token sees.
    """

    def fork(self, row: int | None) -> int:
        """Return the row of a new thread, which sees what `row` sees; nothing for None."""

    def allocate(self, row: int, count: int) -> int:
        """Return the first of `count` new slots, which a thread sees from now on.

        Raises:
            LimitExceeded: they do not fit into the limit or the memory; nothing has changed.
        """

    def hide(self, row: int, slots: Sequence[int]) -> None:
        """Let a thread no longer see slots."""

    def merge(self, row: int, others: Sequence[int]) -> None:
        """Let a thread see what others see as well."""

    def release(self, row: int) -> None:
        """Give a thread's row back."""

    def clear(self) -> None:
        """Give all memory back."""
