"""Nodes of the typed tree: documents, messages, and the parts of an assistant's turn.

Meaning only: no token ids, no tags, no model names. Trees that break an invariant cannot be
built (paper: Multiverse, arXiv 2506.09991, section 4).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from mvspec.errors import VerifyError
from mvspec.law.limits import MAX_DEPTH
from mvspec.law.tags import TAG
from mvspec.tree.node import Node, verify_error

_AS_JSON: dict[str, Any] = {
    "mode": "json", "by_alias": True, "exclude_unset": True, "warnings": "error"
}  # fmt: skip

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
        temperature, top_p, top_k, min_p, repetition_penalty: how its tokens are drawn; None is as
            the run has it.
    """

    kind: Literal["gen"] = "gen"
    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    max_tokens: int = Field(default=256, ge=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    regex: str | None = None
    choices: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    json_schema: str | None = None
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    _type: TypeAdapter[Any] | None = PrivateAttr(default=None)

    @property
    def type(self) -> Any:
        """The Python type of the result; it travels beside the document, not inside it."""
        return None if self._type is None else self._type._type

    @property
    def constraint(self) -> str:
        """Which constraint it has: "regex", "choices" or "json_schema"; "" for none."""
        kinds = ("regex", "choices", "json_schema")
        return next((kind for kind in kinds if getattr(self, kind) is not None), "")

    @property
    def sampling(self) -> dict[str, Any]:
        """How its tokens are drawn, where that is not as the run has it."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        return {name: found for name in names if (found := getattr(self, name)) is not None}

    def read(self, text: str) -> Any:
        """Return the value of a text that fills it: of its type, what its JSON says, or the text.

        A choice comes without a blank at its beginning, which is the text's and not the answer's.

        Raises:
            VerifyError: the text is not what its constraint asks for.

        >>> Gen(name="cup", json_schema="{}").read('{"size": 3}')
        {'size': 3}
        >>> Gen(name="tone", choices=(" kind", " cold")).read(" kind")
        'kind'
        """
        reason = ""
        if self.choices is not None:
            if text in self.choices:
                return text.removeprefix(" ") or text
            reason = f"none of its choices ({', '.join(map(repr, self.choices))})"
        elif self.regex is not None:
            if re.fullmatch(self.regex, text):
                return text
            reason = f"no match of its regex {self.regex!r}"
        elif self.json_schema is None:
            return text
        else:
            try:
                return json.loads(text) if self._type is None else self._type.validate_json(text)
            except ValidationError as error:
                first, *rest = error.errors(include_url=False, include_input=False)
                place = ".".join(map(str, first["loc"]))
                reason = f"{place}: {first['msg']}" if place else first["msg"]
                reason += f" (and {len(rest)} more)" if rest else ""
            except (ValueError, RecursionError) as error:
                reason = str(error)
            except Exception as error:  # what a validator of the user's raises, it raises
                reason = f"its type raised {type(error).__name__}: {error}"
            reason = f"not valid: {reason}"
        shown = text if len(text) <= 80 else f"{text[:79]}…"
        raise VerifyError(f"hole {self.name!r}", f"its text {shown!r} is {reason}")

    def write(self, value: Any) -> str:
        """Return the text of a value that `read` returned, or that is given for one.

        Raises:
            VerifyError: the value is not what its constraint asks for.

        >>> Gen(name="cup", json_schema="{}").write({"size": 3})
        '{"size": 3}'
        """
        text = value
        if self.json_schema is not None:
            text = self._json(value)
        elif self.choices is not None and value not in self.choices and f" {value}" in self.choices:
            text = f" {value}"  # `read` leaves the blank out
        if not isinstance(text, str):
            kind = type(value).__name__
            raise VerifyError(f"hole {self.name!r}", f"its value is a {kind}, expected a text")
        self.read(text)
        return text

    def _json(self, value: Any) -> str:
        """Return the JSON text of a value; a string that is such a text is taken as it is."""
        where, kind = f"hole {self.name!r}", self._type
        no_text: VerifyError | None = None
        if isinstance(value, str):
            try:
                self._check_schema(self.read(value))
            except VerifyError as error:
                no_text = error
            else:
                return value
        try:
            if kind is not None:
                try:
                    shown = kind.dump_python(value, **_AS_JSON)
                except ValueError:  # of another type, such as a dict for a class
                    value = kind.validate_python(value)
                    shown = kind.dump_python(value, **_AS_JSON)
            else:
                shown = value.model_dump(**_AS_JSON) if isinstance(value, BaseModel) else value
            text = json.dumps(shown, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).partition(" For further")[0].split())
            raise no_text or VerifyError(where, f"its value is no JSON: {reason[:200]}") from None
        read = self.read(text)
        self._check_schema(read)
        if kind is not None and read != value:
            raise VerifyError(
                where,
                f"its value does not come back from {text[:80]!r}: give its text, as in texts",
            )
        return text

    def _check_schema(self, value: Any) -> None:
        """Raise VerifyError where what JSON says is not what a schema without a type asks for."""
        if self._type is not None or self.json_schema is None:
            return
        # Their import takes longer than all of ours.
        from jsonschema import SchemaError
        from jsonschema import ValidationError as Invalid
        from jsonschema.validators import validator_for
        from referencing import Registry
        from referencing.exceptions import Unresolvable

        schema = json.loads(self.json_schema)
        where = f"hole {self.name!r}"
        try:
            # A registry of its own: none is fetched from a network.
            validator_for(schema)(schema, registry=Registry()).validate(value)
        except (Invalid, SchemaError) as error:
            raise VerifyError(where, f"its value at {error.json_path}: {error.message}") from None
        except (Unresolvable, RecursionError) as error:
            raise VerifyError(where, f"its schema cannot be followed: {error}") from None

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

    def fill(self, values: Mapping[str, Any], *, check: bool = True) -> Document:
        """Return the document with the named holes replaced by text; "" removes a hole.

        Args:
            values: by name: texts, or what a result has as `values`.
            check: whether a value has to be what its hole's constraint asks for; else it is a text.

        Raises:
            VerifyError: a name is no hole of this document; a value is not what its hole asks for,
                or holds a tag.

        >>> from mvspec.tree.builder import assistant, document, gen
        >>> asked = document(assistant("So: ", gen("sums", schema=list[int])))
        >>> asked.fill({"sums": [1, 2]}).messages[0].body[0].text
        'So: [1, 2]'
        """
        holes = {hole.name: hole for hole in self.holes}
        unknown = [str(name) for name in values if name not in holes]
        if unknown:
            known = ", ".join(holes) or "none"
            raise VerifyError("", f"no hole is named {', '.join(sorted(unknown))} (holes: {known})")
        texts: dict[str, str] = {}
        for name, value in values.items():
            empty = isinstance(value, str) and value == ""
            texts[name] = holes[name].write(value) if check and not empty else value
            try:
                if not empty:
                    check_no_tag(Text.build(text=texts[name]).text)
            except (ValueError, VerifyError) as error:
                raise VerifyError(f"hole {name!r}", str(error)) from None

        def put(node: Node) -> Node | tuple[Node, ...]:
            if isinstance(node, Gen) and node.name in texts:
                return (Text(text=texts[node.name]),) if texts[node.name] else ()
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
