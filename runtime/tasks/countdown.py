"""Countdown: reach a target with all of some numbers, by a search whose branches are paths.

The task of Adaptive Parallel Reasoning (Pan et al. 2025, arXiv 2504.15466). The numbers are first
added up; where that is the target, nothing forks. Otherwise a path for each pair of numbers tries
every operation on it as the first one, and goes on with what is left: in place where two numbers
are left, and by forking again where more are. The conclusion is what each path found.
"""

from __future__ import annotations

import ast
import operator
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import ClassVar

from pydantic import ConfigDict

from mvspec.errors import VerifyError
from mvspec.runtime.tasks.problem import check_range, check_share, final_answer
from mvspec.tree.builder import branch, parallel
from mvspec.tree.node import Node

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value_of(expression: str) -> tuple[Fraction, list[int]] | None:
    """Return what an expression comes to and the numbers that it uses; None where it is none.

    >>> value_of("(8*3)*1")
    (Fraction(24, 1), [8, 3, 1])
    >>> value_of("8**3"), value_of("8/(3-3)"), value_of("-8")
    (None, None, None)
    """
    if re.fullmatch(r"[0-9+\-*/()]{1,200}", expression) is None:
        return None
    try:
        tree = ast.parse(expression, mode="eval").body
        return _value(tree), list(_numbers(tree))
    except (SyntaxError, ValueError, ZeroDivisionError, MemoryError, RecursionError):
        return None


def _value(tree: ast.expr) -> Fraction:
    if isinstance(tree, ast.Constant) and type(tree.value) is int:
        return Fraction(tree.value)
    if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATORS:
        found: Fraction = _OPERATORS[type(tree.op)](_value(tree.left), _value(tree.right))
        return found
    raise ValueError("neither a number nor an operation")


def _numbers(tree: ast.expr) -> Iterator[int]:
    if isinstance(tree, ast.BinOp):
        yield from _numbers(tree.left)
        yield from _numbers(tree.right)
    elif isinstance(tree, ast.Constant):
        yield int(tree.value)  # type: ignore[arg-type]


SIGNS = "+-*/"

_QUESTION = re.compile(r"([0-9]+) from ([0-9]+(?:, [0-9]+)+)")


@dataclass(frozen=True, slots=True)
class CountdownProblem:
    """A target and the numbers that reach it.

    Args:
        target: what they are to come to.
        numbers: at least three; each is used once.
        signs: the operations that the search tries, of "+-*/", in this order.
        limit: results above it are not pursued.

    >>> print(CountdownProblem(24, (8, 3, 1)))
    24 from 8, 3, 1
    """

    target: int
    numbers: tuple[int, ...]
    signs: str = "+-*"
    limit: int = 99

    def __str__(self) -> str:
        return f"{self.target} from {', '.join(map(str, self.numbers))}"

    @property
    def content(self) -> tuple[int, ...]:
        """The problem whatever the order of its numbers."""
        return (self.target, *sorted(self.numbers))

    @property
    def question(self) -> str:
        """What is asked, without a prompt."""
        return f"Make {self}."

    @property
    def answer(self) -> str:
        """The problem, which `is_right` reads."""
        return str(self)

    @property
    def solution(self) -> tuple[str | Node, ...]:
        """The search: its first try, its block unless that reached the target, and the answer.

        >>> print(*CountdownProblem(12, (8, 3, 1)).solution, sep="")
        8+3=11, 11+1=12! 8+3+1
        Answer: 8+3+1
        """
        tried, found = self._first_try()
        if found:
            return (f"{tried} {found}", f"\nAnswer: {found}")
        block, found = self._block(self.numbers)
        return (tried, block, f"Answer: {found or 'no'}")

    def is_right(self, text: str) -> bool:
        """Return whether a turn's text ends with an expression that solves the problem."""
        return is_right(text, str(self))

    def _first_try(self) -> tuple[str, str]:
        """Return the numbers added up in their order, and the expression where that is it."""
        total: int | None = self.numbers[0]
        steps = []
        for number in self.numbers[1:]:
            if total is None:
                break
            total, step = self._equation("+", total, number)
            steps.append(step)
        tried = ", ".join(steps)
        if total == self.target:
            return f"{tried}!", "+".join(map(str, self.numbers))
        return f"{tried} no", ""

    def _block(self, numbers: Sequence[int]) -> tuple[Node, str]:
        """Return the search among three numbers or more, and the first expression found."""
        branches, found = [], []
        for first, second in combinations(range(len(numbers)), 2):
            small, big = sorted((numbers[first], numbers[second]))
            rest = [n for at, n in enumerate(numbers) if at not in (first, second)]
            body, expression = self._path(big, small, rest)
            name = f"{big}, {small} and {', '.join(map(str, rest))}"
            # A path's text names its pair first, in the baseline without outlines as well.
            branches.append(branch(name, f"{name}: ", *body))
            found.append(expression)
        block = parallel(*branches, conclusion=", ".join(each or "no" for each in found))
        return block, next(filter(None, found), "")

    def _path(self, big: int, small: int, rest: list[int]) -> tuple[list[str | Node], str]:
        """Return the search that begins with an operation on a pair, until something is found."""
        body: list[str | Node] = []
        for sign in self.signs:
            result, step = self._equation(sign, big, small)
            if not step:
                continue
            joint = "; " if body and isinstance(body[-1], str) else ""
            body.append(joint + step)
            if result is None:
                continue
            body.append(f" and {', '.join(map(str, rest))}:")
            further, found = self._further(result, rest)
            body += further
            if found:
                whole = re.sub(rf"\b{result}\b", f"({big}{sign}{small})", found, count=1)
                body.append(f"! {whole}")
                return body, whole
        body.append(" no" if body and isinstance(body[-1], str) else "no")
        return body, ""

    def _further(self, result: int, rest: list[int]) -> tuple[tuple[str | Node, ...], str]:
        """Return what follows a first operation, and the expression that it finds."""
        if len(rest) > 1:
            block, found = self._block([result, *rest])
            return (block,), found
        small, big = sorted((result, rest[0]))
        steps: list[str] = []
        found = ""
        for sign in self.signs:
            value, step = self._equation(sign, big, small)
            if step:
                steps.append(step)
            if value == self.target:
                found = f"{big}{sign}{small}"
                break
        return (" " * bool(steps) + ", ".join(steps),), found

    def _equation(self, sign: str, big: int, small: int) -> tuple[int | None, str]:
        """Return a result, None where it is above the limit, and the equation that says so.

        There is no equation where a division leaves a rest.
        """
        result = _apply(sign, big, small)
        if result is None:
            return None, ""
        if result > self.limit:
            return None, f"{big}{sign}{small}>{self.limit}"
        return result, f"{big}{sign}{small}={result}"


