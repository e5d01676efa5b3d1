"""Recovery of the other tagged forms: repaired as canonical text, and aligned with the result.

What the canonical repair of a transcript keeps of the text is found again in the form's own
rendering of the tree; where the two differ in between is an edit. A rendering is canonical by
law 1, so the edits are complete whatever the rules decided.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import cast

from mvspec.errors import Diagnostic, Source
from mvspec.forms.recovery.edits import Code, Edit, apply
from mvspec.forms.recovery.transcript import Ending, Run, Transcript, endings, transcribe
from mvspec.forms.recovery.trim import same_start, trimmed
from mvspec.forms.syntax import MULTIVERSE, Piece, Syntax
from mvspec.law.tags import TAG, Tag
from mvspec.tree.builder import number
from mvspec.tree.ir import LABEL, Document, Message, Parallel, Text, Think
from mvspec.tree.node import Node

__all__ = ["aligned"]

Read = Callable[[str, Syntax], Document]
Repair = Callable[[Source, Syntax], tuple[Diagnostic, ...]]

PASSES = 3
"""Times that a text is read again without the numbered tags that turned out to be words."""

_BARE_JOIN = re.compile(r"(?:<C[a-z]*|<Conclusion>\s*(?:</?[A-Za-z]*)?)\Z")
_WORDS = ("tag-as-word", "stray-tag", "too-deep")
_SPACE: tuple[Code, ...] = ("separator", "missing-newline", "cut")
_LABELS: tuple[Code, ...] = ("missing-label", "wrong-label")


def aligned(
    source: Source, syntax: Syntax, read: Read, repair: Repair
) -> tuple[tuple[Diagnostic, ...], Message]:
    """Return the repairs that make a text canonical in its form, and the turn that it then is.

    Args:
        read: the strict parser.
        repair: the repairs of the canonical form.
    """
    edits, message = _edits(source.text, syntax, read, repair)
    found = trimmed(source, edits)
    if found and found[0].code == "cut":
        return found, message
    return bare_join(source, syntax, read, repair) or (found, message)


def bare_join(
    source: Source, syntax: Syntax, read: Read, repair: Repair
) -> tuple[tuple[Diagnostic, ...], Message] | None:
    """Return the repair of a text that ends in a conclusion of which nothing stands there.

    Where the form does not write a conclusion that is empty, what there is of it is left out,
    for no text of the tree could follow. None where the text is not cut there.
    """
    text = source.text
    tail = _BARE_JOIN.match(text, max(0, text.rfind("<C"))) if syntax.optional_join else None
    if not tail:
        return None
    start, end = tail.span()
    head = Source(text[:start], source.name)
    edits, message = _edits(head.text, syntax, read, repair)
    found = trimmed(head, edits)
    missing = found[0].inserted if found and found[0].code == "cut" else ""
    if not missing.startswith(syntax.written(Tag.END_PARALLEL)):
        return None
    said = f"the text ends where a conclusion begins: expected {Tag.END_PARALLEL} or its text"
    return (source.diagnostic(start, "cut", said, end=end, inserted=missing),), message


def _edits(text: str, syntax: Syntax, read: Read, repair: Repair) -> tuple[list[Edit], Message]:
    """Return the edits that make a text canonical in its form, and the turn that it then is."""
    edits, _, message = _attempt(text, syntax, read, repair, None)
    if all(edit.start == len(text) for edit in edits):
        return edits, message
    for ending in endings(text, syntax):
        _, rendered, completed = _attempt(text, syntax, read, repair, ending)
        if rendered.startswith(text):
            end = len(text)
            return [Edit(end, end, rendered[end:], "cut", "the text ends inside a tag")], completed
    return edits, message


def _attempt(
    text: str, syntax: Syntax, read: Read, repair: Repair, ending: Ending | None
) -> tuple[list[Edit], str, Message]:
    """Return the edits of a text whose end is read as the beginning of a tag, and the result."""
    rules = replace(MULTIVERSE, max_depth=syntax.max_depth)
    words: set[int] = set()
    for left in range(PASSES, -1, -1):
        script = transcribe(text, syntax, words, ending)
        found = repair(Source(script.text), rules)
        canonical = apply(script.text, found)
        # Around a tag that is left out another may come about, which then is left out too.
        new = _words(script, found, every=bool(foreign(syntax).search(canonical)))
        if not new:
            break
        words |= new if left > 1 else {number for _, number, _ in script.tags}
    (message,) = read(canonical, MULTIVERSE).messages
    _, places = _placed(MULTIVERSE.pieces(message))
    message = _fitted(message, syntax)
    rendered, own = _placed(syntax.pieces(message))
    runs: Iterable[Run] = (
        Run(at, source, size) for (at, size), (source, _) in zip(own, places, strict=True)
    )
    runs = _joined(list(_joined(list(runs), _kept(script.text, found))), script.runs)
    edits = list(_gaps(text, rendered, list(runs), script, found, syntax))
    return edits, rendered, message


@cache
def foreign(syntax: Syntax) -> re.Pattern[str]:
    """Return the pattern of the tags of a form that are none of the canonical form."""
    others = (re.escape(tag) for tag in syntax.tags if tag.startswith("<") and not TAG.match(tag))
    labelled = (tag.replace(r"\{\}", LABEL.pattern) for tag in others)
    return re.compile("|".join(labelled) or r"(?!)")


def _words(script: Transcript, found: tuple[Diagnostic, ...], *, every: bool) -> set[int]:
    """Return the numbers of the tags that the repair drops: all, or those with a label."""
    out: set[int] = set()
    if not any(each.code in _WORDS for each in found):
        return out
    starts = [each.offset for each in found]
    for at, index, labelled in script.tags:
        place = bisect_right(starts, at) - 1
        drops = place >= 0 and found[place].code in _WORDS and at < found[place].end
        if drops and (every or labelled):
            out.add(index)
    return out


def _fitted(message: Message, syntax: Syntax) -> Message:
    """Return a turn with what a form cannot say put right: its numbers, and text like a fence."""
    body = message.body
    if syntax.counted:
        body = tuple(_counted(item) for item in body)  # type: ignore[misc]
    first = body[0] if body else None
    fence = f"{syntax.fence}\n"
    if syntax.fence and isinstance(first, Text) and f"{first.text}\n".startswith(fence):
        body = (Think.build(body=body),)
    return Message(role="assistant", body=body)


def _counted(item: Node) -> Node:
    if isinstance(item, Think):
        return Think(body=tuple(_counted(each) for each in item.body))
    return number(item) if isinstance(item, Parallel) else item


def _placed(pieces: Iterable[Piece]) -> tuple[str, list[tuple[int, int]]]:
    """Return a rendering, and where each text of the tree stands in it, with its size."""
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    at = 0
    for piece in pieces:
        if piece.content:
            places.append((at, len(piece.text)))
        parts.append(piece.text)
        at += len(piece.text)
    return "".join(parts), places


def _kept(text: str, found: tuple[Diagnostic, ...]) -> list[Run]:
    """Return the runs of a repaired text that the repairs keep."""
    out: list[Run] = []
    at = place = 0
    for each in found:
        out.append(Run(place, at, each.offset - at))
        place += each.offset - at + len(each.inserted)
        at = each.end
    return [*out, Run(place, at, len(text) - at)]


def _joined(first: list[Run], second: list[Run]) -> Iterator[Run]:
    """Yield the runs from the first of three texts to the last; both lists rise."""
    low = 0
    for run in first:
        end = run.source + run.size
        while low < len(second) and second[low].at + second[low].size <= run.source:
            low += 1
        index = low
        while index < len(second) and second[index].at < end:
            other = second[index]
            start = max(run.source, other.at)
            stop = min(end, other.at + other.size)
            if stop > start:
                at, source = run.at + start - run.source, other.source + start - other.at
                yield Run(at, source, stop - start)
            index += 1


def _gaps(
    text: str,
    rendered: str,
    runs: list[Run],
    script: Transcript,
    found: tuple[Diagnostic, ...],
    syntax: Syntax,
) -> Iterator[Edit]:
    """Yield an edit for each place between two runs where text and rendering differ."""
    starts = [run.at for run in script.runs]
    reasons = [(edit.start, edit.code, edit.message) for edit in script.drops]
    for each in found:
        place = bisect_right(starts, each.offset) - 1
        run = script.runs[place] if place >= 0 else Run(0, 0, 0)
        at = min(run.source + run.size, run.source + each.offset - run.at)
        said = TAG.sub(
            lambda tag: syntax.written(Tag(tag.group()), "N") or tag.group(), each.message
        )
        reasons.append((at, cast(Code, each.code), said))
    reasons.sort(key=lambda reason: reason[0])
    low = at = start = 0
    for run in (*runs, Run(len(rendered), len(text), 0)):
        want, have = rendered[at : run.at], text[start : run.source]
        while low < len(reasons) and reasons[low][0] < start:
            low += 1
        high = low
        while high < len(reasons) and reasons[high][0] <= run.source:
            high += 1
        if want != have:
            code: Code
            code, message = _reason(have, want, reasons[low:high], syntax)
            if run.source == len(text) and code == "separator" and want.strip():
                line = next(filter(None, want.split("\n")))
                code, message = "missing-closing", f"the text ends: expected {line}"
            same = same_start(have, want)
            yield Edit(start + same, run.source, want[same:], code, message)
        at, start = run.at + run.size, run.source + run.size


def _reason(
    have: str, want: str, reasons: list[tuple[int, Code, str]], syntax: Syntax
) -> tuple[Code, str]:
    """Say why one place differs: as the rules did, where that holds for the form."""
    silent = {*_SPACE}
    if syntax.labels == "none":
        silent |= {*_LABELS}
    if syntax.optional_join:
        silent.add("missing-conclusion")
    for _, code, said in reasons:
        if code not in silent:
            return code, said
    message = f"expected {shown(want)}, found {shown(have)}"
    if have.split() == want.split():
        glued = any(code == "missing-newline" for _, code, _ in reasons)
        return "missing-newline" if glued else "separator", message
    plain = (re.sub("[0-9.]", "", part).split() for part in (have, want))
    return ("wrong-label" if next(plain) == next(plain) else "separator"), message


def shown(text: str) -> str:
    """Return what stands between two runs as a message shows it."""
    return repr(text[:40]) + ("..." if len(text) > 40 else "") if text else "nothing"
