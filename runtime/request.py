"""One document on its way through the engine: its threads, and their rows in the KV cache.

All threads share one cache that only grows. Each knows which of its columns its next token may
see, so fork and join copy nothing, and tokens that a stop string takes back are just not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mvspec.compiler.vocabulary import Vocabulary
from mvspec.runtime.hole import OpenHole, Sampling
from mvspec.runtime.plan import Extend, Fill, Fork, Mark, Op
from mvspec.runtime.trace import TokenRecord
from mvspec.structure import Structure
from mvspec.syntax import UNTAGGED, Tag

__all__ = ["Chunk", "Line", "Request", "additive_mask"]


@dataclass(slots=True, eq=False)
class Line:
    """One thread as the engine holds it.

    Args:
        thread: its number in the structural machine.
        ops: what it has still to do.
        parent: the line that forked it.
        seen: the columns that its next token sees, as [start, stop) ranges.
        inherited: how many of those ranges it has from its parent.
        records: its tokens, and the lines that it forked, in surface order.
        tail: the end of the text that it stands in.
        logits: of its last token, [vocabulary]; None until the model has read that token.
    """

    thread: int
    ops: Iterator[Op]
    parent: Line | None = None
    seen: list[tuple[int, int]] = field(default_factory=list)
    inherited: int = 0
    records: list[TokenRecord | Line] = field(default_factory=list)
    tail: str = ""
    logits: Tensor | None = None

    def tokens(self) -> Iterator[TokenRecord]:
        """Yield the tokens of the line and of those that it forked, in surface order."""
        for record in self.records:
            if isinstance(record, Line):
                yield from record.tokens()
            else:
                yield record

    def fork(self, thread: int, ops: Iterator[Op]) -> Line:
        """Return a new line that sees what this one sees."""
        path = Line(thread, ops, self, list(self.seen), len(self.seen))
        self.records.append(path)
        return path

    def write(self, start: int, records: list[TokenRecord]) -> None:
        """Take tokens whose columns begin at `start`."""
        stop = start + len(records)
        if len(self.seen) > self.inherited and self.seen[-1][1] == start:
            start = self.seen.pop()[0]
        self.seen.append((start, stop))
        self.records += records
        self.logits = None

    def rewind(self, count: int) -> list[TokenRecord]:
        """Take back the last tokens, which are the line's own, and return them."""
        if not count:
            return []
        for _ in range(count):
            start, stop = self.seen.pop()
            if stop - start > 1:
                self.seen.append((start, stop - 1))
        taken = [record for record in self.records[-count:] if isinstance(record, TokenRecord)]
        del self.records[-count:]
        self.logits = None
        return taken


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one line: neighbours in the cache, each seeing those before it.

    Args:
        line: whose they are.
        start: the column of the first.
        records: the tokens.
        seen: what all of them see besides, as [start, stop) ranges of columns.
    """

    line: Line
    start: int
    records: list[TokenRecord]
    seen: tuple[tuple[int, int], ...]


def additive_mask(chunks: list[Chunk], columns: int, dtype: torch.dtype) -> Tensor:
    """Return the mask [rows of all chunks, columns]: 0 where a row sees, else the lowest number.

    The lowest finite number and not minus infinity: a block of columns that a row does not see
    at all would give NaN in some attention kernels. Its softmax is exactly 0 all the same.
    """
    rows = sum(len(chunk.records) for chunk in chunks)
    lowest = torch.finfo(dtype).min
    mask = torch.full((rows, columns), lowest, dtype=dtype)
    row = 0
    for chunk in chunks:
        width = len(chunk.records)
        block = mask[row : row + width]
        for start, stop in chunk.seen:
            block[:, start:stop] = 0
        causal = torch.full((width, width), lowest, dtype=dtype).triu(1)
        block[:, chunk.start : chunk.start + width] = causal
        row += width
    return mask


Forward = Callable[[list[Chunk], int], dict[Line, Tensor]]
"""(new tokens, columns with them) -> the logits of each line's last new token."""


