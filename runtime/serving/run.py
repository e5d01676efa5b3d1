"""KV store of a request whose keys and values a server holds: it only numbers the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["READ", "SlotCounter"]

READ = torch.empty(0)
"""Stands for logits that lie on the server's device."""


class SlotCounter:
    """A `KVStore` that holds nothing: the server's rows say what a thread sees."""

    def __init__(self) -> None:
        self.used = 0

    def fork(self, row: int | None) -> int:
        """Return a thread's row: the server has the real ones."""
        return 0

    def allocate(self, row: int, count: int) -> int:
        """Return the first of `count` new numbers of tokens."""
        self.used += count
        return self.used - count

    def hide(self, row: int, slots: Sequence[int]) -> None:
        """Let a thread no longer see slots: the server's rows say what it sees."""

    def merge(self, row: int, others: Sequence[int]) -> None:
        """Let a thread see what others see: likewise."""

    def release(self, row: int) -> None:
        """Take a row back."""

    def clear(self) -> None:
        """Give nothing back."""
