"""Reasoning chains: a question, sequential reasoning cut into sentences, and an answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mvspec.data.conversation import BadRecord, row_name, row_value, step_into
from mvspec.data.rows import Row
from mvspec.law.tags import TAG

__all__ = ["ChainFields", "ReasoningChain", "numbered", "read_chain", "split_sentences"]


@dataclass(frozen=True, slots=True)
class ChainFields:
    """Names of a row's fields; by default those of the first of `KNOWN` that it has.

    Args:
        reasoning: the chain.
        question, answer: what it starts from and comes to.
    """

    reasoning: str | None = None
    question: str | None = None
    answer: str | None = None


KNOWN = (
    ChainFields("deepseek_thinking_trajectory", "question", "deepseek_attempt"),  # s1K-1.1
    ChainFields("gemini_thinking_trajectory", "question", "gemini_attempt"),
    ChainFields("reasoning", "question", "answer"),
    ChainFields("thinking", "question", "answer"),
)
"""Columns that are known by name."""


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


def read_chain(row: Row, fields: ChainFields, *, reasoning: bool = True) -> ReasoningChain:
    """Return the chain of a row.

    Args:
        row: of the input.
        fields: where it keeps what.
        reasoning: whether it needs a chain, or the question alone.

    Raises:
        BadRecord: it lacks a field, or its text cannot stand in a document.

    >>> row = Row("a.jsonl:1", {"question": "2+3?", "reasoning": "Add. It is 5.", "answer": "5"})
    >>> read_chain(row, ChainFields()).sentences
    ('Add. ', 'It is 5.')
    """
    value = row_value(row)
    name = row_name(value, row.place)
    chosen = _chosen(value, fields)

    def text(field: str | None, *, needed: bool, tags: bool = False) -> str:
        if field is None:
            return ""
        try:
            found = step_into(value, field, name, row.place)
        except BadRecord:
            if needed:
                raise
            return ""
        if not isinstance(found, str):
            reason = f"field {field!r} is not a string"
            raise BadRecord(name, row.place, "not-a-string", reason)
        return _checked(found, field, name, row.place, tags=tags)

    chain = ReasoningChain(
        name,
        row.place,
        # In a question, a tag is plain characters; in an assistant's turn it is structure.
        text(chosen.question, needed=fields.question is not None or not reasoning, tags=True),
        text(chosen.reasoning, needed=True) if reasoning else "",
        text(chosen.answer, needed=fields.answer is not None),
    )
    if reasoning and not chain.reasoning.strip():
        raise BadRecord(name, row.place, "empty", f"field {chosen.reasoning!r} has no text")
    return chain


def _chosen(value: Any, fields: ChainFields) -> ChainFields:
    known = KNOWN[2]
    if isinstance(value, dict):
        known = next((each for each in KNOWN if each.reasoning in value), known)
    return ChainFields(
        fields.reasoning or known.reasoning,
        fields.question or known.question,
        fields.answer or known.answer,
    )


def _checked(text: str, field: str, name: str, place: str, *, tags: bool) -> str:
    tag = None if tags else TAG.search(text)
    if tag:
        reason = f"field {field!r} holds the tag {tag.group()} at character {tag.start()}"
        raise BadRecord(name, place, "tag", reason)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = f"field {field!r} holds half a character at {error.start}"
        raise BadRecord(name, place, "surrogate", reason) from None
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
