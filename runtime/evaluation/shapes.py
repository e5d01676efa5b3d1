"""Replays of chosen shapes: so many tokens at such a degree of parallelism.

Every token that counts as the model's takes a decode step of its own, as when it was drawn
(`Options(decode=True)`), so a replay costs what writing it would, and always has the shape that
was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mvspec.compiler.plan import ExecutionPlan, Extend, Fork, Join, Op
from mvspec.errors import VerifyError

__all__ = ["HEADER", "Shape", "replay", "shape_of_degree", "token_ids"]

HEADER = 4
"""Tokens that the plan writes at the start of a path, and of a join where no other number is
given."""

Ids = Callable[[int], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Shape:
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


def shape_of_degree(tokens: int, degree: float, paths: int | None = None) -> Shape:
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
        return Shape(tokens, 1, 0, 0)
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
            return Shape(rest - after, count, each, after)
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


def replay(shape: Shape, prompt: int, ids: Ids) -> ExecutionPlan:
    """Return the replay of a shape, untagged.

    Args:
        prompt: tokens that it starts from.
        ids: draws tokens.

    >>> from mvspec.compiler.cost import plan_cost
    >>> shape = Shape(before=8, paths=4, each=24, after=8)
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