def _apply(sign: str, big: int, small: int) -> int | None:
    """Return a result; None for a division that leaves a rest."""
    if sign == "+":
        return big + small
    if sign == "-":
        return big - small
    if sign == "*":
        return big * small
    return big // small if small and big % small == 0 else None


@dataclass(frozen=True, slots=True)
class CountdownDifficulty:
    """The difficulty of problems; pairs are the least and the most.

    Args:
        numbers: how many there are: with four or more, searches fork again.
        values: of a number.
        targets: what the numbers are to come to; results above the most are not pursued.
        signs: the operations, of "+-*/".
        plain: share of problems that the first try solves, so that nothing forks.

    Raises:
        VerifyError: a pair is empty, a sign is unknown, or the share is none.
    """

    numbers: tuple[int, int] = (3, 4)
    values: tuple[int, int] = (1, 12)
    targets: tuple[int, int] = (10, 99)
    signs: str = "+-*"
    plain: float = 0.15

    # Read from a file, it refuses what is none of these.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        for name, least in (("numbers", 3), ("values", 1), ("targets", 1)):
            check_range(name, getattr(self, name), least)
        if not self.signs or set(self.signs) - set(SIGNS):
            raise VerifyError("signs", f"{self.signs!r}: use some of {SIGNS}")
        check_share("plain", self.plain)

    def draw(self, stream: random.Random) -> CountdownProblem:
        """Return a random problem, which has a solution.

        Raises:
            VerifyError: hardly any numbers of this difficulty reach a target.
        """
        plain = stream.random() < self.plain
        low, high = self.targets
        for _ in range(10_000):
            count = stream.randint(*self.numbers)
            numbers = tuple(stream.randint(*self.values) for _ in range(count))
            target = sum(numbers) if plain else self._reached(stream, numbers)
            if low <= target <= high and plain == (target == sum(numbers)):
                return CountdownProblem(target, numbers, self.signs, high)
        what = "a sum" if plain else f"other than a sum, by {self.signs}"
        raise VerifyError("targets", f"({low}, {high}) can hardly be reached as {what}: widen it")

    def _reached(self, stream: random.Random, numbers: Sequence[int]) -> int:
        """Return what random operations, one pair after the other, come to; 0 for nothing."""
        left = list(numbers)
        while len(left) > 1:
            stream.shuffle(left)
            small, big = sorted((left.pop(), left.pop()))
            result = _apply(stream.choice(self.signs), big, small)
            if result is None or result > self.targets[1]:
                return 0
            left.append(result)
        return left[0]


TINY = CountdownDifficulty(numbers=(3, 3))
"""What a model of a million weights learns in minutes."""


def is_right(text: str, answer: str) -> bool:
    """Return whether a turn's text ends with an expression that solves a problem.

    It uses each number once and no other, and comes to the target; which solution it is does not
    matter, nor whether a search would find it.

    Args:
        text: of the turn.
        answer: the problem, such as "24 from 8, 3, 1".

    Raises:
        VerifyError: that is no problem.

    >>> is_right("Answer: 3*8/1", "24 from 8, 3, 1"), is_right("Answer: 3*8", "24 from 8, 3, 1")
    (True, False)
    """
    asked = _QUESTION.fullmatch(answer)
    if asked is None:
        raise VerifyError("answer", f"{answer!r} is no problem such as '24 from 8, 3, 1'")
    said = final_answer(text)
    found = None if said is None else value_of(said)
    if found is None:
        return False
    value, used = found
    return value == int(asked[1]) and Counter(used) == Counter(map(int, asked[2].split(", ")))
