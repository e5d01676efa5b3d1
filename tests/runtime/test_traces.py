"""Traces: what a run was, replayed, saved, and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bpe import small_tokenizer, untagged_tokenizer  # noqa: E402
from dice import dice_engine  # noqa: E402
from scripted import ask, scripted_engine  # noqa: E402
from tiny import FORKING, chat, tiny_engine  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.compiler.plan import Adaptive, ExecutionPlan, Extend, Fork, Generate, Join  # noqa: E402
from mvspec.law.limits import Limits  # noqa: E402
from mvspec.runtime import (  # noqa: E402
    Interrupted,
    Options,
    Sampling,
    TorchEngine,
    Trace,
)

TOKENIZER = chat()
GO = mv.document(mv.user("Go."))


def block() -> mv.Parallel:
    return mv.parallel(
        mv.branch("a", "A", mv.gen("a", 7)),
        mv.branch("b", mv.parallel(mv.branch("in", "B", mv.gen("b", 3)), mv.branch("out"))),
        conclusion=["So", mv.gen("end", 4)],
    )


def runs() -> dict[str, tuple[TorchEngine, mv.Document, Options]]:
    """Return runs of every kind."""
    drawn = Sampling(1.5, seed=3)
    tagged, forking = tiny_engine(), tiny_engine(bias=FORKING)
    plain = tiny_engine(tokenizer=chat(untagged_tokenizer()))
    return {
        "static": (tagged, ask(block()), Options(drawn)),
        "static, untagged": (plain, ask(block()), Options(drawn)),
        "stop strings": (
            tagged,
            ask("A", *(mv.gen(name, 60, stop=["a", "e"]) for name in "xy"), block()),
            Options(drawn),
        ),
        "turns": (
            tagged,
            mv.document(
                mv.user("One?"), mv.assistant("A", mv.gen("x", 4)), mv.user("é?"),
                mv.assistant(mv.think("Hm", mv.gen("y", 4)), "B", block()),
            ),
            Options(drawn),
        ),
        "out of budget": (tagged, ask(block()), Options(drawn, Limits(max_tokens=108))),
        "out of time": (tagged, ask(block()), Options(drawn, Limits(max_seconds=0))),
        "adaptive": (forking, GO, Options(drawn, Limits(max_tokens=150))),
        "adaptive, cut": (forking, GO, Options(drawn, Limits(max_tokens=40))),
        "adaptive, loose": (forking, GO, Options(drawn, Limits(max_tokens=150), structure=False)),
        "adaptive, untagged": (plain, GO, Options(drawn, Limits(max_tokens=30))),
    }  # fmt: skip


RUNS = runs()


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("kind", sorted(RUNS))
def test_a_saved_trace_replays(kind: str, decode: bool, tmp_path: Path) -> None:
    """Law 9: the same document and layout, array for array."""
    engine, document, options = RUNS[kind]
    result = engine.run(document, options)
    trace = result.trace
    trace.save(tmp_path / "trace.jsonl")
    (line,) = (tmp_path / "trace.jsonl").read_text(encoding="utf-8").splitlines()
    read = Trace.from_json(line)
    assert read == trace
    again = engine.run(read.plan, Options(decode=decode))
    assert again.trace.layout == trace.layout
    assert tuple(trace.layout.position_ids) == trace.position_ids
    for column in ("ids", "token_texts", "thread_ids", "position_ids", "document"):
        assert getattr(again.trace, column) == getattr(trace, column)
    assert again.trace.plan == trace.plan
    assert again.document == result.document
    assert again.text == result.text
    if decode:  # what was drawn takes a step each, and has the same logprob
        drawn = [n for n, logprob in enumerate(trace.logprobs) if logprob is not None]
        for index in drawn:
            expected = pytest.approx(trace.logprobs[index], abs=1e-9)
            assert again.trace.logprobs[index] == expected


@pytest.mark.parametrize("at", [1, 3, 7, 9])
def test_an_interrupted_trace_replays_too(at: int) -> None:
    engine = tiny_engine(bias=dict.fromkeys(FORKING, -99.0))
    forward = engine.model.forward

    def interrupted(chunks: Any) -> Any:
        if engine.scheduler.steps == at:
            raise KeyboardInterrupt
        return forward(chunks)

    engine.model.forward = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as stop:
        engine.run(ask(block()))
    engine.model.forward = forward  # type: ignore[method-assign]
    trace = Trace.from_json(stop.value.trace.model_dump_json())
    assert trace.finish == "interrupted"
    again = engine.run(trace.plan).trace
    assert again.ids == trace.ids
    assert again.position_ids == trace.position_ids
    assert again.layout == trace.layout
    whole = engine.run(ask(block())).trace
    assert len(whole) > len(trace)
    for thread in trace.threads:
        before = [
            id for id, owner in zip(trace.ids, trace.thread_ids, strict=True) if owner == thread.id
        ]
        after = [
            id for id, owner in zip(whole.ids, whole.thread_ids, strict=True) if owner == thread.id
        ]
        assert after[: len(before)] == before


def test_a_trace_without_its_document_replays() -> None:
    engine, document, options = RUNS["static"]
    trace = engine.run(document, options).trace
    bare = trace.model_copy(update={"document": None})
    again = engine.run(bare.plan)
    assert again.trace.ids == trace.ids
    assert again.document is None


def test_sums_of_a_trace() -> None:
    says = {"A:": "a" * 9, "B:": "b" * 3, "C:": "c"}
    holes = [mv.branch("x", f"{n}:", mv.gen(n)) for n in "AB"]
    result = scripted_engine(says).run(ask(mv.parallel(*holes, conclusion=["C:", mv.gen("C")])))
    trace = result.trace
    assert trace.prompt == sum(author == "prompt" for author in trace.authors)
    assert trace.answer == len(trace) - trace.prompt
    assert trace.critical_path == trace.position_ids[-1] - trace.prompt + 1
    shorter = sum(owner == 2 for owner in trace.thread_ids)
    assert trace.answer - trace.critical_path == shorter
    assert trace.parallelism == trace.answer / trace.critical_path > 1
    assert result.text == trace.text
    assert trace.text == "".join(trace.token_texts[trace.prompt :])
    assert [(t.label, t.title, t.parent) for t in trace.threads] == [
        ("", "", None), ("1", "x", 0), ("2", "x", 0),
    ]  # fmt: skip
    assert len(trace.forward_tokens) == len(trace.forward_seconds) == max(trace.forward_ids) + 1
    assert list(trace.forward_seconds) == sorted(trace.forward_seconds)
    assert trace.forward_seconds[-1] <= trace.seconds


def test_prompts_between_turns_are_no_part_of_the_critical_path() -> None:
    says = {"A:": "a" * 5, "B:": "b" * 5}
    document = mv.document(
        mv.user("One?"), mv.assistant("A:", mv.gen("a")),
        mv.user("Two, and much is asked here?"), mv.assistant("B:", mv.gen("b")),
    )  # fmt: skip
    trace = scripted_engine(says).run(document).trace
    assert trace.critical_path == trace.answer
    assert trace.parallelism == 1


def test_titles_of_split_characters() -> None:
    """Each of these letters is several tokens of this tokenizer, and none of them is text alone."""
    said = (
        "<Parallel>\n<Goal>\n<Outline>\n1: Café première\n</Outline>\n"
        "<Outline>\n2: über ñandú\n</Outline>\n</Goal>"
    )
    engine = scripted_engine({"assistant\n": said})
    result = engine.run(GO, Options(limits=Limits(max_tokens=200)))
    found = [(thread.label, thread.title) for thread in result.trace.threads[1:]]
    assert found == [("1", "Café première"), ("2", "über ñandú")]
    assert result.document is not None
    (block,) = result.document.walk(mv.Parallel)
    assert [outline.text for outline in block.goal.outlines] == [title for _, title in found]


def test_titles_are_those_of_the_document() -> None:
    engine = dice_engine(small_tokenizer(), 6.0)
    seen = 0
    for seed in range(24):
        options = Options(Sampling(1.0, seed=seed), Limits(max_tokens=250, max_depth=2))
        result = engine.run(GO, options)
        assert result.document is not None
        outlines = [
            (outline.label, outline.text.strip())
            for block in result.document.walk(mv.Parallel)
            for outline in block.goal.outlines
        ]
        threads = [(each.label, each.title) for each in result.trace.threads[1:]]
        assert sorted(threads) == sorted(outlines)
        seen += len(threads)
    assert seen > 20


# Chats: a turn after others


def chat_of(*turns: mv.Message) -> mv.Document:
    return mv.document(mv.user("One?"), *turns, mv.user("Two?"))


HISTORY = mv.assistant(
    "Old", mv.parallel(mv.branch("a", "An old path."), mv.branch("b", "Another."), conclusion="So")
)


@pytest.mark.parametrize("structure", [True, False])
def test_a_turn_after_others_is_written_alone(structure: bool) -> None:
    engine = tiny_engine(bias=FORKING)
    forked = 0
    for seed in range(8):
        options = Options(Sampling(1.5, seed=seed), Limits(max_tokens=200), structure=structure)
        result = engine.run(chat_of(HISTORY), options)
        assert result.document is not None
        assert result.document.messages[:-1] == chat_of(HISTORY).messages
        turn = result.document.messages[-1]
        if structure:
            assert result.text.removesuffix("<|im_end|>").endswith(mv.render(turn))
            assert "Old" not in mv.render(turn)
        forked += bool(list(turn.walk(mv.Parallel)))
        assert list(result.trace.layout.position_ids) == list(result.trace.position_ids)
    assert forked


def test_a_turn_after_one_with_holes() -> None:
    engine = scripted_engine({"A:": "a" * 4, "assistant\n": "Yes."})
    result = engine.run(chat_of(mv.assistant("A:", mv.gen("a", 4))))
    assert result.document == mv.document(
        *chat_of(mv.assistant("A:aaaa")).messages, mv.assistant("Yes.")
    )
    assert result.values == {"a": "aaaa"}


def test_a_turn_that_was_begun() -> None:
    """What a plan writes after the prompt belongs to the model's turn."""
    engine = scripted_engine({"Well, ": "yes."})
    start = engine.plan(GO).ops[:-1]
    said = Extend(thread=0, tokens=tuple(engine.lexicon.encode("Well, ")))
    result = engine.run(ExecutionPlan(ops=(*start, said, Adaptive(thread=0)), document=GO))
    assert result.document == mv.document(*GO.messages, mv.assistant("Well, yes."))


