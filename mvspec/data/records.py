"""Records: units of input, whatever file they came from, and their reading as documents.

A record is a text, a document, a chat or a trace. One that cannot be read is a record too, with
a located error: nothing stops a batch and nothing is lost. Rows are decoded when they are asked
for, so that worker processes do it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mvspec.data.chat import ChatContext, ChatTurn, chat_turns, is_chat, turn_message
from mvspec.data.columns import COLUMNS, PAIR, RowError, column, columns, kind_of, listed
from mvspec.errors import Diagnostic, MvspecError, ParseError, Source, VerifyError
from mvspec.forms import FORMS, JSON, READABLE, parse
from mvspec.forms.apr import APR
from mvspec.forms.likeness import AUTO, likeness_of
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.trace import Trace, current_names
from mvspec.tree import builder
from mvspec.tree.ir import Document, Text
from mvspec.tree.node import Node

RowPath = tuple[str | int, ...]
Kind = Literal["text", "document", "chat", "trace", "apr", "settings", "unread"]
Found = tuple[Kind, RowPath, Any]


class InputError(MvspecError):
    """Input that cannot be read at all: no such file, no such field."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a row that hold its text, document, question, answer and name.

    Args:
        form: the surface form of the assistant's texts.
        field: the text, the document, the chat or the trace, as `output` or `result.text`; by
            default the row itself, or the first known column that it has. "." says that files
            of any name hold rows.
        prompt_field: the question that it answers.
        instruction: what the last question ends with, such as "Think step by step before
            answering."; one space stands before it.
    """

    form: str = MULTIVERSE.name
    field: str | None = None
    prompt_field: str | None = None
    instruction: str | None = None


class BadRecord(MvspecError):
    """A record that has no document; `entry` is its line in quarantine.jsonl."""

    def __init__(self, name: str, place: str, code: str, reason: str, **location: Any) -> None:
        super().__init__(f"{name}: {reason} [{code}]")
        self.diagnostic = Diagnostic(0, 0, 1, 1, code, reason)
        self.entry: dict[str, Any] = {
            "record": encodable(name),
            "place": encodable(place),
            "code": code,
            "reason": encodable(reason),
            **location,
        }

    @classmethod
    def at(cls, name: str, place: str, found: Diagnostic, *, cut: bool = False) -> BadRecord:
        """Make one of a located diagnostic."""
        location: dict[str, Any] = {"offset": found.offset, "line": found.line}
        location |= {"column": found.column}
        location |= {"address": found.address} if found.address else {}
        location |= {"cut": True} if cut else {}
        made = cls(name, place, found.code, found.message, **location)
        made.diagnostic = found
        return made


@dataclass(frozen=True, slots=True)
class Reading:
    """A record as a document.

    Args:
        document: the tree, where there is one.
        diagnostics: the first violation, or in recovery every repair.
        cut: whether the text, or a chat's last one, is a proper prefix of a well-formed one.
        texts: by address what diagnostics point into; a text's own address is "".
        context: what a chat says beside its document.
    """

    document: Document | None
    diagnostics: tuple[Diagnostic, ...] = ()
    cut: bool = False
    texts: Mapping[str, str] = field(default_factory=dict)
    context: ChatContext = field(default_factory=ChatContext)


class WellFormed(NamedTuple):
    """The document of a record, and what a chat says beside it."""

    document: Document
    context: ChatContext


@dataclass(frozen=True)
class Record:
    """One unit of input.

    Args:
        place: the file, with the line or the number of a row: `runs.jsonl:12`, `runs.json[3]`.
        data: the whole file, or the row.
        encoding: "text"; "json" text; or "value", decoded already.
        fields: where rows keep what.
        size: its share of the input, in bytes.
        error: of a record that its file could not give.
        folder: of its file, where files are that its row names; None where there is none.

    >>> record = Record("a.jsonl:1", {"id": "x", "output": "Four."}, "value")
    >>> record.name, record.kind, record.document.messages[0].role
    ('x', 'text', 'assistant')
    """

    place: str
    data: Any
    encoding: Literal["text", "json", "value"] = "text"
    fields: Fields = Fields()
    size: float = 1.0
    error: Diagnostic | None = None
    folder: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # What is decoded stays in its process.
        given = (self.place, self.data, self.encoding, self.fields, self.size, self.error)
        return Record, (*given, self.folder)

    # What it holds

    @property
    def name(self) -> str:
        """The id that its row has by a known column, else the place."""
        name = column(self.row, *COLUMNS["id"]) if self.row else None
        usable = isinstance(name, str | int) and not isinstance(name, bool)
        return str(name) if usable else self.place

    @property
    def row(self) -> dict[str, Any] | None:
        """The object that it is; None for whole files and other rows."""
        value, _ = self._decoded
        return value if self.encoding != "text" and isinstance(value, dict) else None

    @property
    def kind(self) -> Kind:
        """Which of the kinds of records it is."""
        return self._found[0]

    @property
    def value(self) -> Any:
        """The text, or the object of a document, a chat or a trace; an error's own text."""
        return self._found[2]

    @property
    def path(self) -> RowPath:
        """The keys that lead from the row to the value."""
        return self._found[1]

    @property
    def trouble(self) -> Diagnostic | None:
        """Why it cannot be read, whatever its text says."""
        return self._found[3]

    @property
    def text(self) -> str:
        """The text that diagnostics point into; of an object, its JSON."""
        return self.value if isinstance(self.value, str) else encoded(self.value)

    @property
    def form(self) -> str:
        """The form that the text is in."""
        form = {"document": JSON, "trace": JSON, "apr": APR.name}.get(self.kind, self.fields.form)
        if form != AUTO:
            return form
        like = likeness_of(self.text, FORMS) if self.kind == "text" else None
        return like.name if like and like.readable else MULTIVERSE.name

    @cached_property
    def _decoded(self) -> tuple[Any, Diagnostic | None]:
        if self.error is not None or self.encoding == "value":
            return self.data, self.error
        text = self.data
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError as error:
                before = len(self.data[: error.start].decode())
                what = f"byte 0x{self.data[error.start]:02x} is not UTF-8"
                text = self.data.decode(errors="replace")
                return text, Source(text).diagnostic(before, "invalid-utf-8", what)
        if self.encoding == "text":
            return text, None
        try:
            return json.loads(text), None
        except json.JSONDecodeError as error:
            at, what = error.pos, error.msg
        except RecursionError:
            at, what = 0, "nested too deep"
        except ValueError as error:
            at, what = 0, str(error)
        return text, Source(text).diagnostic(at, "invalid-json", f"not JSON: {what}")

    @cached_property
    def _found(self) -> tuple[Kind, RowPath, Any, Diagnostic | None]:
        value, error = self._decoded
        if error is not None:
            return "unread", (), value, error
        try:
            if self.encoding == "text":
                kind, path, value = recognised(value) or ("text", (), value)
                if kind == "text" and recognised(value.lstrip().partition("\n")[0]):
                    why = "its lines are rows of JSON: name the file .jsonl, or add --field ."
                    raise RowError("", "missing-field", why)
            else:
                kind, path, value = found(value, self.fields, self.folder)
            return kind, path, _filled(value) if kind in ("trace", "apr") else value, None
        except RowError as missing:
            return "unread", (), "", not_a_document(missing)
        except Exception as failure:
            return "unread", (), "", crash(failure)

    # Reading

    @property
    def document(self) -> Document:
        """The record as a document.

        Raises:
            BadRecord: it has none.
        """
        return self.needed().document

    def needed(self) -> WellFormed:
        """Return the strict reading of a record.

        Raises:
            BadRecord: it has no document.
        """
        reading = self.read()
        if reading.document is None:
            raise BadRecord.at(self.name, self.place, reading.diagnostics[0], cut=reading.cut)
        return WellFormed(reading.document, reading.context)

    def bad(self, code: str, reason: str, **location: Any) -> BadRecord:
        """Return the error of a record that cannot be used."""
        return BadRecord(self.name, self.place, code, reason, **location)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Keep what fails on this record to it: any error but ours becomes a `BadRecord`.

        Raises:
            BadRecord: with the code "crash", where it happened, and that it should be reported.
        """
        try:
            yield
        except (MvspecError, OSError):  # a full disk is no record's
            raise
        except Exception as error:
            raise BadRecord.at(self.name, self.place, crash(error)) from None

    def deadly(self) -> Record:
        """Return the record without what it holds, which has ended the process that read it."""
        reason = "the process that read it has died, of too little memory or a fault in a library"
        told = Diagnostic(0, 0, 1, 1, "crash", f"{reason}: please report it, with the record")
        return replace(self, data="", error=told)

    def at(self, field: str) -> Any:
        """Return what stands in a field of its row, such as `result.text`.

        Raises:
            BadRecord: there is no such field, or no row.
        """
        value, error = self._decoded
        if error is not None:
            raise BadRecord.at(self.name, self.place, error)
        try:
            return stepped(value, field)[1]
        except RowError as missing:
            raise self.bad(missing.code, str(missing)) from None

    def read(self, *, recover: bool = False) -> Reading:
        """Return the record's tree where it has one, and its violations.

        Args:
            recover: return the best tree and every repair, not only the first violation.
        """
        try:
            return self._asked(self._read(recover))
        except RowError as error:
            return Reading(None, (not_a_document(error),))
        except Exception as error:
            return Reading(None, (crash(error),))

    def _read(self, recover: bool) -> Reading:
        if self.trouble is not None:
            return Reading(None, (self.trouble,), texts={"": self.text})
        if self.kind == "chat":
            return self._chat(recover)
        if self.kind == "settings":
            settings = Diagnostic(0, 0, 1, 1, "not-a-document", "the settings of an evaluation")
            return Reading(None, (settings,))
        text = self.text
        form = self.form
        if self.kind == "trace":
            text, form = written(self.value)
        elif self.kind == "text":
            refuse_packed(text, form)
        document, diagnostics, cut = read_text(text, form, recover=recover, name=self.name)
        return Reading(document, diagnostics, cut, {"": text})

    def _chat(self, recover: bool) -> Reading:
        texts: dict[str, str] = {}
        diagnostics: list[Diagnostic] = []
        cuts: list[bool] = []

        def body(text: str, address: str) -> Iterable[Node]:
            texts[address] = text
            refuse_packed(text, self.fields.form, address)
            document, wrong, cut = read_text(text, self.fields.form, recover=recover)
            diagnostics.extend(replace(each, address=address) for each in wrong)
            cuts.extend([cut] if wrong else [])
            return (item for each in document.messages for item in each.body) if document else ()

        turns = list(self.turns())
        try:
            messages = tuple(turn_message(turn, body) for turn in turns)
            if diagnostics and not recover:
                return Reading(None, (diagnostics[0],), cuts[0], texts)
            document = Document.build(messages=messages)
        except VerifyError as error:
            return Reading(None, (not_a_document(error),), texts=texts)
        cut = bool(cuts) and all(cuts)
        return Reading(document, tuple(diagnostics), cut, texts, context_of(turns, self.tools))

    @property
    def tools(self) -> tuple[Any, ...]:
        """Descriptions of the tools that a chat's model may call."""
        tools = (self.row or {}).get("tools")
        if isinstance(tools, str):
            try:
                tools = json.loads(tools)
            except ValueError:
                raise RowError("tools", "invalid-json", "they are not JSON text") from None
        return tuple(tools) if isinstance(tools, list) else ()

    def turns(self) -> Iterator[ChatTurn]:
        """Yield the turns of a chat.

        Raises:
            RowError: a message is none.
        """
        system = (self.row or {}).get("system") if self.fields.field is None else None
        if isinstance(system, str) and system:
            yield ChatTurn("system", system, -1)
        yield from chat_turns(self.value, str(self.path[-1]) if self.path else "messages")

    def _asked(self, reading: Reading) -> Reading:
        """Return a reading with the question that the record answers, and the instruction."""
        document, context = reading.document, reading.context
        if document is None:
            return reading
        fields = self.fields
        if fields.prompt_field is not None:
            prompt = stepped(self._decoded[0], fields.prompt_field)[1]
            prompt = _messages(prompt, "user")
            if not prompt:
                why = f"field {fields.prompt_field!r} is not a string"
                raise RowError("", "not-a-string", why)
            turns = [replace(turn, loss=False) for turn in chat_turns(prompt, fields.prompt_field)]
            before = [turn_message(turn, lambda text, _: builder.parts([text])) for turn in turns]
            document = Document(messages=(*before, *document.messages))
            context = context.behind(context_of(turns))
        if fields.instruction is not None:
            messages = list(document.messages)
            users = [number for number, each in enumerate(messages) if each.role == "user"]
            if not users:
                why = "no user's message that the instruction could end"
                raise RowError("", "no-question", why)
            asked = "".join(text.text for text in messages[users[-1]].walk(Text))
            messages[users[-1]] = builder.user(f"{asked} {fields.instruction}")
            document = Document(messages=tuple(messages))
        return replace(reading, document=document, context=context)


