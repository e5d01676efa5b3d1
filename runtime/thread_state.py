"""State of one thread of a request, the driver that decides how it goes on, and its actions.

A driver says which tokens may be drawn for its thread and, after each token, which actions
follow; it knows no request and no engine. A request applies the actions to its threads and to
their keys and values.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from mvspec.law.threads import LawThread
from mvspec.runtime.sampling import DrawnToken, Sampling

_TAIL = 32
"""Characters of a thread's tail: more than a tag has."""


class KeepToken(NamedTuple):
    """Write the token that was drawn, as the model's own.

    Args:
        hole: that it fills; "" for none.
    """

    hole: str = ""


class WriteTokens(NamedTuple):
    """Write tokens that were not drawn."""

    ids: Sequence[int]
    author: str = "engine"
    hole: str = ""


class TakeBack(NamedTuple):
    """Take so many of the thread's last tokens back."""

    tokens: int


class ReadAgain(NamedTuple):
    """Let the model read the thread's last token once more: what came after it is gone."""


class AwaitRound(NamedTuple):
    """Go on only where the thread may write in this round of paths that read each other."""


class NewPath(NamedTuple):
    """A path that a fork begins."""

    driver: Driver
    label: str
    title: str


class ForkThread(NamedTuple):
    """Split the thread; its driver goes on once all paths have ended."""

    paths: Sequence[NewPath]


class EndPath(NamedTuple):
    """End the thread; the last path of a block to end lets their parent go on."""


class HandOver(NamedTuple):
    """Let another driver go on with the thread."""

    driver: Driver


class FillHole(NamedTuple):
    """Tell that a hole has its text: the fields of the event `HoleFilled`."""

    name: str
    text: str
    value: Any
    cut: bool


class CloseByForce(NamedTuple):
    """Note that limits end what is open, which the run's `finish` will say."""


class EndRun(NamedTuple):
    """End the run.

    Args:
        finish: as in `Trace.finish`; "" where a plan has come to its end: then the run is over
            once the model has read what it has to.
    """

    finish: str = ""


Action = (
    KeepToken | WriteTokens | TakeBack | ReadAgain | AwaitRound | ForkThread | EndPath
    | HandOver | FillHole | CloseByForce | EndRun
)  # fmt: skip


class AllowedTokens(NamedTuple):
    """The tokens that may be drawn next.

    Args:
        mask: bool [at most vocabulary] on the CPU; None for all.
        lasting: whether the same mask, the same object, comes again.
    """

    mask: Tensor | None
    lasting: bool = False


class Driver(Protocol):
    """Decides how one thread goes on."""

    @property
    def draws(self) -> bool:
        """Whether the model chooses the next token, once nothing is left to write."""

    @property
    def given(self) -> int | None:
        """The token that the model will have chosen, where it is known."""

    @property
    def sampling(self) -> Sampling | None:
        """How its tokens are drawn; None is as the run has it."""

    @property
    def revocable(self) -> int:
        """How many of the thread's last tokens may still be taken back."""

    def advance(self, thread: ThreadState) -> Iterable[Action]:
        """Go on without the model: at the thread's start, after a join, after a hand-over."""

    def allowed(self, thread: ThreadState) -> AllowedTokens:
        """Return the tokens that may be drawn next."""

    def take(self, thread: ThreadState, drawn: DrawnToken) -> KeepToken | Iterable[Action] | None:
        """Return what follows a drawn token; None where it is refused, and another is drawn."""

    def close(self, thread: ThreadState, cut: str) -> Iterable[Action] | None:
        """Return what closes the thread where limits end it; None where it goes on.

        Args:
            cut: "time" where the run is out of it; "" else.
        """


@dataclass(slots=True, eq=False)
class ThreadToken:
    """One token of a thread: the fields of `Trace`, and its KV slot."""

    id: int
    position: int
    author: str
    slot: int
    step: int
    hole: str = ""
    text: str = ""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    logits: Tensor | None = None


_NOTHING = WriteTokens(())


