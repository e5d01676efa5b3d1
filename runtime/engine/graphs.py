"""Small steps as CUDA graphs: launched at once, whatever requests and threads they read.

A step of few tokens is bound by its many launches, not by what they do. A graph holds them for a
number of rows; which caches, slots and tokens they are about is data that it reads.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvspec.runtime.engine.attention import KVReader, TokenChunk, kept_tokens
from mvspec.runtime.sampling import sent

MAX_ROWS = 256
"""Tokens of a graph: more of them take several."""
FEW = 4
"""Requests that are launched kernel by kernel in about the time of a graph of a small model."""
MAX_COLUMNS = 1 << 20
"""Columns that all rows of a graph see: each row reads its own, also those that siblings share."""
PATIENCE = 3
"""So many steps of a size go by before it is captured: prompts come in every size, and once."""

Read = Callable[[Tensor, Tensor, Any, KVReader], Tensor]
"""ids and positions [1, new], what logits to keep, and who reads: logits [kept, vocabulary]."""


def bucket(count: int) -> int:
    """Return the number of rows of the graph for so many tokens: the next power of two.

    >>> [bucket(count) for count in (1, 2, 3, 5, 64)]
    [1, 2, 4, 8, 64]
    """
    return 1 << (count - 1).bit_length()


class GraphInputs:
    """The inputs of a step at addresses that stay: the `KVReader` of a graph.

    Rows behind the tokens of the step fill it up; they see nothing, and what they are is not kept.

    Args:
        rows: how many tokens it holds.
        layers: of the model.
    """

    def __init__(self, rows: int, layers: int, device: torch.device) -> None:
        self.rows = rows
        self.layers = layers
        # A line of numbers for each: ids, positions, columns, capacities, the tokens whose logits
        # are wanted, then addresses of keys and of values by layer. Lines of one number would be
        # aligned in two ways, and every kernel compiled for both.
        self._lines = 5 + 2 * layers
        self._line = max(rows, 2)
        self._host: NDArray[np.int64] = np.zeros(2 + self._lines * self._line, np.int64)
        self._fixed = torch.zeros(len(self._host), dtype=torch.int64, device=device)
        self._seen = torch.zeros(0, dtype=torch.bool, device=device)
        self.fill((), ())

    def fill(self, chunks: Sequence[TokenChunk], keep: Sequence[int]) -> None:
        """Take the tokens of a step.

        Args:
            keep: numbers of the tokens whose logits are wanted.
        """
        lines = self._host[2:].reshape(self._lines, self._line)
        lines[:] = 0
        lines[2] = -1
        lines[4, : len(keep)] = keep
        counts = [len(chunk.ids) for chunk in chunks]
        count = sum(counts)
        lines[0, :count] = [id for chunk in chunks for id in chunk.ids]
        lines[1, :count] = [position for chunk in chunks for position in chunk.positions]
        if chunks:
            lines[3, :count] = np.repeat([chunk.cache.capacity for chunk in chunks], counts)
            pointers = np.stack([chunk.cache.pointers for chunk in chunks], axis=1)
            lines[5:, :count] = np.repeat(pointers, counts, axis=1)
        widest = max((chunk.start + len(chunk.ids) for chunk in chunks), default=1)
        # A multiple, so that the allocator finds the same block again and again.
        seen = np.zeros((self.rows, -(-widest // 256) * 256), np.bool_)
        at = 0
        for chunk, new in zip(chunks, counts, strict=True):
            end = chunk.start + new
            lines[2, at : at + new] = range(chunk.start, end)
            seen[at : at + new, :end] = chunk.cache.visible[chunk.rows, :end]
            at += new
        # The graph that read the last inputs may still run; its memory is given back in order.
        self._seen = sent(torch.from_numpy(seen), self._fixed.device)
        self._host[:2] = self._seen.data_ptr(), seen.shape[1]
        self._fixed.copy_(sent(torch.from_numpy(self._host), self._fixed.device))

    def _row(self, line: int) -> Tensor:
        start = 2 + line * self._line
        return self._fixed[start : start + self.rows]

    @property
    def ids(self) -> Tensor:
        """[1, rows]."""
        return self._row(0)[None]

    @property
    def positions(self) -> Tensor:
        """[1, rows]."""
        return self._row(1)[None]

    def kept(self, count: int) -> Tensor:
        """[count]: the tokens whose logits are wanted."""
        return self._row(4)[:count]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """See `KVReader`."""
        from mvspec.runtime.engine import kernels

        query, key, value = (
            each if each.stride(3) == 1 else each.contiguous() for each in (query, key, value)
        )
        columns, capacities = self._row(2), self._row(3)
        keys, values = self._row(5 + layer), self._row(5 + self.layers + layer)
        kernels.write(key, keys, capacities, columns)
        kernels.write(value, values, capacities, columns)
        if scale is None:
            scale = query.shape[3] ** -0.5
        return kernels.read(
            query, keys, values, capacities, columns, self._fixed[:2],
            key.shape[1], value.shape[3], scale,
        )  # fmt: skip


class CudaGraphs:
    """The CUDA graphs of a model: one for each power of two of rows, up to `MAX_ROWS`.

    A graph is captured once a number of rows comes again and again, and its first step is
    compared with one that was launched kernel by kernel: a model that cannot be captured, or whose
    graph says something else, goes on without graphs, with one warning. The graphs share one pool
    of memory, which the largest one fills.

    What the model's Python code does, hooks included, happens when it is captured and not again;
    its weights may change where they lie, but not move.

    Args:
        model: of transformers.
        read: one forward of it.
    """

    def __init__(self, model: Any, read: Read) -> None:
        self.off = ""
        """Why there are no graphs; "" while there are."""
        self._device: torch.device = model.device
        self._read = read
        self._dtype: torch.dtype = model.dtype
        self._seen: Counter[int] = Counter()
        self._made: dict[int, tuple[GraphInputs, torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool: Any = None
        self.replays = 0
        """How many steps a graph has read."""
        why = _why_not(model)
        if why:
            self._turn_off(why)

    def run(
        self, chunks: Sequence[TokenChunk], apart: Callable[[Sequence[TokenChunk]], Tensor]
    ) -> Tensor:
        """Read a step's tokens, those of a graph's size in graphs.

        A prompt is read beside them, so that a request which begins does not hold up the others.

        Args:
            apart: reads chunks kernel by kernel.

        Returns:
            [kept, vocabulary].
        """
        groups = [] if self.off else self._groups(chunks)
        if len(groups) == 1 and len(groups[0]) == len(chunks):
            return self._read_group(chunks, apart)
        grouped = {index for group in groups for index in group}
        rest = [index for index in range(len(chunks)) if index not in grouped]
        if not groups:
            return apart(chunks)
        found: dict[int, Tensor] = {}
        for group in [*groups, rest] if rest else groups:
            own = [chunks[index] for index in group]
            logits = apart(own) if group is rest else self._read_group(own, apart)
            found |= zip(
                group, torch.split(logits, [len(chunk.keep) for chunk in own]), strict=True
            )
        return torch.cat([found[index] for index in range(len(chunks))])

    def _groups(self, chunks: Sequence[TokenChunk]) -> list[list[int]]:
        """Return the numbers of the chunks that one graph each reads; the others are left out."""
        groups: list[list[int]] = []
        rows = columns = left = 0
        for index, chunk in enumerate(chunks):
            count = len(chunk.ids)
            wide = count * (chunk.start + count)
            known = bool(chunk.cache.keys)  # else it has been read by no forward yet
            if not known or count > MAX_ROWS or wide > MAX_COLUMNS:
                left += 1
                continue
            if not groups or rows + count > MAX_ROWS or columns + wide > MAX_COLUMNS:
                groups.append([])
                rows = columns = 0
            groups[-1].append(index)
            rows += count
            columns += wide
        # Beside others that are launched kernel by kernel in any case, few cost less than a graph.
        few = left and sum(map(len, groups)) < FEW
        return [] if few else groups

    def _read_group(
        self, chunks: Sequence[TokenChunk], apart: Callable[[Sequence[TokenChunk]], Tensor]
    ) -> Tensor:
        keep = kept_tokens(chunks)
        rows = bucket(sum(len(chunk.ids) for chunk in chunks))
        self._seen[rows] += 1
        if self.off or self._seen[rows] <= PATIENCE:
            return apart(chunks)
        new = rows not in self._made
        if new and not (keep and self._capture(rows, len(chunks[0].cache.keys))):
            return apart(chunks)
        inputs, graph, logits = self._made[rows]
        inputs.fill(chunks, keep)
        graph.replay()
        self.replays += 1
        # A copy: the next step writes over the graph's own.
        found = logits[inputs.kept(len(keep))]
        if not new:
            return found
        expected = apart(chunks)
        if not self._agrees(found, expected):
            self._turn_off("its graph gives other logits")
        return expected

    def _capture(self, rows: int, layers: int) -> bool:
        outer = sys.exception()
        try:
            inputs = GraphInputs(rows, layers, self._device)
            side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(side):
                for _ in range(2):  # libraries and kernels make ready
                    self._read(inputs.ids, inputs.positions, 0, inputs)
            torch.cuda.current_stream(self._device).wait_stream(side)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = self._read(inputs.ids, inputs.positions, 0, inputs)
        except Exception as error:  # whatever a model's code does that no graph can hold
            first: BaseException = error  # what came first, and not that capturing failed of it
            while first.__context__ not in (None, outer):
                first = first.__context__
            reason = str(first).strip().splitlines() or [type(first).__name__]
            self._turn_off(reason[0])
            return False
        self._made[rows] = inputs, graph, logits
        return True

    def _agrees(self, found: Tensor, expected: Tensor) -> bool:
        """Whether logits differ by no more than other kernels' rounding makes them."""
        most = expected.abs().max().clamp(min=1e-6)
        tolerance = 1e-3 if self._dtype == torch.float32 else 0.1
        return bool((found - expected).abs().max() <= tolerance * most)

    def _turn_off(self, why: str) -> None:
        self.off = why
        self._made.clear()
        warnings.warn(f"mvspec runs this model without CUDA graphs: {why}", stacklevel=2)


def _why_not(model: Any) -> str:
    """Return what keeps a model from being captured; "" if nothing is known."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if model.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"its kernels do not compute in {model.dtype}"
    if len({each.device for each in model.parameters()}) > 1:
        return "its weights lie on several devices"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'} has a hook"
    return ""
