"""Builders of documents in Python, which number paths and match labels for you.

>>> from mvspec import assistant, branch, document, gen, parallel, user
>>> doc = document(
...     user("Which is cheaper?"),
...     assistant(
...         parallel(
...             branch("Price of A", gen("a", max_tokens=8)),
...             branch("Price of B", gen("b", max_tokens=8)),
...             conclusion=["Cheaper: ", gen("verdict", choices=["A", "B"])],
...         )
...     ),
... )
>>> [hole.name for hole in doc.holes]
['a', 'b', 'verdict']
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema

from mvspec.errors import VerifyError
from mvspec.tree.ir import (
    Conclusion,
    Document,
    Gen,
    Goal,
    Message,
    Outline,
    Parallel,
    Path,
    Role,
    Text,
    Think,
)
from mvspec.tree.node import Node

BodyPart = str | Node


def document(*messages: Message, describe: bool = False) -> Document:
    """Return a conversation of these messages.

    Args:
        describe: whether the user's message before an assistant's turn tells the model what is
            asked of the turn's holes: their schemas, choices and patterns.

    Raises:
        VerifyError: no user's message stands before holes that are to be described.

    >>> asked = document(user("How many?"), assistant(gen("n", regex="[0-9]+")), describe=True)
    >>> print(asked.messages[0].body[0].text)
    How many?
    <BLANKLINE>
    Answer with a text that matches the regular expression [0-9]+
    """
    made = Document.build(messages=messages)
    return _described(made) if describe else made


def _described(made: Document) -> Document:
    messages = list(made.messages)
    asked: int | None = None
    for index, each in enumerate(made.messages):
        if each.role == "user":
            asked = index
        holes = [hole for hole in each.walk(Gen) if hole.constraint]
        if not holes:
            continue
        if asked is None:
            raise VerifyError(
                "describe", "no user's message before the holes: begin with user(...)"
            )
        told = [
            ("Answer" if len(holes) == 1 else f"Answer {hole.name}") + f" with {_asked(hole)}"
            for hole in holes
        ]
        messages[asked] = message("user", *messages[asked].body, "\n\n" + "\n".join(told))
    return Document.build(messages=tuple(messages))


def _asked(hole: Gen) -> str:
    if hole.choices is not None:
        return "one of: " + ", ".join(choice.strip() for choice in hole.choices)
    if hole.regex is not None:
        return f"a text that matches the regular expression {hole.regex}"
    return f"JSON of this schema: {hole.json_schema}"


def message(role: Role, *body: BodyPart) -> Message:
    """Return one turn; strings become texts, and neighbouring strings one text."""
    return Message.build(role=role, body=parts(body))


def system(text: str) -> Message:
    """Return a system message."""
    return message("system", text)


def user(text: str) -> Message:
    """Return a user message; tags in it are plain characters and fork nothing."""
    return message("user", text)


def tool(text: str) -> Message:
    """Return a tool's answer; tags in it are plain characters and fork nothing."""
    return message("tool", text)


def assistant(*body: BodyPart) -> Message:
    """Return an assistant's turn made of strings, `gen`, `parallel` and at most one `think`."""
    return message("assistant", *body)


def think(*body: BodyPart) -> Think:
    """Return the reasoning span of a turn."""
    return Think.build(body=parts(body))


