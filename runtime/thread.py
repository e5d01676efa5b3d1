"""One thread of a run, as the engine holds it."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers.decoders import DecodeStream
from torch import Tensor

from mvspec.compiler.plan import Op
from mvspec.law.automaton import TagAutomaton, TagOrText
from mvspec.runtime.hole import OpenHole

__all__ = ["Forced", "Live", "Token"]

_TAIL = 32
"""Characters of a thread's tail: more than a tag has."""


@dataclass(slots=True)
class Forced:
    """A token that a header or a closing still has to write.

    Args:
        event: what it is to the machine, with all `width` tokens of it; None inside a text.
        position: its position id, where `event` is None.
    """

    id: int
    event: TagOrText | None
    width: int
    position: int = -1


@dataclass(slots=True, eq=False)
class Token:
    """A token on its way: the fields of `Trace`, and its column in the store."""

    id: int
    position: int
    author: str
    column: int
    step: int
    hole: str = ""
    text: str = ""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    logits: Tensor | None = None


@dataclass(slots=True, eq=False)
class Live:
    """A thread with its tokens so far.

    Args:
        number: in the trace; 0 for the root.
        machine, id: the structural machine that it belongs to, and its number there.
        row: of the store's table; -1 once it was given back.
        decoder: turns its ids into text, a character at a time.
        parent: what forked it.
        place: (ordinal of the block in its thread, path) for every fork above: sorts threads in
            surface order, and names its random stream.
        label, title: of its path.
        block: number of the block that it is a path of; -1 at the root.
        ops: what it has still to do in a static plan.
        plan_thread: its number in the plan, which changes with every join.
        items: its tokens, and the lists of paths that it forked, in surface order.
        count: how many tokens it has.
        forks: where in its items it has forked.
        paths: those of its open block; it waits for them.
        unread: how many of its tokens the model has not read.
        ended: whether it takes no more tokens.
        logits: that follow its last token, [vocabulary], once the model has read it.
        predicted: whether any token predicts its next one: at its start and after a join none.
        hole: the hole that it is filling.
        adaptive: whether the model decides how it goes on.
        given: tokens of a replay that take a step each.
        script: tokens that it is forced to write next.
        tail: the end of its text since the last control token.
        run: its free tokens since then, for stop strings.
        outlines: ids of each outline of the block that it is opening.
        banned: ids that were drawn for its next token and refused.
    """

    number: int
    machine: TagAutomaton
    id: int
    row: int
    decoder: DecodeStream
    parent: Live | None = None
    place: tuple[tuple[int, int], ...] = ()
    label: str = ""
    title: str = ""
    block: int = -1
    ops: deque[Op] = field(default_factory=deque)
    plan_thread: int = 0
    items: list[Token | list[Live]] = field(default_factory=list)
    count: int = 0
    forks: list[int] = field(default_factory=list)
    paths: list[Live] = field(default_factory=list)
    unread: int = 0
    ended: bool = False
    logits: Tensor | None = None
    predicted: bool = False
    hole: OpenHole | None = None
    adaptive: bool = False
    given: deque[int] = field(default_factory=deque)
    script: deque[Forced] = field(default_factory=deque)
    tail: str = ""
    run: list[int] = field(default_factory=list)
    outlines: list[list[int]] = field(default_factory=list)
    banned: list[int] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        """Whether it waits for the model or for its paths, or is over."""
        return bool(self.hole or self.adaptive or self.given or self.paths or self.ended)

    @property
    def stream(self) -> str:
        """What tells its random stream from the others of a request."""
        return "/".join(f"{block}.{path}" for block, path in self.place)

    @property
    def position(self) -> int:
        """Position id of its next token."""
        if self.script and self.script[0].event is None:
            return self.script[0].position
        pending = len(self.hole.ids) if self.hole else 0
        return self.machine.threads[self.id].position + pending

    @property
    def predicting(self) -> Tensor | None:
        """The logits that its next token is drawn from; None before they are there."""
        live = self
        while not live.count and live.parent is not None:  # a path is predicted by its fork
            live = live.parent
        return live.logits

    def append(self, token: Token, *, control: bool) -> None:
        """Take a token, which the model has not read."""
        self.items.append(token)
        self.count += 1
        self.unread += 1
        self.logits = None
        self.predicted = True
        if self.banned:
            self.banned.clear()
        self.tail = "" if control else (self.tail + token.text)[-_TAIL:]

    def extend(self, tokens: Sequence[Token], control: Container[int]) -> None:
        """Take several tokens, as `append` takes each."""
        self.items += tokens
        self.count += len(tokens)
        self.unread += len(tokens)
        self.logits = None
        self.predicted = True
        self.banned.clear()
        tail = ""
        for token in reversed(tokens):
            if token.id in control or len(tail) >= _TAIL:
                break
            tail = token.text + tail
        else:
            tail = self.tail + tail
        self.tail = tail[-_TAIL:]

    def rewind(self, count: int) -> list[Token]:
        """Give back its last tokens, which stand after its last fork."""
        if not count:
            return []
        taken = [item for item in self.items[-count:] if isinstance(item, Token)]
        del self.items[-count:]
        self.count -= count
        self.logits = None
        return taken

    def after_join(self) -> None:
        """Go on after its paths: no one token predicts the next."""
        self.logits = None
        self.predicted = False
        self.tail = ""
        self.run.clear()
        self.outlines.clear()

    def since_control(self, control: Container[int]) -> list[Token]:
        """Return its last tokens: those after its last control token, and after its last fork."""
        found: list[Token] = []
        for item in reversed(self.items):
            if not isinstance(item, Token) or item.id in control:
                break
            found.append(item)
        return found[::-1]

    def seen(self) -> Iterator[int]:
        """Yield the ids that it sees: its own, and those of the threads above it."""
        at: Live | None = self
        while at is not None:
            last = at.items[-1:]
            items = at.items[:-1] if at.paths and last and isinstance(last[0], list) else at.items
            for item in items:
                if isinstance(item, Token):
                    yield item.id
                else:
                    for path in item:
                        for _, tokens in path.stretches():
                            yield from (token.id for token in tokens)
            at = at.parent

    def stretches(self) -> Iterator[tuple[Live, list[Token]]]:
        """Yield its tokens and those of the paths that it forked, in surface order.

        Those between two forks come at once, with their thread.
        """
        # By a stack: a run may nest deeper than Python's own stack likes.
        stack: list[tuple[Live, int]] = [(self, 0)]
        while stack:
            live, at = stack.pop()
            found, paths = live.stretch(at)
            if found:
                yield live, found
            if paths is not None:
                stack.append((live, at + len(found) + 1))
                stack += [(path, 0) for path in reversed(paths)]

    def stretch(self, start: int) -> tuple[list[Token], list[Live] | None]:
        """Return its tokens from an item on, up to a fork, and what is forked there."""
        items: list[Any] = self.items
        for at in self.forks:
            if at >= start:
                return items[start:at], items[at]
        return items[start:], None

    def threads(self) -> Iterator[Live]:
        """Yield it and all threads below it."""
        stack = [self]
        while stack:
            live = stack.pop()
            yield live
            for at in live.forks:
                paths: Any = live.items[at]
                stack += paths
