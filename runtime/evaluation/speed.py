"""Speed of documents of a degree of parallelism against plain text of as many tokens.

Both sides are measured in one run, in turns, on one engine: in this process, where plain text is
a replay without a fork, or on a server of SGLang, where it is a plain request that the plugin has
no part in. The ideal is the degree of parallelism itself: all paths for the price of one.

Every token that counts as the model's takes a decode step of its own, as when it was drawn
(`Options(decode=True)`), so a replay costs what writing it would, and always has the shape that
was asked for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mvspec.compiler.plan import ExecutionPlan, Extend, Fork, Join, Op
from mvspec.errors import VerifyError
from mvspec.runtime.options import Options
from mvspec.runtime.protocol import Engine

HEADER = 4
"""Tokens that the plan writes at the start of a path, and of a join where no other number is
given."""

Ids = Callable[[int], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ReplayShape:
    """A block with text around it.

    Args:
        before: tokens in front of every block.
        paths: of a block; 1 for plain text, without a block.
        each: tokens of a path, its header included.
        after: tokens behind the last block, the join's header included.
        blocks: how many, one after the other.
        join: tokens that the plan writes behind every block.
    """

    before: int
    paths: int
    each: int
    after: int
    blocks: int = 1
    join: int = HEADER

    @property
    def tokens(self) -> int:
        """All of them, the prompt left out."""
        between = self.join * (self.blocks - 1) if self.paths > 1 else 0
        return self.blocks * (self.before + self.paths * self.each) + self.after + between

    @property
    def critical_path(self) -> int:
        """Tokens on the longest chain."""
        return self.tokens - self.blocks * (self.paths - 1) * self.each

    @property
    def degree(self) -> float:
        """The degree of parallelism: tokens over critical path."""
        return self.tokens / self.critical_path


def shape_of_degree(tokens: int, degree: float, paths: int | None = None) -> ReplayShape:
    """Return the shape of so many tokens whose degree of parallelism is nearest.

    Args:
        tokens: of the assistant, in all.
        degree: 1 for plain text.
        paths: of its block; by default the fewest that leave room around it, at least 3.

    Raises:
        VerifyError: so few tokens, or paths, cannot have that degree.

    >>> shape = shape_of_degree(1000, 2.5)
    >>> shape.paths, shape.tokens, round(shape.degree, 2)
    (3, 1000, 2.5)
    """
    if degree == 1:
        return ReplayShape(tokens, 1, 0, 0)
    if not degree > 1:
        raise VerifyError("degree", f"{degree:g} is not at least 1")
    least = paths or max(3, int(degree) + 1)
    for count in [paths] if paths else range(least, least + 64):
        if count < 2:
            break
        each = round(tokens * (1 - 1 / degree) / (count - 1))
        rest = tokens - count * each
        if rest >= HEADER + 2 and each > HEADER:
            after = max(rest // 2, HEADER + 1)
            return ReplayShape(rest - after, count, each, after)
    with_paths = f" in {paths} paths" if paths else ""
    raise VerifyError(
        "degree", f"{tokens} tokens{with_paths} cannot have a degree of {degree:g}: ask for more"
    )


def token_ids(most: int, seed: int = 0) -> Ids:
    """Return a function that draws ordinary tokens.

    Args:
        most: ids are below this.
    """
    draw = np.random.default_rng(seed)
    low = min(100, most // 2)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.integers(low, most, count).tolist())

    return ids


def replay(shape: ReplayShape, prompt: int, ids: Ids) -> ExecutionPlan:
    """Return the replay of a shape, untagged.

    Args:
        prompt: tokens that it starts from.
        ids: draws tokens.

    >>> from mvspec.compiler.plan import plan_cost
    >>> shape = ReplayShape(before=8, paths=4, each=24, after=8)
    >>> cost = plan_cost(replay(shape, 16, token_ids(1000)))
    >>> cost.critical_path == shape.critical_path, cost.parallelism == shape.degree
    (True, True)
    """
    ops: list[Op] = [Extend(thread=0, tokens=ids(prompt), author="prompt")]
    at, made = 0, 1

    def write(thread: int, count: int, header: int = 0) -> None:
        if header:  # forced, so all of them take one step
            ops.append(Extend(thread=thread, tokens=ids(header)))
        if count > header:
            ops.append(Extend(thread=thread, tokens=ids(count - header), author="model"))

    for block in range(shape.blocks):
        if shape.paths == 1:
            write(0, shape.before)
            continue
        joined = shape.join if block else 0
        write(at, shape.before + joined, joined)
        each = tuple(range(made, made + shape.paths))
        made += shape.paths
        ops.append(Fork(thread=at, paths=each))
        for path in each:
            write(path, shape.each, HEADER)
        ops.append(Join(paths=each, thread=made))
        at, made = made, made + 1
    write(at, shape.after, 0 if shape.paths == 1 else shape.join)
    return ExecutionPlan(ops=tuple(ops), form="untagged").verify()


DECODE = Options(decode=True)


@dataclass(frozen=True)
class SpeedGrid:
    """The grid of a measurement: batch sizes, degrees of parallelism, lengths.

    Args:
        batches: requests at once.
        degrees: of parallelism.
        tokens: of every request, the prompt left out.
        prompt: tokens of it.
        paths: of a block; by default what the degree needs.
        repeats: of each measurement, behind one that warms up.
        seed: of the tokens.
    """

    batches: tuple[int, ...]
    degrees: tuple[float, ...]
    tokens: int = 256
    prompt: int = 64
    paths: int | None = None
    repeats: int = 3
    seed: int = 0

    def shapes(self) -> dict[float, ReplayShape]:
        """Return a shape for each degree.

        Raises:
            VerifyError: a degree cannot be had in so many tokens.
        """
        return {each: shape_of_degree(self.tokens, each, self.paths) for each in self.degrees}


@dataclass(frozen=True)
class SpeedCell:
    """One cell of the grid.

    Args:
        batch: requests at once.
        degree: of parallelism, as the shape has it: the ideal speedup.
        paths: of each request's block.
        threads: that are live while they run.
        plain, parallel: seconds of each repeat, of all requests together.
        critical_path: tokens.
    """

    batch: int
    degree: float
    paths: int
    threads: int
    plain: tuple[float, ...]
    parallel: tuple[float, ...]
    tokens: int
    critical_path: int

    @property
    def speedup(self) -> float:
        """Median of plain text over the median of these."""
        return statistics.median(self.plain) / statistics.median(self.parallel)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the most that the repeats' ratios come to, side by side."""
        ratios = [one / other for one, other in zip(self.plain, self.parallel, strict=True)]
        return min(ratios), max(ratios)

    def to_dict(self) -> dict[str, Any]:
        """Return it as files have it."""
        low, high = self.spread
        return {
            **asdict(self),
            "plain_seconds": statistics.median(self.plain),
            "parallel_seconds": statistics.median(self.parallel),
            "speedup": self.speedup,
            "speedup_low": low,
            "speedup_high": high,
            "share_of_ideal": self.speedup / self.degree,
        }


