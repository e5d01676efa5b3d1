"""A run whose keys and values a server holds: it is told which tokens were read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mvspec.runtime.engine.store import Store
from mvspec.runtime.request import Request
from mvspec.runtime.thread import Live, Token

__all__ = ["Columns", "Run"]

_READ = torch.empty(0)
"""Stands for logits that lie on the server's device."""


class Columns(Store):
    """A `Store` that holds nothing but the count of its columns: they number a run's tokens."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), capacity=1)

    def take(self, count: int) -> int:
        """Return the first of `count` new columns."""
        self.used += count
        return self.used - count

    def row(self, like: int | None = None) -> int:
        """Return a thread's row: the server has the real ones."""
        return 0

    def release(self, row: int) -> None:
        """Take a row back."""

    def show(self, row: int, start: int, stop: int) -> None:
        """Let a thread see columns: the server's rows say what it sees."""

    def hide(self, row: int, columns: Sequence[int]) -> None:
        """Let a thread no longer see columns: likewise."""

    def merge(self, row: int, others: Sequence[int]) -> None:
        """Let a thread see what others see: likewise."""


class Run(Request):
    """A `Request` whose threads are read one by one, as a server has room for them."""

    quiet = False
    """Whether nobody is told of single tokens: events of them are then not made."""

    _unread = 0

    def _enqueue(self, live: Live, tokens: Sequence[Token]) -> None:
        self._unread += len(tokens)

    def _tell(self, live: Live, token: Token) -> None:
        if not self.quiet:
            super()._tell(live, token)

    @property
    def waiting(self) -> int:
        """How many tokens wait to be read."""
        return self._unread

    @property
    def size(self) -> int:
        """How many tokens the run has, those of the prompt included."""
        return self.store.used

    def forget(self) -> None:
        """Let go of all tokens: threads refer to each other, and would wait for a collection."""
        for live in list(self.root.threads()):
            live.items.clear()
            live.forks.clear()

    def was_read(self, threads: Sequence[tuple[Live, int, Token]]) -> None:
        """Say what one forward has read, and go on as far as that allows.

        Args:
            threads: for each thread how many tokens were read for the first time, and the last.
        """
        total = 0
        for live, count, _ in threads:
            live.unread -= count
            total += count
        self._unread -= total
        kept = [(live, token) for live, _, token in threads]
        self.read(kept, [_READ] * len(kept), total)
