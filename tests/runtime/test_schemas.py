"""Holes with a JSON schema: every walk over allowed tokens validates."""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel
from walks import (
    KINDS,
    constraints,
    follow,
    walk,
)

from mvspec import gen
from mvspec.errors import Unsupported, VerifyError


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
        assert isinstance(hole.read(text), model)
        # One line, spaced as Python spaces it: nothing to go in circles in.
        value = json.loads(text)
        assert value == json.loads(text)
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
        ({"type": "string", "format": "iri"}, "Unknown format: iri"),
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
