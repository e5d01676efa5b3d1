"""What the machine of the structural law says: where a token is, whom it sees, what may come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mvspec.law.tags import Tag
from mvspec.law.thread import Event

__all__ = ["Chain", "Expect", "Step", "sees"]

Chain = tuple[tuple[int, int], ...]
"""(block, path) of every path that a token stands in, outermost first."""


def sees(q: Chain, k: Chain) -> bool:
    """Whether a token with chain `q` may see an earlier token with chain `k`.

    >>> sees(((0, 1),), ((0, 0),)), sees((), ((0, 0),))
    (False, True)
    """
    for (q_block, q_path), (k_block, k_path) in zip(q, k, strict=False):
        if q_block != k_block:
            return True  # one block after the other: the earlier one has joined
        if q_path != k_path:
            return False
    return True


class Step(NamedTuple):
    """Where the tokens of one event are.

    Args:
        thread: the thread that took it.
        token: number of its first token, counted over all threads in the order of the pushes.
        position: position id of its first token; the next ones rise by one.
        parent: number of the token whose logits predict the first one; -1 if there is none.
        chain: what decides whom it sees, with `sees`.
        forked: the threads that it started, in surface order.
        joined: the thread that goes on because this was the last path to end.
    """

    thread: int
    token: int
    position: int
    parent: int
    chain: Chain
    forked: tuple[int, ...] = ()
    joined: int | None = None


@dataclass(frozen=True, slots=True)
class Expect:
    """What may come next in a thread.

    Args:
        tags: the tags that may come.
        fixed: text that must come first.
        free: whether text of the model's choice may come, after `fixed` if there is some.
        lead: what free text starts with.
        one_line: free text ends with its first newline.
        end: whether the turn may end.
        closing: where no free token fits the budget any more: what to write, in order, up to
            the thread's next fork or its end.
    """

    tags: frozenset[Tag] = frozenset()
    fixed: str | None = None
    free: bool = False
    lead: str = ""
    one_line: bool = False
    end: bool = False
    closing: tuple[Event, ...] = ()
