"""Answers that are the letter of an option."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from mvspec.runtime.evaluation.verdict import Verdict

__all__ = ["grade", "letter_of", "listed", "shuffled"]

_LETTER = r"[\s*({\[]*(?:\\(?:text|textbf|mathbf|mathrm|boxed)\{\s*)?[({\[]*([A-Z])(?![\w'])"
_FORMS = (
    re.compile(r"\\boxed\{" + _LETTER),
    re.compile(r"(?i:answer\**\s*(?:is|:)\**\s*(?:option|choice)?)[:\s]*\$?" + _LETTER),
)
_ALONE = re.compile(r"^[\s*($]*([A-Z])[\s*).:$]*$")


def shuffled(options: Sequence[str], right: int, seed: str) -> tuple[list[str], int]:
    """Return options in an order that depends on `seed` alone, and where the right one went.

    >>> shuffled(["a", "b", "c", "d"], 0, "q1") == shuffled(["a", "b", "c", "d"], 0, "q1")
    True
    """
    order = list(range(len(options)))
    random.Random(f"mvspec:{seed}").shuffle(order)
    return [options[index] for index in order], order.index(right)


def listed(question: str, options: Sequence[str]) -> str:
    """Return a question with its options, lettered, and how to answer.

    >>> print(listed("Which?", ["this", "that"]))
    Which?
    <BLANKLINE>
    A) this
    B) that
    <BLANKLINE>
    End with a line "Answer: X", where X is the letter of the right option.
    """
    lines = [f"{letter}) {text}" for letter, text in zip(ascii_uppercase, options, strict=False)]
    end = 'End with a line "Answer: X", where X is the letter of the right option.'
    return "\n".join([question.strip(), "", *lines, "", end])


def letter_of(text: str, options: Sequence[str]) -> str:
    """Return the letter that a text comes to, "" for none.

    The last `\\boxed{X}`, "answer is X" or "Answer: X" counts; without, a last line that is a
    letter or one option's text.

    >>> letter_of("A is tempting. The answer is **(C)**.", ["w", "x", "y", "z"])
    'C'
    >>> letter_of("I cannot say.", ["w", "x"])
    ''
    """
    known = ascii_uppercase[: len(options)]
    found = [
        (match.end(1), match[1])
        for form in _FORMS
        for match in form.finditer(text)
        if match[1] in known
    ]
    if found:
        return max(found)[1]
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    alone = _ALONE.match(last)
    if alone and alone[1] in known:
        return alone[1]
    same = [
        letter
        for letter, option in zip(known, options, strict=True)
        if last.rstrip(".").casefold() == option.strip().rstrip(".").casefold()
    ]
    return same[0] if len(same) == 1 else ""


def grade(payload: Mapping[str, Any], text: str) -> Verdict:
    """Compare the letter that a text comes to.

    Args:
        payload: `options`, and `letter`, the right one's.
        text: what was written.

    >>> grade({"options": ["x", "y"], "letter": "B"}, "Answer: B").score
    1.0
    """
    found = letter_of(text, payload["options"])
    if not found:
        return Verdict(0.0, note="no letter")
    return Verdict(float(found == payload["letter"]), extracted=found)
