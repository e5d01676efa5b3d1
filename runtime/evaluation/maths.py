"""Answers of mathematics, compared by math-verify."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from mvspec.runtime.evaluation.verdict import Verdict

__all__ = ["grade"]

# Its own limits of time work by signals and take an answer that was stopped for a wrong one: here
# whoever asks keeps the time, which math-verify warns of once.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_BOXED = LatexExtractionConfig(boxed_match_priority=0)


def grade(payload: Mapping[str, Any], text: str) -> Verdict:
    """Compare the last answer in a text, a `\\boxed{...}` before all others, with the reference.

    Args:
        payload: `answer`, as LaTeX or plain.
        text: what was written.

    Raises:
        ValueError: the reference is no mathematics.

    >>> grade({"answer": "\\\\frac{1}{2}"}, "So it is \\\\boxed{0.5}.").score
    1.0
    >>> grade({"answer": "025"}, "The final answer is 26.").score
    0.0
    """
    answer = str(payload["answer"])
    gold = parse(f"$\\boxed{{{answer}}}$", [_BOXED], parsing_timeout=None)
    if not gold:
        raise ValueError(f"the reference answer {answer!r} cannot be read")
    found = parse(text, [_BOXED, ExprExtractionConfig()], parsing_timeout=None)
    if not found:
        return Verdict(0.0, note="no answer")
    right = bool(verify(gold, found, timeout_seconds=None))
    return Verdict(float(right), extracted=str(found[-1]))
