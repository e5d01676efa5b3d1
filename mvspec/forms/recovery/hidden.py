"""Tags that come about where another is left out of their middle: `<Pa<Goal>th>`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mvspec.forms.recovery.edits import Edit

__all__ = ["hidden", "without_tags"]

_LONGEST = 80
"""Characters in which a tag ends; labels of more digits than this are no tags of a model."""


def hidden(text: str, drops: Iterable[Edit], tag: re.Pattern[str]) -> list[Edit]:
    """Return what must be left out besides `drops`, so that no tag comes about; in linear time.

    >>> first = Edit(3, 9, "", "tag-as-word", "")
    >>> [text[e.start : e.end] for text in ["<Pa<Goal>th>"]
    ...  for e in hidden(text, [first], re.compile("<Path>|<Goal>"))]
    ['<Pa', 'th>']
    """
    spans = sorted((drop.start, drop.end) for drop in drops)
    if not spans:
        return []
    runs: list[tuple[int, int]] = []
    at = 0
    for start, end in (*spans, (len(text), len(text))):
        if start > at:
            runs.append((at, start))
        at = max(at, end)
    edges = [end for _, end in runs[:-1]]
    if not any("<" in text[max(0, edge - _LONGEST) : edge] for edge in edges):
        return []
    return _left_over(text, runs, tag)


def _left_over(text: str, runs: list[tuple[int, int]], tag: re.Pattern[str]) -> list[Edit]:
    kept: list[int] = []  # the places of the characters that stay
    gone: list[int] = []
    for start, end in runs:
        for at in range(start, end):
            kept.append(at)
            if text[at] != ">":
                continue
            size = 1
            while size < min(len(kept), _LONGEST) and text[kept[-size]] != "<":
                size += 1
            whole = kept[-1] - kept[-size] == size - 1
            if not whole and tag.fullmatch("".join(text[place] for place in kept[-size:])):
                gone += kept[-size:]
                del kept[-size:]
    message = "what is left around a tag reads as another one: left out"
    out: list[Edit] = []
    for place in sorted(gone):
        if out and out[-1].end == place:
            out[-1] = out[-1]._replace(end=place + 1)
        else:
            out.append(Edit(place, place + 1, "", "tag-as-word", message))
    return out


def without_tags(text: str, tag: re.Pattern[str]) -> str:
    """Return a text without tags, and without those that come about as they are left out.

    >>> without_tags("a <Pa<Goal>th> b", re.compile("<Path>|<Goal>"))
    'a  b'
    """
    if "<" not in text:
        return text
    drops = [Edit(*found.span(), "", "tag-as-word", "") for found in tag.finditer(text)]
    kept: list[str] = []
    at = 0
    for drop in sorted((*drops, *hidden(text, drops, tag))):
        kept.append(text[at : drop.start])
        at = max(at, drop.end)
    return "".join((*kept, text[at:]))
