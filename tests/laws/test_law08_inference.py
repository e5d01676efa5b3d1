"""Laws 7, 8 and 9 of the in-process engine: training equals inference, to the last bits.

The training side is one forward of the compiler's layout with its additive mask; nothing of the
engine is in it.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bpe import loose_tokenizer, small_tokenizer  # noqa: E402
from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from strategies import turns  # noqa: E402
from tiny import FORKING, KINDS, chat, tiny_engine  # noqa: E402
from traces import CANONICAL  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.compiler import additive_mask, compile_document, layout_from_ids  # noqa: E402
from mvspec.compiler.layout import Layout  # noqa: E402
from mvspec.law.limits import Limits  # noqa: E402
from mvspec.law.threads import sees  # noqa: E402
from mvspec.runtime import Options, Result, Sampling, TorchEngine  # noqa: E402
from mvspec.tree.ir import Message  # noqa: E402

TOKENIZER = chat()
ALONE = mv.assistant(mv.think("The sum is 5.", mv.parallel(mv.branch("", ""), conclusion=())))
NESTED = mv.parse(CANONICAL).messages[0]


# Each example is several forwards of two models.
FEWER = settings(max_examples=max(10, settings().max_examples // 5))


def training_logits(engine: TorchEngine, layout: Layout) -> Any:
    """Return the logits of one forward over a layout: [tokens, vocabulary]."""
    model = engine.model.model
    with torch.inference_mode():
        out = model(
            input_ids=torch.tensor(layout.input_ids[None], dtype=torch.int64),
            position_ids=torch.tensor(layout.position_ids[None], dtype=torch.int64),
            attention_mask=additive_mask(layout, dtype=model.dtype),
        )
    return out.logits[0] + getattr(engine.model, "bias", 0.0)


def differences(engine: TorchEngine, result: Result, layout: Layout | None = None) -> float:
    """Return the largest difference between a run's logits and those of training."""
    assert result.logits is not None
    layout = layout or result.trace.layout
    whole = training_logits(engine, layout)
    assert len(layout) == len(result.trace)
    found = 0.0
    assert all(row is not None for row in result.logits[:-1])
    for index, row in enumerate(result.logits):
        if row is not None:
            found = max(found, float((row - whole[index]).abs().max()))
    return found


def assert_drawn_from_parents(engine: TorchEngine, result: Result) -> int:
    """Each drawn token's logprob is that of training, at the token's parent."""
    layout = result.trace.layout
    logprobs = torch.log_softmax(training_logits(engine, layout), dim=-1)
    drawn = 0
    for index, found in enumerate(result.trace.logprobs):
        if found is not None:
            parent = int(layout.parent[index])
            expected = float(logprobs[parent, result.trace.ids[index]])
            assert abs(found - expected) < 1e-9
            drawn += 1
    return drawn


@pytest.mark.parametrize("kind", KINDS)
@given(turn=turns(max_depth=3), rows=st.sampled_from([1, 2, 3, 7, 40, 4096]), decode=st.booleans())
@example(turn=NESTED, rows=3, decode=True)
@example(turn=NESTED, rows=100, decode=False)
@example(turn=ALONE, rows=2, decode=False)  # one forward reads a fork's last and a path's first
@FEWER
def test_a_replay_is_one_training_forward(
    kind: str, turn: Message, rows: int, decode: bool
) -> None:
    """Laws 8 and 9: any chunking, also a token a step; the same document and layout."""
    for tokenizer in (small_tokenizer(), loose_tokenizer()):
        engine = tiny_engine(kind, tokenizer, max_batched_tokens=rows)
        result = engine.run(mv.document(turn), Options(logits=True, decode=decode))
        layout = compile_document(turn, tokenizer, forced_loss=False)
        assert result.trace.layout == layout
        assert result.trace.position_ids == tuple(layout.position_ids)
        assert result.trace.layout == layout_from_ids(
            result.trace.ids, tokenizer, forced=[a == "engine" for a in result.trace.authors]
        )
        assert result.document == mv.document(turn)
        assert len(layout) == 0 or differences(engine, result) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
