"""A trace of APR that breaks off: how far its JSON can be read, and the shortest end of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from mvspec.forms.apr import CALLING, END_CALLING, END_SUB, START, SUB, Trace

__all__ = ["Beginning", "finished_calls", "read_beginning"]

_SPACE = re.compile(r"[ \t\n\r]*+")
_CHARACTERS = re.compile(r'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_DEPTH = 64
"""Lists and objects that are read inside each other; a trace has at most six."""

State = Literal["first", "item", "colon", "value", "next"]
"""What may come: an item or the end; an item; after a key; its value; a comma or the end."""


@dataclass
class _Open:
    """A list or an object that is not closed, and the key of its value at hand."""

    value: Any
    state: State = "first"
    key: str | None = None

    def put(self, item: Any) -> None:
        """Take the next item, of an object first a key and then its value."""
        if isinstance(self.value, list):
            self.value.append(item)
            self.state = "next"
        elif self.state in ("first", "item"):
            self.key, self.state = item, "colon"
        else:
            self.value[self.key], self.state = item, "next"

    def child(self, trace: Any) -> Any:
        """Return what stands in `trace` where the value at hand stands in this."""
        key = len(self.value) - 1 if isinstance(self.value, list) else self.key
        return trace[key]


@dataclass
class Beginning:
    """What can be read of JSON that consists of objects, lists and strings.

    Args:
        value: the outermost value so far, with what there is of the last string.
        end: how many characters were read.
        open: what is not closed, the innermost last.
        string: what there is of a string that is not closed.
    """

    value: Any = None
    end: int = 0
    open: list[_Open] = field(default_factory=list)
    string: str | None = None

    def rest(self, trace: Trace) -> str | None:
        """Return the shortest end that makes the text this trace; None where there is none."""
        if not self.open:
            return _dumps(trace) if self.value is None else ""
        wanted: list[Any] = [trace]
        try:
            for each in self.open[:-1]:
                wanted.append(each.child(wanted[-1]))
            return "".join(self._ends(wanted))
        except (IndexError, KeyError, TypeError, ValueError):
            return None

    def _ends(self, wanted: list[Any]) -> list[str]:
        parts: list[str] = []
        inner = self.open[-1]
        state = inner.state
        if self.string is not None:
            is_key = isinstance(inner.value, dict) and state != "value"
            target = _key(inner, wanted[-1], self.string) if is_key else _last(inner, wanted[-1])
            parts.append(_dumps(target[len(self.string) :])[1:])
            if is_key:
                inner, state = _Open(inner.value, "colon", target), "colon"
            else:
                inner, state = _Open(inner.value, "next", inner.key), "next"
        if state in ("colon", "value"):
            parts.append((": " if state == "colon" else "") + _dumps(wanted[-1][inner.key]))
            inner = _Open({**inner.value, inner.key: ""}, "next")
            state = "next"
        for depth in range(len(self.open) - 1, -1, -1):
            here = inner if depth == len(self.open) - 1 else self.open[depth]
            target = wanted[depth]
            comma = "" if here.state in ("first", "item") else ", "
            if isinstance(here.value, dict):
                # A value that was open when the text broke off is in the object by now.
                keys = [key for key in target if key not in here.value]
                items = ", ".join(f"{_dumps(key)}: {_dumps(target[key])}" for key in keys)
                parts.append((comma if items else "") + items + "}")
            else:
                items = ", ".join(_dumps(item) for item in target[len(here.value) :])
                parts.append((comma if items else "") + items + "]")
        return parts


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _key(inner: _Open, target: dict[str, Any], start: str) -> str:
    keys = (key for key in target if key not in inner.value and key.startswith(start))
    key = next(keys, None)
    if key is None:
        raise ValueError(f"no key begins with {start!r}")
    return key


def _last(inner: _Open, target: Any) -> str:
    said = inner.child(target)
    if not isinstance(said, str):
        raise TypeError("no string stands there")
    return said


def read_beginning(text: str) -> Beginning:
    """Return the longest beginning of a text that is one of JSON, in linear time.

    >>> found = read_beginning('{"main_calls": ["Sta')
    >>> found.value, found.string, found.end
    ({'main_calls': ['Sta']}, 'Sta', 20)
    """
    found = Beginning()
    at = 0
    while found.value is None or found.open:
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if at == len(text):
            found.end = at
        if at == len(text) or not _step(found, text, at):
            return found
        at = found.end
    return found


def _step(found: Beginning, text: str, at: int) -> bool:
    """Read the token at `at`; False where the beginning ends there."""
    inner = found.open[-1] if found.open else None
    state = inner.state if inner else "value"
    sign = text[at]
    if inner and state in ("first", "next") and sign == ("]" if _is_list(inner) else "}"):
        found.open.pop()
    elif inner and state == "next" and sign == ",":
        inner.state = "item"
    elif inner and state == "colon" and sign == ":":
        inner.state = "value"
    elif inner and state in ("colon", "next"):
        return False
    elif (
        sign in "[{"
        and len(found.open) < _DEPTH
        and (state == "value" or (inner and _is_list(inner)))
    ):
        opened = _Open([] if sign == "[" else {})
        if inner:
            inner.put(opened.value)
        else:
            found.value = opened.value
        found.open.append(opened)
    elif inner and sign == '"':
        return _string(found, inner, text, at)
    else:
        return False
    found.end = at + 1
    return True


def _is_list(inner: _Open) -> bool:
    return isinstance(inner.value, list)


def _string(found: Beginning, inner: _Open, text: str, at: int) -> bool:
    end = _CHARACTERS.match(text, at + 1).end()  # type: ignore[union-attr]
    if text.startswith('"', end):
        inner.put(json.loads(text[at : end + 1]))
        found.end = end + 1
        return True
    said = json.loads(text[at:end] + '"')
    if "\ud800" <= said[-1:] <= "\udbff":  # the other half of the character is missing
        said, end = said[:-1], end - len("\\ud800")
    found.string, found.end = said, end
    if isinstance(inner.value, list) or inner.state == "value":
        state = inner.state
        inner.put(found.string)
        inner.state = state
    return False


def finished_calls(calls: list[str]) -> list[str]:
    """Return the calls of a parent, the last of which breaks off, with its open list closed.

    >>> finished_calls(["<Calling Sub Searches>\\n<Start Sub Search 0 at level 1> l"])[0][-29:]
    'l\\n<End Calling Sub Searches>\\n'
    """
    if not calls:
        return calls
    *before, last = calls
    joined = before[-1].rpartition(CALLING)[0] + SUB if before else ""
    if joined.startswith(last):
        return [*before, joined + END_SUB]
    return [*before, _closed(last)]


def _closed(call: str) -> str:
    head, mark, found = call.rpartition(SUB)
    if mark and END_SUB not in found:
        return head + mark + _ended(found, END_SUB)
    head, mark, starts = call.rpartition(CALLING)
    if not mark or END_CALLING in starts:
        return call
    whole, _, line = starts.rpartition("\n")
    count = len(START.findall(f"{whole}\n"))
    if START.fullmatch(f"{line}\n"):
        return f"{call}\n{END_CALLING}"
    if count and END_CALLING.startswith(line):
        return call[: len(call) - len(line)] + END_CALLING
    start = f"<Start Sub Search {count} at level 1> "
    if start.startswith(line):
        return call[: len(call) - len(line)] + f"{start}\n{END_CALLING}"
    return call


def _ended(text: str, end: str) -> str:
    """Return a text whose last line may be the beginning of its end."""
    whole, newline, line = text.rpartition("\n")
    if end.startswith(line):
        return whole + newline + end
    return f"{text}\n{end}"
