"""Problems as rows of training: the same ones, in the same order, for every arm."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mvspec.compiler import Layout, compile_document, concatenate, pack
from mvspec.compiler.vocabulary import load_tokenizer
from mvspec.runtime.tasks.problem import (
    PARALLEL,
    STEPWISE,
    TaskDifficulty,
    TaskProblem,
    problems,
    solve,
)

from settings import Fit  # isort: skip

__all__ = ["Compiler", "Item", "mixture", "packed"]

Item = tuple[TaskProblem, str]
"""A problem, and the lowering that it is compiled with."""

WINDOW = 512
"""Documents that are packed together: their order is kept to within it."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """Compiles a problem; picklable.

    Args:
        tokenizer: a folder.
        length: the most tokens; what is longer is cut.
    """

    tokenizer: str
    length: int

    def __call__(self, item: Item) -> Layout:
        """Return the layout of a problem's worked answer, after the lowering's prompt."""
        problem, lowering = item
        prompt = STEPWISE if lowering == "autoregressive" else PARALLEL
        document = solve(problem, prompt)
        layout = compile_document(document, load_tokenizer(self.tokenizer), lowering)
        return layout if len(layout) <= self.length else layout.truncate(self.length)


def mixture(fit: Fit, lowering: str, seed: int, difficulty: TaskDifficulty[Any]) -> list[Item]:
    """Return the problems of a run in order, each with its lowering.

    As in the paper, a structured arm begins with autoregressive documents, goes over to its own
    until the middle, and stays there. Which problems have which is the same for all of them.
    """
    drawn = islice(problems("train", seed, difficulty), fit.documents)
    stream = random.Random(f"mixture {seed}")
    items: list[Item] = []
    for index, problem in enumerate(drawn):
        share = min(1.0, 2 * index / fit.documents)
        structured = stream.random() < share
        items.append((problem, lowering if structured else "autoregressive"))
    return items


def packed(
    items: Sequence[Item], fit: Fit, tokenizer: str, pool: Executor | None = None
) -> list[Layout]:
    """Return rows of `fit.length` tokens, in the order of the problems.

    Rows without a token fill the last step up, so that every step has the same shape.
    """
    compiler = Compiler(tokenizer, fit.length)
    layouts = list(pool.map(compiler, items, chunksize=64) if pool else map(compiler, items))
    rows: list[Layout] = []
    for start in range(0, len(layouts), WINDOW):
        found = pack(layouts[start : start + WINDOW], fit.length)
        random.Random(start).shuffle(found)  # best fit puts the longest first
        rows += found
    blank = concatenate([]).padded(fit.length)
    return rows + [blank] * (-len(rows) % fit.rows)