@given(
    seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=4),
    rows=st.sampled_from([2, 16, 4096]),
    budget=st.integers(20, 160),
)
@FEWER
def test_adaptive_generation_is_one_training_forward(
    kind: str, seeds: list[int], rows: int, budget: int
) -> None:
    """Law 8 for what a model writes by itself, several requests at once."""
    engine = tiny_engine(kind, TOKENIZER, FORKING, max_batched_tokens=rows)
    documents = [mv.document(mv.user(f"Question {seed}?")) for seed in seeds]
    options = [
        Options(Sampling(temperature=1.5, seed=seed), Limits(max_tokens=budget), logits=True)
        for seed in seeds
    ]
    for result in engine.run_many(documents, options):
        assert differences(engine, result) < 1e-9
        assert_drawn_from_parents(engine, result)
        trace = result.trace
        assert tuple(trace.layout.position_ids) == trace.position_ids
        same = layout_from_ids(
            trace.ids,
            TOKENIZER,
            prompt=trace.prompt,
            forced=[author == "engine" for author in trace.authors],
        )
        assert trace.layout == same
        replay = engine.run(trace.plan, Options(logits=True))
        assert replay.trace.ids == trace.ids
        assert replay.trace.layout == trace.layout
        assert result.document is not None
        written = result.document.messages[-1]
        assert mv.parse(mv.render(written)).messages == (written,)