@dataclass(slots=True, eq=False)
class ThreadState:
    """The root thread of a request or one path, with its tokens so far.

    Args:
        number: in the trace; 0 for the root.
        law: what the structural law knows of it.
        row: its handle in the KV store; -1 once that was given back.
        driver: decides how it goes on.
        stream: name of its random stream.
        parent: thread that forked it.
        place: (ordinal of the block in its thread, path) for every fork above: sorts threads in
            surface order.
        label, title: of its path.
        predicted: whether any token predicts its next one: at its start and after a join none.
        shared: whether other paths read its tokens, so that none can be taken back.
        items: its tokens, and the lists of paths that it forked, in surface order.
        forks: where in its items it has forked.
        count: how many tokens it has.
        paths: those of its open block; it waits for them.
        unread: how many of its tokens the model has not read.
        ended: whether it takes no more tokens.
        logits: [tokens, vocabulary] of a forward, and the row there that predicts its next token.
        todo: actions that its driver has still to take, where they wait for a round to begin.
        rest: what it has still to write before them.
        tail: end of its text since the last control token.
        partial: its last ids, where they end inside a character.
        refused: ids that were drawn for its next token and refused.
    """

    number: int
    law: LawThread
    row: int
    driver: Driver
    stream: str
    parent: ThreadState | None = None
    place: tuple[tuple[int, int], ...] = ()
    label: str = ""
    title: str = ""
    predicted: bool = False
    shared: bool = False
    items: list[ThreadToken | list[ThreadState]] = field(default_factory=list)
    forks: list[int] = field(default_factory=list)
    count: int = 0
    paths: list[ThreadState] = field(default_factory=list)
    unread: int = 0
    ended: bool = False
    logits: tuple[Tensor, int] | None = None
    todo: Iterator[Action] | None = None
    rest: WriteTokens = _NOTHING
    tail: str = ""
    partial: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Position id of its next token."""
        return self.law.position

    @property
    def predicting(self) -> tuple[Tensor, int] | None:
        """The logits that its next token is drawn from; None before they are there."""
        thread = self
        while not thread.count and thread.parent is not None:  # a path is predicted by its fork
            thread = thread.parent
        return thread.logits

    def append(self, token: ThreadToken, *, control: bool) -> None:
        """Take a token, which the model has not read."""
        self.items.append(token)
        self.count += 1
        self.unread += 1
        self.logits = None
        self.predicted = True
        if self.refused:
            self.refused.clear()
        self.tail = "" if control else (self.tail + token.text)[-_TAIL:]

    def extend(self, tokens: Sequence[ThreadToken], control: Container[int]) -> None:
        """Take several tokens, as `append` takes each."""
        self.items += tokens
        self.count += len(tokens)
        self.unread += len(tokens)
        self.logits = None
        self.predicted = True
        self.refused.clear()
        tail = ""
        for token in reversed(tokens):
            if token.id in control or len(tail) >= _TAIL:
                break
            tail = token.text + tail
        else:
            tail = self.tail + tail
        self.tail = tail[-_TAIL:]

    def take_back(self, count: int) -> list[ThreadToken]:
        """Give back its last tokens, which stand after its last fork."""
        taken = [item for item in self.items[-count:] if isinstance(item, ThreadToken)]
        del self.items[-count:]
        self.count -= count
        self.logits = None
        return taken

    def go_on_after_join(self) -> None:
        """Go on after its paths: no one token predicts the next."""
        self.paths = []
        self.logits = None
        self.predicted = False
        self.tail = ""

    def since_control(self, control: Container[int]) -> list[ThreadToken]:
        """Return its last tokens: those after its last control token, and after its last fork."""
        found: list[ThreadToken] = []
        for item in reversed(self.items):
            if not isinstance(item, ThreadToken) or item.id in control:
                break
            found.append(item)
        return found[::-1]

    def seen(self) -> Iterator[int]:
        """Yield the ids that it sees: its own, and those of the threads above it."""
        at: ThreadState | None = self
        while at is not None:
            last = at.items[-1:]
            items = at.items[:-1] if at.paths and last and isinstance(last[0], list) else at.items
            for item in items:
                if isinstance(item, ThreadToken):
                    yield item.id
                else:
                    for path in item:
                        for _, tokens in path.stretches():
                            yield from (token.id for token in tokens)
            at = at.parent

    def stretches(self) -> Iterator[tuple[ThreadState, list[ThreadToken]]]:
        """Yield its tokens and those of the paths that it forked, in surface order.

        Those between two forks come at once, with their thread.
        """
        # By a stack: a run may nest deeper than Python's own stack likes.
        stack: list[tuple[ThreadState, int]] = [(self, 0)]
        while stack:
            thread, at = stack.pop()
            found, paths = thread.stretch(at)
            if found:
                yield thread, found
            if paths is not None:
                stack.append((thread, at + len(found) + 1))
                stack += [(path, 0) for path in reversed(paths)]

    def stretch(self, start: int) -> tuple[list[ThreadToken], list[ThreadState] | None]:
        """Return its tokens from an item on, up to a fork, and what is forked there."""
        items: list[Any] = self.items
        for at in self.forks:
            if at >= start:
                return items[start:at], items[at]
        return items[start:], None

    def threads(self) -> Iterator[ThreadState]:
        """Yield it and all threads below it."""
        stack = [self]
        while stack:
            thread = stack.pop()
            yield thread
            for at in thread.forks:
                paths: Any = thread.items[at]
                stack += paths
