"""Edits as diagnostics: each as small as it can be, and a text that merely ends is cut."""

from __future__ import annotations

from collections.abc import Iterable

from mvspec.errors import Diagnostic, Source
from mvspec.forms.recovery.edits import Edit

__all__ = ["same_start", "trimmed"]

LIMIT = 60
"""Characters of what is missing that a message shows; JSON has it all in one line."""


def trimmed(source: Source, edits: Iterable[Edit]) -> tuple[Diagnostic, ...]:
    """Return edits in order as diagnostics, without what they would replace by itself.

    Edits that all stand at the end of the text are one: the text was cut.
    """
    text = source.text
    out: list[Diagnostic] = []
    for edit in edits:
        start, end, insert = edit.start, edit.end, edit.insert
        dropped = text[start:end]
        if dropped == insert:
            continue
        same = same_start(dropped, insert)
        start, dropped, insert = start + same, dropped[same:], insert[same:]
        same = same_start(dropped[::-1], insert[::-1])
        end, insert = end - same, insert[: len(insert) - same]
        out.append(source.diagnostic(start, edit.code, edit.message, end=end, inserted=insert))
    if out and all(each.offset == len(text) for each in out):
        missing = "".join(each.inserted for each in out)
        line = next((part for part in missing.split("\n") if part), "a newline")
        shown = line[:LIMIT] + "..." * (len(line) > LIMIT)
        message = f"the text ends: expected {shown}"
        return (source.diagnostic(len(text), "cut", message, inserted=missing),)
    return tuple(out)


def same_start(one: str, other: str) -> int:
    """Return how many characters two texts have in common from the start."""
    if one == other:
        return len(one)
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