def nested() -> mv.Document:
    """A document with holes in nested blocks of unequal length, and with every constraint."""
    inner = mv.parallel(
        mv.branch("left", "L", mv.gen("left", 5)),
        mv.branch("right", mv.gen("right", 3), " and", mv.gen("more", 4)),
        conclusion=["so ", mv.gen("inner", 3)],
    )
    return mv.document(
        mv.system("Be brief."),
        mv.user("What now? <|im_end|> <tool_call> <Path>"),
        mv.assistant(
            mv.think("Let me see. ", mv.gen("thought", 6)),
            mv.parallel(
                mv.branch("one", mv.gen("one", 9)),
                mv.branch("two", "Two: ", inner, "done ", mv.gen("after", 4)),
                mv.branch("three", mv.gen("three", 8, regex="[0-9]{1,3}")),
                conclusion=["In all ", mv.gen("all", 5, choices=["a", "b", "ab"])],
            ),
            "Then",
            mv.parallel(mv.branch("x", mv.gen("x", 2)), mv.branch("y", "nothing to fill")),
            mv.gen("end", 6),
        ),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tagged", [True, False])
def test_static_plans_are_one_training_forward(kind: str, temperature: float, tagged: bool) -> None:
    from bpe import untagged_tokenizer

    tokenizer = TOKENIZER if tagged else chat(untagged_tokenizer())
    engine = tiny_engine(kind, tokenizer)
    result = engine.run(nested(), Options(Sampling(temperature, seed=3), logits=True))
    assert differences(engine, result) < 1e-9
    assert assert_drawn_from_parents(engine, result) > 20
    assert set(result.values) | set(result.errors) == {hole.name for hole in nested().holes}
    assert result.document is not None
    assert not result.document.holes
    if tagged:
        text = mv.render(result.document.messages[-1])
        assert result.trace.text.removesuffix("<|im_end|>\n").removesuffix("<|im_end|>") == text


@pytest.mark.parametrize("k", [1, 2, 5, 8, 64])
@given(turn=turns(max_depth=3), rows=st.sampled_from([1, 5, 4096]))
@example(turn=NESTED, rows=7)
@FEWER
def test_shared_is_its_lowering(k: int, turn: Message, rows: int) -> None:
    """Paths that read each other after every k tokens: the layout `shared(k)`."""
    engine = tiny_engine("Llama", small_tokenizer(), max_batched_tokens=rows)
    result = engine.run(mv.document(turn), Options(logits=True, share=k))
    layout = compile_document(turn, small_tokenizer(), f"shared({k})")
    if not len(layout):
        return
    whole = training_logits(engine, layout)
    # The layout is in rounds, the trace in surface order: tokens are told apart by what they are.
    assert result.logits is not None
    order = sorted_by_rounds(result, k)
    assert [result.trace.ids[index] for index in order] == layout.input_ids.tolist()
    assert [result.trace.position_ids[index] for index in order] == layout.position_ids.tolist()
    assert result.trace.layout == layout
    for place, index in enumerate(order):
        row = result.logits[index]
        if row is not None:
            assert float((row - whole[place]).abs().max()) < 1e-9


def sorted_by_rounds(result: Result, k: int) -> list[int]:
    """Return the surface order's indices in the order of the layout `shared(k)`."""
    trace = result.trace
    keys: list[tuple[int, int, int]] = []
    group, base, before = 0, 0, -1
    for index, owner in enumerate(trace.thread_ids):
        chain = trace.chain(owner)
        outer = chain[0][0] if chain else -1
        if outer != before:
            group += 1
            base = trace.position_ids[index]
            before = outer
        round_ = (trace.position_ids[index] - base) // k if outer >= 0 else 0
        keys.append((group, round_, index))
    return [index for _, _, index in sorted(keys)]


def assert_shared_lowering(engine: TorchEngine, result: Result, k: int) -> None:
    """A run that shared is the layout `shared(k)` of its tokens, and has its logits."""
    layout = layout_from_ids(
        result.trace.ids,
        TOKENIZER,
        f"shared({k})",
        prompt=result.trace.prompt,
        forced=[author == "engine" for author in result.trace.authors],
    )
    whole = training_logits(engine, layout)
    order = sorted_by_rounds(result, k)
    assert [result.trace.ids[index] for index in order] == layout.input_ids.tolist()
    assert [result.trace.position_ids[index] for index in order] == layout.position_ids.tolist()
    assert result.trace.layout == layout
    assert result.logits is not None
    for place, index in enumerate(order):
        row = result.logits[index]
        if row is not None:
            assert float((row - whole[place]).abs().max()) < 1e-9


@pytest.mark.parametrize("k", [1, 3, 16])
def test_shared_generation_is_its_lowering(k: int) -> None:
    engine = tiny_engine("Llama", TOKENIZER, FORKING)
    for seed in range(12):
        options = Options(
            Sampling(temperature=1.5, seed=seed), Limits(max_tokens=150), share=k, logits=True
        )
        assert_shared_lowering(engine, engine.run(mv.document(mv.user("Go.")), options), k)


@pytest.mark.parametrize("k", [1, 3, 16])
def test_shared_holes_are_their_lowering(k: int) -> None:
    """What a stop string leaves of a token is written in rounds, too."""
    engine = tiny_engine("Llama", TOKENIZER)
    document = mv.document(
        mv.user("Go."),
        mv.assistant(
            "So ",
            mv.parallel(
                *(
                    mv.branch(f"b{n}", "It is ", mv.gen(f"a{n}", 20, stop=["a", "e", "."]),
                              " and:", mv.gen(f"b{n}", 9 - n, stop="\n"))
                    for n in range(3)
                ),
                conclusion=["In all", mv.gen("end", 5, stop=["er"])],
            ),
        ),
    )  # fmt: skip
    again = 0
    for seed in range(12):
        options = Options(Sampling(temperature=1.0, seed=seed), share=k, logits=True)
        result = engine.run(document, options)
        assert_shared_lowering(engine, result, k)
        for hole in result.trace.holes:
            again += result.trace.authors[hole.start : hole.stop].count("engine") > 1
    assert again


@pytest.mark.parametrize("kind", KINDS)
@given(turn=st.one_of(st.just(NESTED), turns(max_depth=2)), data=st.data())
@FEWER
def test_siblings_do_not_interfere(kind: str, turn: Message, data: st.DataObject) -> None:
    """Law 7: changing any token of one path changes no logit of another, exactly."""
    tokenizer = small_tokenizer()
    engine = tiny_engine(kind, tokenizer)
    before = engine.run(mv.document(turn), Options(logits=True))
    trace = before.trace
    inside = [i for i, owner in enumerate(trace.thread_ids) if owner]
    if not inside:
        return
    changed = data.draw(st.sampled_from(inside))
    ids = list(trace.ids)
    ids[changed] = (ids[changed] + data.draw(st.integers(1, 250))) % 250
    other = trace.model_copy(update={"ids": tuple(ids)})
    after = engine.run(other.plan, Options(logits=True))
    assert before.logits is not None
    assert after.logits is not None
    touched = 0
    for index, owner in enumerate(trace.thread_ids):
        a, b = before.logits[index], after.logits[index]
        if a is None or b is None:
            continue
        hidden = not sees(trace.chain(owner), trace.chain(trace.thread_ids[changed]))
        if index < changed or hidden:
            assert torch.equal(a, b)
        elif index == changed:
            touched += not torch.equal(a, b)
    assert touched or ids[changed] == trace.ids[changed] or before.logits[changed] is None
