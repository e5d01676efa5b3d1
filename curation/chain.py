"""Reasoning chains: a question, sequential reasoning cut into sentences, and an answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from mvspec.data.columns import COLUMNS, REASONING, columns
from mvspec.data.records import Record, encodable
from mvspec.law.tags import TAG
from mvspec.tree.ir import Gen, Parallel, Text, Think
from mvspec.tree.node import Node


@dataclass(frozen=True, slots=True)
class ChainFields:
    """Names of a row's fields; by default the first known columns that it has.

    Args:
        reasoning: the chain.
        question, answer: what it starts from and comes to.
    """

    reasoning: str | None = None
    question: str | None = None
    answer: str | None = None


_HOLDS = ("text", "chat", "document", "trace")
"""Kinds of records whose document may be a chain."""


@dataclass(frozen=True)
class ReasoningChain:
    """A question, the sentences of the reasoning, and the answer.

    Args:
        name: the row's `id`, else its place.
        place: where it stands, as `chains.jsonl:12`.
    """

    name: str
    place: str
    question: str
    reasoning: str
    answer: str

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """The reasoning, cut; joined they are the reasoning."""
        return split_sentences(self.reasoning)

    def text(self, first: int, last: int) -> str:
        """Return sentences `first` to `last`, from 1, as they stand in the source."""
        return "".join(self.sentences[first - 1 : last])

    @cached_property
    def digest(self) -> str:
        """What tells the chain from others."""
        fields = (self.name, self.place, self.question, self.reasoning, self.answer)
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def read_chain(record: Record, fields: ChainFields, *, reasoning: bool = True) -> ReasoningChain:
    """Return the chain of a record: of its columns, else of what a chat or a text of it thinks.

    Args:
        record: of the input.
        fields: where it keeps what.
        reasoning: whether it needs a chain, or the question alone.

    Raises:
        BadRecord: it lacks a field, or its text cannot stand in a document.

    >>> row = {"question": "2+3?", "reasoning": "Add. It is 5.", "answer": "5"}
    >>> read_chain(Record("a.jsonl:1", row, "value"), ChainFields()).sentences
    ('Add. ', 'It is 5.')
    """
    row = record.row or {}
    asked = next(columns(row, *COLUMNS["question"]), None)
    known = next(
        ((name, to) for each, to in REASONING.items() for name in columns(row, each)), None
    )
    if fields == ChainFields() and not (known if reasoning else asked) and record.kind in _HOLDS:
        return _thought(record, asked, reasoning=reasoning)
    column, answer = known or ("reasoning", REASONING["reasoning"])

    def text(field: str | None, other: str, *, needed: bool, tags: bool = False) -> str:
        found = record.at(field or other) if needed or field else row.get(other, "")
        if not isinstance(found, str):
            raise record.bad("not-a-string", f"field {field or other!r} is not a string")
        return _checked(found, f"field {field or other!r}", record, tags=tags)

    chain = ReasoningChain(
        encodable(record.name),
        record.place,
        # In a question, a tag is plain characters; in an assistant's turn it is structure.
        text(fields.question, asked or "question", needed=not reasoning, tags=True),
        text(fields.reasoning, column, needed=True) if reasoning else "",
        text(fields.answer, answer, needed=False),
    )
    if reasoning and not chain.reasoning.strip():
        raise record.bad("empty", f"field {fields.reasoning or column!r} has no text")
    return chain


def _thought(record: Record, asked: str | None, *, reasoning: bool) -> ReasoningChain:
    """Return the chain of a chat: its last question, what the answer thinks, and the rest of it.

    Args:
        asked: the column of the question, where there is one.

    Raises:
        BadRecord: there is no document, no thought, or a block.
    """
    document = record.document
    if next(document.walk(Parallel), None) or next(document.walk(Gen), None):
        raise record.bad("not-sequential", "it has blocks or holes: a chain is plain text")
    questions = [each for each in document.messages if each.role == "user"]
    answers = [each for each in document.messages if each.role == "assistant"]
    body = answers[-1].body if answers else ()
    thoughts = [each for each in body if isinstance(each, Think)]
    if reasoning and not thoughts:
        raise record.bad("missing-field", "no field 'reasoning', and no answer that thinks")
    if not reasoning and not questions:
        raise record.bad("missing-field", "no field 'question', and no user's message")

    def text(nodes: Iterable[Node]) -> str:
        return "".join(each.text for node in nodes for each in node.walk(Text))

    question = text(questions[-1:]) or (str(record.at(asked)) if asked else "")
    return ReasoningChain(
        encodable(record.name),
        record.place,
        _checked(question, "the question", record, tags=True),
        _checked(text(thoughts), "the reasoning", record),
        _checked(text(each for each in body if each not in thoughts), "the answer", record),
    )


def _checked(text: str, what: str, record: Record, *, tags: bool = False) -> str:
    tag = None if tags else TAG.search(text)
    if tag:
        raise record.bad("tag", f"{what} holds the tag {tag.group()} at character {tag.start()}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise record.bad("surrogate", f"{what} holds half a character at {error.start}") from None
    return text


_WHOLE = re.compile(
    r"```[\s\S]{0,4000}?```"  # code
    r"|\\\[[\s\S]{0,2000}?\\\]|\$\$[\s\S]{1,2000}?\$\$"  # display mathematics
    r"|\\\([^\n]{0,500}?\\\)|\$[^\s$](?:[^\n$]{0,300}[^\s$])?\$"  # mathematics in line
)
"""What no boundary may cut. The bounds keep an opening that nothing closes from gluing a text."""

_END = re.compile(r"(?<!\s)\s*\n\s*|(?<=[.!?…])[\"'”’)\]*]*[^\S\n]+(?=\S)|(?<=[。！？])[”’」）]*")

_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|etc|approx|resp|Mr|Mrs|Ms|Dr|Prof|St|No|Fig|Eq|Sec|Thm|Ch|pp?)"
    r"|\b[A-Z]|(?:^|\n)\s*[(\[]?[0-9]{1,3})\.$"
)
"""What ends in a full stop without ending a sentence: abbreviations, initials, `1.` of a list."""


def split_sentences(text: str) -> tuple[str, ...]:
    """Return the sentences of a text, each with the white space behind it.

    A sentence ends behind `.`, `!`, `?` (and their East Asian twins) and at every line break;
    formulas and code are not cut. Joined, the sentences are the text.

    >>> split_sentences("Add them. It is \\\\(1. 5\\\\).\\n\\nNext?")
    ('Add them. ', 'It is \\\\(1. 5\\\\).\\n\\n', 'Next?')
    """
    sentences: list[str] = []
    start = 0
    for end in _ends(text):
        # White space alone is no sentence: it goes with what follows.
        if text[start:end].strip():
            sentences.append(text[start:end])
            start = end
    if start < len(text):
        if text[start:].strip() or not sentences:
            sentences.append(text[start:])
        else:
            sentences[-1] += text[start:]
    return tuple(sentences)


def _ends(text: str) -> list[int]:
    whole = [match.span() for match in _WHOLE.finditer(text)]
    ends: list[int] = []
    at = 0
    for match in _END.finditer(text):
        while at < len(whole) and whole[at][1] <= match.start():
            at += 1
        if at < len(whole) and whole[at][0] < match.end() and match.start() < whole[at][1]:
            continue
        before = text[max(0, match.start() - 12) : match.start()]
        if "\n" not in match.group() and _ABBREVIATION.search(before):
            continue
        ends.append(match.end())
    return ends


def numbered(sentences: Sequence[str], first: int = 1) -> str:
    """Return sentences as lines `[1] ...`, as prompts show them.

    >>> print(numbered(["One. ", "Two."], first=3))
    [3] One.
    [4] Two.
    """
    return "\n".join(f"[{first + i}] {sentence.strip()}" for i, sentence in enumerate(sentences))
