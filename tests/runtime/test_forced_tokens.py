"""What a hole has no choice about is written: jump-forward, endings in time, and the seams."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bpe import untagged_tokenizer  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from pydantic import BaseModel, Field  # noqa: E402
from qwen import qwen_tokenizer  # noqa: E402
from scripted import ask, scripted_engine, tokens_of, training_logits  # noqa: E402
from tiny import tiny_engine  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.compiler import Vocabulary  # noqa: E402
from mvspec.errors import LimitExceeded  # noqa: E402
from mvspec.law.limits import Limits  # noqa: E402
from mvspec.runtime import Finished, Options, Sampling, TakenBack, Written  # noqa: E402
from mvspec.runtime.constraint import Constraints  # noqa: E402


class Verdict(BaseModel):
    winner: Literal["SQLite", "Postgres"]
    confident: bool


def encoded(text: str) -> list[str]:
    tokenizer = untagged_tokenizer()
    return [tokenizer.decode([id]) for id in tokenizer.encode(text).ids]


def test_names_quotes_and_colons_take_no_forward() -> None:
    text = '{"winner": "SQLite", "confident": true}'
    engine = scripted_engine({"As JSON:": f" {text}"})
    result = engine.run(ask("As JSON: ", mv.gen("it", 80, schema=Verdict)))
    assert result["it"] == Verdict(winner="SQLite", confident=True)
    tokens = tokens_of(result, "it")
    assert [token for token, _ in tokens] == encoded(f" {text}")
    drawn = [token for token, author in tokens if author == "model"]
    assert len(drawn) == 2  # which winner, and whether
    # The prompt with what is forced before the first draw, then one for each draw's rest.
    assert len(result.trace.forward_tokens) <= 3
    assert all(
        (logprob is None) == (author != "model")
        for logprob, author in zip(result.trace.logprobs, result.trace.authors, strict=True)
    )


def test_one_continuation_alone_takes_no_draw() -> None:
    engine = tiny_engine()
    body = ["A: ", mv.gen("a", choices=["tea pot"]), " B: ", mv.gen("b", regex="x{3}y"), "."]
    result = engine.run(ask(*body))
    assert result.values == {"a": "tea pot", "b": "xxxy"}
    assert "model" not in result.trace.authors
    assert len(result.trace.forward_tokens) == 0


def test_a_choice_that_is_decided_is_written() -> None:
    choices = ["positive about the sum", "negative about the sum"]
    for said in choices:
        result = scripted_engine({"It is": f" {said}"}).run(
            ask("It is ", mv.gen("it", choices=choices))
        )
        assert result["it"] == said
        tokens = tokens_of(result, "it")
        assert [text for text, _ in tokens] == encoded(f" {said}")
        assert [author for _, author in tokens].count("model") == 1


def test_what_was_drawn_is_spelled_again_where_it_joins_what_is_forced() -> None:
    # "an" begins "answer", which is one token; the pattern leaves nothing else after it.
    tokenizer = untagged_tokenizer()
    (answer,) = tokenizer.encode(" answer").ids
    (an,) = tokenizer.encode(" a").ids
    engine = tiny_engine(bias={an: 90.0})
    hole = mv.gen("it", regex="answer me|[b-z]{9}|q{8}")
    events = list(engine.stream(ask("So: ", hole, "!")))
    last = events[-1]
    assert isinstance(last, Finished)
    result = last.result
    if result["it"] == "answer me":
        assert [text for text, _ in tokens_of(result, "it")] == encoded(" answer me")
    told: dict[int, list[int]] = {}
    for event in events:  # whoever follows has what the trace has
        if isinstance(event, Written):
            told.setdefault(event.thread, []).append(event.id)
        elif isinstance(event, TakenBack):
            del told[event.thread][len(told[event.thread]) - event.count :]
    own = [id for id, author in zip(result.trace.ids, result.trace.authors, strict=True)
           if author != "prompt"]  # fmt: skip
    assert told[0] == own
    assert answer


SCHEMAS: list[Any] = [
    Verdict,
    list[int],
    dict[str, int],
    {"type": "object", "properties": {"a": {"enum": ["tea", "team", "coffee"]},
     "b": {"type": "integer"}, "c": {"type": "string"}}, "required": ["a", "b"]},
]  # fmt: skip


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6), which=st.integers(0, 3), most=st.integers(24, 70))
def test_forced_tokens_change_no_law(seed: int, which: int, most: int) -> None:
    """Laws 8 and 9: logits as in one training forward, and a replay is the same run."""
    engine = tiny_engine()
    document = ask(
        "So:",
        mv.parallel(
            mv.branch("a", "A: ", mv.gen("a", most, schema=SCHEMAS[which])),
            mv.branch("b", mv.gen("b", choices=["the sum", "the product is 6"])),
        ),
        mv.gen("c", 30, regex="(Let me see: )?[0-9]{2,}( and so on)?"),
    )
    result = engine.run(document, Options(Sampling(1.5, seed=seed), logits=True))
    whole = training_logits(engine, result)
    assert result.logits is not None
    for row, expected in zip(result.logits, whole, strict=True):
        assert row is None or float((row - expected).abs().max()) < 1e-9
    expected = torch.log_softmax(whole, -1)
    for index, logprob in enumerate(result.trace.logprobs):
        assert (logprob is not None) == (result.trace.authors[index] == "model")
        if logprob is not None:
            parent = int(result.trace.layout.parent[index])
            wanted = float(expected[parent, result.trace.ids[index]])
            assert logprob == pytest.approx(wanted, abs=1e-9)
    assert not result.trace.layout.loss_mask[
        [index for index, author in enumerate(result.trace.authors) if author != "model"]
    ].any()
    again = engine.run(result.trace.plan, Options(decode=True)).trace
    assert again.ids == result.trace.ids
    assert again.position_ids == result.trace.position_ids
    assert again.authors == result.trace.authors


# Ending in time


CHOICES = [["yes", "no"], ["a b c d e f", "x"], ["y", "yy", "yyy and so on"], ["答案是五", "答"]]


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.0, 1.0, 5.0, 50.0]))
def test_a_hole_of_choices_ends_in_a_choice(seed: int, temperature: float) -> None:
    engine = tiny_engine()
    vocabulary = engine.vocabulary
    holes = []
    for number, choices in enumerate(CHOICES):
        most = max(len(vocabulary.encode_outside(f" {choice}")) for choice in choices)
        holes += [f" {number}: ", mv.gen(f"h{number}", most, choices=choices)]
    result = engine.run(ask(*holes), Options(Sampling(temperature, seed=seed)))
    assert not result.errors
    for number, choices in enumerate(CHOICES):
        assert result[f"h{number}"] in choices


class Note(BaseModel):
    title: str
    tags: list[str] = Field(max_length=3)
    rank: int
    more: str | None = None


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.0, 1.0, 5.0, 50.0]))
def test_a_schema_and_a_regex_end_in_time(seed: int, temperature: float) -> None:
    engine = tiny_engine()
    document = ask(
        mv.parallel(
            mv.branch("a", "A: ", mv.gen("note", 60, schema=Note)),
            mv.branch("b", "B: ", mv.gen("words", 12, regex="([a-z]+ )*[a-z]+\\.")),
            mv.branch("c", "C: ", mv.gen("many", 8, schema=list[str])),
            mv.branch("d", "D: ", mv.gen("line", 8, regex=r"[^\n]+\n")),
        )
    )
    result = engine.run(document, Options(Sampling(temperature, seed=seed)))
    assert not result.errors, result.texts
    assert isinstance(result["note"], Note)
    assert re.fullmatch("([a-z]+ )*[a-z]+\\.", result["words"])
    assert isinstance(result["many"], list)
    assert result.trace.finish == "end"


def test_an_ending_fits_the_limits_of_a_run() -> None:
    engine = tiny_engine()
    document = ask("A: ", mv.gen("it", 60, schema=list[str]))
    for most in range(6, 20):
        limits = Limits(max_tokens=most)
        result = engine.run(document, Options(Sampling(5.0, seed=most), limits))
        assert isinstance(result["it"], list)
        assert result.trace.answer <= most


def test_a_constraint_that_cannot_end_in_time_says_so() -> None:
    with pytest.raises(LimitExceeded, match=r"after 4 tokens it was cut .* raise its max_tokens"):
        tiny_engine().run(ask("A:", mv.gen("it", 4, regex="[0-9]{9}")))["it"]


# Stops beside a constraint


@pytest.mark.parametrize(
    ("hole", "said", "value"),
    [
        (mv.gen("it", regex="[a-z ]+", stop="."), "one two. three", "one two"),
        (mv.gen("it", regex="(?s:.*)", stop=["\n", ";"]), "one; two", "one"),
        (mv.gen("it", regex="[a-z]+[.]?", stop="."), "so.", "so"),
        (mv.gen("it", regex="[a-z]+, [a-z]+", stop=","), "so, it", "so, it"),  # not yet whole
        (mv.gen("it", choices=["a b", "a b, and c"], stop=","), "a b, and c", "a b"),
        (mv.gen("it", 40, schema=list[int], stop="]"), "[1, 2]", [1, 2]),
        (mv.gen("it", 40, schema=list[int], stop="\n"), "[1]\nx", [1]),
    ],
)
def test_a_stop_string_ends_what_is_whole(hole: mv.Gen, said: str, value: Any) -> None:
    engine = scripted_engine({"So:": said, "Then:": "z"})
    result = engine.run(ask("So:", hole, " Then:", mv.gen("more", 1)))
    assert result.values == {"it": value, "more": "z"}


# How one hole is drawn


def test_a_hole_has_its_own_temperature_and_filters() -> None:
    engine = tiny_engine()
    wild = [mv.gen(f"w{n}", 4, temperature=30.0) for n in range(3)]
    calm = mv.gen("calm", 6)
    found = {}
    for seed in range(6):
        result = engine.run(ask("A:", calm, *wild), Options(Sampling(seed=seed)))
        found[result["calm"]] = result["w0"]
    assert len(found) == 1
    first = [
        engine.run(ask("A:", mv.gen("w", 4, temperature=30.0)), Options(Sampling(seed=seed)))["w"]
        for seed in range(6)
    ]
    assert len({*first}) > 1
    greedy = engine.run(ask("A:", calm))["calm"]
    hot = Options(Sampling(30.0, seed=1))
    for hole in (
        mv.gen("calm", 6, temperature=0.0),
        mv.gen("calm", 6, top_k=1),
        mv.gen("calm", 6, top_p=1e-9),
        mv.gen("calm", 6, min_p=1.0),
    ):
        assert engine.run(ask("A:", hole), hot)["calm"] == greedy
        again = mv.Document.from_json(ask("A:", hole).to_json())
        assert engine.run(again, hot)["calm"] == greedy
    penalised = mv.gen("calm", 40, repetition_penalty=1e9)
    assert engine.run(ask("A:", penalised))["calm"] != engine.run(ask("A:", mv.gen("c", 40)))["c"]


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"min_p": 2}, {"temperature": 1e999}]
)
def test_a_hole_drawn_impossibly_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(mv.VerifyError, match=next(iter(bad))):
        mv.gen("it", **bad)  # type: ignore[arg-type]


# Spelling


@pytest.mark.parametrize(
    "schema",
    [
        Verdict,
        {
            "type": "object",
            "properties": {"é ñ": {"const": "答案是五。🍵"}},
            "required": ["é ñ"],
            "additionalProperties": False,
        },
    ],
)
def test_what_is_forced_is_spelled_as_the_tokenizer_does(schema: Any) -> None:
    vocabulary = Vocabulary.of(qwen_tokenizer())
    constraint = Constraints(vocabulary, vocabulary.size, ()).open(mv.gen("x", schema=schema), " ")
    ids: list[int] = []
    while not constraint.ended:
        forced = constraint.forced()
        if forced.ids:
            constraint.respell(forced)
            ids[len(ids) - forced.back :] = forced.ids
        else:
            id = int(constraint.allowed().nonzero()[-1])
            constraint.accept(id)
            ids.append(id)
    text = vocabulary.decode(ids)
    json.loads(text)
    assert ids == vocabulary.encode_outside(text)