def read_text(
    text: str, form: str, *, recover: bool = False, name: str = "<text>"
) -> tuple[Document | None, tuple[Diagnostic, ...], bool]:
    """Return a text's tree where it has one, its violations, and whether it is cut.

    Args:
        recover: return the best tree and every repair, not only the first violation.
    """
    like = likeness_of(text, FORMS, form) if form != JSON else None
    if form == AUTO:
        form = like.name if like and like.readable else MULTIVERSE.name
    if like and like.name != form and form != APR.name:
        # Read as this form, such a text would be one without a block, or a list of repairs.
        source = Source(text, name)
        message = f"this is no text of form {form!r}: {like}"
        return None, (source.diagnostic(like.offset, "other-form", message),), False
    if recover:
        document, repairs = parse(text, form, recover=True, name=name)
        if repairs and repairs[0].code in ("not-a-document", "strict-only"):
            return None, repairs, False  # all of it is dropped: nobody takes that for its tree
        return document, repairs, bool(repairs) and repairs[-1].code == "cut"
    try:
        return parse(text, form, name=name), (), False
    except ParseError as error:
        return None, (error.diagnostic,), error.cut
    except VerifyError as error:
        return None, (not_a_document(error),), False


def not_a_document(error: VerifyError) -> Diagnostic:
    """Return the diagnostic of a row that cannot be read; it has an address and no place."""
    code = error.code if isinstance(error, RowError) else "not-a-document"
    return Diagnostic(0, 0, 1, 1, code, str(error), address=error.address)


