"""One thread on a server: which slots of keys and values it sees, and what it reads next.

A thread is *in* while it has a row of the server's table, and *out* while it waits: for a row,
for its paths, for tokens that are forced on it. Out, it is a list of slots. It comes in by an
extend that reads new tokens behind them. So a fork is an extend that starts from the parent's
slots, and a join concatenates slots: no keys or values are copied. What is read follows
`Live.items`, so a family that was thrown out of memory is rebuilt in the same way.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mvspec.runtime.sampling import Draw
from mvspec.runtime.thread import Live, Token

if TYPE_CHECKING:
    from mvspec.runtime.serving.family import Family

__all__ = ["Strand"]

_BLOCK = -1


class Strand:
    """The keys and values of one thread.

    Args:
        family: that it belongs to.
        live: the thread.
        parent: what it was forked from; None at the root.

    Attributes:
        slots: int64 [n]: in, what its row begins with; out, all that it sees, in row order.
        tokens: ids of all that it sees and has read.
        start: where its own slots begin; those before it are its parent's or the cache's.
        req: the server's request while it is in.
        shift: how much higher an index in its row is than the position of the token there.
        drawing: whether the token that is being sampled for it counts.
    """

    def __init__(self, family: Family, live: Live, parent: Strand | None) -> None:
        self.family = family
        self.live = live
        self.parent = parent
        self.slots: Tensor = family.no_slots if parent is None else parent.slots
        self.tokens: array[int] = array("q") if parent is None else parent.tokens[:]
        self.start = len(self.slots)
        self.req: Any = None
        self.shift = 0
        self.drawing = False
        self.feeding: list[Token] = []
        """What its extend reads."""
        self._read: list[int] = []
        """For each item of `live` that was read: a token's column, or that it is a block."""
        self.paths: list[Strand] = []
        self.entering = False
        """Whether its extend has not been sampled yet."""
        self._given: Token | None = None
        """The token that its next decode step reads."""
        self._again = False
        """Whether its first own slot holds its parent's last token once more."""

    def __str__(self) -> str:
        """What it waits for, for the log."""
        live = self.live
        state = "in" if self.req is not None else "out"
        flags = [
            name
            for name, there in (
                ("entering", self.entering), ("drawing", self.drawing),
                ("given", self._given is not None),
                ("ended", live.ended), ("wants", self.family.run.wants(live)),
            )
            if there
        ]  # fmt: skip
        paths = f" [{', '.join(map(str, self.paths))}]" if self.paths else ""
        return (
            f"%{live.number} {state}, {len(self._read)} of {len(live.items)} read, "
            f"{len(self.slots)} slots {' '.join(flags)}{paths}"
        )

    # What it is to read

    def pending(self) -> list[Token]:
        """Return the tokens that come next, up to a block or the end."""
        items = self.live.items
        self._forget()
        at = len(self._read)
        if at == len(items):
            return []
        found: list[Token] = []
        for item in items[at:]:
            if not isinstance(item, Token):
                break
            found.append(item)
        return found

    def _forget(self) -> None:
        """Drop what was read and then taken back."""
        items, read = self.live.items, self._read
        while read:
            at = len(read) - 1
            if at < len(items):
                item = items[at]
                if not isinstance(item, Token) or item.column == read[at]:
                    return
            read.pop()
            self._cut()

    def _cut(self) -> None:
        """Forget its last token; while it is in, `out` gives the slot back."""
        self.tokens.pop()
        if self.req is None:
            self.family.adapter.free(self.slots[-1:])
            self.slots = self.slots[:-1]

    # In and out

    def enter(self) -> tuple[Any, Tensor]:
        """Return the server's request that reads what comes next, and the slots before it."""
        ids = [token.id for token in self.feeding]
        if self.feeding:
            first = self.feeding[0].position
        else:  # a path whose first token is drawn reads its parent's last one
            token = self._before()
            ids, first = [token.id], token.position
        self.shift = len(self.slots) - first
        self.req = self.family.request(self, self.tokens + array("q", ids))
        self.entering = True
        return self.req, self.slots

    def _before(self) -> Token:
        """Return the token that predicts its first one."""
        at = self.live.parent
        while at is not None:
            found = [item for item in at.items[-2:] if isinstance(item, Token)]
            if found:
                return found[-1]
            at = at.parent
        raise AssertionError("a plan whose first token nothing predicts is refused before it runs")

    def out(self) -> None:
        """Give its row back."""
        self._forget()
        req, self.req = self.req, None
        adapter = self.family.adapter
        if self.parent is None and self.family.anchor is None:
            # Up to here its positions are those of a plain prompt: the only part that a prompt
            # of the same tokens may ever find in the cache.
            self.family.anchor = req
            self.start = adapter.publish(req, len(self.tokens))
        self.slots = adapter.leave(req, len(self.tokens))
        self.drawing = self.entering = False
        self._given = None
        self.feeding = []

    def _stays(self) -> bool:
        """Whether it is in and goes on with its next decode step."""
        if self.entering or self.drawing:
            return True
        live = self.live
        if self._given is None or live.paths or live.ended or live.script:
            return False
        return len(self.pending()) == 1

    # Going on

    def advance(self) -> Iterator[Strand]:
        """Go out, fork and join as its thread has; yield the strands that have to come in."""
        if self.req is not None:
            if self._stays():
                return
            self.family.gone.add(id(self.req))
            self.out()
        while not self.pending():
            if self.whole:
                if self._must_reread():
                    yield self
                return
            if not self.paths:
                block = self.live.items[len(self._read)]
                assert isinstance(block, list)
                self.paths = [Strand(self.family, live, self) for live in block]
            for path in self.paths:
                yield from path.advance()
            # While a family is rebuilt this may be an earlier block than its thread's open one.
            is_open = bool(self.live.paths) and len(self._read) == len(self.live.items) - 1
            if is_open or not all(path.done for path in self.paths):
                return
            self._join()
        self.feeding = self.pending()
        yield self

    @property
    def whole(self) -> bool:
        """Whether all that its thread has so far was read: while it is rebuilt it is not."""
        return len(self._read) == len(self.live.items)

    @property
    def done(self) -> bool:
        """Whether it has ended and all of it is in its slots."""
        return self.live.ended and self.req is None and self.whole

    def _must_reread(self) -> bool:
        """Whether a draw has no logits: its last token then comes in once more."""
        live = self.live
        if live.ended or live.paths or not self.family.run.wants(live):
            return False
        if self._read:
            item = live.items[len(self._read) - 1]
            if not isinstance(item, Token):
                raise AssertionError("nothing predicts the first token after a join")
            self._read.pop()
            self._cut()
            self.feeding = [item]
        elif self._again:
            if len(self.slots) > self.start:  # else it has waited for a row since
                self._cut()
        else:
            self._again = True
            self.start -= 1
            self.tokens.pop()
            self.slots = self.slots[:-1]
        return True

    def _join(self) -> None:
        """Put the paths' slots behind its own."""
        adapter = self.family.adapter
        paths, self.paths = self.paths, []
        parts = [self.slots]
        for path in paths:
            first = path.start
            if path._again:
                adapter.free(path.slots[first : first + 1])
                first += 1
            parts.append(path.slots[first:])
            self.tokens.extend(path.tokens[first:])
        self.slots = torch.cat(parts)
        self._read.append(_BLOCK)

    # Forwards

    def landed(self) -> tuple[int, Token] | None:
        """Take what a forward has read of it.

        Returns:
            How many tokens were read for the first time, and the last; None where it was none.
        """
        given, self._given = self._given, None
        if self.entering:
            self.entering = False
            tokens, self.feeding = self.feeding, []
            if not tokens:
                self.tokens.append(self._before().id)
                return 0, self._before()
        elif given is None:  # it was launched before a refused token was known
            return None
        else:
            self.tokens.append(given.id)
            self._read.append(given.column)
            return self.family.count_new(given.column), given
        self.tokens.extend([token.id for token in tokens])
        self._read += [token.column for token in tokens]
        return sum(self.family.count_new(token.column) for token in tokens), tokens[-1]

    def take(self, draw: Draw) -> None:
        """Let its thread take the token that was sampled for it."""
        at, items = len(self._read), self.live.items
        self.family.run.choose(self.live, draw)
        self._forget()
        item = items[at] if at < len(items) and len(self._read) == at else None
        # Refused, or an end that leaves no token: then what the server reads next is nothing.
        self._given = item if isinstance(item, Token) and item.id == draw.id else None

    # Memory

    @property
    def uncounted(self) -> int:
        """How many slots it holds that the server does not find in its requests."""
        own = len(self.slots) - self.start
        if self.req is not None and self.parent is None and self.family.anchor is None:
            own = 0  # the server's own prefill holds them
        return own + sum(path.uncounted for path in self.paths)

    def release(self) -> None:
        """Give back all that it and its paths hold."""
        for path in self.paths:
            path.release()
        self.paths = []
        if self.req is not None:
            self.family.gone.add(id(self.req))
            self.out()
        self.family.adapter.free(self.slots[self.start :])
        self.slots, self.start = self.family.no_slots, 0
