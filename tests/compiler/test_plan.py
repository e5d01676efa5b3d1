"""Plans: ops, printing, JSON, verification, layouts and cost."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from bpe import chat_tokenizer, small_tokenizer
from hypothesis import given
from strategies import turns

import mvspec
from mvspec.compiler import compile_document, plan_cost, plan_document, plan_layout
from mvspec.compiler.plan import Adaptive, ExecutionPlan, Extend, Fork, Generate, Join, Op
from mvspec.forms.untagged import UNTAGGED
from mvspec.tree.ir import Document, Message

HOLES = mvspec.document(
    mvspec.assistant(
        "Compare.",
        mvspec.parallel(
            mvspec.branch("cost", "It costs ", mvspec.gen("cost", 8)),
            mvspec.branch(
                "speed",
                mvspec.parallel(
                    mvspec.branch("up", mvspec.gen("up", 30)),
                    mvspec.branch("down", mvspec.gen("down", 3)),
                ),
                mvspec.gen("speed", 5),
            ),
            conclusion=["So ", mvspec.gen("verdict", 4)],
        ),
    )
)


@given(turns())
def test_a_replay_has_the_documents_layout(message: Message) -> None:
    tokenizer = small_tokenizer()
    document = Document(messages=(message,))
    plan = plan_document(document, tokenizer)
    assert not plan.holes
    assert plan_layout(plan) == compile_document(document, tokenizer)
    assert ExecutionPlan.from_json(plan.to_json()) == plan
    cost = plan_cost(plan)
    layout = plan_layout(plan)
    assert cost.tokens == cost.kv_tokens == len(layout)
    assert cost.critical_path == int(layout.position_ids.max(initial=-1)) + 1


@pytest.mark.parametrize("tagged", [True, False])
def test_a_static_plan_forks_where_the_tree_does(tagged: bool) -> None:
    syntax = mvspec.forms.multiverse.MULTIVERSE if tagged else UNTAGGED
    plan = plan_document(HOLES, small_tokenizer(), syntax=syntax)
    shape = [str(op) for op in plan.ops if not isinstance(op, Extend)]
    assert shape == [
        "%1, %2 = fork %0",
        "generate %1 $cost max 8",
        "%3, %4 = fork %2",
        "generate %3 $up max 30",
        "generate %4 $down max 3",
        "%5 = join %3, %4",
        "generate %5 $speed max 5",
        "%6 = join %1, %5",
        "generate %6 $verdict max 4",
    ]
    assert [hole.name for hole in plan.holes] == [hole.name for hole in HOLES.holes]
    cost = plan_cost(plan)
    assert cost.generated == 8 + 30 + 3 + 5 + 4
    assert cost.peak_threads == 3
    assert cost.speedup > 1
    slower = plan_cost(plan, lambda threads: float(threads))
    assert slower.speedup == pytest.approx(1.0)


def test_the_layout_of_a_static_plan_follows_the_law() -> None:
    plan = plan_document(HOLES, small_tokenizer(), syntax=UNTAGGED)
    ids = {hole.name: list(range(hole.max_tokens)) for hole in plan.holes}
    layout = plan_layout(plan, ids)
    assert len(layout) == plan_cost(plan).tokens
    assert int(layout.position_ids.max()) + 1 == plan_cost(plan).critical_path
    assert int(layout.loss_mask.sum()) == plan_cost(plan).generated
    with pytest.raises(mvspec.Unsupported, match="'cost' has no tokens"):
        plan_layout(plan)


def test_a_question_alone_becomes_an_adaptive_plan() -> None:
    from bpe import chat_tokenizer

    document = mvspec.document(mvspec.user("Why?"))
    limits = mvspec.Limits(max_tokens=100)
    plan = plan_document(document, chat_tokenizer(), limits=limits)
    assert isinstance(plan.ops[-1], Adaptive)
    assert plan.ops[-1].limits == limits
    assert all(op.author == "prompt" for op in plan.ops if isinstance(op, Extend))
    with pytest.raises(mvspec.Unsupported, match="adaptive"):
        plan_cost(plan)
    with pytest.raises(mvspec.Unsupported, match="adaptive"):
        plan_layout(plan)


def test_any_assistant_turn_may_have_holes() -> None:
    document = mvspec.document(mvspec.assistant("So", mvspec.gen("early")), mvspec.user("And?"))
    plan = plan_document(document, chat_tokenizer())
    assert [hole.name for hole in plan.holes] == ["early"]
    assert isinstance(plan.ops[-1], Adaptive)


def test_the_space_before_a_hole_is_its_lead() -> None:
    """A tokenizer joins a space with the word after it, in training too."""
    turn = mvspec.assistant("It is ", mvspec.gen("what", choices=["a", "b"]), ".")
    tokenizer = small_tokenizer()
    plan = plan_document(turn, tokenizer, template=False)
    (hole,) = [op for op in plan.ops if isinstance(op, Generate)]
    assert hole.lead == " "
    layout = plan_layout(plan, {"what": tokenizer.encode(" a", add_special_tokens=False).ids})
    assert tokenizer.decode(layout.input_ids.tolist()) == "It is a."


def extend(thread: int) -> Extend:
    return Extend(thread=thread, tokens=(1,))


@pytest.mark.parametrize(
    ("ops", "why"),
    [
        ([extend(1)], "%1 was not made"),
        ([Fork(thread=0, paths=(1, 2)), extend(0)], "%0 was used up"),
        ([Fork(thread=0, paths=(1, 1))], "%1 is made twice"),
        ([Fork(thread=0, paths=(1, 2))], "%1, %2 are never joined"),
        ([Fork(thread=0, paths=(1, 2)), Join(paths=(2, 1), thread=3)], "all paths of one fork"),
        ([Fork(thread=0, paths=(1, 2)), Join(paths=(1,), thread=3)], "all paths of one fork"),
        ([Adaptive(thread=0), extend(0)], "%0 is adaptive"),
        (
            [Generate(thread=0, hole=mvspec.gen("x")), Generate(thread=0, hole=mvspec.gen("x"))],
            "hole 'x' occurs twice",
        ),
    ],
)
def test_what_no_runtime_can_run_is_refused(ops: list[Op], why: str) -> None:
    with pytest.raises(mvspec.VerifyError, match=why) as caught:
        ExecutionPlan(ops=tuple(ops)).verify()
    assert "ops[" in str(caught.value) or "plan" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan["ops"][0].update(op="teleport"),
        lambda plan: plan["ops"][0].update(tokens=[-1]),
        lambda plan: plan["ops"][0].update(extra=1),
        lambda plan: plan["ops"].append({"op": "fork", "thread": 0, "paths": []}),
        lambda plan: plan.pop("ops"),
        lambda plan: plan.update(form="ops in no known form"),
    ],
)
def test_bad_json_says_where(change: Any) -> None:
    plan = json.loads(plan_document(HOLES, small_tokenizer()).to_json())
    change(plan)
    with pytest.raises(mvspec.VerifyError, match="ops"):
        ExecutionPlan.from_json(json.dumps(plan))


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(mvspec.VerifyError, match="JSON"):
        ExecutionPlan.from_json("{")


def test_prompt_tokens_carry_no_loss_and_no_cost() -> None:
    prompt = Extend(thread=0, tokens=(1,) * 9, author="prompt")
    plan = ExecutionPlan(ops=(prompt, Extend(thread=0, tokens=(2, 3), author="model")))
    assert plan_cost(plan).critical_path == 2
    layout = plan_layout(plan)
    assert np.flatnonzero(layout.loss_mask).tolist() == [9, 10]


def test_numbers_that_are_no_token_ids_are_refused() -> None:
    plan = plan_document(mvspec.document(mvspec.assistant(mvspec.gen("x"))), small_tokenizer())
    wrong: list[Any] = [[1 << 40], [1, -2], [0.5], "abc"]
    for ids in wrong:
        with pytest.raises(mvspec.Unsupported, match="id"):
            plan_layout(plan, {"x": ids})
    with pytest.raises(mvspec.VerifyError, match=r"tokens\[0\]"):
        ExecutionPlan.from_json('{"ops": [{"op": "extend", "thread": 0, "tokens": [4294967296]}]}')


def test_the_errors_of_wide_plans_are_short() -> None:
    fork = Fork(thread=0, paths=tuple(range(1, 10_001)))
    for ops in ((fork,), (fork, Extend(thread=0, tokens=(1,))), (fork, Join(paths=(2,), thread=0))):
        with pytest.raises(mvspec.VerifyError) as caught:
            ExecutionPlan(ops=ops).verify()
        assert len(str(caught.value)) < 700


def test_the_layout_of_a_plan_needs_surface_order() -> None:
    def write(thread: int, n: int) -> Extend:
        return Extend(thread=thread, tokens=(7,) * n)

    fork, join = Fork(thread=0, paths=(1, 2)), Join(paths=(1, 2), thread=3)
    mixed: tuple[tuple[Op, ...], ...] = (
        (write(1, 1), write(2, 1), write(1, 2)),
        (write(2, 3), write(1, 1)),
    )
    for ops in mixed:
        with pytest.raises(mvspec.VerifyError, match="all of one path"):
            plan_layout(ExecutionPlan(ops=(write(0, 2), fork, *ops, join, write(3, 1))))
    cases: list[tuple[tuple[Op, ...], list[int]]] = [
        ((write(1, 2),), [0, 1, 2, 3, 4]),
        ((write(2, 2),), [0, 1, 2, 3, 4]),
        ((), [0, 1, 2]),
        # A path that begins with a fork.
        (
            (Fork(thread=1, paths=(4, 5)), write(4, 1), write(5, 2), Join(paths=(4, 5), thread=6)),
            [0, 1, 2, 2, 3, 4],
        ),
    ]
    for ops, positions in cases:
        paths = (6, 2) if len(ops) == 4 else (1, 2)
        end = Join(paths=paths, thread=3)
        layout = plan_layout(ExecutionPlan(ops=(write(0, 2), fork, *ops, end, write(3, 1))))
        assert layout.position_ids.tolist() == positions
