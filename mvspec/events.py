"""Events of a run, in the order in which they happen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mvspec.trace import Result


@dataclass(frozen=True, slots=True)
class Written:
    """One token is in a thread; the prompt's have no event.

    Whoever appends these and drops what `TakenBack` says holds the tokens of the trace.

    Args:
        request: the run that it belongs to.
        thread: 0 for the root; paths have other numbers.
        position: its position id.
        id: its token id.
        text: what it adds to the thread's text; "" where it ends inside a character.
        author: "engine" (forced) or "model".
        logprob: of the token under the model, before temperature; None where nothing was drawn.
        hole: the hole that it fills; "" for none.
        forward: the forward that it was chosen after, from 0.
    """

    request: str
    thread: int
    position: int
    id: int
    text: str
    author: str
    logprob: float | None
    hole: str
    forward: int


@dataclass(frozen=True, slots=True)
class TakenBack:
    """The last `count` tokens of a thread are none of it any more.

    A stop string takes back the tokens that it is made of; a path's end takes back a newline
    that the plan writes; and a token that turns out to end inside a character is told again,
    with its text.
    """

    request: str
    thread: int
    count: int
    forward: int


@dataclass(frozen=True, slots=True)
class Forked:
    """A thread has split.

    Args:
        paths: the threads that it has split into.
        labels, titles: of each path, as its outline has them; "1" or "2.1", and "" for no title.
    """

    request: str
    thread: int
    paths: tuple[int, ...]
    labels: tuple[str, ...]
    titles: tuple[str, ...]
    forward: int


@dataclass(frozen=True, slots=True)
class PathEnded:
    """A path has written its last token; it waits for the others of its block."""

    request: str
    thread: int
    forward: int


@dataclass(frozen=True, slots=True)
class Joined:
    """All paths of a thread's block have ended, and it goes on."""

    request: str
    thread: int
    paths: tuple[int, ...]
    forward: int


@dataclass(frozen=True, slots=True)
class HoleFilled:
    """A hole has its text.

    Args:
        text: what was written.
        value: the text, or what its schema makes of it; None where it was cut.
        cut: whether max_tokens ended it inside its constraint.
    """

    request: str
    thread: int
    name: str
    text: str
    value: Any
    cut: bool
    forward: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over."""

    request: str
    result: Result


Event = Written | TakenBack | Forked | PathEnded | Joined | HoleFilled | Finished
"""What a stream yields: `isinstance` tells which."""