def measure_grid(
    engine: Engine,
    grid: SpeedGrid,
    advance: Callable[[str], object] = lambda text: None,
) -> Iterator[SpeedCell]:
    """Measure every cell and yield it, small batches first.

    Args:
        engine: in this process, or on a server.
        grid: what is measured.
        advance: told of each measurement.

    Raises:
        VerifyError: a degree cannot be had.
        MvspecError: the engine has failed.
    """
    shapes = grid.shapes()
    plain_text = shape_of_degree(grid.tokens, 1)
    # Below that ids are ordinary tokens, or nearly all are.
    ids = token_ids(min(engine.capabilities.vocabulary, 40_000), grid.seed)
    for batch in grid.batches:
        plain: list[float] = []
        found: dict[float, list[float]] = {degree: [] for degree in shapes}
        for turn in range(grid.repeats + 1):  # the first warms up: graphs, buffers, caches
            if engine.capabilities.plain:
                prompts = [ids(grid.prompt) for _ in range(batch)]
                seconds = _seconds(engine.run_plain, prompts, grid.tokens)
            else:
                plans = [replay(plain_text, grid.prompt, ids) for _ in range(batch)]
                seconds = _seconds(engine.run_many, plans, DECODE)
            advance(f"batch {batch}, plain {seconds:.2f} s")
            if turn:
                plain.append(seconds)
            for degree, shape in shapes.items():
                plans = [replay(shape, grid.prompt, ids) for _ in range(batch)]
                seconds = _seconds(engine.run_many, plans, DECODE)
                advance(f"batch {batch}, degree {degree:g} {seconds:.2f} s")
                if turn:
                    found[degree].append(seconds)
        for degree, shape in shapes.items():
            yield SpeedCell(
                batch, shape.degree, shape.paths, batch * shape.paths, tuple(plain),
                tuple(found[degree]), shape.tokens, shape.critical_path,
            )  # fmt: skip


def _seconds(run: Callable[..., object], *given: Any) -> float:
    start = time.perf_counter()
    run(*given)
    return time.perf_counter() - start
