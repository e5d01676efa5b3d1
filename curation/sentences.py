"""Text cut into sentences that add up to it again, character for character."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["numbered", "split_sentences"]

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
