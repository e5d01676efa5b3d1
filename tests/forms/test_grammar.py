"""Choices and regexes: what can be written is what Python says of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from walks import (
    KINDS,
    constraints,
    fillable,
    follow,
    ids_of,
    state,
    values,
    walk,
)

from mvspec import gen
from mvspec.errors import LimitExceeded, Unsupported, VerifyError
from mvspec.law.tags import Tag

# Python warns of [a&&b], in which Rust, whose regexes the library reads, sees an intersection.
pytestmark = pytest.mark.filterwarnings("ignore:Possible:FutureWarning")

# Choices

few = st.lists(
    st.text("te a\n<é茶🍵\x00\\/\"'()[|.{", min_size=1, max_size=6), min_size=1, max_size=5
)


@pytest.mark.parametrize("kind", KINDS)
@given(choices=few, lead=st.sampled_from(["", " "]))
@example(choices=["tea", "tea pot", "teapot"], lead=" ")
@example(choices=["茶", "一杯茶", "é"], lead="")
def test_choices_are_what_can_be_written(kind: str, choices: list[str], lead: str) -> None:
    hole = gen("x", choices=choices)
    assert values(hole, kind, lead) == {(lead + choice).encode() for choice in choices}


@pytest.mark.parametrize("kind", KINDS)
def test_a_choice_is_spelled_as_the_tokenizer_does(kind: str) -> None:
    within = constraints(kind)
    constraint = within.open(gen("x", choices=["the", "tea", "t"]), " ")
    spelled = {tuple(within.vocabulary.encode_outside(f" {each}")) for each in ("the", "tea", "t")}
    waiting: list[tuple[int, ...]] = [()]
    found = set()
    while waiting:
        ids = waiting.pop()
        constraint = follow(within.open(gen("x", choices=["the", "tea", "t"]), " "), list(ids))
        if constraint.complete:
            found.add(ids)
        waiting += [(*ids, id) for id in ids_of(constraint.allowed())]
    assert found == spelled


def test_a_lead_merges_with_the_value() -> None:
    within = constraints("fallback")
    ids = within.vocabulary.backend.get_vocab()
    constraint = within.open(gen("x", choices=["tea"]), " ")
    assert ids_of(constraint.allowed()) == [ids["▁te"]]
    assert state(follow(constraint, [ids["▁te"]])) == (False, False)
    assert state(follow(constraint, [ids["a"]])) == (True, True)


def test_a_choice_that_starts_another_may_end_or_go_on() -> None:
    within = constraints()
    constraint = within.open(gen("x", choices=["tea", "teapot"]))
    assert state(follow(constraint, within.vocabulary.encode("tea"))) == (True, False)
    assert state(follow(constraint, within.vocabulary.encode("pot"))) == (True, True)
    assert not constraint.allowed().any()


@pytest.mark.parametrize("tag", list(Tag))
def test_a_choice_with_a_tag_is_refused(tag: Tag) -> None:
    with pytest.raises(VerifyError, match=r"hole 'x': the choice .* holds a tag"):
        constraints().check(gen("x", choices=["tea", f"a{tag}b"]))


def test_a_choice_longer_than_the_hole_is_refused() -> None:
    within = constraints()
    length = len(within.vocabulary.encode_outside(" coffee pot"))
    within.check(gen("x", length, choices=["tea", "coffee pot"]), " ")
    with pytest.raises(LimitExceeded, match=f"hole 'x': the choice 'coffee pot' is {length} tok"):
        within.check(gen("x", length - 1, choices=["tea", "coffee pot"]), " ")


# Regexes

atoms = st.sampled_from(
    [
        *("a", "b", "é", "茶", "0", " ", r"\.", r"\/", r"\x00", r"\n", "-", "&", "~", '"'),
        *(".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", r"[\w-]", r"[^\W\d]", "[a-c]", "[^a-c]"),
        *("[a&&b]", "[a~~b]", "[]a]", "[^]a]", r"[\]\\^]", "[é-ü]", r"[^\s\S]"),
        *("(?i:K)", "(?i:[k])", "(?s:.)", r"(?a:\w)", "(?x: a b # c\n)", "(?P<n%d>a)"),
        *("(?#note)a", r"\141", "a{,2}"),
    ]
)  # fmt: skip


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    bounds = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}", "*?", "+?", "??"])
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, bounds).map(lambda pair: f"({pair[0]}){pair[1]}"),
        inner.map(lambda text: f"(?i:{text})"),
    )


regexes = st.recursive(atoms, larger, max_leaves=5)
edges = st.sampled_from(
    [("", ""), ("^", "$"), (r"\A", r"\Z"), ("^", ""), ("", "$"), ("(?m)^", "$")]
)


def numbered(regex: str) -> str:
    """The regex with its named groups told apart."""
    parts = regex.split("%d")
    return parts[0] + "".join(f"{i}{part}" for i, part in enumerate(parts[1:]))


@pytest.mark.parametrize("kind", KINDS)
@given(regex=regexes, edge=edges, lead=st.sampled_from(["", " "]), seed=st.integers(0, 99))
def test_walks_match_the_regex_as_python_does(
    kind: str, regex: str, edge: tuple[str, str], lead: str, seed: int
) -> None:
    regex = edge[0] + numbered(regex) + edge[1]
    hole = gen("x", regex=regex)
    if fillable(hole, lead, kind):
        text = walk(hole, seed, kind, lead)
        assert text is None or re.fullmatch(regex, text)


@given(data=st.data(), regex=regexes)
@example(data=None, regex=r"\w+²")
def test_what_python_matches_can_be_written(data: st.DataObject | None, regex: str) -> None:
    regex = numbered(regex)
    hole = gen("x", regex=regex)
    if data is None:
        text = "٣ª²"
    else:
        assume(r"[^\s\S]" not in regex)  # Hypothesis refuses what matches nothing
        text = data.draw(st.from_regex(regex, fullmatch=True, alphabet=st.characters(codec="utf8")))
    assume(fillable(hole))
    within = constraints()
    constraint = follow(within.open(hole), within.vocabulary.encode_outside(text))
    assert constraint.complete


@pytest.mark.parametrize(
    ("regex", "yes", "no"),
    [
        (r"\w", "é²٣_", "-\u0301\u200d"),  # Rust's \w has the accent and the joiner, not the ²
        (r"\s", " \x1c\u3000", "\u200b"),
        ("(?i)ſ", "sSſ", "zß"),
        ("[a&&b]", "a&b", "c"),
        ("[[:alpha:]", "[:alph", "b]"),
        (".", "a\r\u2028", "\n"),
        ("(?s).", "a\n", ""),
        (r"^a|b$", "ab", "c"),
    ],
)
def test_a_regex_means_what_it_means_in_python(regex: str, yes: str, no: str) -> None:
    within = constraints()
    for character in yes + no:
        ids = within.vocabulary.encode_outside(character)
        assert (re.fullmatch(regex, character) is not None) == (character in yes)
        constraint = within.open(gen("x", regex=regex))
        if character in yes:
            assert follow(constraint, ids).ended
        else:
            with pytest.raises(VerifyError, match="does not allow token"):
                follow(constraint, ids)


def test_an_empty_match_is_complete_from_the_start() -> None:
    assert state(constraints().open(gen("x", regex="a?"))) == (True, False)


@pytest.mark.parametrize("regex", ["", r"([^\s\S])*", "()"])
def test_a_regex_that_writes_nothing_is_refused(regex: str) -> None:
    with pytest.raises(VerifyError, match="can only write nothing"):
        constraints().open(gen("x", regex=regex))


@pytest.mark.parametrize(
    ("regex", "reason"),
    [
        ("(?=a)b", "'look-around'"),
        ("(?<!a)b", "'look-around'"),
        ("(?!)", "'look-around'"),
        (r"(a)\1", "'back references'"),
        ("(a)?(?(1)b|c)", "'back references'"),
        (r"a\b", "'anchors inside a regex'"),
        ("a$b", "'anchors inside a regex'"),
        ("(?:^a)*", "'anchors inside a regex'"),
        ("(?>a|ab)", "'atomic groups'"),
        ("a++", "'possessive repeats'"),
        (r"[^\s\S]", "nothing matches it"),
        (r"\ud800", r"regex: .*; |regex: .*: write"),
        ("(?:a" * 99 + ")*" * 99, "nested parentheses"),
    ],
)
def test_a_regex_beyond_the_library_is_refused(regex: str, reason: str) -> None:
    with pytest.raises(Unsupported, match=f"hole 'x'.*{reason}") as caught:
        constraints().check(gen("x", regex=regex))
    assert re.search("without|simpler", str(caught.value))
    assert "\n" not in str(caught.value)
