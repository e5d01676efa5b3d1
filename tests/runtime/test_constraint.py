"""Constraints of holes: masks, state, and the values that come of them."""

from __future__ import annotations

from typing import Any

import pytest
from bpe import CONTROL, copy, small_tokenizer, untagged_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator
from qwen import qwen_tokenizer
from tokenizers import AddedToken
from walks import (
    KINDS,
    WIDER,
    constraints,
    follow,
    ids_of,
    written,
)

import mvspec
from mvspec import gen
from mvspec.compiler import Vocabulary
from mvspec.errors import Unsupported, VerifyError
from mvspec.law.tags import Tag
from mvspec.runtime.constraint import Constraints

# Tokens and state


@pytest.mark.parametrize("kind", KINDS)
def test_no_constraint_allows_control_tokens(kind: str) -> None:
    within = constraints(kind)
    tokenizer = within.vocabulary.backend
    allowed = within.open(gen("x"), "").allowed()
    assert allowed.shape == (within.vocabulary.size + WIDER,)
    names = {tokenizer.id_to_token(id) for id in ids_of(allowed)}
    control = {*CONTROL, "[INST]", "<tool_call>", *(str(tag) for tag in Tag), None}
    assert names.isdisjoint(control)
    # All other tokens may be part of some text, but those with bytes that no text has.
    no_text = {0xC0, 0xC1, *range(0xF5, 256)}
    never = {id for id, text in written(kind).items() if set(text) & no_text}
    inside = {id for id, text in written(kind).items() if 0x80 <= text[0] < 0xC0}
    every = {i for t, i in tokenizer.get_vocab(with_added_tokens=True).items() if t not in control}
    assert set(ids_of(allowed)) == every - never - inside


def test_tags_are_barred_even_where_they_are_no_special_tokens() -> None:
    tokenizer = copy(untagged_tokenizer())
    tokenizer.add_tokens([AddedToken(str(tag), normalized=False) for tag in Tag])
    within = Constraints(Vocabulary.of(tokenizer, tagged=False), 500, ())
    allowed = within.open(gen("x", regex="[^0]*")).allowed()
    assert not any(allowed[tokenizer.token_to_id(str(tag))] for tag in Tag)


def test_every_end_is_barred() -> None:
    vocabulary = Vocabulary.of(small_tokenizer())
    ends = vocabulary.encode("a") + vocabulary.encode("t")
    allowed = Constraints(vocabulary, vocabulary.size, ends).open(gen("x")).allowed()
    assert not allowed[ends].any()
    assert allowed[vocabulary.encode("b")].all()


def test_qwen_counts_bytes_right() -> None:
    vocabulary = Vocabulary.of(qwen_tokenizer())
    within = Constraints(vocabulary, 151936, {151643, 151645})
    for text in ("答案是五。🍵 é", "ꙮ ﷽\u200d", "    x\n\n\t"):
        constraint = within.open(gen("x", choices=[text]), " ")
        assert follow(constraint, vocabulary.encode_outside(" " + text)).ended
    allowed = within.open(gen("x", regex="(?s:.*)")).allowed()
    assert allowed.shape == (151936,)
    assert not allowed[151643:].any()
    assert allowed[:151643].sum() > 150000


def test_holes_share_no_state() -> None:
    within = constraints()
    ids = within.vocabulary.encode_outside
    hole = gen("x", choices=["tea", "coffee"])
    one, two = within.open(hole), within.open(hole)
    follow(one, ids("coff"))
    assert follow(two, ids("tea")).complete
    three = within.open(hole)
    assert not one.complete
    assert set(ids("t")) < set(ids_of(three.allowed()))
    assert set(ids_of(three.allowed())).isdisjoint(ids_of(one.allowed()))
    assert follow(one, ids("ee")).ended
    assert not three.complete


def test_a_mask_is_the_callers_to_change() -> None:
    constraint = constraints().open(gen("x", choices=["tea"]))
    before = constraint.allowed()
    constraint.allowed().zero_()
    assert before.any()
    assert (constraint.allowed() == before).all()


