"""What a hole may say: no tag, the space before it, and what its constraint allows."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal

import pytest
from pydantic import BaseModel, Field, field_validator

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bpe import small_tokenizer, untagged_tokenizer  # noqa: E402
from scripted import ask, scripted_engine, tokens_of  # noqa: E402
from tiny import chat, tiny_engine  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.compiler.plan import ExecutionPlan, Generate  # noqa: E402
from mvspec.errors import LimitExceeded, MvspecError, Unsupported, VerifyError  # noqa: E402
from mvspec.runtime import Options, Sampling  # noqa: E402

# No tag in plain characters


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(
    ("before", "said", "after"),
    [
        ("S:", "<Path>", ""),
        ("S:<Pat", "h>", ""),
        ("S:<", "/Goal>", ""),
        ("S:", "<Pa", "th>"),
        ("S:", "ab</", "Think>"),
        ("S:<P", "at", "h>"),
        ("S:a <", " Goal><Goal>", ">"),
    ],
)
def test_no_hole_completes_a_tag(tagged: bool, before: str, said: str, after: str) -> None:
    engine = scripted_engine({before: plain(said)}, tagged=tagged)
    result = engine.run(ask(before, mv.gen("it", 20), after))
    assert result.document is not None  # its text would be refused
    assert said not in result["it"]
    assert result.trace.finish == "end"


def plain(text: str) -> list[int]:
    """Return the ids of a text, tags in it being characters."""
    ids: list[int] = untagged_tokenizer().encode(text, add_special_tokens=False).ids
    return ids


def test_what_a_stop_string_leaves_completes_no_tag() -> None:
    # "th" is one token, and without its "h" the text around it would be a tag.
    engine = scripted_engine({"S:<Pa": [*plain("th")]})
    result = engine.run(ask("S:<Pa", mv.gen("it", 5, stop="h"), "h>"))
    assert result.document is not None
    assert not result["it"].startswith("t")


def test_two_holes_side_by_side_complete_no_tag() -> None:
    engine = scripted_engine({"S:": plain("<Pat")})
    result = engine.run(ask("S:", mv.gen("one", 4), mv.gen("two"), "h>"))
    assert result.values == {"one": result["one"], "two": ""}
    assert result.document is not None
    # What was taken back stands in nobody's way.
    engine = scripted_engine({"S:": plain("<Patq")})
    end = mv.gen("two", choices=["h>"])
    result = engine.run(ask("S:", mv.gen("one", stop="tq"), end))
    assert result.values == {"one": "<Pa", "two": "h>"}
    # And what it hid counts again: this hole has no way out.
    result = engine.run(ask("S:", mv.gen("one", stop="q"), end))
    assert result.texts == {"one": "<Pat", "two": "h"}
    assert list(result.errors) == ["two"]


def test_a_document_whose_empty_holes_make_a_tag_is_refused() -> None:
    with pytest.raises(VerifyError, match=r"with its holes empty, .*<Path>"):
        scripted_engine({}).run(ask("<Pat", mv.gen("it"), "h>"))


# The space before a hole


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(
    ("said", "value"),
    [(" The answer", "The answer"), (" x", "x"), ("  two", " two"), (" ", ""), ("", "")],
)
def test_a_space_before_a_hole_is_part_of_its_first_token(
    tagged: bool, said: str, value: str
) -> None:
    """As training has it: words are tokens with the space before them."""
    tokenizer = chat(small_tokenizer() if tagged else untagged_tokenizer())
    engine = scripted_engine({"two:": said, "C:": " Both"}, tagged=tagged)

    def body(a: str | mv.Gen, c: str | mv.Gen) -> mv.Document:
        two = mv.branch("b", "So two: ", a)
        return ask(mv.parallel(mv.branch("a"), two, conclusion=["C: ", c]))

    plan = engine.plan(body(mv.gen("a"), mv.gen("c")))
    assert [op.lead for op in plan.ops if isinstance(op, Generate)] == [" ", " "]
    result = engine.run(plan)
    assert result.values == {"a": value, "c": "Both"}
    assert result.document == body(value, "Both")
    assert "".join(text for text, _ in tokens_of(result, "a")) == f" {value}"
    if value or not tagged:  # " \n" is one token in training
        replay = tiny_engine(tokenizer=tokenizer).run(body(value, "Both")).trace
        assert result.trace.ids == replay.ids[: len(result.trace)]
        assert result.trace.position_ids == replay.position_ids[: len(result.trace)]


def test_the_first_token_of_a_hole_holds_its_space() -> None:
    """Whatever the model would rather say."""
    engine = tiny_engine()
    for seed in range(8):
        result = engine.run(ask("So: ", mv.gen("it", 3)), Options(Sampling(5.0, seed=seed)))
        first, _ = tokens_of(result, "it")[0]
        assert first.startswith(" ")
        assert result.document == ask(f"So: {result['it']}")


# Constraints


def test_every_choice_can_come() -> None:
    """Also one that begins another."""
    # After a whole choice all tokens may come, and most of them end it.
    engine = tiny_engine(bias=dict.fromkeys(untagged_tokenizer().encode("y").ids, 90.0))
    document = ask("Say ", mv.gen("it", choices=["y", "yy", "n", "ab.\n", "答"]))
    options = [Options(Sampling(30.0, seed=seed)) for seed in range(300)]
    found = [result["it"] for result in engine.run_many([document] * 300, options)]
    assert {*found} == {"y", "yy", "n", "ab.\n", "答"}


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("y", "y"),
        ("yy", "yy"),
        ("yyy", "yy"),
        ("y and", "y"),  # a whole choice ends where the model would say something else
        ("y<|im_end|>", "y"),
        ("yy\n</Path>", "yy"),
    ],
)
def test_a_choice_that_begins_another(tagged: bool, said: str, value: str) -> None:
    engine = scripted_engine({"Say": f" {said}", "Then:": "z"}, tagged=tagged)
    document = ask("Say ", mv.gen("it", choices=["y", "yy"]), " Then:", mv.gen("more", 1))
    assert engine.run(document).values == {"it": value, "more": "z"}


def test_what_a_model_would_rather_say_is_masked() -> None:
    engine = scripted_engine({"Say": " maybe not"})
    result = engine.run(ask("Say ", mv.gen("it", choices=["yes", "no"])))
    assert result["it"] in ("yes", "no")


def test_a_regex() -> None:
    engine = tiny_engine()
    pattern = r"[A-Z][a-z]{2,5} (\d\d|é+)!"
    document = ask("Say ", mv.gen("it", 40, regex=pattern), " and on")
    options = [Options(Sampling(2.0, seed=seed)) for seed in range(12)]
    for result in engine.run_many([document] * 12, options):
        if "it" in result.values:
            assert re.fullmatch(pattern, result["it"])
            assert result.document == ask(f"Say {result['it']} and on")
        else:  # it went on with é until it was cut
            assert re.match(r"[A-Z][a-z]{2,5} é+", result.texts["it"])
    assert scripted_engine({"Say": " Abc 42!!"}).run(document)["it"] == "Abc 42!"


SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, 2, 3]}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}


class City(BaseModel):
    size: Literal["small", "large"]
    rank: int = Field(ge=0, le=99)
    old: bool


@pytest.mark.parametrize("tagged", [True, False])
def test_parallel_holes_each_have_their_own_constraint(tagged: bool) -> None:
    tokenizer = chat(small_tokenizer() if tagged else untagged_tokenizer())
    engine = tiny_engine(tokenizer=tokenizer)
    document = ask(
        mv.parallel(
            mv.branch("city", mv.gen("city", 80, schema=City)),
            mv.branch("town", mv.gen("town", 80, schema=City)),
            mv.branch("dict", "It is ", mv.gen("dict", 40, schema=SCHEMA)),
            mv.branch("code", mv.gen("code", 9, regex="[0-9]{4}")),
            mv.branch("pick", mv.gen("pick", choices=["a", "b"])),
            mv.branch("free", mv.gen("free", 20)),
            conclusion=["In all: ", mv.gen("all", 80, schema=City)],
        )
    )
    options = [Options(Sampling(1.5, seed=seed)) for seed in range(4)]
    for result in engine.run_many([document] * 4, options):
        assert not result.errors
        for name in ("city", "town", "all"):
            assert isinstance(result[name], City)
            assert City.model_validate_json(result.texts[name]) == result[name]
        assert result["dict"].keys() == {"n", "ok"}
        assert result["dict"]["n"] in (1, 2, 3)
        assert isinstance(result["dict"]["ok"], bool)
        assert re.fullmatch("[0-9]{4}", result["code"])
        assert result["pick"] in ("a", "b")
        assert result.document == document.fill(dict(result.texts))


def test_a_class_does_not_travel_in_a_plans_json() -> None:
    engine = tiny_engine()
    plan = engine.plan(ask("It is ", mv.gen("city", 80, schema=City)))
    again = ExecutionPlan.from_json(plan.to_json())
    city = engine.run(plan)["city"]
    assert engine.run(again)["city"] == city.model_dump()


class Even(BaseModel):
    number: Literal[1, 2]

    @field_validator("number")
    @classmethod
    def _even(cls, number: int) -> int:
        if number % 2:
            raise ValueError("odd")
        return number


def test_a_hole_without_a_value_says_why() -> None:
    says = {"A:": ' {"number": 1}', "B:": "1234", "C:": ' {"number": 2}'}
    document = ask(
        mv.parallel(
            mv.branch("a", "A: ", mv.gen("refused", schema=Even)),
            mv.branch("b", "B:", mv.gen("cut", 3, regex="[0-9]{4}")),
            mv.branch("c", "C: ", mv.gen("good", schema=Even)),
        )
    )
    result = scripted_engine(says).run(document)
    assert result.values == {"good": Even(number=2)}
    assert result.texts == {"refused": '{"number": 1}', "cut": "123", "good": '{"number": 2}'}
    with pytest.raises(LimitExceeded, match=r"hole 'cut': after 3 tokens .* raise its max_tokens"):
        result["cut"]
    with pytest.raises(VerifyError, match=r"^hole 'refused': its text .* number: .*odd"):
        result["refused"]
    # The document holds what was written, and the record says which hole was cut.
    assert result.document == document.fill(dict(result.texts), check=False)
    assert {each.name: each.cut for each in result.trace.holes} == {
        "refused": False,
        "cut": True,
        "good": False,
    }


class Broken(BaseModel):
    """What its validator raises is no refusal."""

    number: int

    @field_validator("number")
    @classmethod
    def looks(cls, number: int) -> int:
        raise KeyError(number)


def test_a_validator_that_fails_costs_its_own_value_alone() -> None:
    document = ask("A: ", mv.gen("broken", schema=Broken), " B:", mv.gen("free", 2))
    result = scripted_engine({"A:": ' {"number": 1}', "B:": "xy"}).run(document)
    assert result.values == {"free": "xy"}
    assert result.texts["broken"] == '{"number": 1}'
    with pytest.raises(VerifyError, match=r"its type raised KeyError: 1"):
        result["broken"]


@pytest.mark.parametrize("said", ['"soft"', '"1.50"', "2.25", '"-3"', '"1.2.3"'])
def test_a_decimal_is_a_number_or_a_text_of_one(said: str) -> None:
    document = ask("It costs: ", mv.gen("price", 12, schema=Decimal))
    result = scripted_engine({"costs:": f" {said}"}).run(document)
    assert isinstance(result["price"], Decimal)
    if said not in ('"soft"', '"1.2.3"'):
        assert result["price"] == Decimal(said.strip('"'))


@pytest.mark.parametrize(
    ("hole", "kind", "message"),
    [
        (mv.gen("it", 2, choices=["far too long"]), LimitExceeded, "max_tokens is 2"),
        (mv.gen("it", choices=["a <Path>"]), VerifyError, "holds a tag"),
        (mv.gen("it", regex=r"(a)\1"), Unsupported, "back references"),
        (mv.gen("it", schema={"not": {"type": "string"}}), Unsupported, "json_schema"),
        (mv.gen("it", 5000), LimitExceeded, "has 4096"),
    ],
)
def test_holes_that_cannot_be_filled_are_refused(
    hole: mv.Gen, kind: type[MvspecError], message: str
) -> None:
    """Before anything runs."""
    engine = tiny_engine()
    with pytest.raises(kind, match=message):
        engine.run(ask("So ", hole))
    assert engine.scheduler.steps == 0