def test_a_chats_old_turns_are_given() -> None:
    engine = tiny_engine(bias=FORKING)
    limits = Limits(max_tokens=30)
    result = engine.run(chat_of(HISTORY), Options(limits=limits))
    assert result.trace.answer <= 30
    assert "Old" not in result.text


def test_one_budget_for_holes_and_turn() -> None:
    engine = tiny_engine()
    limits = Limits(max_tokens=20)
    result = engine.run(chat_of(mv.assistant("So", mv.gen("a", 5))), Options(limits=limits))
    assert result.trace.answer <= 20


def test_a_path_that_begins_with_a_hole_waits_for_its_prompt() -> None:
    engine = scripted_engine({"So:": "xyz"}, max_batched_tokens=1)
    ids = engine.model.encode("So:")  # type: ignore[attr-defined]
    ops = (
        Extend(thread=0, tokens=tuple(ids), author="prompt"),
        Fork(thread=0, paths=(1, 2)),
        Generate(thread=1, hole=mv.gen("a", 2)),
        Generate(thread=2, hole=mv.gen("b", 3)),
        Join(paths=(1, 2), thread=3),
    )
    assert engine.run(ExecutionPlan(ops=ops)).values == {"a": "xy", "b": "xyz"}


def test_a_trace_of_the_first_version_is_read() -> None:
    line = (
        '{"model":"m","threads":[{"id":0},{"id":1,"label":"1","parent":0,"block":0}],'
        '"ids":[5,6,7],"texts":["a","b","c"],"owners":[0,1,0],"position_ids":[0,1,2],'
        '"authors":["prompt","engine","model"],"logprobs":[null,null,-0.5],"steps":[-1,-1,0],'
        '"ends":[0.25],"rows":[2],"holes":[],"finish":"end","seconds":0.5}'
    )
    trace = Trace.from_json(line)
    assert trace.token_texts == ("a", "b", "c")
    assert trace.thread_ids == (0, 1, 0)
    assert trace.forward_ids == (-1, -1, 0)
    assert (trace.forward_seconds, trace.forward_tokens) == ((0.25,), (2,))
    assert '"version":2' in trace.model_dump_json()
    assert Trace.from_json(trace.model_dump_json(exclude_none=True)) == trace
