"""Arithmetic worked digit by digit: problems whose parts are worked in paths, and their checker.

A problem is a sum or a product of numbers, or a sum of such problems. One whose parts need work
forks: a path for each part, nested where a part has parts itself, and the total once all paths
are known. One without parts is worked in place and forks nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from mvspec.errors import VerifyError
from mvspec.runtime.tasks.problem import Split, check_range, check_share, final_answer
from mvspec.runtime.tasks.problem import problems as problems_of
from mvspec.tree.builder import branch, parallel
from mvspec.tree.node import Node


@dataclass(frozen=True, slots=True)
class ArithmeticProblem:
    """A sum or a product.

    Args:
        sign: "+", or "*" with two numbers, the second of one digit.
        terms: numbers, or problems whose values are added; either all have to be worked out
            first or none.

    >>> part = ArithmeticProblem("+", (47, 85))
    >>> print(ArithmeticProblem("+", (part, ArithmeticProblem("*", (26, 3)))))
    (47+85)+(26*3)
    """

    sign: str
    terms: tuple[int | ArithmeticProblem, ...]

    def __str__(self) -> str:
        return self.sign.join(
            f"({term})" if isinstance(term, ArithmeticProblem) else str(term) for term in self.terms
        )

    @property
    def parts(self) -> tuple[ArithmeticProblem, ...]:
        """The terms that have to be worked out first."""
        return tuple(term for term in self.terms if isinstance(term, ArithmeticProblem))

    @property
    def values(self) -> tuple[int, ...]:
        """What the terms come to."""
        return tuple(
            term.value if isinstance(term, ArithmeticProblem) else term for term in self.terms
        )

    @property
    def value(self) -> int:
        """What the problem comes to."""
        values = self.values
        return values[0] * values[1] if self.sign == "*" else sum(values)

    @property
    def content(self) -> tuple[Any, ...]:
        """The problem whatever the order of its terms."""
        contents = [t.content if isinstance(t, ArithmeticProblem) else ("", t) for t in self.terms]
        return (self.sign, *sorted(contents, key=repr))

    @property
    def question(self) -> str:
        """What is asked, without a prompt."""
        return f"What is {self}?"

    @property
    def answer(self) -> int:
        """What the problem comes to."""
        return self.value

    @property
    def solution(self) -> tuple[str | Node, ...]:
        """The body of the worked answer.

        >>> print(*ArithmeticProblem("+", (47, 85)).solution, sep="")
        47+85: 7+5=12, 1+4=5+8=13; 132
        Answer: 132
        """
        return (*_worked(self, self.parts != ()), f"\nAnswer: {self.value}")

    def is_right(self, text: str) -> bool:
        """Return whether a turn's text ends with what the problem comes to."""
        return is_right(text, self.value)


@dataclass(frozen=True, slots=True)
class ArithmeticDifficulty:
    """The difficulty of problems; pairs are the least and the most.

    Args:
        digits: of a number.
        operands: numbers of a sum.
        parts: of a problem that has parts.
        plain: share of problems without parts.
        nested: share of parts that have parts themselves.
        depth: the most levels of blocks.
        products: share of products among what has no parts.

    Raises:
        VerifyError: a pair is empty, or a share is none.
    """

    digits: tuple[int, int] = (1, 3)
    operands: tuple[int, int] = (2, 3)
    parts: tuple[int, int] = (2, 4)
    plain: float = 0.15
    nested: float = 0.1
    depth: int = 2
    products: float = 0.0

    # Read from a file, it refuses what is none of these.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        for name, least in (("digits", 1), ("operands", 2), ("parts", 2)):
            check_range(name, getattr(self, name), least)
        for name in ("plain", "nested", "products"):
            check_share(name, getattr(self, name))
        if self.depth < 1:
            raise VerifyError("depth", f"{self.depth} levels: blocks have at least one")

    def draw(self, stream: random.Random) -> ArithmeticProblem:
        """Return a random problem."""
        if stream.random() < self.plain:
            return _leaf(stream, self)
        return _sum_of_parts(stream, self, 1)


