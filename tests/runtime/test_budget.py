"""Limits of static plans: what is written anyway has to fit, and the holes share the rest."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bpe import small_tokenizer, untagged_tokenizer  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from scripted import ask, scripted_engine, tokens_of  # noqa: E402
from tiny import chat, tiny_engine  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.compiler.plan import ExecutionPlan, Extend, Generate  # noqa: E402
from mvspec.errors import LimitExceeded  # noqa: E402
from mvspec.law.limits import Limits  # noqa: E402
from mvspec.runtime import Options, Result, Sampling  # noqa: E402
from mvspec.runtime.budget import HoleBudget  # noqa: E402


def body() -> mv.Document:
    """Return a document with holes in nested paths of unequal length, before and after them."""
    inner = mv.parallel(
        mv.branch("left", "A long text in front of it ", mv.gen("left", 5)),
        mv.branch("right", mv.gen("right", 9, stop=["e", "a"])),
        conclusion=["so ", mv.gen("inner", 3)],
    )
    return ask(
        "Well ",
        mv.gen("first", 4),
        ".",
        mv.parallel(
            mv.branch("one", mv.gen("one", 9)),
            mv.branch("two", "Two: ", inner, "done", mv.gen("after", 4, choices=["x", "yy"])),
            mv.branch("three", mv.gen("three", 8, regex="[0-9]{2,5}")),
            conclusion=["In all ", mv.gen("all", 5)],
        ),
        mv.gen("end", 6),
    )


def shape(plan: ExecutionPlan) -> tuple[int, int]:
    """Return what a plan writes in any case: tokens without the prompt, and positions."""
    least = HoleBudget(plan, Limits())
    return least.fixed, least.positions


ENGINES = [
    tiny_engine(tokenizer=chat(small_tokenizer())),
    tiny_engine("Qwen3", tokenizer=chat(untagged_tokenizer())),
]


def check(result: Result, plan: ExecutionPlan, limits: Limits) -> None:
    """The result is whole, and keeps its limits."""
    trace = result.trace
    if limits.max_tokens is not None:
        assert trace.answer <= limits.max_tokens
    if limits.max_position is not None:
        assert max(trace.position_ids) < limits.max_position
    assert result.document is not None
    assert not result.document.holes
    assert result.document == plan.document.fill(result.texts, check=False)  # type: ignore[union-attr]
    assert {*result.texts} == {hole.name for hole in plan.holes}
    assert {*result.errors} <= {"after", "three"}  # those with constraints
    assert list(trace.layout.position_ids) == list(trace.position_ids)
    for hole in plan.holes:
        assert len(tokens_of(result, hole.name)) <= hole.max_tokens


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["max_tokens", "max_position"])
def test_every_budget_from_the_least_up(engine: Any, kind: str) -> None:
    plan = engine.plan(body())
    tokens, positions = shape(plan)
    least = tokens if kind == "max_tokens" else positions
    with pytest.raises(LimitExceeded, match=f"at least {least} .* is {least - 1}: raise it"):
        engine.run(plan, Options(limits=Limits(**{kind: least - 1})))
    budgets = range(least, least + 60)
    options = [Options(Sampling(1.5, seed=budget), Limits(**{kind: budget})) for budget in budgets]
    ends = []
    for result, option in zip(engine.run_many([plan] * 60, options), options, strict=True):
        check(result, plan, option.limits)
        ends.append(result.trace.finish)
    assert ends[0] == "limit"
    assert ends[-1] == "end"  # more than the holes can take


@given(
    max_tokens=st.integers(0, 80),
    max_position=st.integers(0, 60),
    seed=st.integers(0, 10**6),
    rows=st.sampled_from([1, 9, 256]),
    which=st.sampled_from([0, 1]),
    threads=st.sampled_from([0, 1]),
)
def test_two_budgets_at_once(
    max_tokens: int, max_position: int, seed: int, rows: int, which: int, threads: int
) -> None:
    engine = ENGINES[which]
    plan = engine.plan(body())
    tokens, positions = shape(plan)
    limits = Limits(max_tokens=tokens + max_tokens, max_position=positions + max_position)
    engine.scheduler.max_batched_tokens = rows
    try:
        options = Options(Sampling(1.5, seed=seed), limits, threads=threads)
        check(engine.run(plan, options), plan, limits)
    finally:
        engine.scheduler.max_batched_tokens = 256


def test_a_budget_is_used_to_its_end() -> None:
    """A token that is kept back for one hole's space is its own when it comes."""
    engine = scripted_engine({"A:": " a" * 50, "B:": " b" * 50})
    plan = engine.plan(ask("A: ", mv.gen("a"), " B: ", mv.gen("b"), "!"))
    tokens, positions = shape(plan)
    for limits in (Limits(max_tokens=tokens + 7), Limits(max_position=positions + 7)):
        result = engine.run(plan, Options(limits=limits))
        assert result.values == {"a": "a a a a a a a a", "b": "b"}
        assert result.trace.finish == "limit"
        assert result.trace.answer == tokens + 7
    # Paths share the tokens, and each may use the positions.
    block = mv.parallel(*(mv.branch("b", f"{n}: ", mv.gen(n)) for n in "AB"))
    plan = engine.plan(ask(block))
    tokens, positions = shape(plan)
    shared = engine.run(plan, Options(limits=Limits(max_tokens=tokens + 8)))
    assert shared.values == {"A": "a a a a a", "B": "b b b b b"}
    each = engine.run(plan, Options(limits=Limits(max_position=positions + 8)))
    assert each.values == {"A": "a a a a a a a a a", "B": "b b b b b b b b b"}


