"""Implicit forks of a chain of reasoning: a count by rules over its sentences.

The rules know wordings and numbers, not meaning, so what they find is a heuristic:
docs/studies/implicit.md says how precise it is. A model finds more (`mvspec curate --task
branches`), and both give the same `BranchesReply`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mvspec.curation.answers import BranchesReply, BranchingReply, BranchReply

__all__ = ["Width", "find_branches", "width"]

Kind = Literal["collective", "selective"]

HEADS: dict[str, tuple[Kind, re.Pattern[str]]] = {
    "cases": ("collective", re.compile(r"\W*(?:sub)?case\s+(\w+)", re.IGNORECASE)),
    "conditions": (
        "collective",
        re.compile(r"\W*(?:if|when|suppose)\s+(.{1,60}?)[,:]", re.IGNORECASE),
    ),
    "each": (
        "collective",
        re.compile(r"\W*for\s+(?!example|instance|all|every)(.{1,40}?)[,:]\s", re.IGNORECASE),
    ),
    "items": ("collective", re.compile(r"\s*\(?([0-9]{1,2}|[a-z])[.)]\s+\S")),
    "bullets": ("collective", re.compile(r"\s*[-*•]\s+(\S.{0,40})")),
    "trials": (
        "selective",
        re.compile(
            r"\W*(?:let(?:'s| me| us) )?(?:try|test|check|guess)(?:ing)?\s+(\S.{0,40})",
            re.IGNORECASE,
        ),
    ),
}  # fmt: skip
"""Beginnings of branches: kind, and the words of a sentence; the group tells them apart."""

OTHERWISE = re.compile(
    r"\W*(?:alternatively|another (?:way|approach|method|idea)|a different (?:way|approach|method)"
    r"|(?:let(?:'s| me) )?try(?:ing)? (?:another|a different)|or,? (?:maybe|perhaps|else))\b",
    re.IGNORECASE,
)
"""Words that turn to another attempt; the attempt before it is the first branch."""

JOIN = re.compile(
    r"\W*(?:therefore|thus|hence|altogether|overall|in (?:total|all|both|either|every|each)"
    r"|combining|adding|putting|summing|comparing|together|all (?:of|in)|both|finally|in summary"
    r"|the (?:answer|total|sum)|so,? (?:the|in|all|both|we|there|altogether))\b",
    re.IGNORECASE,
)
"""Words that gather branches, or go on after them."""

LEANING = re.compile(
    r"\b(?:(?:the|that|this) (?:last |previous |first )?(?:result|value|number|answer)"
    r"|the (?:result|value|answer) (?:of|from|above)|from (?:the )?(?:previous|step|part|last)"
    r"|(?:using|with|by) (?:this|that|step|part)"
    r"|(?:add|multiply|subtract|divide|square|double|halve) (?:it|this|that)\b)",
    re.IGNORECASE,
)
"""Words of a sentence that needs the branch before it."""

RESULT = re.compile(r"(?:=|is|gives|get)\s*\$?(\d[\d,]*(?:\.\d+)?)")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")


def find_branches(sentences: Sequence[str]) -> BranchesReply:
    """Return where sentences could have been worked out side by side.

    Branches begin with like words (`Case 1`, `If n is even,`, `For prime 2:`, items of a list,
    trials), or with one that turns to another attempt. They end where a sentence gathers them,
    at an empty line after the last, or at the end. A group is dropped where a branch uses a number
    that an earlier one has found, or says that it does.

    Args:
        sentences: of a chain, with the white space behind each (`split_sentences`).

    >>> from mvspec.curation import split_sentences
    >>> text = "Case 1: n is even. Then 4 divides it. Case 2: n is odd. Then not. So, in all, half."
    >>> [(b.first, b.last) for b in find_branches(split_sentences(text)).branchings[0].branches]
    [(1, 2), (3, 4)]
    """
    found: list[BranchingReply] = []
    taken = 0
    while taken < len(sentences):
        group = _group(sentences, taken)
        if group is None:
            taken += 1
        else:
            found.append(group)
            taken = group.branches[-1].last
    return BranchesReply(branchings=tuple(found))


def _group(sentences: Sequence[str], start: int) -> BranchingReply | None:
    """Return the branches of which the first begins at a sentence, counted from 0."""
    for name, (kind, head) in HEADS.items():
        first = head.match(sentences[start])
        if first and not OTHERWISE.match(sentences[start]):
            branching = _enumerated(sentences, start, name, kind, head)
            if branching is not None:
                return branching
    return _alternatives(sentences, start)


def _enumerated(
    sentences: Sequence[str], start: int, name: str, kind: Kind, head: re.Pattern[str]
) -> BranchingReply | None:
    starts, seen = [start], [_key(head, sentences[start])]
    end = start + 1
    while end < len(sentences):
        key = _key(head, sentences[end])
        if key and key not in seen:
            starts.append(end)
            seen.append(key)
        elif key or _joins(sentences, starts[-1], end):
            break
        end += 1
    return _branching(sentences, starts, end, kind, name)


def _alternatives(sentences: Sequence[str], start: int) -> BranchingReply | None:
    starts = [start]
    end = start + 1
    while end < len(sentences):
        if OTHERWISE.match(sentences[end]):
            starts.append(end)
        elif _joins(sentences, starts[-1], end):
            # An attempt may be followed by an empty line before the next begins.
            turns = OTHERWISE.match(sentences[end])
            if turns is None:
                break
        end += 1
    # What stands before the first attempt is not known: it has to begin a paragraph.
    begins = start == 0 or sentences[start - 1].endswith("\n\n")
    return _branching(sentences, starts, end, "selective", "attempts") if begins else None


def _key(head: re.Pattern[str], sentence: str) -> str:
    match = head.match(sentence)
    return " ".join(match[1].lower().split()) if match else ""


def _joins(sentences: Sequence[str], begun: int, at: int) -> bool:
    """Whether a sentence is no longer of the branch that has begun."""
    return at > begun and bool(JOIN.match(sentences[at]) or sentences[at - 1].endswith("\n\n"))


def _branching(
    sentences: Sequence[str], starts: list[int], end: int, kind: Kind, reason: str
) -> BranchingReply | None:
    if len(starts) < 2:
        return None
    spans = list(zip(starts, [*starts[1:], end], strict=True))
    texts = ["".join(sentences[first:last]) for first, last in spans]
    if _depends(texts, "".join(sentences[: starts[0]])):
        return None
    return BranchingReply(
        kind=kind,
        reason=reason,
        branches=tuple(
            BranchReply(title=text.strip().split("\n")[0][:80], first=first + 1, last=last)
            for text, (first, last) in zip(texts, spans, strict=True)
        ),
    )


def _depends(texts: Sequence[str], before: str) -> bool:
    """Whether a branch uses what an earlier one has found: its words say so, or its numbers."""
    known = set(NUMBER.findall(before))
    made: set[str] = set()
    for text in texts:
        if made and LEANING.search(text):
            return True
        numbers = [number.strip(",") for number in NUMBER.findall(text)]
        results = set(RESULT.findall(text))
        # Small numbers are everywhere; what a branch computes itself is its own.
        if any(n in made and n not in known and len(n) > 1 and n not in results for n in numbers):
            return True
        made |= results
    return False


@dataclass(frozen=True)
class Width:
    """How much of a text could have run side by side.

    Args:
        words: of the text.
        covered: words in branches.
        path: words on the critical path: of each place where it branches, the longest branch.
        branchings: such places.
        branches: at all of them.
    """

    words: int
    covered: int
    path: int
    branchings: int
    branches: int

    @property
    def coverage(self) -> float:
        """Share of the words in branches."""
        return self.covered / self.words if self.words else 0.0

    @property
    def speedup(self) -> float:
        """The most that forking there could gain, were headers and merges free."""
        return self.words / self.path if self.path else 1.0


def width(sentences: Sequence[str], found: BranchesReply) -> Width:
    """Measure branches, which do not overlap.

    >>> from mvspec.curation import split_sentences
    >>> parts = split_sentences("Case 1: it is two. Case 2: it is not three at all.")
    >>> width(parts, find_branches(parts))
    Width(words=13, covered=13, path=8, branchings=1, branches=2)
    """
    words = [len(sentence.split()) for sentence in sentences]
    total = sum(words)
    covered = saved = 0
    for branching in found.branchings:
        sizes = [sum(words[branch.first - 1 : branch.last]) for branch in branching.branches]
        covered += sum(sizes)
        saved += sum(sizes) - max(sizes)
    branches = sum(len(each.branches) for each in found.branchings)
    return Width(total, covered, total - saved, len(found.branchings), branches)
