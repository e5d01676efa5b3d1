"""Layouts and documents of a given shape, for benchmarks that need no data."""

from __future__ import annotations

import random

import numpy as np

import mvspec
from mvspec.compiler.layout import Layout, lay_out
from mvspec.compiler.plan import ExecutionPlan
from mvspec.law.threads import SurfaceLaw
from mvspec.runtime.evaluation.speed import HEADER, ReplayShape, replay, token_ids

PROSE = (
    "the value of x is then twice what we found before so that both sides agree and the sum "
    "over all terms follows from the second line because no other case is left"
)
WORDS = tuple(PROSE.split())


def layout(n: int, coverage: float, *, paths: int = 4, block: int = 2048, seed: int = 0) -> Layout:
    """Return a layout of `n` tokens of which a share `coverage` stands in paths.

    Args:
        paths: of each block; their lengths differ by a factor of up to three.
        block: tokens of all paths of one block, about.
    """
    rng = random.Random(seed)
    law = SurfaceLaw()
    at = 0
    while coverage and at + block / coverage <= n:
        before = int(block * (1 - coverage) / coverage)
        law.tokens(before)
        law.fork(paths)
        at += before
        weights = [rng.uniform(1, 3) for _ in range(paths)]
        for weight in weights:
            share = int(block * weight / sum(weights))
            law.tokens(share)
            law.end()
            at += share
    ids = np.arange(n, dtype=np.int32) % 1000
    return lay_out(ids, np.ones(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_), law)


def text(rng: random.Random, words: int) -> str:
    """Return about so many words of prose with a little mathematics."""
    out: list[str] = []
    for index in range(words):
        out.append(rng.choice(WORDS))
        if rng.random() < 0.08:
            out.append(f"\\frac{{{rng.randint(1, 99)}}}{{{rng.randint(2, 9)}}} < {index}")
        if rng.random() < 0.06:
            out[-1] += ".\n"
    return " ".join(out)


def document(tokens: int, coverage: float = 0.3, seed: int = 0) -> mvspec.Document:
    """Return a document of about so many tokens, shaped like a reasoning trace."""
    rng = random.Random(seed)
    body: list[mvspec.Parallel | str] = []
    left = tokens
    while left > 0:
        plain = rng.randint(150, 600)
        body.append(text(rng, plain) + "\nLet's think in parallel.")
        count = rng.choice([2, 2, 2, 3, 4])
        share = max(20, int(plain * coverage / (1 - coverage) / count))
        branches = [
            mvspec.branch(
                text(rng, 12).replace("\n", " "), text(rng, rng.randint(share // 2, 2 * share))
            )
            for _ in range(count)
        ]
        body.append(mvspec.parallel(*branches, conclusion=text(rng, 25)))
        left -= int(1.5 * (plain + count * (share + 45)))
    return mvspec.document(mvspec.assistant(mvspec.think(*body), "Answer: " + text(rng, 80)))


def block_plan(
    prompt: int, paths: int, tokens: int, blocks: int = 1, after: int = 8, seed: int = 0
) -> ExecutionPlan:
    """Return a replay of blocks with equal paths; the model's tokens take a step each."""
    shape = ReplayShape(0, paths, HEADER + tokens, after, blocks, join=after)
    return replay(shape, prompt, token_ids(40_000, seed))
