"""Nodes of the typed tree: documents, messages, and the parts of an assistant's turn.

Meaning only: no token ids, no tags, no model names. Trees that break an invariant cannot be
built (paper: Multiverse, arXiv 2506.09991, section 4).
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from mvspec.errors import VerifyError
from mvspec.law.limits import MAX_DEPTH
from mvspec.law.tags import TAG
from mvspec.tree.node import Node, verify_error

LABEL = re.compile(r"[0-9]+(?:\.[0-9]+)*")

Role = Literal["system", "user", "assistant", "tool"]


def check_label(label: str) -> str:
    """Return `label` where it is digits joined by dots, such as 2 or 2.1; else ValueError."""
    if not LABEL.fullmatch(label):
        raise ValueError(f"label {label!r} is not a number such as 2 or 2.1")
    return label


def check_no_tag(text: str) -> str:
    """Return `text` where it holds no tag; else ValueError."""
    tag = TAG.search(text) if "<" in text else None
    if tag:
        raise ValueError(
            f"text holds the tag {tag.group()} at character {tag.start()}: "
            "write it another way, or build the block that it stands for"
        )
    return text


def check_body(body: tuple[Node, ...]) -> None:
    """Raise ValueError where two texts touch or an assistant's text holds a tag."""
    text_before = False
    for item in body:
        is_text = isinstance(item, Text)
        if is_text and text_before:
            raise ValueError("texts touch: join them into one Text")
        if isinstance(item, Text):
            check_no_tag(item.text)
        text_before = is_text


class Text(Node):
    """Plain text, not empty; an assistant's never holds a tag nor touches another `Text`."""

    kind: Literal["text"] = "text"
    text: str = Field(min_length=1)

    def joined(self, before: Node, glue: str) -> Node | None:
        """Return one text of two that touch."""
        return Text(text=before.text + glue + self.text) if isinstance(before, Text) else None


class Gen(Node):
    """A hole that a runtime fills with at most `max_tokens` tokens.

    Args:
        name: how results are looked up; unique in a document.
        max_tokens: the most tokens that the hole may take.
        stop: strings that end the hole; not part of the result.
        regex, choices, json_schema: at most one constraint; the schema is canonical JSON text.
    """

    kind: Literal["gen"] = "gen"
    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    max_tokens: int = Field(default=256, ge=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    regex: str | None = None
    choices: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    json_schema: str | None = None
    _type: type[BaseModel] | None = PrivateAttr(default=None)

    @property
    def type(self) -> type[BaseModel] | None:
        """The Pydantic class of the result; it travels beside the document, not inside it."""
        return self._type

    @field_validator("regex")
    @classmethod
    def _regex_compiles(cls, regex: str | None) -> str | None:
        if regex is not None:
            try:
                re.compile(regex)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"regex {regex!r} does not compile: {error}") from None
        return regex

    @field_validator("json_schema")
    @classmethod
    def _canonical_schema(cls, schema: str | None) -> str | None:
        if schema is None:
            return None
        try:
            value = json.loads(schema)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"json_schema is not JSON text: {error}") from None
        if not isinstance(value, dict | bool):
            raise ValueError("json_schema must be a JSON object or a boolean")
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("json_schema holds half of a surrogate pair, which is no character")
        return text

    @model_validator(mode="after")
    def _one_constraint(self) -> Self:
        given = [f for f in ("regex", "choices", "json_schema") if getattr(self, f) is not None]
        if len(given) > 1:
            raise ValueError(f"hole {self.name!r} has {' and '.join(given)}: keep one")
        if self.choices is not None and not self.choices:
            raise ValueError(f"hole {self.name!r} has no choices: give one or more")
        return self


class Outline(Node):
    """One subtask of a `Goal`: its label and one line of text."""

    label: str
    text: str = ""

    @field_validator("label")
    @classmethod
    def _label(cls, label: str) -> str:
        return check_label(label)

    @field_validator("text")
    @classmethod
    def _one_line(cls, text: str) -> str:
        if "\n" in text:
            raise ValueError("an outline is one line: take the newline out")
        return check_no_tag(text)


