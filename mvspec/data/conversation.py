"""A row of the input as a document: a text of a form, a document, a chat, or columns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mvspec.data.check import read_document
from mvspec.data.records import Record
from mvspec.data.rows import Row
from mvspec.errors import Diagnostic, MvspecError, Source, VerifyError
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.tree.builder import message
from mvspec.tree.ir import Document, Message, Text

__all__ = ["BadRecord", "Fields", "read_row", "row_name", "row_value", "step_into"]


@dataclass(frozen=True, slots=True)
class Fields:
    """Where a row keeps what.

    Args:
        form: the surface form of the assistant's texts.
        field: the text, the document or the chat, as `output` or `result.text`; by default the
            row itself.
        prompt_field: the question that the text answers.
        instruction: what the last question ends with, such as "Think step by step before
            answering."; one space stands before it.
    """

    form: str = MULTIVERSE.name
    field: str | None = None
    prompt_field: str | None = None
    instruction: str | None = None


class BadRecord(MvspecError):
    """A record that cannot be compiled; `entry` is its line in quarantine.jsonl."""

    def __init__(self, name: str, place: str, code: str, reason: str, **location: Any) -> None:
        super().__init__(f"{name}: {reason} [{code}]")
        self.entry: dict[str, Any] = {
            "record": _encodable(name),
            "place": _encodable(place),
            "code": code,
            "reason": _encodable(reason),
            **location,
        }

    @classmethod
    def at(cls, name: str, place: str, diagnostic: Diagnostic, **more: Any) -> BadRecord:
        """Make one of a located diagnostic."""
        location = {"offset": diagnostic.offset, "line": diagnostic.line}
        location["column"] = diagnostic.column
        return cls(name, place, diagnostic.code, diagnostic.message, **location, **more)


def read_row(row: Row, fields: Fields) -> tuple[str, Document]:
    """Return the name of a row (its `id`, else its place) and its document.

    Raises:
        BadRecord: it has none; the entry says why and where.

    >>> read_row(Row("a.jsonl:1", {"id": "x", "output": "Four."}), Fields(field="output"))[0]
    'x'
    """
    value = row_value(row)
    name = row_name(value, row.place)
    found = step_into(value, fields.field, name, row.place)
    document = _document(found, name, row.place, fields.form)
    if fields.prompt_field is not None:
        prompt = step_into(value, fields.prompt_field, name, row.place)
        if not isinstance(prompt, str):
            reason = f"field {fields.prompt_field!r} is not a string"
            raise BadRecord(name, row.place, "not-a-string", reason)
        document = Document(messages=(message("user", prompt), *document.messages))
    if fields.instruction is None:
        return name, document
    instructed = _instructed(document, fields.instruction)
    if instructed is None:
        reason = "no user's message that the instruction could end"
        raise BadRecord(name, row.place, "no-question", reason)
    return name, instructed


def _instructed(document: Document, instruction: str) -> Document | None:
    messages = list(document.messages)
    last = max((i for i, each in enumerate(messages) if each.role == "user"), default=None)
    if last is None:
        return None
    asked = "".join(text.text for text in messages[last].walk(Text))
    messages[last] = message("user", f"{asked} {instruction}")
    return Document(messages=tuple(messages))


def row_name(value: Any, place: str) -> str:
    """Return the `id` of a row's value, else its place."""
    name = value.get("id") if isinstance(value, dict) else None
    return _encodable(str(name)) if isinstance(name, str | int) else place


def row_value(row: Row) -> Any:
    """Return what a row holds, decoded.

    Raises:
        BadRecord: its bytes are not UTF-8, or not JSON.
    """
    if row.kind == "value":
        return row.data
    try:
        text = row.data.decode()
    except UnicodeDecodeError as error:
        before = len(row.data[: error.start].decode())
        line, column = Source(row.data.decode(errors="replace")).position(before)
        reason = f"byte 0x{row.data[error.start]:02x} is not UTF-8"
        found = Diagnostic(before, before, line, column, "invalid-utf-8", reason)
        raise BadRecord.at(row.place, row.place, found) from None
    if row.kind == "text":
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at, reason = error.pos, f"not JSON: {error.msg}"
        found = Diagnostic(at, at, error.lineno, error.colno, "invalid-json", reason)
        raise BadRecord.at(row.place, row.place, found) from None
    except (ValueError, RecursionError) as error:
        raise BadRecord(row.place, row.place, "invalid-json", f"not JSON: {error}") from None


def step_into(value: Any, field: str | None, name: str, place: str) -> Any:
    """Return what stands in a field such as `result.text`; "." and None are the value itself.

    Raises:
        BadRecord: there is no such field.
    """
    for step in field.split(".") if field and field != "." else ():
        if not isinstance(value, dict) or step not in value:
            raise BadRecord(name, place, "missing-field", f"no field {field!r}")
        value = value[step]
    return value


def _document(value: Any, name: str, place: str, form: str) -> Document:
    messages = value.get("messages") if isinstance(value, dict) else value
    if isinstance(value, str):
        return _parsed(value, name, place, form)
    if not isinstance(messages, list):
        if isinstance(value, dict):
            fields = ", ".join(map(repr, value)) or "no field"
            reason = f"an object, neither a text nor a document: it has {fields}"
            raise BadRecord(name, place, "missing-field", reason)
        reason = f"{type(value).__name__}, neither a text nor a document"
        raise BadRecord(name, place, "not-a-string", reason)
    try:
        if any(isinstance(each, dict) and "content" in each for each in messages):
            turns = [_turn(each, name, place, form, i) for i, each in enumerate(messages)]
            return Document(messages=tuple(turn for two in turns for turn in two))
        kept = value if isinstance(value, dict) else {"messages": value}
        text = json.dumps({key: kept[key] for key in kept if key != "id"}, default=str)
        return Document.from_json(text)
    except VerifyError as error:
        location = {"address": error.address} if error.address else {}
        raise BadRecord(name, place, "not-a-document", str(error), **location) from None


def _turn(each: Any, name: str, place: str, form: str, index: int) -> tuple[Message, ...]:
    content = each.get("content") if isinstance(each, dict) else None
    if not isinstance(content, str):
        raise VerifyError(f"messages[{index}].content", "it is not a string")
    role = each.get("role")
    if role == "assistant":
        return _parsed(content, name, place, form, address=f"messages[{index}]").messages
    return (message(role, content),)


def _parsed(text: str, name: str, place: str, form: str, **location: Any) -> Document:
    document, diagnostics, cut = read_document(Record(name, place, text), form)
    if document is None:
        more = {"cut": True} if cut else {}
        raise BadRecord.at(name, place, diagnostics[0], **more, **location)
    return document


def _encodable(text: str) -> str:
    """Return `text` with what UTF-8 cannot hold (lone surrogates) written out."""
    return text.encode(errors="backslashreplace").decode()
