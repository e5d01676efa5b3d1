"""The IR: illegal trees cannot be built, and legal ones can be walked, mapped, folded, filled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from pydantic import BaseModel, SecretStr, ValidationError
from strategies import documents, turns

import mvspec
from mvspec.law.limits import MAX_DEPTH
from mvspec.tree.ir import (
    Conclusion,
    Document,
    Gen,
    Goal,
    Message,
    Outline,
    Parallel,
    Path,
    Text,
    Think,
)
from mvspec.tree.node import Node


def text(value: str) -> Text:
    return Text(text=value)


def block(*labels: str) -> Parallel:
    return Parallel(
        goal=Goal(outlines=tuple(Outline(label=label) for label in labels)),
        paths=tuple(Path(label=label) for label in labels),
    )


def nested(depth: int) -> Parallel:
    inner = block("1")
    for _ in range(depth - 1):
        inner = Parallel.build(goal=inner.goal, paths=(Path(label="1", body=(inner,)),))
    return inner


ILLEGAL: dict[str, tuple[Callable[[], object], str, str]] = {
    "empty text": (lambda: Text.build(text=""), "text", "at least 1 character"),
    "touching texts": (
        lambda: Path.build(label="1", body=(text("a"), text("b"))),
        "",
        "texts touch: join them",
    ),
    "touching texts in a turn": (
        lambda: Message.build(role="assistant", body=(text("a"), text("b"))),
        "",
        "texts touch",
    ),
    "touching texts of a user": (
        lambda: Message.build(role="user", body=(text("a"), text("b"))),
        "",
        "texts touch",
    ),
    "a tag in a path": (
        lambda: Path.build(label="1", body=(text("see </Goal>"),)),
        "",
        "text holds the tag </Goal> at character 4",
    ),
    "a tag in a conclusion": (
        lambda: Conclusion.build(body=(text("<Path>"),)),
        "",
        "the tag <Path>",
    ),
    "a tag in a Think": (lambda: Think.build(body=(text("<Path>"),)), "", "the tag <Path>"),
    "a tag in a turn": (lambda: mvspec.assistant("<Think>"), "", "the tag <Think>"),
    "a tag in an outline": (
        lambda: Outline.build(label="1", text="<Path>"),
        "text",
        "the tag <Path>",
    ),
    "an outline of two lines": (
        lambda: Outline.build(label="1", text="a\nb"),
        "text",
        "an outline is one line",
    ),
    "a word as a label": (lambda: Path.build(label="one"), "label", "label 'one' is not a number"),
    "an empty label": (lambda: Outline.build(label=""), "label", "is not a number"),
    "a label that ends in a dot": (lambda: Path.build(label="1."), "label", "is not a number"),
    "digits of another script": (lambda: Path.build(label="١"), "label", "is not a number"),
    "a label with a newline": (lambda: Path.build(label="1\n"), "label", "is not a number"),
    "no outline": (lambda: Goal.build(outlines=()), "outlines", "at least 1 item"),
    "no path": (
        lambda: Parallel.build(goal=block("1").goal, paths=()),
        "paths",
        "at least 1 item",
    ),
    "a label twice": (
        lambda: Goal.build(outlines=(Outline(label="1"), Outline(label="1"))),
        "",
        "label '1' occurs twice in one block",
    ),
    "fewer paths": (
        lambda: Parallel.build(goal=block("1", "2").goal, paths=block("1").paths),
        "",
        "outlines 1, 2 but paths 1: every outline has one path",
    ),
    "another order": (
        lambda: Parallel.build(goal=block("1", "2").goal, paths=block("2", "1").paths),
        "",
        "outlines 1, 2 but paths 2, 1",
    ),
    "another label": (
        lambda: Parallel.build(goal=block("1").goal, paths=block("2").paths),
        "",
        "outlines 1 but paths 2",
    ),
    "too deep": (lambda: nested(MAX_DEPTH + 1), "", f"deeper than {MAX_DEPTH}: flatten"),
    "Think after text": (
        lambda: mvspec.assistant("a", mvspec.think("b")),
        "",
        "Think comes once and first",
    ),
    "two Thinks": (
        lambda: mvspec.assistant(Think(), Think()),
        "",
        "Think comes once and first",
    ),
    "Think in Think": (lambda: mvspec.think(Think()), "body[0]", "Input tag 'think'"),
    "a block in a conclusion": (
        lambda: mvspec.parallel(mvspec.branch("a"), conclusion=block("1")),
        "body[0]",
        "Input tag 'parallel'",
    ),
    "a hole of a user": (
        lambda: Message.build(role="user", body=(mvspec.gen("a"),)),
        "",
        "a user message holds plain text only, not gen",
    ),
    "a block of a tool": (
        lambda: Message.build(role="tool", body=(block("1"),)),
        "",
        "a tool message holds plain text only, not parallel",
    ),
    "an unknown role": (lambda: Message.build(role="robot"), "role", "'system', 'user'"),
    "an unknown field": (lambda: Text.build(text="a", bold=True), "bold", "not permitted"),
    "a hole twice": (
        lambda: mvspec.document(
            mvspec.assistant(mvspec.gen("a")), mvspec.assistant(mvspec.gen("a"))
        ),
        "",
        "hole 'a' occurs twice",
    ),
    "a hole with a bad name": (lambda: mvspec.gen("a b"), "name", "should match pattern"),
    "a hole without tokens": (lambda: mvspec.gen("a", 0), "max_tokens", "greater than or equal"),
    "an empty stop": (lambda: mvspec.gen("a", stop=[""]), "stop[0]", "at least 1 character"),
    "two constraints": (
        lambda: mvspec.gen("a", regex="x", choices=["x"]),
        "",
        "hole 'a' has regex and choices: keep one",
    ),
    "no choices": (lambda: mvspec.gen("a", choices=[]), "", "hole 'a' has no choices"),
    "an empty choice": (lambda: mvspec.gen("a", choices=[""]), "choices[0]", "at least 1"),
    "a regex that does not compile": (lambda: mvspec.gen("a", regex="("), "regex", "not compile"),
    "a regex too deep": (lambda: mvspec.gen("a", regex="(" * 10**5), "regex", "not compile"),
    "a regex too long": (
        lambda: mvspec.gen("a", regex=f"a{{{10**30}}}"),
        "regex",
        "not compile",
    ),
    "a schema that is no JSON": (lambda: mvspec.gen("a", schema="{"), "json_schema", "not JSON"),
    "a schema that is a list": (
        lambda: mvspec.gen("a", schema="[]"),
        "json_schema",
        "must be a JSON object or a boolean",
    ),
    "a schema too deep": (lambda: mvspec.gen("a", schema="[" * 10**5), "json_schema", "not JSON"),
    "a schema with NaN": (
        lambda: mvspec.gen("a", schema='{"a": NaN}'),
        "json_schema",
        "NaN|Out of",
    ),
    "no branch": (lambda: mvspec.parallel(), "parallel", "a block has at least one branch"),
}


@pytest.mark.parametrize(("make", "address", "message"), ILLEGAL.values(), ids=ILLEGAL)
def test_illegal_trees_cannot_be_built(
    make: Callable[[], object], address: str, message: str
) -> None:
    with pytest.raises(mvspec.VerifyError, match=message) as caught:
        make()
    assert caught.value.address == address


def test_an_error_names_the_place_in_the_tree() -> None:
    data = mvspec.document(mvspec.assistant(mvspec.think(nested(2)))).model_dump()
    inner = data["messages"][0]["body"][0]["body"][0]["paths"][0]["body"][0]
    inner["paths"][0]["label"] = "x"
    with pytest.raises(mvspec.VerifyError) as caught:
        Document.from_json(json.dumps(data))
    assert caught.value.address == "messages[0].body[0].body[0].paths[0].body[0].paths[0].label"


def test_the_deepest_block_is_legal_and_knows_its_depth() -> None:
    assert nested(MAX_DEPTH).depth == MAX_DEPTH
    document = mvspec.document(mvspec.assistant(nested(MAX_DEPTH)))
    assert Document.from_json(document.to_json()) == document
    assert mvspec.parse(mvspec.render(document)) == document


def test_the_builder_numbers() -> None:
    built = mvspec.parallel(
        mvspec.branch("a"),
        mvspec.branch(
            "b",
            mvspec.parallel(mvspec.branch("c"), mvspec.branch("d", block("7", "9"))),
            "then",
            mvspec.parallel(mvspec.branch("e")),
        ),
        conclusion=["x", "y"],
    )
    labels = [path.label for path in built.walk(Path)]
    assert labels == ["1", "2", "2.1", "2.2", "2.2.1", "2.2.2", "2.1"]
    assert [outline.label for outline in built.walk(Outline)].count("2.2.2") == 1
    assert built.conclusion == Conclusion(body=(text("xy"),))


def test_the_builder_joins_strings_and_drops_empty_ones() -> None:
    assert mvspec.assistant("a", "", "b", mvspec.gen("h"), "", "c").body == (
        text("ab"),
        Gen(name="h"),
        text("c"),
    )
    assert mvspec.user("").body == ()


def test_a_hole_keeps_its_class_and_stores_its_schema() -> None:
    class Answer(BaseModel):
        value: int

    hole = mvspec.gen("a", schema=Answer)
    assert hole.type is Answer
    assert hole.json_schema is not None
    assert json.loads(hole.json_schema) == Answer.model_json_schema()
    plain = mvspec.gen("a", schema=Answer.model_json_schema())
    assert plain.type is None
    assert plain == hole
    assert hash(plain) == hash(hole)


def test_a_schema_is_canonical() -> None:
    # The order of keys stays: it is the order in which a model writes them.
    assert mvspec.gen("a", schema='{"b": 1,\n "a": "é"}').json_schema == '{"b":1,"a":"é"}'
    assert mvspec.gen("a", schema={"b": 1, "a": "é"}) == mvspec.gen("a", schema='{"b":1,"a":"é"}')


def test_nodes_are_immutable() -> None:
    node = text("a")
    with pytest.raises(ValidationError, match="frozen"):
        node.text = "b"  # type: ignore[misc]
    assert isinstance(block("1").paths, tuple)


def test_nodes_of_other_classes_differ() -> None:
    assert Think() != Conclusion()
    assert Outline(label="1") != Path(label="1")
    assert Path(label="1") != "1"
    assert len({Think(), Think(), Conclusion()}) == 2


DOCUMENT = mvspec.document(
    mvspec.user("Hi"),
    mvspec.assistant(
        mvspec.think("a", mvspec.parallel(mvspec.branch("b", "c", mvspec.gen("h"), "d"))), "e"
    ),
)


def test_walk_is_parents_first_in_surface_order() -> None:
    assert [node.text for node in DOCUMENT.walk(Text)] == ["Hi", "a", "c", "d", "e"]
    kinds = [type(node).__name__ for node in DOCUMENT.walk()]
    assert kinds == [
        *("Document", "Message", "Text", "Message", "Think", "Text", "Parallel", "Goal", "Outline"),
        *("Path", "Text", "Gen", "Text", "Conclusion", "Text"),
    ]


def test_addresses_lead_to_the_nodes() -> None:
    found = dict(DOCUMENT.addresses())
    assert found[""] is DOCUMENT
    assert found["messages[1].body[0].body[1].paths[0].body[1]"] == mvspec.gen("h")
    assert len(found) == len(list(DOCUMENT.walk()))


def test_fold_reduces_from_the_leaves() -> None:
    def count(node: Node, below: tuple[int, ...]) -> int:
        return 1 + sum(below)

    assert DOCUMENT.fold(count) == len(list(DOCUMENT.walk()))


def test_map_replaces_splices_and_removes() -> None:
    def shout(node: Node) -> Node:
        return text(node.text.upper()) if isinstance(node, Text) else node

    assert [node.text for node in DOCUMENT.map(shout).walk(Text)] == ["HI", "A", "C", "D", "E"]
    assert DOCUMENT.map(lambda node: node) is DOCUMENT

    def without_blocks(node: Node) -> Node | None:
        return None if isinstance(node, Parallel) else node

    body = mvspec.document(mvspec.assistant("a", block("1"), "b")).map(without_blocks)
    assert body == mvspec.document(mvspec.assistant("a\nb"))

    def twice(node: Node) -> Node | tuple[Node, ...]:
        return (node, node) if isinstance(node, Parallel) else node

    doubled = mvspec.document(mvspec.assistant(block("1"))).map(twice)
    assert len(list(doubled.walk(Parallel))) == 2


def test_map_verifies() -> None:
    def without_paths(node: Node) -> Node | None:
        return None if isinstance(node, Path) else node

    with pytest.raises(mvspec.VerifyError, match="at least 1 item"):
        DOCUMENT.map(without_paths)


def test_fill_puts_text_into_holes() -> None:
    filled = DOCUMENT.fill({"h": "-"})
    assert not filled.holes
    assert [node.text for node in filled.walk(Text)] == ["Hi", "a", "c-d", "e"]
    assert [node.text for node in DOCUMENT.fill({"h": ""}).walk(Text)] == ["Hi", "a", "cd", "e"]
    assert DOCUMENT.fill({}) == DOCUMENT


@pytest.mark.parametrize("value", [3, None, "x </Path>"])
def test_fill_says_which_hole_it_cannot_fill(value: Any) -> None:
    document = mvspec.document(mvspec.assistant(mvspec.gen("a"), mvspec.gen("b")))
    with pytest.raises(mvspec.VerifyError, match="hole 'b'"):
        document.fill({"a": "x", "b": value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mvspec.gen("a", choices="abc"), "one string"),
        (lambda: mvspec.gen("a", schema=5), "5 has no JSON schema"),
        (lambda: mvspec.gen("a", schema={"x": "\ud800"}), "surrogate"),
        (lambda: mvspec.parallel("ab"), "write branch"),  # type: ignore[arg-type]
        (lambda: mvspec.assistant(["a"]), "not a list"),  # type: ignore[arg-type]
    ],
)
def test_the_builder_says_what_it_takes(make: Callable[[], object], message: str) -> None:
    with pytest.raises(mvspec.VerifyError, match=message):
        make()


def test_fill_refuses_what_it_cannot_put() -> None:
    with pytest.raises(mvspec.VerifyError, match=r"no hole is named x \(holes: h\)"):
        DOCUMENT.fill({"x": "1"})
    with pytest.raises(mvspec.VerifyError, match="the tag </Path>"):
        DOCUMENT.fill({"h": "</Path>"})


@given(turns(gen=True, max_depth=3))
def test_equal_trees_hash_alike(message: Message) -> None:
    again = Message.model_validate(message.model_dump())
    assert again == message
    assert hash(again) == hash(message)
    assert message.map(lambda node: node) is message


@given(documents())
def test_filling_every_hole_leaves_none(document: Document) -> None:
    filled = document.fill({hole.name: "x" for hole in document.holes}, check=False)
    assert not filled.holes
    said = sum(len(node.text) for node in document.walk(Text))
    assert sum(len(node.text) for node in filled.walk(Text)) == said + len(document.holes)


class _Part(BaseModel):
    at: PurePosixPath
    sizes: list[int]


@pytest.mark.parametrize(
    ("hole", "text"),
    [
        (mvspec.gen("x", schema=list[int]), "[1, 2]"),
        (mvspec.gen("x", schema=dict[str, list[bool]]), '{"é": [true]}'),
        (mvspec.gen("x", schema=_Part), '{"at": "/a/b", "sizes": [3]}'),
        (mvspec.gen("x", schema=int | None), "null"),
        (mvspec.gen("x", schema=str), '"5"'),
        (mvspec.gen("x", schema={"type": "object", "required": ["a"]}), '{"a": 1.5}'),
        (mvspec.gen("x", regex="[0-9]+"), "12"),
        (mvspec.gen("x", choices=[" yes", " no"]), " no"),
    ],
)
def test_fill_takes_values_back(hole: mvspec.Gen, text: str) -> None:
    document = mvspec.document(mvspec.assistant("So:", hole))
    filled = document.fill({"x": hole.read(text)})
    assert filled == document.fill({"x": text}) == mvspec.document(mvspec.assistant("So:", text))


@pytest.mark.parametrize(
    ("hole", "value", "message"),
    [
        (mvspec.gen("x", schema=list[int]), ["a"], "valid integer"),
        (mvspec.gen("x", schema=list[int]), "[1, ", "not valid"),
        (mvspec.gen("x", schema={"items": {"type": "integer"}}), [1, "b"], r"\$\[1\]: 'b' is not"),
        (mvspec.gen("x", schema="{}"), {1, 2}, "no JSON"),
        (mvspec.gen("x", schema={"$ref": "https://example.com/x"}), 1, "cannot be followed"),
        (mvspec.gen("x", schema=SecretStr), SecretStr("s"), "does not come back"),
        (mvspec.gen("x", regex="[0-9]+"), "1a", "no match of its regex"),
        (mvspec.gen("x", choices=["a"]), "b", "none of its choices"),
    ],
)
def test_fill_checks_constraints(hole: mvspec.Gen, value: Any, message: str) -> None:
    document = mvspec.document(mvspec.assistant("So:", hole))
    with pytest.raises(mvspec.VerifyError, match=f"hole 'x': .*{message}"):
        document.fill({"x": value})


def test_a_document_tells_the_model_what_is_asked() -> None:
    turn = mvspec.assistant(
        "A ",
        mvspec.gen("a", choices=["x", "y"]),
        mvspec.gen("b", schema=list[int]),
        mvspec.gen("c"),
    )
    asked = mvspec.document(mvspec.user("Well?"), turn, describe=True)
    (text,) = asked.messages[0].walk(Text)
    assert text.text == (
        "Well?\n\nAnswer a with one of: x, y\n"
        'Answer b with JSON of this schema: {"items":{"type":"integer"},"type":"array"}'
    )
    assert asked.messages[1] == turn
    with pytest.raises(mvspec.VerifyError, match="begin with user"):
        mvspec.document(turn, describe=True)