def test_what_a_stop_string_leaves_of_a_token_fits_too() -> None:
    """A token's beginning may be more tokens than it: " parallel" without its "el" is three."""
    engine = scripted_engine({"A:": " parallel"})
    plan = engine.plan(ask("A:", mv.gen("a", stop="el"), "!"))
    tokens, positions = shape(plan)
    for more, value in enumerate(("", " par", " paral", " parall", " parall")):
        for limits in (Limits(max_tokens=tokens + more), Limits(max_position=positions + more)):
            result = engine.run(plan, Options(limits=limits))
            assert result["a"] == value
            check(result, plan, limits)
            assert result.trace.finish == ("limit" if more < 3 else "end")
    short = engine.run(ask("A:", mv.gen("a", 2, stop="el"), "!"))
    assert short["a"] == " paral"


def test_what_a_stop_string_took_back_is_not_spent() -> None:
    engine = scripted_engine({"A:": "xyzq", "B:": "abcdef"})
    plan = engine.plan(ask("A:", mv.gen("a", stop="yzq"), " B:", mv.gen("b")))
    result = engine.run(plan, Options(limits=Limits(max_tokens=shape(plan)[0] + 4)))
    assert result.values == {"a": "x", "b": "abc"}


@pytest.mark.parametrize("threads", [0, 1])
def test_out_of_time_all_holes_end(threads: int) -> None:
    """The model is not asked any more; what it has to say takes no time then."""
    engine = tiny_engine()
    plan = engine.plan(body())
    result = engine.run(plan, Options(limits=Limits(max_seconds=0), threads=threads))
    assert result.trace.finish == "time"
    assert result.values == dict.fromkeys(
        ["first", "left", "right", "inner", "one", "all", "end"], ""
    )
    assert {*result.errors} == {"after", "three"}
    with pytest.raises(LimitExceeded, match="raise the limits of the run"):
        result["three"]
    assert "model" not in result.trace.authors
    check(result, plan, Limits())
    late = engine.run(plan, Options(limits=Limits(max_seconds=1e6)))
    assert late.trace.finish == "end"


def test_the_prompt_is_not_counted() -> None:
    engine = tiny_engine()
    long = mv.document(mv.user("word " * 200), mv.assistant("A:", mv.gen("a", 3)))
    plan = engine.plan(long)
    tokens, positions = shape(plan)
    assert tokens < 10 < 200 < positions
    check(engine.run(plan, Options(limits=Limits(max_tokens=tokens + 3))), plan, Limits())


def test_the_models_context() -> None:
    """Holes count with all that they may take; paths stand side by side."""
    engine = tiny_engine()
    assert engine.model.context == 4096
    with pytest.raises(LimitExceeded, match=r"up to 50\d\d positions, .* has 4096: .* lower"):
        engine.run(ask(mv.gen("x", 5000)))
    two = [mv.branch("b", f"{n}:", mv.gen(n, 3000, stop=".")) for n in "AB"]
    engine.plan(ask(mv.parallel(*two)))
    wide = engine.submit(ask(mv.parallel(*two)))
    engine.drop(wide)
    with pytest.raises(LimitExceeded, match="positions"):
        engine.submit(ask(mv.parallel(*two, conclusion=["So ", mv.gen("c", 2000)])))
    replay = Extend(thread=0, tokens=(5,) * 4097)
    with pytest.raises(LimitExceeded, match="4097 positions"):
        engine.run(ExecutionPlan(ops=(replay,)))


def test_nothing_predicts_a_hole_at_the_very_start() -> None:
    hole = Generate(thread=0, hole=mv.gen("a"))
    with pytest.raises(mv.VerifyError, match=r"ops\[0\] .* nothing predicts it"):
        tiny_engine().run(ExecutionPlan(ops=(hole,)))
    with pytest.raises(mv.VerifyError, match="nothing predicts it"):
        tiny_engine(tokenizer=small_tokenizer()).run(mv.document(mv.assistant(mv.gen("a"))))
