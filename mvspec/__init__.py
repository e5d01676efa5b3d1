"""A declarative spec and compiler for generation that forks and joins.

One typed tree says what runs in parallel; one structural law says, for every token, where it
sits and what it may see; training tensors and runtime plans are two readings of that law.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvspec.data.chat import document
    from mvspec.data.records import Record
    from mvspec.data.sources import read
    from mvspec.errors import (
        Diagnostic,
        LimitExceeded,
        MvspecError,
        ParseError,
        Unsupported,
        VerifyError,
    )
    from mvspec.forms import parse, render
    from mvspec.law.limits import Limits
    from mvspec.runtime import run
    from mvspec.tree.builder import (
        assistant,
        branch,
        gen,
        message,
        parallel,
        system,
        think,
        tool,
        user,
    )
    from mvspec.tree.ir import (
        Conclusion,
        Document,
        Gen,
        Goal,
        Message,
        Outline,
        Parallel,
        Path,
        Text,
        Think,
    )

__all__ = [
    "Conclusion",
    "Diagnostic",
    "Document",
    "Gen",
    "Goal",
    "LimitExceeded",
    "Limits",
    "Message",
    "MvspecError",
    "Outline",
    "Parallel",
    "ParseError",
    "Path",
    "Record",
    "Text",
    "Think",
    "Unsupported",
    "VerifyError",
    "__version__",
    "assistant",
    "branch",
    "document",
    "gen",
    "message",
    "parallel",
    "parse",
    "read",
    "render",
    "run",
    "system",
    "think",
    "tool",
    "user",
]

__version__ = "0.1.0"
"""Version of the package, as `mvspec --version` prints it."""

_PLACES = {
    "mvspec.errors": "Diagnostic LimitExceeded MvspecError ParseError Unsupported VerifyError",
    "mvspec.forms": "parse render",
    "mvspec.law.limits": "Limits",
    "mvspec.runtime": "run",
    "mvspec.data.chat": "document",
    "mvspec.data.records": "Record",
    "mvspec.data.sources": "read",
    "mvspec.tree.builder": "assistant branch gen message parallel system think tool user",
    "mvspec.tree.ir": "Conclusion Document Gen Goal Message Outline Parallel Path Text Think",
}


def __getattr__(name: str) -> Any:
    # Looked up on first use: a command that reads texts starts without what draws or runs them.
    for place, names in _PLACES.items():
        if name in names.split():
            return globals().setdefault(name, getattr(import_module(place), name))
    raise AttributeError(f"module 'mvspec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
