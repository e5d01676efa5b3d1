"""Law 10 of the engine: whatever a model chooses, the result parses and keeps its limits.

The model here draws logits at random, and likes tags: it forks, nests and closes far more wildly
than any trained model. Everything but the weights is the engine's own.
"""

from __future__ import annotations

import os
import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bpe import loose_tokenizer, small_tokenizer  # noqa: E402
from dice import dice_engine  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.compiler import plan_layout  # noqa: E402
from mvspec.law.limits import Limits  # noqa: E402
from mvspec.runtime import Options, Result, Sampling  # noqa: E402

ENGINES = {
    (name, liking): dice_engine(tokenizer, liking)
    for name, tokenizer in (("small", small_tokenizer()), ("loose", loose_tokenizer()))
    for liking in (0.0, 3.0, 6.0)
}
ASK = mv.document(mv.user("Well?"))


def check(result: Result, limits: Limits, prompt: int) -> None:
    """The turn that a model wrote is a document, within its limits."""
    assert result.document is not None
    turn = result.document.messages[-1]
    text = result.text.removesuffix("<|im_end|>")
    assert mv.parse(text).messages == (turn,)
    assert mv.render(turn) == text
    trace = result.trace
    assert trace.finish in ("end", "limit")
    if limits.max_tokens is not None:
        assert trace.answer <= limits.max_tokens
    if limits.max_position is not None:
        assert max(trace.position_ids) < limits.max_position
    blocks = list(turn.walk(mv.Parallel))
    assert max((block.depth for block in blocks), default=0) <= limits.max_depth
    if limits.max_paths is not None:
        assert all(len(block.paths) <= limits.max_paths for block in blocks)
    # Positions are the law's, closings by force included; rounds have them in another order.
    places = list(zip(trace.ids, trace.position_ids, strict=True))
    assert plan_layout(trace.plan).position_ids.tolist() == list(trace.position_ids)
    layout = trace.layout
    found = list(zip(layout.input_ids.tolist(), layout.position_ids.tolist(), strict=True))
    assert found == places if not trace.share else sorted(found) == sorted(places)


@given(
    which=st.sampled_from(sorted(ENGINES)),
    seed=st.integers(0, 10**6),
    max_tokens=st.integers(1, 220),
    max_position=st.one_of(st.none(), st.integers(1, 120)),
    max_depth=st.integers(0, 3),
    max_paths=st.one_of(st.none(), st.integers(1, 4)),
    share=st.sampled_from([0, 0, 0, 1, 4]),
    rows=st.sampled_from([1, 3, 256]),
)
def test_whatever_is_drawn_the_result_parses(
    which: tuple[str, float],
    seed: int,
    max_tokens: int,
    max_position: int | None,
    max_depth: int,
    max_paths: int | None,
    share: int,
    rows: int,
) -> None:
    engine = ENGINES[which]
    engine.scheduler.max_batched_tokens = rows
    prompt = sum(len(op.tokens) for op in engine.plan(ASK).ops if op.op == "extend")
    position = None if max_position is None else prompt + max_position
    limits = Limits(
        max_tokens=max_tokens, max_position=position, max_depth=max_depth, max_paths=max_paths
    )
    options = Options(Sampling(temperature=1.0, seed=seed), limits, share=share)
    check(engine.run(ASK, options), limits, prompt)


def test_every_budget_from_one_up() -> None:
    engine = ENGINES["small", 6.0]
    engine.scheduler.max_batched_tokens = 256
    budgets = range(1, 120)
    options = [
        Options(Sampling(temperature=1.0, seed=n), Limits(max_tokens=n, max_depth=4))
        for n in budgets
    ]
    for result, n in zip(engine.run_many([ASK] * len(budgets), options), budgets, strict=True):
        check(result, Limits(max_tokens=n, max_depth=4), 0)


def test_out_of_time_everything_closes() -> None:
    engine = ENGINES["small", 6.0]
    for seed in range(20):
        options = Options(
            Sampling(temperature=1.0, seed=seed), Limits(max_seconds=0.02, max_depth=3)
        )
        result = engine.run(ASK, options)
        assert result.trace.finish in ("time", "end")
        text = result.text.removesuffix("<|im_end|>")
        assert mv.render(mv.parse(text)) == text


def test_without_structure_the_run_still_ends() -> None:
    engine = ENGINES["small", 6.0]
    malformed = 0
    for seed in range(60):
        limits = Limits(max_tokens=200 - seed)
        options = Options(Sampling(temperature=1.0, seed=seed), limits, structure=False)
        result = engine.run(ASK, options)
        malformed += bool(result.diagnostics)
        assert result.document is not None
        assert result.trace.answer <= 200 - seed
    assert malformed > 30  # dice do not keep to a grammar


def test_stop_strings_end_no_structure() -> None:
    engine = ENGINES["small", 3.0]
    stopped = 0
    for seed in range(60):
        options = Options(
            Sampling(temperature=1.0, seed=seed, stop=("\n", "e")), Limits(max_tokens=150)
        )
        result = engine.run(ASK, options)
        check(result, options.limits, 0)
        stopped += result.trace.finish == "end"
    assert stopped > 30


@pytest.mark.skipif(os.environ.get("MVSPEC_PROFILE") != "nightly", reason="takes some ten minutes")
def test_a_million_tokens() -> None:
    """No result of a million random choices is malformed."""
    drawn, seed, paths = 0, 0, 0
    dice = random.Random(0)
    while drawn < 1_000_000:
        engine = ENGINES[dice.choice(sorted(ENGINES))]
        engine.scheduler.max_batched_tokens = 4096
        limits = [Limits(max_tokens=dice.randint(1, 2000), max_depth=5) for _ in range(64)]
        options = [
            Options(Sampling(temperature=1.0, seed=seed + i), limit)
            for i, limit in enumerate(limits)
        ]
        seed += 64
        for result, limit in zip(engine.run_many([ASK] * 64, options), limits, strict=True):
            check(result, limit, 0)
            drawn += sum(author == "model" for author in result.trace.authors)
            paths += len(result.trace.threads) - 1
    print(f"{drawn:,} random tokens in {seed:,} runs with {paths:,} paths: 0 malformed")
