"""Holes: what ends them, what may stand in them, and what the document makes of them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bpe import small_tokenizer  # noqa: E402
from dice import dice_engine  # noqa: E402
from scripted import ask, scripted_engine, tokens_of, training_logits  # noqa: E402
from tiny import chat, tiny_engine  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.compiler.plan import (  # noqa: E402
    Adaptive,
    ExecutionPlan,
    Extend,
    Fork,
    Generate,
    Join,
    Op,
)
from mvspec.errors import Unsupported, VerifyError  # noqa: E402
from mvspec.law.limits import Limits  # noqa: E402
from mvspec.runtime import (  # noqa: E402
    Finished,
    HoleFilled,
    Options,
    Sampling,
    TakenBack,
    Written,
)
from mvspec.tree.ir import Text  # noqa: E402

# Stop strings

STOPS = [
    ("one\ntwo", ["\n"], "one", ""),
    ("one\n\ntwo", ["\n\n"], "one", ""),
    ("one.[]", [".["], "one", ""),  # it spans tokens
    ("So answer", ["sw"], "So an", " an"),  # it lies inside one
    ("one.\n", ["\n"], "one.", "."),  # it ends one
    ("one.\n", ["\n", "."], "one", ""),  # the earliest counts
    ("one.\n", [".\n", ".", "e."], "on", "n"),  # it begins in one token and ends in the next
    ("\n", ["\n"], "", ""),
    ("é\n", ["\n"], "é", ""),
    ("答案是五.", ["五"], "答案是", "是"),
]


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(("said", "stop", "value", "again"), STOPS)
def test_stop_strings(tagged: bool, said: str, stop: list[str], value: str, again: str) -> None:
    engine = scripted_engine({"So:": said, "Then:": "xyz"}, tagged=tagged)
    result = engine.run(ask("So:", mv.gen("it", stop=stop), " Then:", mv.gen("more", 3)))
    assert result.values == {"it": value, "more": "xyz"}
    assert result.document == ask(f"So:{value} Then:xyz")
    tokens = tokens_of(result, "it")
    assert "".join(text for text, _ in tokens) == value
    # What a token said before its stop string is written again, by force.
    assert "".join(text for text, author in tokens if author == "engine") == again
    positions = result.trace.position_ids
    assert positions == tuple(range(len(positions)))


@pytest.mark.parametrize(
    ("said", "stop", "value"),
    [
        (" one two", " ", "one"),
        (" answer", " a", "answer"),
        (" answer", "a", ""),
        ("  one", " ", ""),
    ],
)
def test_a_stop_string_is_looked_for_in_the_value(said: str, stop: str, value: str) -> None:
    """The space before a hole is the document's own, so it stops nothing."""
    result = scripted_engine({"So:": said}).run(ask("So: ", mv.gen("it", stop=stop), "!"))
    assert result["it"] == value
    assert result.document == ask(f"So: {value}!")


def test_after_a_stop_string_the_logits_are_right() -> None:
    """What a stop string took back is seen by nobody."""
    engine = tiny_engine()
    inside, spanning = 0, 0
    for seed in range(12):
        options = Options(Sampling(1.0, seed=seed), logits=True)
        stops = ["a", "e", "b", "wer", "nd", "ly"]
        document = ask(
            "So:",
            mv.gen("it", 80, stop=stops),
            mv.gen("next", 3),
            mv.parallel(
                mv.branch("a", mv.gen("a", 80, stop=stops), mv.gen("b", 80, stop=stops)),
                mv.branch("b", mv.gen("c", 4)),
            ),
        )
        result = engine.run(document, options)
        whole = training_logits(engine, result)
        assert result.logits is not None
        for row, expected in zip(result.logits, whole, strict=True):
            assert row is None or float((row - expected).abs().max()) < 1e-9
        expected = torch.log_softmax(whole, -1)
        for index, logprob in enumerate(result.trace.logprobs):
            if logprob is not None:
                parent = int(result.trace.layout.parent[index])
                wanted = float(expected[parent, result.trace.ids[index]])
                assert logprob == pytest.approx(wanted, abs=1e-9)
        for name in ("it", "a", "b"):
            inside += any(author == "engine" for _, author in tokens_of(result, name))
            spanning += all(author == "model" for _, author in tokens_of(result, name))
    assert inside
    assert spanning


