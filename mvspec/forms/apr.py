"""Adaptive Parallel Reasoning: a trace of a parent's calls and of its sub searches, as JSON.

    {"main_calls": [...], "sub_calls": [[{"main_calls": [...], "sub_calls": []}, ...], ...]}

A call of the parent ends where it spawns (`<Calling Sub Searches>`: outlines); the next call
repeats it with what the searches found in the spawn's place (`<Sub Searches>`: the conclusion).
The searches' own texts are the paths. A trace holds spawn and join only together, so the whole
trace is the text of this form; it may be spelled like any JSON, and is read strictly only. The
model writes all but what was found. (APR's Countdown generator.)
"""

from __future__ import annotations

import json
import re
from typing import Any

from mvspec.forms.can_hold import refusal
from mvspec.forms.form import Mismatch, StrictForm, check_characters, document_of, text_of
from mvspec.forms.syntax import Syntax, tag_texts
from mvspec.law.tags import Tag
from mvspec.tree.ir import Conclusion, Document, Goal, Message, Outline, Parallel, Path, Text, Think

APR = Syntax(
    "apr",
    tags=tag_texts(
        {
            Tag.GOAL: "<Calling Sub Searches>",
            Tag.END_GOAL: "<End Calling Sub Searches>",
            Tag.OUTLINE: "<Start Sub Search {} at level 1>",
            Tag.CONCLUSION: "<Sub Searches>",
            Tag.END_CONCLUSION: "<End Sub Searches>",
        },
        "",
    ),
    counted=True,
    max_depth=1,
    ordered=False,
)

CALLING, END_CALLING = APR.written(Tag.GOAL) + "\n", APR.written(Tag.END_GOAL) + "\n"
SUB, END_SUB = APR.written(Tag.CONCLUSION) + "\n", APR.written(Tag.END_CONCLUSION) + "\n"
START = re.compile(r"<Start Sub Search ([0-9]+) at level 1> ([^\n]*)\n")


def read_apr(text: str) -> Document:
    """Return the document of a trace.

    Raises:
        Mismatch: it is no JSON, or no trace as APR makes it.
    """
    try:
        trace = json.loads(text)
    except json.JSONDecodeError as error:
        raise Mismatch(f"this is not JSON: {error.msg}", error.pos) from None
    except (ValueError, RecursionError) as error:
        raise Mismatch(f"this is not JSON: {error}") from None
    calls, searches = shape(trace)
    *spawns, last = calls
    for each in (*calls, *(said for group in searches for said in group)):
        check_characters(each)
    body: list[Text | Parallel] = []
    at = 0
    for spawn, group in zip(spawns, searches, strict=True):
        start = last.find(SUB, at)
        end = last.find(END_SUB, start)
        if min(start, end) < 0:
            raise Mismatch("a spawn without a join")
        body += texts(last[at:start])
        found = last[start + len(SUB) : end]
        body.append(_block(spawn, last[:start], group, found))
        at = end + len(END_SUB)
    if at < len(last):
        body.append(plain(last[at:]))
    return document_of(tuple(body))


def shape(trace: Any) -> tuple[list[str], list[list[str]]]:
    """Return the parent's calls, and the texts of the searches of each spawn.

    Raises:
        Mismatch: the value is no trace with one level of searches.
    """
    calls, searches = _lists(trace)
    if len(calls) != len(searches) + 1 or not all(isinstance(call, str) for call in calls):
        raise Mismatch("a trace has one call more than spawns")
    texts: list[list[str]] = []
    for group in searches:
        if not isinstance(group, list) or not group:
            raise Mismatch("a spawn has searches")
        texts.append([])
        for child in group:
            own, below = _lists(child)
            if below or len(own) != 1 or not isinstance(own[0], str):
                raise Mismatch("a search is one call")
            texts[-1].append(own[0])
    return calls, texts


def _lists(trace: Any) -> tuple[list[Any], list[Any]]:
    if not isinstance(trace, dict) or set(trace) != {"main_calls", "sub_calls"}:
        raise Mismatch("a trace has main_calls and sub_calls")
    calls, searches = trace["main_calls"], trace["sub_calls"]
    if not isinstance(calls, list) or not isinstance(searches, list):
        raise Mismatch("main_calls and sub_calls are lists")
    return calls, searches


def texts(lines: str) -> tuple[Text, ...]:
    """Return lines as a text, whose last newline belongs to the form; none for no lines."""
    if lines and (lines == "\n" or not lines.endswith("\n")):
        raise Mismatch("a text ends with a newline")
    return (plain(lines[:-1]),) if lines else ()


def plain(text: str) -> Text:
    """Return a text as a node."""
    if "<" in text and APR.marker.search(text):
        raise Mismatch("a tag stands in a text")
    return text_of(text)


def _block(call: str, before: str, searches: list[str], found: str) -> Parallel:
    spawn = call[len(before) :]
    if not call.startswith(before) or not spawn.startswith(CALLING):
        raise Mismatch("a call is the one before it, with the join in the spawn's place")
    starts = START.findall(spawn)
    lines = [line for _, line in starts]
    if spawn != spawn_text(lines) or len(lines) != len(searches):
        raise Mismatch("a spawn starts each search once")
    labels = [str(index) for index in range(1, len(lines) + 1)]
    for line in lines:
        plain(line)
    outlines = (Outline.trusted(label=a, text=b) for a, b in zip(labels, lines, strict=True))
    paths = (Path.trusted(label=a, body=texts(b)) for a, b in zip(labels, searches, strict=True))
    return Parallel.trusted(
        goal=Goal.trusted(outlines=tuple(outlines)),
        paths=tuple(paths),
        conclusion=Conclusion.trusted(body=texts(found)),
    )


def spawn_text(lines: list[str]) -> str:
    """Return the end of a call that spawns a search for each line."""
    starts = (f"{APR.written(Tag.OUTLINE, str(k))} {line}\n" for k, line in enumerate(lines))
    return "".join((CALLING, *starts, END_CALLING))


def write_apr(message: Message) -> str:
    """Return a turn as a trace; `check_apr` has let it pass."""
    calls: list[str] = []
    searches: list[list[dict[str, list[Any]]]] = []
    text = ""
    for index, item in enumerate(message.body):
        if isinstance(item, Text):
            text += item.text + "\n" * (index + 1 < len(message.body))
        elif isinstance(item, Parallel):
            calls.append(text + spawn_text([outline.text for outline in item.goal.outlines]))
            searches.append(
                [{"main_calls": [said(path.body)], "sub_calls": []} for path in item.paths]
            )
            text += SUB + said(item.conclusion.body) + END_SUB
    return json.dumps({"main_calls": [*calls, text], "sub_calls": searches}, ensure_ascii=False)


def said(body: tuple[Any, ...]) -> str:
    """Return the text of a body, each with its newline."""
    return "".join(f"{item.text}\n" for item in body if isinstance(item, Text))


def check_apr(message: Message, address: str = "") -> None:
    """Raise Unsupported for the first node that a trace cannot hold."""
    for index, item in enumerate(message.body):
        if isinstance(item, Think):
            where = f"{address}.body[{index}]".lstrip(".")
            raise refusal(APR, where, "a trace has no reasoning span: take it out of Think")


FORM = StrictForm(APR, read_apr, write_apr, check_apr)