def gen(
    name: str,
    max_tokens: int = 256,
    *,
    stop: str | Iterable[str] = (),
    regex: str | None = None,
    choices: Iterable[str] | None = None,
    schema: Any = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
) -> Gen:
    """Return a hole that a runtime fills.

    Args:
        name: how the result is looked up.
        max_tokens: the most tokens it may take.
        stop: a string or strings that end it, left out of the result.
        regex: the result matches it in full.
        choices: the result is one of them.
        schema: a type that Pydantic knows, such as a class of its models, `list[int]` or a
            dataclass (the result is an instance); or a JSON schema as a dict or text.
        temperature, top_p, top_k, min_p, repetition_penalty: as in `Sampling`, for this hole alone.

    Raises:
        VerifyError: more than one constraint, or one that cannot be read.

    >>> gen("sums", schema=list[int]).json_schema
    '{"items":{"type":"integer"},"type":"array"}'
    """
    if isinstance(choices, str):
        raise VerifyError(f"hole {name!r}", f"choices is one string: write choices=[{choices!r}]")
    kind: TypeAdapter[Any] | None = None
    if schema is not None and not isinstance(schema, dict | str):
        kind, schema = _typed(name, schema)
    if isinstance(schema, dict):
        try:
            schema = json.dumps(schema)
        except TypeError as error:
            raise VerifyError(f"hole {name!r}", f"its schema is not JSON: {error}") from None
    hole = Gen.build(
        name=name,
        max_tokens=max_tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        regex=regex,
        choices=None if choices is None else tuple(choices),
        json_schema=schema,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    hole._type = kind
    return hole


class _HoleSchema(GenerateJsonSchema):
    def decimal_schema(self, schema: Any) -> Any:
        """A number, or a text of one: Pydantic's schema allows any text, or looks around in it."""
        made = super().decimal_schema(schema)
        for part in made.get("anyOf", [made]):
            if part.get("type") == "string":
                part["pattern"] = r"^-?[0-9]+(\.[0-9]+)?$"
        return made


def _typed(hole: str, kind: Any) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    """Return a type of Python with its JSON schema."""
    try:
        adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
        schema = adapter.json_schema(schema_generator=_HoleSchema)
    except (PydanticUserError, NameError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise VerifyError(f"hole {hole!r}", f"{kind!r} has no JSON schema: {reason}") from None
    parts: list[Any] = [schema]
    while parts:
        part = parts.pop()
        parts += part if isinstance(part, list) else part.values() if isinstance(part, dict) else ()
        if isinstance(part, dict) and part.get("type") == "array":
            part.pop("uniqueItems", None)  # a set is made of any list
    return adapter, schema


def branch(outline: str, *body: BodyPart) -> tuple[str, tuple[Node, ...]]:
    """Return one branch for `parallel`: its line in the goal, and what its path holds."""
    return outline, parts(body)


def parallel(
    *branches: tuple[str, tuple[Node, ...]], conclusion: BodyPart | Iterable[BodyPart] = ()
) -> Parallel:
    """Return a block of these branches, numbered 1, 2, 3; inner blocks become 1.1, 1.2.

    Raises:
        VerifyError: no branch, or a part that cannot stand in a path.
    """
    if not branches:
        raise VerifyError("parallel", "a block has at least one branch: add branch(...)")
    for index, each in enumerate(branches):
        check_branch(each, index)
    ending = (conclusion,) if isinstance(conclusion, str | Node) else tuple(conclusion)
    block = Parallel.build(
        goal=Goal.build(
            outlines=tuple(
                Outline.build(label=str(i), text=text) for i, (text, _) in enumerate(branches, 1)
            )
        ),
        paths=tuple(Path.build(label=str(i), body=body) for i, (_, body) in enumerate(branches, 1)),
        conclusion=Conclusion.build(body=parts(ending)),
    )
    return number(block)


def number(block: Parallel, prefix: str = "") -> Parallel:
    """Return the block with its labels `prefix`1, `prefix`2, and those below them likewise.

    A block that is numbered so is returned as it is.
    """
    labels = [f"{prefix}{index}" for index in range(1, len(block.paths) + 1)]
    paths = tuple(numbered(path, label) for label, path in zip(labels, block.paths, strict=True))
    if all(new is old for new, old in zip(paths, block.paths, strict=True)):
        return block
    outlines = tuple(
        Outline.trusted(label=label, text=outline.text)
        for label, outline in zip(labels, block.goal.outlines, strict=True)
    )
    return Parallel.trusted(
        goal=Goal.trusted(outlines=outlines), paths=paths, conclusion=block.conclusion
    )


def numbered(path: Path, label: str) -> Path:
    """Return a path with its label and its blocks numbered; the same path where it has them."""
    body = tuple(
        number(item, f"{label}.") if isinstance(item, Parallel) else item for item in path.body
    )
    same = all(new is old for new, old in zip(body, path.body, strict=True))
    return path if same and path.label == label else Path.trusted(label=label, body=body)


def check_branch(given: object, index: int) -> None:
    """Raise VerifyError for anything that `branch` did not make."""
    if not isinstance(given, tuple) or len(given) != 2:
        kind = type(given).__name__
        raise VerifyError(f"parallel[{index}]", f"a {kind} is no branch: write branch(...)")


def check_part(given: object) -> None:
    """Raise VerifyError for anything that is no node, such as a list."""
    if not isinstance(given, Node):
        kind = type(given).__name__
        raise VerifyError("", f"a part is a string or a node such as gen(...), not a {kind}")


def parts(items: Iterable[BodyPart]) -> tuple[Node, ...]:
    """Return items as nodes: strings become texts, touching texts are joined, "" is dropped."""
    out: list[Node] = []
    for item in items:
        if isinstance(item, str):
            if not item:
                continue
            item = Text.build(text=item)
        check_part(item)
        joined = item.joined(out[-1], "") if out else None
        if joined is not None:
            out.pop()
        out.append(item if joined is None else joined)
    return tuple(out)