def plan(engine_ids: list[int], *ops: Op) -> ExecutionPlan:
    start = Extend(thread=0, tokens=tuple(engine_ids), author="prompt")
    return ExecutionPlan(ops=(start, *ops))


def test_a_thread_forks_right_after_a_stop_string() -> None:
    """Nothing stands between the hole and the fork, or the model's turn, that could predict."""
    engine = scripted_engine({"So:": "xzz"})
    stopped = Generate(thread=0, hole=mv.gen("it", stop="zz"))
    two = [Generate(thread=n, hole=mv.gen(f"p{n}", 2)) for n in (1, 2)]
    fork, join = Fork(thread=0, paths=(1, 2)), Join(paths=(1, 2), thread=3)
    ids = engine.model.encode("So:")  # type: ignore[attr-defined]
    events = list(engine.stream(plan(ids, stopped, fork, *two, join)))
    filled = {event.name: event.text for event in events if isinstance(event, HoleFilled)}
    assert filled == {"it": "x", "p1": "zz", "p2": "zz"}
    # A token that the model has to read once more is told once.
    written = [event.text for event in events if isinstance(event, Written) and not event.thread]
    assert written == ["x", "z"]
    free = engine.run(plan(ids, stopped, Adaptive(thread=0)))
    assert free.texts == {"it": "x"}
    assert free.text == "xzz<|im_end|>"


@pytest.mark.parametrize("structure", [True, False])
@pytest.mark.parametrize("kind", ["max_tokens", "max_position"])
def test_what_a_stop_string_leaves_of_a_turn_fits_too(kind: str, structure: bool) -> None:
    """A token's beginning may be more tokens than it: " parallel" without its "el" is three."""
    engine = scripted_engine({"assistant\n": "So parallel"})
    ask_ = mv.document(mv.user("Well?"))
    prompt = sum(len(op.tokens) for op in engine.plan(ask_).ops if isinstance(op, Extend))
    for most, text in ((1, "So"), (2, "So par"), (3, "So paral"), (4, "So parall"), (9, None)):
        limits = Limits(**{kind: most + prompt * (kind == "max_position")})
        options = Options(Sampling(stop=("el",)), limits, structure)
        result = engine.run(ask_, options)
        assert result.text == (text or "So parall")
        assert result.trace.answer <= most
        assert result.trace.finish == ("limit" if most < 4 else "end")
        assert result.document is not None


def test_with_share_a_stop_string_takes_nothing_back() -> None:
    engine = tiny_engine()
    block = [mv.branch("a", "A:", mv.gen("a", 9, stop=["b", "zz"])), mv.branch("b", "B.")]
    with pytest.raises(Unsupported, match=r"hole 'a': with share, .* 'zz' may be several"):
        engine.run(ask(mv.parallel(*block)), Options(share=2))
    assert engine.scheduler.steps == 0
    # Outside blocks nobody reads on.
    alone = ask("A:", mv.gen("a", 9, stop=["zz"]), mv.parallel(mv.branch("b", mv.gen("b", 3))))
    assert engine.run(alone, Options(share=2)).values == engine.run(alone).values


@pytest.mark.parametrize("share", [1, 2, 3])
def test_with_share_what_was_read_stays(share: int) -> None:
    """The newline before a closing tag, too, which is the plan's own otherwise."""
    engine = dice_engine(small_tokenizer(), 4.0)
    holes = [mv.gen("A", 9), mv.gen("B", 9, stop="e"), mv.gen("C", 9, stop=["."])]
    document = ask(mv.parallel(*(mv.branch("b", f"{h.name}:", h) for h in holes)))
    kept = 0
    for seed in range(20):
        options = Options(Sampling(1.0, seed=seed), share=share)
        events = list(engine.stream(document, options))
        assert not any(isinstance(event, TakenBack) for event in events)
        last = events[-1]
        assert isinstance(last, Finished)
        assert last.result.document == document.fill(dict(last.result.texts))
        kept += sum(text.endswith("\n") for text in last.result.texts.values())
        assert "e" not in last.result["B"]
    assert kept


# Where holes end


