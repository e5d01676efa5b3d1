"""LiveCodeBench: programs, run against tests in a sandbox."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import zlib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from mvspec.runtime.evaluation.sandbox import Outcome, run_code
from mvspec.runtime.evaluation.verdict import Verdict

__all__ = ["code_of", "grade", "unpacked_tests"]

_FENCED = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)

_MOST = 256 << 20
"""Bytes that packed tests may unpack to."""


class _Text(pickle.Unpickler):
    """Reads a pickled text; a pickle that asks for anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def unpacked_tests(value: Any) -> list[Any]:
    """Return tests from a list, JSON text of one, or the benchmark's packed form of it.

    Raises:
        ValueError: it is none of them.

    >>> unpacked_tests('[{"input": "1", "output": "2"}]')
    [{'input': '1', 'output': '2'}]
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            try:
                unpacker = zlib.decompressobj()
                data = unpacker.decompress(base64.b64decode(value, validate=True), _MOST)
                value = json.loads(_Text(io.BytesIO(data)).load())
            except Exception as error:
                raise ValueError(f"neither JSON nor packed tests ({error})") from None
    if not isinstance(value, list):
        raise ValueError("not a list of tests")
    return value


def code_of(text: str) -> str:
    """Return the last fenced block of a text, "" where there is none.

    >>> code_of("First:\\n```python\\nprint(1)\\n```\\nThat is it.")
    'print(1)\\n'
    """
    found = _FENCED.findall(text)
    return found[-1] if found else ""


def grade(payload: Mapping[str, Any], text: str) -> Verdict:
    """Run the code of an answer against every test; the first that fails ends it.

    Args:
        payload: `tests` (`input`, `output` of each), `function` ("" for a program that reads
            standard input), `seconds` and `megabytes` of a test.
        text: what was written.
    """
    code = code_of(text)
    if not code.strip():
        return Verdict(0.0, note="no fenced code")
    tests = payload["tests"]
    for number, test in enumerate(tests, 1):
        reason = _failure(code, test, payload)
        if reason:
            note = f"test {number} of {len(tests)}: {reason}"
            return Verdict(0.0, note=note, details={"passed": number - 1, "tests": len(tests)})
    return Verdict(1.0, details={"passed": len(tests), "tests": len(tests)})


def _failure(code: str, test: Mapping[str, Any], payload: Mapping[str, Any]) -> str:
    """Return why a test fails, "" where it passes."""
    function = str(payload["function"])
    limits = {"seconds": payload["seconds"], "megabytes": payload["megabytes"]}
    if function:
        lines = [line for line in str(test["input"]).split("\n") if line.strip()]
        given = [json.loads(line) for line in lines]
        outcome = run_code(code, function=function, arguments=given, **limits)
    else:
        outcome = run_code(code, str(test["input"]), **limits)
    if outcome.status != "ok":
        return outcome.reason or outcome.status
    return "" if _same(outcome, str(test["output"]), function) else "another result"


def _same(outcome: Outcome, expected: str, function: str) -> bool:
    if function:
        return bool(outcome.value == json.loads(expected))
    found, wanted = (text.strip().split("\n") for text in (outcome.out, expected))
    return len(found) == len(wanted) and all(map(_same_line, found, wanted))


def _same_line(found: str, wanted: str) -> bool:
    one, other = found.split(), wanted.split()
    if one == other:
        return True
    try:
        return [Decimal(word) for word in one] == [Decimal(word) for word in other]
    except InvalidOperation:
        return False
