"""Answers of tasks of one's own, checked by a function that the user names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from mvspec.data.records import InputError
from mvspec.runtime.evaluation.verdict import Verdict

__all__ = ["find_checker", "grade"]


def find_checker(name: str) -> Callable[[Mapping[str, Any], str], Any]:
    """Return the function that `module:function` names; modules of this folder count.

    Raises:
        InputError: there is none.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"--checker {name}: expected module:function, as checks:same_number")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(import_module(module), function)
    except Exception as error:  # what a user's module raises, it raises
        raise InputError(f"--checker {name}: {type(error).__name__}: {error}") from None
    if not callable(found):
        raise InputError(f"--checker {name}: a {type(found).__name__}, not a function")
    checker: Callable[[Mapping[str, Any], str], Any] = found
    return checker


def grade(payload: Mapping[str, Any], text: str) -> Verdict:
    """Let the user's checker say.

    Args:
        payload: `checker` (`module:function`) and `row`: the data's row. The function takes the
            row and the text, and returns True or False, or a number from 0 to 1.
        text: what was written.

    Raises:
        TypeError: it returned something else.
    """
    found = find_checker(payload["checker"])(payload["row"], text)
    if isinstance(found, bool) or (isinstance(found, int | float) and 0 <= found <= 1):
        return Verdict(float(found))
    raise TypeError(f"the checker returned {found!r}, not True, False, or a number from 0 to 1")