def crash(error: Exception) -> Diagnostic:
    """Return the diagnostic of a record on which mvspec itself has failed."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = ""
    if frame is not None:
        file = "/".join(Path(frame.tb_frame.f_code.co_filename).parts[-3:])
        where = f", at {file}:{frame.tb_lineno}"
    what = f"{type(error).__name__}: {error}"[:500]
    told = f"mvspec fails on this record ({what}{where}): please report it, with the record"
    return Diagnostic(0, 0, 1, 1, "crash", encodable(told))


def context_of(turns: Sequence[ChatTurn], tools: tuple[Any, ...] = ()) -> ChatContext:
    """Return what the turns of a chat say beside their document."""
    return ChatContext(
        tools,
        {number: turn.fields for number, turn in enumerate(turns) if turn.fields},
        frozenset(n for n, turn in enumerate(turns) if turn.role == "assistant" and not turn.loss),
        len(turns),
    )


# Where a row keeps it


def stepped(value: Any, field: str | None) -> tuple[RowPath, Any]:
    """Return the path and the value of a field; "." is the value itself.

    Args:
        field: keys with dots between them, which keys may have themselves, and numbers from 0
            into lists: `result.text`, `choices.0.text` or `choices[0].text`.

    Raises:
        RowError: there is no such field; the message says how far there is.
    """
    if not field or field == ".":
        return (), value
    steps = re.sub(r"\[(\d+)\]", r".\1", field).split(".")
    found = next(_walked(value, steps, ()), None)
    if found is not None:
        return found
    been: list[str] = []
    while (deeper := next(_walked(value, steps[:1], ()), None)) is not None:
        been.append(steps.pop(0))
        value = deeper[1]
    at = ".".join(been)
    if isinstance(value, dict):
        has = f"{(at and at + ' has ') or 'there is '}{listed(value)}"
    elif isinstance(value, list) and value:
        last, one = len(value) - 1, f"{at}.0".lstrip(".")
        has = f"{at or 'the row'} is a list: give a number from 0 to {last}, as {one}"
    else:
        has = f"{at or 'the row'} is {'an empty list' if value == [] else kind_of(value)}"
    raise RowError("", "missing-field", f"no field {field!r}: {has}")


def _walked(value: Any, steps: Sequence[str], path: RowPath) -> Iterator[tuple[RowPath, Any]]:
    """Yield every place that steps lead to; nested keys come before one key with dots in it."""
    if not steps:
        yield path, value
    elif isinstance(value, dict):
        for count in range(1, len(steps) + 1):
            key = ".".join(steps[:count])
            if key in value:
                yield from _walked(value[key], steps[count:], (*path, key))
    elif isinstance(value, list) and steps[0].isdecimal() and int(steps[0]) < len(value):
        yield from _walked(value[int(steps[0])], steps[1:], (*path, int(steps[0])))


def found(row: Any, fields: Fields, folder: str | None = None) -> Found:
    """Return what a row holds: its kind, the path to it, and it.

    Args:
        folder: where the files are that the row names.

    Raises:
        RowError: nothing that is a record.
    """
    head = isinstance(row, dict) and row.keys() <= {"format", "settings"}
    if head and isinstance(row.get("settings"), dict):
        return "settings", (), row  # of an evaluation: they hold no field
    path, value = stepped(row, fields.field)
    if known := recognised(referred(value, folder), path):
        return known
    if isinstance(value, str):
        return "text", path, value
    if isinstance(value, dict) and not path:
        names = COLUMNS["chat"] + COLUMNS["trace"] + COLUMNS["document"]
        for name in columns(value, *names):
            if known := recognised(referred(value[name], folder), (name,)):
                return known
        pair = [_messages(value.get(name), role) for name, role in PAIR.items()]
        if all(pair) and fields.prompt_field is None:
            return "chat", ("messages",), [*pair[0], *pair[1]]
        for name in (*columns(value, *COLUMNS["text"]), *COLUMNS["text"]):
            if isinstance(value.get(name), str):
                return recognised(value[name], (name,)) or ("text", (name,), value[name])
        why = f"the row is an object: name the text's field with --field: there is {listed(value)}"
        raise RowError("", "missing-field", why)
    other = kind_of(value)
    where = f"field {fields.field!r} is" if path else "the row is"
    has = f": it has {listed(value)}" if isinstance(value, dict) else ""
    raise RowError("", "not-a-string", f"{where} {other}, neither a text nor a document{has}")


def recognised(value: Any, path: RowPath = ()) -> Found | None:
    """Return what an object or a list, or JSON text of one, means to be; None for nothing.

    >>> recognised('{"messages": [{"role": "user", "content": "Hi"}]}')
    ('chat', ('messages',), [{'role': 'user', 'content': 'Hi'}])
    """
    if isinstance(value, str):
        unpacked = _unpacked(value)
        return None if unpacked is value else recognised(unpacked, path)
    if isinstance(value, list):
        if is_chat(value):
            return "chat", path, value
        inside = any(isinstance(each, dict) and "body" in each for each in value)
        return ("document", path, {"messages": value}) if inside else None
    if not isinstance(value, dict):
        return None
    if is_trace(value):
        return "trace", path, value
    for name in COLUMNS["chat"]:
        chat = _unpacked(value.get(name))
        if isinstance(chat, list) and is_chat(chat):
            return "chat", (*path, name), chat
    messages = _unpacked(value.get("messages"))
    if isinstance(messages, list):
        # The name of a row is no part of the document that stands in it.
        others = {key: each for key, each in value.items() if key != "id"}
        return "document", path, others | {"messages": messages}
    if isinstance(value.get("main_calls"), list):
        return "apr", path, {key: each for key, each in value.items() if key != "id"}
    return None


def referred(value: Any, folder: str | None) -> Any:
    """Return the trace that an evaluation's sample refers to; every other value as it is.

    Args:
        value: a reference has the name of a `file` in the same folder, and the `offset` of a line.

    Raises:
        RowError: the trace is not there.
    """
    if not isinstance(value, dict) or value.keys() != {"file", "offset"}:
        return value
    name, offset = value["file"], value["offset"]
    named = isinstance(name, str) and name == os.path.basename(name) and name not in ("", ".", "..")
    if not named or type(offset) is not int or offset < 0:
        raise RowError("trace", "missing-trace", "names no line of a file in the same folder")
    way = "keep it beside the results, or take their text with --field output"
    if folder is None:
        raise RowError("trace", "missing-trace", f"is in {name}: {way}")
    try:
        with open(os.path.join(folder, name), "rb") as file:
            file.seek(max(offset - 1, 0))
            begins = not offset or file.read(1) == b"\n"
            row = json.loads(file.readline()) if begins else None
    except OSError as error:
        raise RowError("trace", "missing-trace", f"{name}: {error.strerror}: {way}") from None
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not is_trace(row.get("trace")):
        raise RowError("trace", "missing-trace", f"{name} has no trace at byte {offset}: {way}")
    return row["trace"]


_PACKED = re.compile(
    r'\s*(?:\{(?:\s*"\w+"\s*:\s*(?:"[^"]*"|[\w.-]+)\s*,)*\s*"(?:messages|conversations?)"\s*:\s*\[\s*\{'
    r'|\{\s*"role"\s*:\s*"\w+"\s*,\s*"(?:body|content)"\s*:'
    r'|\[\s*\{\s*"(?:role|from)"\s*:)'
)
_BEGINNING = 4096


def refuse_packed(text: str, form: str, address: str = "") -> None:
    """Refuse JSON of a document or a chat, or the beginning of it, as an assistant's words.

    Raises:
        RowError: it is that.
    """
    if form in (JSON, APR.name) or text[:64].lstrip()[:1] not in ("{", "[", '"'):
        return
    if _PACKED.match(text[:_BEGINNING]) or recognised(text):
        raise RowError(
            address,
            "not-a-document",
            "the text is a document or a chat as JSON, or its beginning, and no assistant's words: "
            "put all of it into a column of its own, such as document or messages",
        )


def is_trace(value: Any) -> bool:
    """Whether an object of JSON means to be a trace of a run."""
    return isinstance(value, dict) and {"thread_ids", "token_texts"} <= current_names(value).keys()


def written(value: dict[str, Any]) -> tuple[str, str]:
    """Return a trace's document as JSON; where it has none, the assistant's text and its form.

    Raises:
        RowError: it is no trace, or its text cannot be read back.
    """
    own = {key: each for key, each in value.items() if key not in ("document", "holes")}
    try:
        trace = Trace.from_dict(own)
    except VerifyError as error:
        raise RowError("", "not-a-trace", str(error)) from None
    if value.get("document") is not None:
        return encoded(value["document"]), JSON
    if trace.form not in READABLE:
        raise RowError("", "not-a-trace", "it has no document, and its text cannot be read back")
    return trace.text, trace.form


def _unpacked(value: Any) -> Any:
    """Return what JSON text of an object or a list holds; everything else as it is."""
    if isinstance(value, str) and value[:64].lstrip()[:1] in ("{", "[", '"'):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return _unpacked(found) if isinstance(found, dict | list) or _packs(found) else value
    return value


def _packs(value: Any) -> bool:
    return isinstance(value, str) and value[:64].lstrip()[:1] in ("{", "[")


def _filled(value: Any) -> Any:
    """Return a row of a table without the fields that only other rows have."""
    if isinstance(value, dict):
        return {key: _filled(each) for key, each in value.items() if each is not None}
    return [_filled(each) for each in value] if isinstance(value, list) else value


def _messages(value: Any, role: str) -> list[Any]:
    """Return one half of a pair as messages of a chat; [] for what is none."""
    chat = _unpacked(value)
    if is_chat(chat):
        return list(chat)
    return [{"role": role, "content": value}] if isinstance(value, str) else []


def encoded(value: Any) -> str:
    """Return a value as JSON."""
    try:
        return json.dumps(value, default=str)
    except RecursionError:
        return "nested too deep to be shown"


def encodable(text: str) -> str:
    """Return `text` with what UTF-8 cannot hold (lone surrogates) written out."""
    return text.encode(errors="backslashreplace").decode()
