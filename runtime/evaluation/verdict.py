"""What a grader says of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a grader says of an answer.

    Args:
        score: 1 for right, 0 for wrong, in between where a task has parts; None: not graded.
        extracted: what was taken for the answer.
        note: why it was not graded, or was not right.
        details: more that a task's grader found; JSON.

    >>> Verdict(1.0).graded, Verdict(None, note="the grader took more than 30 s").graded
    (True, False)
    """

    score: float | None
    extracted: str = ""
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def graded(self) -> bool:
        """Whether it counts."""
        return self.score is not None
