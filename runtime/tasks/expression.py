"""Arithmetic as a model writes it, read exactly and without running it."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator
from fractions import Fraction

__all__ = ["value_of"]

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
