"""Constrained holes: every walk over allowed tokens ends in a value that the constraint means."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, Literal

import pytest
from bpe import CONTROL, copy, loose_tokenizer, small_tokenizer, untagged_tokenizer
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, field_validator
from qwen import byte_characters, qwen_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

import mvspec
from mvspec import gen
from mvspec.compiler import Vocabulary
from mvspec.errors import LimitExceeded, Unsupported, VerifyError
from mvspec.ir import Gen
from mvspec.runtime.constraint import Constraint, Constraints, value_of
from mvspec.syntax import Tag

# Python warns of [a&&b], in which Rust, whose regexes the library reads, sees an intersection.
pytestmark = pytest.mark.filterwarnings("ignore:Possible:FutureWarning")

WIDER = 37
"""How many logits stand past the vocabulary."""


def gappy_tokenizer() -> Tokenizer:
    """The small tokenizer with ids that are no token's."""
    data = json.loads(small_tokenizer().to_str())
    added = {token["content"]: token["id"] for token in data["added_tokens"]}
    ids = data["model"]["vocab"] | added
    data["model"]["vocab"] = {token: id if id < 300 else id + 30 for token, id in ids.items()}
    for token in data["added_tokens"]:
        token["id"] += 30
    return Tokenizer.from_str(json.dumps(data))


def added_tokenizer() -> Tokenizer:
    """The small tokenizer with tokens added as plain text, some of several bytes a character."""
    tokenizer = copy(small_tokenizer())
    texts = ("tea pot", "    ", "茶", " 一杯茶", "é", "🍵🍵")
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    tokenizer.add_special_tokens([AddedToken("[INST]", normalized=False)])
    return tokenizer