@given(id=st.integers(-5, 500))
@example(id=2**40)
def test_a_wrong_token_changes_nothing(id: int) -> None:
    within = constraints()
    constraint = follow(within.open(gen("x", regex="te[a-z]")), within.vocabulary.encode("te"))
    allowed = constraint.allowed()
    if not (0 <= id < len(allowed) and allowed[id]):
        with pytest.raises(VerifyError, match=f"hole 'x': .* token {id} "):
            constraint.accept(id)
        assert (constraint.allowed() == allowed).all()
        assert not constraint.complete
    (a,) = within.vocabulary.encode("a")
    constraint.accept(a)
    assert constraint.ended
    with pytest.raises(VerifyError):
        constraint.accept(a)
    assert constraint.ended


def test_grammars_are_kept_for_the_next_hole_but_not_all() -> None:
    within = Constraints(Vocabulary.of(small_tokenizer()), 500, ())
    for number in range(300):
        within.check(gen(f"x{number}", choices=[f"tea {number}"]))
    assert 0 < len(within._kept) < 300
    kept = dict(within._kept)
    within.open(gen("another", choices=["tea 299"]))
    assert kept.keys() == within._kept.keys()


def test_a_hole_without_a_constraint_passes_without_a_grammar() -> None:
    within = Constraints(Vocabulary.of(small_tokenizer()), 500, ())
    within.check(gen("x"))
    assert not within._kept


def test_logits_narrower_than_the_vocabulary_are_refused() -> None:
    vocabulary = Vocabulary.of(small_tokenizer())
    with pytest.raises(Unsupported, match="resize_token_embeddings"):
        Constraints(vocabulary, vocabulary.size - 1, ())


# Values


class Even(BaseModel):
    """Refuses what its schema allows."""

    n: int

    @field_validator("n")
    @classmethod
    def _even(cls, n: int) -> int:
        if n % 2:
            raise ValueError("n is odd")
        return n


def test_a_value_is_what_the_hole_promises() -> None:
    hole = gen("x", schema=Even)
    assert hole.read('{"n": 2}') == Even(n=2)
    assert gen("x", schema=Even.model_json_schema()).read('{"n": 3}') == {"n": 3}
    assert gen("x", regex="[0-9]").read("3") == "3"
    assert gen("x", choices=["{}", "[]"]).read("{}") == "{}"
    assert gen("x", schema=dict[str, list[int]]).read('{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize(
    ("text", "schema", "reason"),
    [
        ('{"n": 3}', Even, "n: Value error, n is odd"),
        ('{"n": ', Even, "Invalid JSON: EOF"),
        ('{"n": ', "{}", "Expecting value"),
        ("1" * 5000, "{}", "digits"),
        ("[" * 10**6, "{}", "recursion"),
        ("", Even, "Invalid JSON"),
        ('["a"]', list[int] | None, "Input should be"),
    ],
)
def test_a_value_that_does_not_validate_names_its_hole(text: str, schema: Any, reason: str) -> None:
    with pytest.raises(VerifyError, match=f"hole 'x': its text .* is not valid: .*{reason}"):
        gen("x", schema=schema).read(text)


@pytest.mark.parametrize(
    ("hole", "text", "reason"),
    [
        (gen("x", choices=["a", "b"]), "c", r"'c' is none of its choices \('a', 'b'\)"),
        (gen("x", regex="[0-9]+"), "1a", "'1a' is no match of its regex"),
    ],
)
def test_a_text_against_its_constraint_is_no_value(hole: Any, text: str, reason: str) -> None:
    with pytest.raises(VerifyError, match=reason):
        hole.read(text)


def test_a_documents_holes_are_checked_as_they_are() -> None:
    document = mvspec.document(
        mvspec.assistant("Is it ", gen("x", choices=["tea", "not"]), gen("y", schema=Even))
    )
    again = mvspec.Document.from_json(document.to_json())
    for hole in again.holes:
        constraints().check(hole, " ")
