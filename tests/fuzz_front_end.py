"""Coverage-guided fuzzing of every form: pip install atheris, then

    PYTHONPATH=.:tests:tests/laws python tests/fuzz_front_end.py -max_total_time=600

Each input is a row of tags, lines and scraps of a form, so that a byte is a step of structure.
The nightly profile runs it for a minute (tests/forms/test_fuzz.py).
"""

from __future__ import annotations

import sys
from importlib import import_module

if __name__ == "__main__":
    # Before anything else imports it: only what is imported in here reports what it reached.
    atheris = import_module("atheris")  # no requirement of the project, and untyped
    with atheris.instrument_imports(include=["mvspec"]):
        import_module("mvspec.forms")

from dialects import READABLE, bits
from test_law10_forms import check

from mvspec.forms import FORMS

__all__ = ["one", "text_of"]


def text_of(data: bytes, form: str) -> str:
    """Return the text that bytes stand for: printable ASCII as it is, the rest as tags."""
    parts = bits(FORMS[form].syntax)
    return "".join(chr(b) if 31 < b < 127 else parts[b % len(parts)] for b in data)


def one(data: bytes) -> None:
    """Hold law 10 for one input."""
    if data:
        form = READABLE[data[0] % len(READABLE)]
        check(text_of(data[1:], form), form)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
