"""Known columns of a row: the one table of names by which every command finds what a row holds.

docs/cli.md shows it to people.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any

from mvspec.errors import VerifyError

COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id", "unique_id", "question_id", "problem_id", "task_id", "record id", "key"),
    "chat": ("messages", "conversations", "conversation"),
    "trace": ("trace",),
    "document": ("document",),
    "text": ("output", "text", "completion", "response"),
    "question": ("problem", "question", "prompt", "instruction"),
    "answer": ("answer", "reference_answer", "final_answer", "target", "gold"),
    "group": ("group", "task", "source", "dataset", "label", "model"),
    "right": ("correct", "is_correct", "right", "score"),
}
"""What a row holds, and the columns that may hold it: the first that is there counts."""

PAIR = {"prompt": "user", "completion": "assistant"}
"""A question and its answer, as texts or as messages: a chat where both columns are there."""

REASONING = {
    "deepseek_thinking_trajectory": "deepseek_attempt",  # s1K-1.1
    "gemini_thinking_trajectory": "gemini_attempt",
    "reasoning": "answer",
    "thinking": "answer",
}
"""Columns of sequential reasoning, each with that of the answer which it comes to."""

_KINDS: dict[type, str] = {
    dict: "an object", list: "a list", bool: "a boolean", type(None): "null", str: "a text",
}  # fmt: skip
"""Columns of a row that a message names."""


class RowError(VerifyError):
    """A row, or a message in it, cannot be read; `code` names the kind of error."""

    def __init__(self, address: str, code: str, message: str) -> None:
        super().__init__(address, message)
        self.code = code


def columns(row: Mapping[str, Any], *names: str) -> Iterator[str]:
    """Yield the row's columns of these names that are not empty; case and blanks do not matter.

    >>> list(columns({"Record ID": 3, "key": ""}, *COLUMNS["id"]))
    ['Record ID']
    """
    own: dict[str, str] | None = None
    for name in names:
        if name not in row:
            if own is None:
                own = {plain(each): each for each in reversed(list(row))}
            name = own.get(plain(name), "")
        if row.get(name) not in (None, ""):
            yield name


def column(row: Mapping[str, Any], *names: str) -> Any:
    """Return the value of the first of these columns that is not empty, else None."""
    return next((row[name] for name in columns(row, *names)), None)


def plain(name: str) -> str:
    """Return a column's name without what does not matter in it."""
    return name.lower().replace(" ", "").replace("_", "")


def listed(names: Collection[object], most: int = 8) -> str:
    """Return the first of some names, such as a row's columns, as a message lists them.

    >>> listed("abc", 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(str, islice(names, most))) + more or "none"


def kind_of(value: object) -> str:
    """Return what a value of JSON is, as a message calls it.

    >>> kind_of([1])
    'a list'
    """
    return _KINDS.get(type(value), "a number")
