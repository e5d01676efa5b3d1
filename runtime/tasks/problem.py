"""Problems that a small model learns: what a task is made of, and what all tasks share.

A task is a problem, which has a question, a worked solution and a checker, and a difficulty,
which draws problems: `arithmetic` and `countdown` are two.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from typing import Literal, Protocol, TypeVar

from mvspec.errors import VerifyError
from mvspec.tree.builder import assistant, document, user
from mvspec.tree.ir import Document
from mvspec.tree.node import Node

STEPWISE = "Think step by step before answering."
PARALLEL = "Think step by step and in parallel before answering."
"""The two prompts of the paper's mixture."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# The text of a turn may end with the control token that ended it.
_ANSWER = re.compile(r"Answer: (\S{1,200}?)\s*(?:<\|\w+\|>)?\s*\Z")


class TaskProblem(Protocol):
    """One problem of a task; immutable, and picklable."""

    @property
    def question(self) -> str:
        """What is asked, without a prompt."""

    @property
    def answer(self) -> int | str:
        """What a checker in another process needs to know beside the text."""

    @property
    def content(self) -> object:
        """The problem whatever the order of its parts: of one content, one split."""

    @property
    def solution(self) -> tuple[str | Node, ...]:
        """The body of the worked answer; its last line is `Answer: ` and the final answer."""

    def is_right(self, text: str) -> bool:
        """Return whether a turn's text ends with a right answer."""


P = TypeVar("P", bound=TaskProblem)
P_co = TypeVar("P_co", bound=TaskProblem, covariant=True)


class TaskDifficulty(Protocol[P_co]):
    """The difficulty of a task's problems."""

    def draw(self, stream: random.Random) -> P_co:
        """Return a random problem."""


def check_range(name: str, pair: tuple[int, int], least: int) -> None:
    """See that a difficulty's pair is a least, from `least` up, and a most.

    Raises:
        VerifyError: it is not.
    """
    low, high = pair
    if not least <= low <= high:
        raise VerifyError(name, f"({low}, {high}) is not a least from {least} and a most")


def check_share(name: str, share: float) -> None:
    """See that a difficulty's share is one.

    Raises:
        VerifyError: it is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise VerifyError(name, f"{share} is no share, 0 to 1")


def split_of(problem: TaskProblem) -> Split:
    """Return the split that a problem belongs to, by its content: 5 % test, 5 % validation.

    The order of parts does not count, so no split holds another's problem turned round.
    """
    digest = hashlib.sha256(repr(problem.content).encode()).digest()
    return {0: "test", 1: "validation"}.get(digest[0] % 20, "train")  # type: ignore[return-value]


def problems(split: Split, seed: int, difficulty: TaskDifficulty[P]) -> Iterator[P]:
    """Yield problems of a split without end; a seed yields the same ones always."""
    stream = random.Random(f"{split} {seed}")
    while True:
        problem = difficulty.draw(stream)
        if split_of(problem) == split:
            yield problem


def question_of(problem: TaskProblem, prompt: str = PARALLEL) -> str:
    """Return what the user asks."""
    return f"{problem.question} {prompt}"


def ask(problem: TaskProblem, prompt: str = PARALLEL) -> Document:
    """Return the question, which a model is to answer."""
    return document(user(question_of(problem, prompt)))


def solve(problem: TaskProblem, prompt: str = PARALLEL) -> Document:
    """Return the question and its worked answer."""
    return document(*ask(problem, prompt).messages, assistant(*problem.solution))


def final_answer(text: str) -> str | None:
    """Return the final answer of a turn's text as it is written; None where it ends without one.

    >>> final_answer("8*3=24! 8*3" + chr(10) + "Answer: 8*3<|im_end|>")
    '8*3'
    """
    found = _ANSWER.search(text)
    return found[1] if found else None