TINY = ArithmeticDifficulty(digits=(1, 2), operands=(2, 2), parts=(2, 3))
"""What the small model that comes with the package was trained on."""


def arithmetic_model() -> Path:
    """Return the folder of the small model that answers `TINY` problems; it is in the package.

    A model of under a million weights, bfloat16, which decides by itself when to fork;
    examples/arithmetic/ has what it is made with.
    """
    return Path(__file__).with_name("arithmetic_model")


def _sum_of_parts(
    stream: random.Random, difficulty: ArithmeticDifficulty, level: int
) -> ArithmeticProblem:
    low, high = difficulty.parts
    # Inner blocks have the fewest paths: a tree that is wide at every level is too long.
    count = stream.randint(low, high if level == 1 else low)
    terms = tuple(
        _sum_of_parts(stream, difficulty, level + 1)
        if level < difficulty.depth and stream.random() < difficulty.nested
        else _leaf(stream, difficulty)
        for _ in range(count)
    )
    return ArithmeticProblem("+", terms)


def _leaf(stream: random.Random, difficulty: ArithmeticDifficulty) -> ArithmeticProblem:
    def number(digits: int) -> int:
        return stream.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)

    if stream.random() < difficulty.products:
        return ArithmeticProblem(
            "*", (number(stream.randint(*difficulty.digits)), stream.randint(2, 9))
        )
    count = stream.randint(*difficulty.operands)
    return ArithmeticProblem(
        "+", tuple(number(stream.randint(*difficulty.digits)) for _ in range(count))
    )


def problems(
    split: Split = "train", seed: int = 0, difficulty: ArithmeticDifficulty | None = None
) -> Iterator[ArithmeticProblem]:
    """Yield problems of a split without end; a seed yields the same ones always."""
    return problems_of(split, seed, difficulty or TINY)


def _worked(problem: ArithmeticProblem, root: bool = False) -> tuple[str | Node, ...]:
    """Return a problem's text, and its block where it has parts."""
    if not problem.parts:
        return (work(problem),)
    block = parallel(
        *(branch(str(part), *_worked(part)) for part in problem.parts),
        conclusion=", ".join(str(part.value) for part in problem.parts),
    )
    # A path's text names its problem first, in the baseline without outlines as well.
    name = () if root else (str(problem),)
    return (*name, block, work(ArithmeticProblem("+", problem.values)))


def work(problem: ArithmeticProblem) -> str:
    """Return numbers added, or one multiplied by a digit, from the last digits to the first.

    >>> work(ArithmeticProblem("*", (26, 3)))
    '26*3: 6*3=18, 2*3=6+1=7; 78'
    """
    columns = _products(problem.values) if problem.sign == "*" else _sums(problem.values)
    return f"{problem}: {', '.join(columns)}; {problem.value}"


def _sums(values: Sequence[int]) -> Iterator[str]:
    written = [str(value)[::-1] for value in values]
    carry = 0
    for column in range(max(map(len, written))):
        digits = [int(each[column]) for each in written if column < len(each)]
        total, *rest = digits if column == 0 else [carry, *digits]
        text = str(total)
        for digit in rest:
            total += digit
            text += f"+{digit}={total}"
        carry = total // 10
        yield text


def _products(values: Sequence[int]) -> Iterator[str]:
    number, factor = values
    carry = 0
    for column, digit in enumerate(reversed(str(number))):
        total = int(digit) * factor
        text = f"{digit}*{factor}={total}"
        if column:
            total += carry
            text += f"+{carry}={total}"
        carry = total // 10
        yield text


def answer_of(text: str) -> int | None:
    """Return the final answer of a turn's text; None where it ends without one.

    >>> answer_of("47+85: 7+5=12, 1+4=5+8=13; 132" + chr(10) + "Answer: 132")
    132
    """
    said = final_answer(text)
    return int(said) if said is not None and re.fullmatch("[0-9]+", said) else None


def is_right(text: str, answer: int | str) -> bool:
    """Return whether a turn's text ends with this answer: exact match.

    >>> is_right("Answer: 132", 132), is_right("The answer is 132", "132")
    (True, False)
    """
    found = answer_of(text)
    return found is not None and found == int(answer)