class Goal(Node):
    """Map: the list of subtasks that fork, at least one, with unique labels."""

    outlines: tuple[Outline, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        seen: set[str] = set()
        for outline in self.outlines:
            if outline.label in seen:
                raise ValueError(f"label {outline.label!r} occurs twice in one block")
            seen.add(outline.label)
        return self


class Path(Node):
    """Process: one branch of a block."""

    label: str
    body: Body = ()

    @field_validator("label")
    @classmethod
    def _label(cls, label: str) -> str:
        return check_label(label)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_body(self.body)
        return self


class Conclusion(Node):
    """Reduce: what merges the paths."""

    body: tuple[Annotated[Text | Gen, Field(discriminator="kind")], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_body(self.body)
        return self


class Parallel(Node):
    """A block: a goal, one path for each of its outlines in the same order, a conclusion."""

    kind: Literal["parallel"] = "parallel"
    goal: Goal
    paths: tuple[Path, ...] = Field(min_length=1)
    conclusion: Conclusion = Conclusion()
    _depth: int = PrivateAttr(default=1)

    @property
    def depth(self) -> int:
        """Levels of blocks, this one included."""
        return self._depth

    @model_validator(mode="after")
    def _check(self) -> Self:
        outlines = [outline.label for outline in self.goal.outlines]
        paths = [path.label for path in self.paths]
        if outlines != paths:
            raise ValueError(
                f"outlines {', '.join(outlines)} but paths {', '.join(paths)}: "
                "every outline has one path, same label, same order"
            )
        inner = (item._depth for p in self.paths for item in p.body if isinstance(item, Parallel))
        self._depth = 1 + max(inner, default=0)
        if self._depth > MAX_DEPTH:
            raise ValueError(f"blocks nest deeper than {MAX_DEPTH}: flatten the plan")
        return self

    @classmethod
    def trusted(cls, **fields: Any) -> Self:
        """Make a block of parts that a reader has checked; its levels are counted."""
        node = super().trusted(kind="parallel", **fields)
        inner = (item._depth for p in node.paths for item in p.body if isinstance(item, Parallel))
        object.__setattr__(node, "__pydantic_private__", {"_depth": 1 + max(inner, default=0)})
        return node


Item = Annotated[Text | Gen | Parallel, Field(discriminator="kind")]
Body = tuple[Item, ...]


class Think(Node):
    """The reasoning span of an assistant's turn."""

    kind: Literal["think"] = "think"
    body: Body = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_body(self.body)
        return self


TopItem = Annotated[Think | Text | Gen | Parallel, Field(discriminator="kind")]


class Message(Node):
    """One turn; only an assistant's holds anything but plain text."""

    role: Role
    body: tuple[TopItem, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.role != "assistant":
            for item in self.body:
                if not isinstance(item, Text):
                    raise ValueError(
                        f"a {self.role} message holds plain text only, not {item.kind}: "
                        "move it into an assistant message"
                    )
            if len(self.body) > 1:
                raise ValueError("texts touch: join them into one Text")
            return self
        for index, item in enumerate(self.body):
            if isinstance(item, Think) and index:
                raise ValueError("Think comes once and first in an assistant message")
        check_body(self.body)
        return self


class Document(Node):
    """One conversation.

    >>> import mvspec
    >>> document = mvspec.parse("Plain text is a document too.")
    >>> document.messages[0].role
    'assistant'
    """

    messages: tuple[Message, ...] = ()

    @model_validator(mode="after")
    def _unique_holes(self) -> Self:
        seen: set[str] = set()
        for hole in self.walk(Gen):
            if hole.name in seen:
                raise ValueError(f"hole {hole.name!r} occurs twice: give each its own name")
            seen.add(hole.name)
        return self

    @property
    def holes(self) -> tuple[Gen, ...]:
        """Every `Gen`, in surface order."""
        return tuple(self.walk(Gen))

    def fill(self, values: dict[str, str]) -> Document:
        """Return the document with the named holes replaced by text; "" removes a hole.

        Raises:
            VerifyError: a name is no hole of this document, a value is no text or holds a tag.
        """
        names = [hole.name for hole in self.holes]
        unknown = [str(name) for name in values if name not in names]
        if unknown:
            known = ", ".join(names) or "none"
            raise VerifyError("", f"no hole is named {', '.join(sorted(unknown))} (holes: {known})")
        for name, value in values.items():
            try:
                if value != "":
                    check_no_tag(Text.build(text=value).text)
            except (ValueError, VerifyError) as error:
                raise VerifyError(f"hole {name!r}", str(error)) from None

        def put(node: Node) -> Node | tuple[Node, ...]:
            if isinstance(node, Gen) and node.name in values:
                return (Text(text=values[node.name]),) if values[node.name] else ()
            return node

        return self.map(put)

    def to_json(self, indent: int | None = None) -> str:
        """Return the document as JSON text; `Document.from_json` reads it back."""
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Document:
        """Read JSON text; also what a table of Arrow makes of it.

        A table gives every node the fields of all and fills in null, and may hold a node as JSON
        text: null is absent there, and JSON text of a node is the node.

        Raises:
            VerifyError: it is not JSON or breaks an invariant; the message says where.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            try:
                found = json.loads(text)
                own = _untabled(found)
                if own != found:
                    return cls.model_validate(own)
            except ValidationError as other:
                raise verify_error(other) from None
            except (ValueError, RecursionError):
                pass
            raise verify_error(error) from None


_HOLD_NODES = frozenset({"messages", "body", "goal", "outlines", "paths", "conclusion"})


def _untabled(value: Any, node: bool = False) -> Any:
    """Return a value of JSON without nulls in objects, and JSON text of nodes as nodes."""
    if node and isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, list):
        return [_untabled(each, node) for each in value]
    if not isinstance(value, dict):
        return value
    found = {key: _untabled(each, key in _HOLD_NODES) for key, each in value.items()}
    found = {key: each for key, each in found.items() if each is not None}
    return found or (None if value else found)
