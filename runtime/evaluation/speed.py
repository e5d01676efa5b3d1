"""How much faster documents of a degree of parallelism are than plain text of as many tokens.

Both sides are measured in one run, in turns, on one engine: in this process, where plain text is
a replay without a fork, or on a server of SGLang, where it is a plain request that the plugin has
no part in. The ideal is the degree of parallelism itself: all paths for the price of one.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mvspec.errors import MvspecError
from mvspec.runtime.engine.torch_engine import TorchEngine
from mvspec.runtime.evaluation.shapes import Ids, Shape, replay, shape_of_degree, token_ids
from mvspec.runtime.options import Options
from mvspec.runtime.serving.engine import SGLangEngine

__all__ = ["Grid", "Measured", "measure_grid", "plain_seconds"]

DECODE = Options(decode=True)


@dataclass(frozen=True)
class Grid:
    """What is measured.

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

    def shapes(self) -> dict[float, Shape]:
        """Return a shape for each degree.

        Raises:
            VerifyError: a degree cannot be had in so many tokens.
        """
        return {each: shape_of_degree(self.tokens, each, self.paths) for each in self.degrees}


@dataclass(frozen=True)
class Measured:
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

    def record(self) -> dict[str, Any]:
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
    engine: TorchEngine | SGLangEngine,
    grid: Grid,
    advance: Callable[[str], object] = lambda text: None,
) -> Iterator[Measured]:
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
    ids = token_ids(_vocabulary(engine), grid.seed)
    for batch in grid.batches:
        plain: list[float] = []
        found: dict[float, list[float]] = {degree: [] for degree in shapes}
        for turn in range(grid.repeats + 1):  # the first warms up: graphs, buffers, caches
            seconds = plain_seconds(engine, grid.tokens, grid.prompt, batch, ids)
            advance(f"batch {batch}, plain {seconds:.2f} s")
            if turn:
                plain.append(seconds)
            for degree, shape in shapes.items():
                plans = [replay(shape, grid.prompt, ids) for _ in range(batch)]
                start = time.perf_counter()
                engine.run_many(plans, DECODE)
                seconds = time.perf_counter() - start
                advance(f"batch {batch}, degree {degree:g} {seconds:.2f} s")
                if turn:
                    found[degree].append(seconds)
        for degree, shape in shapes.items():
            yield Measured(
                batch, shape.degree, shape.paths, batch * shape.paths, tuple(plain),
                tuple(found[degree]), shape.tokens, shape.critical_path,
            )  # fmt: skip


def plain_seconds(
    engine: TorchEngine | SGLangEngine, tokens: int, prompt: int, batch: int, ids: Ids
) -> float:
    """Return the seconds that plain requests take together."""
    if isinstance(engine, TorchEngine):
        plans = [replay(Shape(tokens, 1, 0, 0), prompt, ids) for _ in range(batch)]
        start = time.perf_counter()
        engine.run_many(plans, DECODE)
        return time.perf_counter() - start
    bodies = [
        {
            "input_ids": list(ids(prompt)),
            "stream": True,
            "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
        }
        for _ in range(batch)
    ]
    return asyncio.run(_sent(engine, bodies))


async def _sent(engine: SGLangEngine, bodies: Sequence[dict[str, Any]]) -> float:
    async with engine.endpoint.session() as send:

        async def one(body: dict[str, Any]) -> None:
            async for chunk in send(body):
                if "error" in chunk:
                    raise MvspecError(f"{engine.endpoint.name} refuses it: {chunk['error']}")

        start = time.perf_counter()
        await asyncio.gather(*map(one, bodies))
        return time.perf_counter() - start


def _vocabulary(engine: TorchEngine | SGLangEngine) -> int:
    """Return a bound below which ids are ordinary tokens, or nearly all are."""
    return min(engine.vocabulary.size, 40_000)
