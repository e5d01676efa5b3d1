"""Estimate of a curation: the calls, tokens and cost of `--dry-run`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from mvspec.curation.chain import ChainFields, ReasoningChain, numbered, read_chain
from mvspec.curation.client import BYTES_PER_TOKEN, TokenPrice
from mvspec.curation.questions import BEFORE, CurationOptions, instructions, parse_prompt
from mvspec.curation.request import ModelRequest, TokenUsage
from mvspec.data.records import BadRecord, Record

COUNTED = 10
"""Records whose tokens the service counts; the others' bytes are scaled by what it says."""

# Assumptions, and said so where the estimate is printed.
SENTENCES_PER_STEP = 5
SENTENCES_PER_BLOCK = 40
PATHS = 3
IN_PATHS = 0.6
REWRITTEN = 0.1
AGAIN = 1.15

ASSUMED = (
    f"assumed: a step for every {SENTENCES_PER_STEP} sentences, a block of {PATHS} paths for every "
    f"{SENTENCES_PER_BLOCK}, {IN_PATHS:.0%} of the text in paths, {REWRITTEN:.0%} of that written "
    f"anew, {AGAIN - 1:.0%} of the answers refused; thoughts are not counted"
)

Count = Callable[[ModelRequest], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class CurationEstimate:
    """Guess of calls, tokens and cost, with its grounds.

    Args:
        records, unreadable: of the input.
        calls: requests.
        usage: their tokens.
        cost: in `client.UNIT`.
        bytes_per_token: measured by the service, or the usual 4.
        counted: records that the service has counted.
    """

    records: int
    unreadable: int
    calls: int
    usage: TokenUsage
    cost: int
    bytes_per_token: float
    counted: int


async def estimate(
    source: Iterable[Record],
    fields: ChainFields,
    options: CurationOptions,
    price: TokenPrice,
    count: Count | None = None,
) -> CurationEstimate:
    """Return what curating records would take; nothing is generated.

    Args:
        count: the service's own counter, for the first `COUNTED` records; it is free.
    """
    records = unreadable = calls = 0
    read = written = 0.0
    sample: list[ModelRequest] = []
    for record in source:
        records += 1
        try:
            with record.guarded():
                chain = read_chain(record, fields)
        except BadRecord:
            unreadable += 1
            continue
        if len(sample) < COUNTED:
            sample.append(
                ModelRequest("parse", options.model, instructions("parse"), parse_prompt(chain))
            )
        own_calls, own_read, own_written = _one(chain, options)
        calls += own_calls
        read += own_read
        written += own_written
    ratio, counted = BYTES_PER_TOKEN, 0
    if count is not None and sample:
        tokens = sum(await asyncio.gather(*map(count, sample)))
        counted = len(sample)
        ratio = sum(request.size for request in sample) / tokens if tokens else ratio
    usage = TokenUsage(round(AGAIN * read / ratio), round(AGAIN * written / ratio))
    whole = round(AGAIN * calls)
    return CurationEstimate(records, unreadable, whole, usage, price.of(usage), ratio, counted)


def _one(chain: ReasoningChain, options: CurationOptions) -> tuple[int, float, float]:
    """Return the calls of a chain, and the bytes that they read and write."""
    text = len(numbered(chain.sentences).encode())
    count = len(chain.sentences)
    mean = text / count
    question = len(chain.question.encode())
    steps = max(1, count // SENTENCES_PER_STEP)
    blocks = max(1, round(count / SENTENCES_PER_BLOCK))
    paths = blocks * PATHS
    before = min(BEFORE, count / 2) * mean

    def told(step: str) -> int:
        return len(instructions(step)) + question

    read = float(told("parse") + text + told("group") + text + 60 * steps)
    written = 90.0 * steps + 150 * blocks
    read += blocks * (told("frame") + before) + IN_PATHS * text
    written += paths * 80 + blocks * 250
    read += paths * (told("rewrite") + before + 240) + IN_PATHS * text
    written += paths * 20 + IN_PATHS * REWRITTEN * text
    calls = 2 + blocks + paths
    if options.judge:
        read += blocks * told("judge") + IN_PATHS * text
        written += blocks * 40
        calls += blocks
    return calls, read, written
