"""Problems for the studies: stages of which some fork, in words, with the solution as a document.

A stage is a chain, in which each step needs the one before, or a block, in which each item is
worked out on its own. The line before a stage is the same for both, so that nothing but the
question and what has been done says which of them comes next.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import mvspec as mv

__all__ = ["CONNECTIVES", "Problem", "problems"]

CONNECTIVES = (
    "All right.", "Now the next part.", "Next.", "Good, on to it.", "So.", "Let me go on.",
    "Here we go.", "That is what is asked now.", "I go step by step.", "Now this.",
)  # fmt: skip
"""Lines before a stage, whatever it is."""

OPENINGS = ("Let me see.", "I read the question again.", "This is about numbers.", "Okay.")


@dataclass(frozen=True)
class Problem:
    """A question, and its solution.

    Args:
        question: the stages in words, in their order.
        solution: the assistant's turn; a block for each stage that forks.
        answer: the last result of each stage.
        stages: "chain" or "block", in order.
    """

    question: str
    solution: mv.Message
    answer: str
    stages: tuple[str, ...]

    @property
    def document(self) -> mv.Document:
        """The question and its solution."""
        return mv.Document(messages=(mv.user(self.question), self.solution))


def problems(count: int, seed: int = 0) -> list[Problem]:
    """Return problems that are the same for a seed."""
    draw = random.Random(seed)
    return [_problem(draw) for _ in range(count)]


def _problem(draw: random.Random) -> Problem:
    asked: list[str] = []
    body: list[str | mv.Parallel] = []
    lines = draw.sample(OPENINGS, draw.randint(0, 2))
    results: list[str] = []
    stages = tuple(draw.choice(("chain", "block")) for _ in range(draw.randint(1, 3)))
    for number, stage in enumerate(stages):
        lead = "First, " if number == 0 else draw.choice(("Then ", "After that, "))
        lines.append(draw.choice(CONNECTIVES))
        if stage == "chain":
            steps = _steps(draw, draw.randint(2, 4))
            start = draw.randint(2, 19)
            asked.append(f"{lead}start with {start}, {_told(steps)}.")
            worked, result = _worked(start, steps)
            lines += [f"Start with {start}.", *worked]
            results.append(str(result))
        else:
            steps = _steps(draw, draw.randint(1, 3))
            items = draw.sample(range(2, 30), draw.randint(2, 4))
            asked.append(f"{lead}for {_listed(items)} each on its own, {_told(steps)}.")
            done = [_worked(item, steps) for item in items]
            branches = [
                mv.branch(f"Work out {item}.", " ".join(worked))
                for item, (worked, _) in zip(items, done, strict=True)
            ]
            found = _listed([result for _, result in done])
            body += ["\n".join(lines), mv.parallel(*branches, conclusion=f"That is {found}.")]
            lines = []
            results.append(found)
    answer = "; ".join(results)
    body.append("\n".join([*lines, f"Answer: {answer}"]))
    return Problem(" ".join(asked), mv.assistant(*body), answer, stages)


def _steps(draw: random.Random, count: int) -> list[tuple[str, int]]:
    return [
        (kind, draw.randint(2, 9))
        for kind in draw.choices(("add", "take away", "multiply by"), k=count)
    ]


def _told(steps: list[tuple[str, int]]) -> str:
    return ", then ".join(f"{kind} {number}" for kind, number in steps)


def _worked(start: int, steps: list[tuple[str, int]]) -> tuple[list[str], int]:
    lines = []
    signs = {"add": "+", "take away": "-", "multiply by": "*"}
    value = start
    for kind, number in steps:
        new = {"add": value + number, "take away": value - number}.get(kind, value * number)
        lines.append(f"{value} {signs[kind]} {number} = {new}.")
        value = new
    return lines, value


def _listed(items: list[int]) -> str:
    return ", ".join(map(str, items[:-1])) + f" and {items[-1]}"