def fallback_tokenizer() -> Tokenizer:
    """As Gemma has it: spaces are ▁, and what is no token is spelled in bytes (<0x0A>)."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [chr(code) for code in range(33, 127)] + ["▁", "▁t", "▁te", "ea", "茶", "▁▁"]
    merges = [("▁", "t"), ("▁t", "e"), ("e", "a"), ("▁", "▁")]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "small": small_tokenizer,
    "loose": loose_tokenizer,
    "gappy": gappy_tokenizer,
    "added": added_tokenizer,
    "fallback": fallback_tokenizer,
}


@cache
def constraints(kind: str = "small") -> Constraints:
    vocabulary = Vocabulary.of(KINDS[kind](), tagged=kind != "fallback")
    end = vocabulary.backend.token_to_id("<|im_end|>")
    return Constraints(vocabulary, vocabulary.size + WIDER, {end})


@cache
def written(kind: str) -> dict[int, bytes]:
    """What each token writes, found from longer texts than the token alone."""
    backend = constraints(kind).vocabulary.backend
    characters = {character: byte for byte, character in byte_characters().items()}
    out: dict[int, bytes] = {}
    for token, id in backend.get_vocab(with_added_tokens=True).items():
        if kind == "fallback":
            match = re.fullmatch("<0x(..)>", token)
            out[id] = bytes.fromhex(match[1]) if match else token.replace("▁", " ").encode()
        elif all(character in characters for character in token):
            out[id] = bytes(characters[character] for character in token)
        else:
            out[id] = token.encode()
    return out


def ids_of(allowed: Any) -> list[int]:
    return [int(id) for id in allowed.nonzero()[:, 0]]


def follow(constraint: Constraint, ids: list[int]) -> Constraint:
    for id in ids:
        constraint.accept(id)
    return constraint


def state(constraint: Constraint) -> tuple[bool, bool]:
    return constraint.complete, constraint.ended


def walk(hole: Gen, seed: int, kind: str = "small", lead: str = "", most: int = 300) -> str | None:
    """Take allowed tokens at random, those that close something more often; None if too many."""
    within = constraints(kind)
    vocabulary = within.vocabulary
    draw = random.Random(seed)
    constraint = within.open(hole, lead)
    closing = {id for id, text in written(kind).items() if text in (b'"', b"}", b"]", b",", b", ")}
    ids: list[int] = []
    while True:
        choices = ids_of(constraint.allowed())
        assert constraint.ended == (not choices)
        if constraint.complete and (constraint.ended or draw.random() < 0.4):
            break
        if len(ids) == most:
            return None
        closers = [id for id in choices if id in closing]
        ids.append(draw.choice(closers if closers and draw.random() < 0.6 else choices))
        constraint.accept(ids[-1])
    text = vocabulary.decode(ids)
    assert text.encode() == b"".join(written(kind)[id] for id in ids)
    assert text.startswith(lead)
    return text[len(lead) :]


def values(hole: Gen, kind: str = "small", lead: str = "") -> set[bytes]:
    """Everything that allowed tokens can write where the constraint is complete."""
    within = constraints(kind)
    bytes_of = written(kind)
    found: set[bytes] = set()
    seen: set[bytes] = set()
    waiting: list[list[int]] = [[]]
    while waiting:
        ids = waiting.pop()
        constraint = follow(within.open(hole, lead), ids)
        text = b"".join(bytes_of[id] for id in ids)
        if constraint.complete:
            found.add(text)
        choices = ids_of(constraint.allowed())
        assert constraint.ended == (constraint.complete and not choices)
        assert constraint.complete or choices
        for id in choices:
            # The text so far decides what may come next, however it was tokenised.
            if (after := text + bytes_of[id]) not in seen:
                seen.add(after)
                waiting.append([*ids, id])
    return found


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


def test_a_choice_may_be_tokenised_in_every_way() -> None:
    within = constraints("added")
    bytes_of = written("added")
    tokenised: set[tuple[bytes, ...]] = set()
    waiting: list[list[int]] = [[]]
    while waiting:
        ids = waiting.pop()
        constraint = follow(within.open(gen("x", choices=["the"]), " "), ids)
        if constraint.complete:
            tokenised.add(tuple(bytes_of[id] for id in ids))
        waiting += [[*ids, id] for id in ids_of(constraint.allowed())]
    pieces = set(bytes_of.values())
    text = b" the"

    def splits(at: int) -> set[tuple[bytes, ...]]:
        if at == len(text):
            return {()}
        return {
            (text[at:end], *rest)
            for end in range(at + 1, len(text) + 1)
            if text[at:end] in pieces
            for rest in splits(end)
        }

    assert tokenised == splits(0)
    assert len(tokenised) > 2


def test_a_lead_merges_with_the_value() -> None:
    within = constraints("fallback")
    ids = within.vocabulary.backend.get_vocab()
    constraint = within.open(gen("x", choices=["tea"]), " ")
    assert set(ids_of(constraint.allowed())) == {
        ids[piece] for piece in ("▁", "▁t", "▁te", "<0x20>")
    }
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


def fillable(hole: Gen, lead: str = "", kind: str = "small") -> bool:
    try:
        constraints(kind).check(hole, lead)
    except Unsupported as error:
        assert "nothing matches" in str(error)  # noqa: PT017
        return False
    return True


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
    constraint = constraints().open(gen("x", regex=""))
    assert state(constraint) == (True, True)
    assert not constraint.allowed().any()
    assert state(constraints().open(gen("x", regex="a?"))) == (True, False)


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


# Schemas


class Mode(Enum):
    """How one goes."""

    foot = "on foot"
    rail = 'by "rail" \\ train'
    ship = "船é"


class Leg(BaseModel):
    """One leg."""

    to: str = Field(min_length=1, max_length=8)
    km: int = Field(ge=-3, le=117)
    mode: Mode


class Cat(BaseModel):
    """A cat."""

    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    """A dog."""

    kind: Literal["dog"]
    good: bool = True


class Trip(BaseModel):
    """Everything at once."""

    title: str
    legs: list[Leg] = Field(min_length=1, max_length=3)
    note: str | None = None
    pets: list[Cat | Dog] = Field(max_length=2)
    score: float = Field(gt=-1.5, lt=2.5)
    pair: tuple[int, str]
    prices: dict[str, int]
    code: str = Field(pattern="^[a-z]{2}[0-9]$")
    size: Literal[1, "big", None]


class Node(BaseModel):
    """One that holds itself."""

    properties: int
    children: list[Node] = []


class Open(BaseModel):
    """One with room for more."""

    model_config = ConfigDict(extra="allow")
    x: int


MODELS: list[type[BaseModel]] = [Leg, Trip, Node, Open, RootModel[list[Cat]]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
@given(seed=st.integers(0, 10**6), lead=st.sampled_from(["", " "]))
def test_walks_validate(kind: str, model: type[BaseModel], seed: int, lead: str) -> None:
    hole = gen("x", schema=model)
    text = walk(hole, seed, kind, lead)
    if text is not None:
        assert isinstance(value_of(hole, text, model), model)
        # One line, spaced as Python spaces it: nothing to go in circles in.
        value = json.loads(text)
        assert value == value_of(hole, text, None)
        if isinstance(value, dict) and model is not Open:
            assert set(value) <= set(model.model_fields)
        shape = re.sub(r'"(?:[^"\\]|\\.)*"', "text", text)
        assert not re.search(r"\s|[,:]", re.sub(r"[,:] (?=\S)", "", shape))


@given(seed=st.integers(0, 10**6))
def test_walks_of_a_free_schema_are_json(seed: int) -> None:
    text = walk(gen("x", schema="true"), seed)
    if text is not None:
        json.loads(text)


@given(
    legs=st.lists(
        st.builds(
            Leg,
            # The library escapes the control character 127, which Python does not.
            to=st.text(
                st.characters(codec="utf8", exclude_characters="\x7f"), min_size=1, max_size=8
            ),
            km=st.integers(-3, 117),
            mode=st.sampled_from(Mode),
        ),
        max_size=3,
    )
)
def test_what_python_writes_can_be_written(legs: list[Leg]) -> None:
    within = constraints()
    value = [leg.model_dump(mode="json") for leg in legs]
    text = json.dumps(value, ensure_ascii=False)
    constraint = within.open(gen("x", schema=RootModel[list[Leg]]))
    assert follow(constraint, within.vocabulary.encode_outside(text)).complete


def test_properties_without_a_name_are_forbidden_unless_asked_for() -> None:
    within = constraints()
    more = within.vocabulary.encode_outside('{"x": 1, "y')
    follow(within.open(gen("x", schema=Open)), more)
    x = {"type": "object", "properties": {"x": {"type": "integer"}}}
    for schema in (x, {"$ref": "#/$defs/a", "$defs": {"a": x}}):
        with pytest.raises(VerifyError, match="does not allow token"):
            follow(within.open(gen("x", schema=schema)), more)
    # Halves of one object do not forbid each other's properties.
    y = {"type": "object", "properties": {"y": {"type": "integer"}}, "required": ["y"]}
    for joined in ({"allOf": [x, y]}, {"$ref": "#/$defs/a", "$defs": {"a": x}, **y}):
        both = within.open(gen("x", schema=joined))
        assert follow(both, within.vocabulary.encode_outside('{"x": 1, "y": 2}')).complete


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "string", "format": "path"}, "Unknown format: path"),
        ({"type": "string", "pattern": "(?<!a)b"}, "look-around"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "Unsatisfiable"),
        ({"$ref": "https://example.com/x"}, "example.com"),
        ({"$ref": "#"}, "nothing matches"),
        ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "oneOf constraints are not supported:"),
        ({"x-guidance": {"lenient": True}, "uniqueItems": True}, "uniqueItems"),
        ({"properties": 5}, "properties must be an object"),
        ("false", "Unsatisfiable"),
        ('{"items":' * 300 + "{}" + "}" * 300, "recursion"),
    ],
)
def test_a_schema_beyond_the_library_is_refused(schema: Any, reason: str) -> None:
    with pytest.raises(Unsupported, match=f"hole 'x'.*json_schema.*{reason}") as caught:
        constraints().check(gen("x", schema=schema))
    assert "write a simpler json_schema" in str(caught.value)
    assert "\n" not in str(caught.value)


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
    assert value_of(hole, '{"n": 2}', Even) == Even(n=2)
    assert value_of(hole, '{"n": 3}', None) == {"n": 3}
    assert value_of(gen("x", regex="[0-9]"), "3", None) == "3"
    assert value_of(gen("x", choices=["{}"]), "{}", None) == "{}"


@pytest.mark.parametrize(
    ("text", "model", "reason"),
    [
        ('{"n": 3}', Even, "n: Value error, n is odd"),
        ('{"n": ', Even, "Invalid JSON: EOF"),
        ('{"n": ', None, "Expecting value"),
        ("1" * 5000, None, "digits"),
        ("[" * 10**6, None, "recursion"),
        ("", Even, "Invalid JSON"),
    ],
)
def test_a_value_that_does_not_validate_names_its_hole(
    text: str, model: type[BaseModel] | None, reason: str
) -> None:
    with pytest.raises(VerifyError, match=f"hole 'x': its text does not validate: .*{reason}"):
        value_of(gen("x", schema=Even), text, model)


def test_a_documents_holes_are_checked_as_they_are() -> None:
    document = mvspec.document(
        mvspec.assistant("Is it ", gen("x", choices=["tea", "not"]), gen("y", schema=Leg))
    )
    again = mvspec.Document.from_json(document.to_json())
    for hole in again.holes:
        constraints().check(hole, " ")