class Request:
    """A run of a plan.

    Args:
        ops: of the root thread.
        vocabulary, ends, sampling: as in `OpenHole`.
        forward: the model.
    """

    def __init__(
        self,
        ops: tuple[Op, ...],
        vocabulary: Vocabulary,
        ends: frozenset[int],
        sampling: Sampling,
        forward: Forward,
    ) -> None:
        self.vocabulary = vocabulary
        self.ends = ends
        self.sampling = sampling
        self.forward = forward
        self.machine = Structure(UNTAGGED, strict=False)
        self.lines = {0: Line(0, iter(ops))}
        self.root = self.lines[0]
        self.values: dict[str, str] = {}
        self.columns = 0
        self.chunks: list[Chunk] = []
        self.waiting: list[tuple[Line, OpenHole]] = []

    def finish(self) -> None:
        """Run to the end: one forward for each round of tokens."""
        self._advance(self.root)
        while self.waiting:
            if self.chunks:
                chunks, self.chunks = self.chunks, []
                for line, logits in self.forward(chunks, self.columns).items():
                    line.logits = logits
            waiting, self.waiting = self.waiting, []
            for line, hole in waiting:
                self._choose(line, hole)

    def _advance(self, line: Line) -> None:
        """Do what a line can do without the model."""
        for op in line.ops:
            if isinstance(op, Extend):
                self._extend(line, op)
            elif isinstance(op, Mark):
                step = self.machine.push(line.thread, op.tag, 0)
                line.tail = ""
                if step.joined is not None:
                    self._join(self.lines[step.joined])
            elif isinstance(op, Fork):
                threads = self.machine.push(line.thread, Tag.END_GOAL, 0).forked
                paths = [
                    line.fork(thread, iter(path))
                    for thread, path in zip(threads, op.paths, strict=True)
                ]
                self.lines.update((path.thread, path) for path in paths)
                for path in paths:
                    self._advance(path)
                return
            else:
                self._open(line, op)
                return

    def _extend(self, line: Line, op: Extend, hole: str = "") -> None:
        position = self.machine.push(line.thread, op.text, len(op.ids)).position
        self._append(line, op.ids, position, op.author, hole)
        line.tail = (line.tail + op.text)[-16:]

    def _append(
        self, line: Line, ids: tuple[int, ...], position: int, author: str, hole: str
    ) -> None:
        if not ids:
            return
        chain = self.machine.threads[line.thread].chain
        records = [
            TokenRecord(line.thread, position + offset, id, author, chain, hole)
            for offset, id in enumerate(ids)
        ]
        self.chunks.append(Chunk(line, self.columns, records, tuple(line.seen)))
        line.write(self.columns, records)
        self.columns += len(ids)

    def _join(self, parent: Line) -> None:
        """Let a line see the paths that it forked, and go on."""
        for path in parent.records:
            if isinstance(path, Line) and path.thread in self.lines:
                parent.seen += path.seen[path.inherited :]
                del self.lines[path.thread]
        self._advance(parent)

    def _open(self, line: Line, fill: Fill) -> None:
        if line.logits is None and not any(chunk.line is line for chunk in self.chunks):
            # The hole before it ended inside a token: let the model read the last one again.
            (last,) = line.rewind(1)
            self._append(line, (last.id,), last.position, last.author, last.hole)
        hole = OpenHole(fill, line.tail, self.vocabulary, self.ends, self.sampling)
        self.waiting.append((line, hole))

    def _choose(self, line: Line, hole: OpenHole) -> None:
        """Take the next token of a hole, from the logits of the line's last token."""
        assert line.logits is not None
        token = hole.choose(line.logits)
        if token is None:
            self._fill(line, hole)
            return
        position = self.machine.threads[line.thread].position + len(hole.ids)
        hole.ids.append(token)
        stop = hole.stop()
        if stop is not None:
            keep, rest = stop
            line.rewind(len(hole.ids) - 1 - keep)
            del hole.ids[keep:]
            self._fill(line, hole, rest)
            return
        self._append(line, (token,), position, "model", hole.fill.hole.name)
        if hole.full:
            self._fill(line, hole)
        else:
            self.waiting.append((line, hole))

    def _fill(self, line: Line, hole: OpenHole, rest: str = "") -> None:
        """End a hole, write what a stop string left of its last token, and go on."""
        name = hole.fill.hole.name
        self.machine.push(line.thread, hole.text, len(hole.ids))
        self.values[name] = hole.text + rest
        line.tail = (line.tail + hole.text)[-16:]
        if rest:
            ids = tuple(self.vocabulary.encode_outside(rest))
            self._extend(line, Extend(rest, ids, "engine"), name)
        self._advance(line)