def test_max_tokens() -> None:
    says = {"A:": "x" * 90, "B:": "y" * 90}
    block = mv.parallel(
        mv.branch("a", "A:", mv.gen("a", 7)),
        mv.branch("b", "B:", mv.gen("b", 1)),
        conclusion=["C:", mv.gen("c", 4)],
    )
    result = scripted_engine(says | {"C:": "z" * 90}).run(ask(block))
    assert result.values == {"a": "x" * 7, "b": "y", "c": "zzzz"}
    assert result.trace.finish == "end"


ENDS = {
    "turn": ("xy<|im_end|>", "xy"),
    "tag": ("xy</Path>", "xy"),
    "line and tag": ("xy\n</Path>", "xy"),  # the newline is the plan's
    "two lines and tag": ("xy\n\n</Path>", "xy\n"),
    "a token with a newline and tag": ("xy.\n</Path>", "xy."),
    "line and turn": ("xy\n<|im_end|>", "xy\n"),  # here the model's own
    "only a line and tag": ("\n</Path>", ""),
    "only a tag": ("</Path>", ""),
    "another tag": ("xy</Think>", "xy"),
}


@pytest.mark.parametrize("lead", ["", " "])
@pytest.mark.parametrize("kind", sorted(ENDS))
def test_a_hole_ends_where_the_model_closes(kind: str, lead: str) -> None:
    said, value = ENDS[kind]
    engine = scripted_engine({"A:": lead + said, "C:": "z"})

    def body(a: str | mv.Gen, c: str | mv.Gen) -> mv.Document:
        one = mv.branch("one", f"A:{lead}", a)
        return ask(mv.parallel(one, mv.branch("two", "B"), conclusion=["C:", c]))

    result = engine.run(body(mv.gen("a"), mv.gen("c", 1)))
    assert result["a"] == value
    assert result.document == body(value, "z")
    assert mv.render(result.document.messages[-1]) + "<|im_end|>" == result.text


def test_a_tag_that_opens_is_no_text() -> None:
    engine = scripted_engine({"A:": "xy<Path>\nz"})
    result = engine.run(ask("A:", mv.gen("a", 5)))
    assert result["a"].startswith("xy")
    assert "<Path>" not in result.text


# Several turns, and nothing to fill


def test_holes_of_several_turns() -> None:
    engine = tiny_engine()
    document = mv.document(
        mv.system("Be brief. <|im_end|> <tool_call> <Path>"),
        mv.user("First?"),
        mv.assistant("A", mv.gen("a", 4)),
        mv.tool("7 <Goal>"),
        mv.user("Second?"),
        mv.assistant(mv.parallel(mv.branch("x", mv.gen("x", 3)), mv.branch("y", mv.gen("y", 3)))),
    )
    result = engine.run(document, Options(logits=True))
    whole = training_logits(engine, result)
    assert result.logits is not None
    for row, expected in zip(result.logits, whole, strict=True):
        assert row is None or float((row - expected).abs().max()) < 1e-9
    assert list(result.values) == ["a", "x", "y"]
    assert result.document is not None
    assert [message.role for message in result.document.messages] == [
        message.role for message in document.messages
    ]
    assert result.document.messages[2].body == (Text(text="A" + result["a"]),)
    # Text from outside forks nothing, and ends nothing.
    special = [i for i, t in enumerate(result.trace.ids) if t in chat().all_special_ids]
    texts = [result.trace.token_texts[i] for i in special if result.trace.authors[i] == "prompt"]
    assert set(texts) <= {"<|im_start|>", "<|im_end|>"}
    assert len(result.trace.threads) == 3


def test_a_document_without_holes() -> None:
    block = mv.parallel(mv.branch("a", "One."), mv.branch("b", "Two."), conclusion="Both.")
    result = tiny_engine().run(ask(block))
    assert result.values == {}
    assert result.document == ask(block)
    assert {*result.trace.thread_ids} == {0, 1, 2}
    assert result.trace.parallelism > 1


def test_names_of_holes() -> None:
    result = scripted_engine({"A:": "x"}).run(ask("A:", mv.gen("a"), mv.gen("b")))
    assert result["b"] == ""
    with pytest.raises(VerifyError, match=r"hole 'c': .* no such hole: it has a, b"):
        result["c"]
