"""Repair of an APR trace: the last call is believed, the others are made to agree with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from mvspec.errors import Source
from mvspec.forms.apr import APR, END_SUB, START, SUB, Trace, trace_of
from mvspec.forms.recovery.edits import Code, Edit
from mvspec.forms.recovery.hidden import without_tags
from mvspec.forms.recovery.truncated import finished_calls, read_beginning
from mvspec.tree.ir import Conclusion, Goal, Message, Outline, Parallel, Path, Text

__all__ = ["repair_apr"]

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_HALF = re.compile(r"(?:\\u[dD][89abAB][0-9a-fA-F]{2})?(?:\\(?:u[0-9a-fA-F]{0,3})?)?")
"""What there is of the escape of a character, or of a surrogate pair, that breaks off."""

NOTHING: Trace = {"main_calls": [""], "sub_calls": []}
"""The trace of an empty turn."""

_JOIN = re.compile(r"<(?:End )?Sub Searches>\n?")


def repair_apr(source: Source) -> list[Edit]:
    """Return the edits that make any text a trace: each string is one, or else the whole text."""
    end = len(source.text)
    try:
        value = json.loads(source.text)
    except (ValueError, RecursionError):
        return broken(source.text)
    trace = trace_of(turn(value if isinstance(value, dict) else {}))
    if trace == NOTHING:
        message = "not a trace of APR: expected an object with main_calls and sub_calls"
        return [Edit(0, end, spelled(trace), "not-a-trace", message)]
    edits = list(strings(source.text, value, trace))
    if edits and edits[0].code == "not-a-trace":
        return [Edit(0, end, spelled(trace), *shape_error(value, trace))]
    return edits


def broken(text: str) -> list[Edit]:
    """Return the edit that makes a trace of the beginning of one, and of whatever follows it."""
    found = read_beginning(text)
    value = found.value if isinstance(found.value, dict) else {}
    calls = value.get("main_calls")
    if found.string is not None and found.open[-1].value is calls:
        value = {**value, "main_calls": finished_calls(calls)}
    trace = trace_of(turn(value))
    rest = found.rest(trace)
    left = text[found.end :]
    ends = not left or _HALF.fullmatch(left)
    said = "the text ends" if ends else f"not JSON from character {found.end} on"
    holds = trace != NOTHING
    if rest is None or not (ends or holds) or not matches(text[: found.end] + rest, trace):
        code: Code = "call-differs" if holds else "not-a-trace"
        return [Edit(0, len(text), spelled(trace), code, f"no beginning of a trace: {said}")]
    code = "cut" if ends else "text-outside"
    message = f"{said}: expected {rest[:40]}" if rest else f"{said}: left out"
    return [Edit(found.end, len(text), rest, code, message)]


def matches(text: str, trace: Trace) -> bool:
    """Whether a text is this trace as JSON."""
    try:
        value: Trace = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return value == trace


def spelled(trace: Trace) -> str:
    """Return a trace as JSON."""
    return json.dumps(trace, ensure_ascii=False)


def strings(text: str, value: Any, trace: Trace) -> Iterator[Edit]:
    """Yield an edit for each string that differs; "not-a-trace" where the shapes differ."""
    had, want = list(leaves(value)), list(leaves(trace))
    if [kind for kind, _ in had] != [kind for kind, _ in want]:
        yield Edit(0, len(text), "", "not-a-trace", "")
        return
    literals = (m for m in _STRING.finditer(text))
    for (kind, before), (_, after) in zip(had, want, strict=True):
        if kind not in ("key", "text"):
            continue
        literal = next(literals)
        if before != after or _SURROGATE.search(before):
            code, message = reason(before, after)
            insert = json.dumps(after, ensure_ascii=False)
            yield Edit(*literal.span(), insert, code, message)


def leaves(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the shape of a JSON value, with its strings, in the order of its text."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield "key", key
            yield from leaves(item)
        yield "end", ""
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
        yield "end", ""
    elif isinstance(value, str):
        yield "text", value
    else:
        yield "other", ""


def reason(before: str, after: str) -> tuple[Code, str]:
    """Say why a call or a search is written otherwise."""
    if _SURROGATE.sub("\ufffd", before) == after:
        return "surrogate", "a lone surrogate is no character: U+FFFD stands for it"
    if before + "\n" == after:
        return "missing-newline", "expected a newline at the end of a search"
    tags = len(APR.marker.findall(before)) - len(APR.marker.findall(after))
    if tags and APR.marker.sub("", before).split() == APR.marker.sub("", after).split():
        return "stray-tag", "a tag stands where it cannot be"
    return "call-differs", "a call is the last one up to a join, and the spawn in its place"


def shape_error(value: Any, trace: Trace) -> tuple[Code, str]:
    """Say how the lists of a trace differ from those that its last call asks for."""
    calls, searches = value.get("main_calls"), value.get("sub_calls")
    have = len(searches) if isinstance(searches, list) else 0
    if isinstance(calls, list) and have < len(trace["sub_calls"]):
        return "missing-path", f"{have} of {len(trace['sub_calls'])} spawns have searches"
    if isinstance(calls, list) and len(calls) <= have:
        return "missing-conclusion", "the last call has no join of the last searches"
    return "missing-path", "expected one list of searches a spawn, and a call more than spawns"


def turn(value: dict[str, Any]) -> Message:
    """Return the turn that a value of any shape holds, as far as it is a trace."""
    calls = [clean(call) for call in listed(value.get("main_calls")) if isinstance(call, str)]
    searches = [listed(group) for group in listed(value.get("sub_calls"))]
    spawns = [call for call in calls if "<Calling Sub Searches>" in call]
    if calls and calls[-1] in spawns:
        # The trace ends where it spawned: the join that is to come is empty.
        calls[-1] = calls[-1][: calls[-1].index("<Calling Sub Searches>")]
        calls[-1] += "" if calls[-1].count(SUB) < len(spawns) - 1 else SUB + END_SUB
    body: list[Text | Parallel] = []
    joins = 0
    for text, found in parts(calls[-1] if calls else ""):
        if found is not None:
            starts = START.findall(spawns[joins]) if joins < len(spawns) else []
            below = searches[joins] if joins < len(searches) else []
            body.append(block([line for _, line in starts], below, found))
            joins += 1
        elif text:
            body.append(Text(text=text))
    for index in range(joins, len(searches)):
        starts = START.findall(spawns[index]) if index < len(spawns) else []
        body.append(block([line for _, line in starts], searches[index], ""))
    return Message(role="assistant", body=tuple(body))


def listed(value: Any) -> list[Any]:
    """Return a list as it is, and nothing for what is none."""
    return value if isinstance(value, list) else []


def clean(text: str) -> str:
    """Return a text that can be encoded."""
    return _SURROGATE.sub("\ufffd", text)


def parts(call: str) -> Iterator[tuple[str, str | None]]:
    """Yield the texts of a last call, and ("", what was found) for each of its joins."""
    at, inside = 0, False
    for tag in _JOIN.finditer(call):
        if tag.group().startswith("<End") is not inside:
            continue
        run = without_tags(call[at : tag.start()], APR.marker).removesuffix("\n")
        yield ("", run) if inside else (run, None)
        at, inside = tag.end(), not inside
    run = without_tags(call[at:], APR.marker)
    yield ("", run.removesuffix("\n")) if inside else (run, None)


def block(lines: list[str], searches: list[Any], found: str) -> Parallel:
    """Return the block of a spawn; what it lacks is empty."""
    count = max(len(lines), len(searches), 1)
    labels = [str(index) for index in range(1, count + 1)]
    lines = [without_tags(line, APR.marker) for line in lines] + [""] * (count - len(lines))
    texts = [
        without_tags(clean(said(search)), APR.marker).removesuffix("\n") for search in searches
    ]
    texts += [""] * (count - len(texts))
    return Parallel(
        goal=Goal(
            outlines=tuple(Outline(label=a, text=b) for a, b in zip(labels, lines, strict=True))
        ),
        paths=tuple(
            Path(label=label, body=(Text(text=text),) if text else ())
            for label, text in zip(labels, texts, strict=True)
        ),
        conclusion=Conclusion(body=(Text(text=found),) if found else ()),
    )


def said(search: Any) -> str:
    """Return the text of a search, and of all that it spawned in its turn."""
    if isinstance(search, str):
        return search
    if not isinstance(search, dict):
        return ""
    calls = [call for call in listed(search.get("main_calls")) if isinstance(call, str)]
    below = [said(each) for group in listed(search.get("sub_calls")) for each in listed(group)]
    return "".join((*calls[-1:], *below))
