"""A declarative spec and compiler for generation that forks and joins.

One typed tree says what runs in parallel; one structural law says, for every token, where it
sits and what it may see; training tensors and runtime plans are two readings of that law.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Registers how nodes and traces are shown.
from mvspec import view as _view  # noqa: F401
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
from mvspec.tree.builder import (
    assistant,
    branch,
    document,
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

if TYPE_CHECKING:
    from mvspec.runtime import run

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
    "Text",
    "Think",
    "Unsupported",
    "VerifyError",
    "assistant",
    "branch",
    "document",
    "gen",
    "message",
    "parallel",
    "parse",
    "render",
    "run",
    "system",
    "think",
    "tool",
    "user",
]


def __getattr__(name: str) -> Any:
    # The runtime needs torch, which the core does not: `mvspec.run` is looked up on first use.
    if name == "run":
        from mvspec.runtime import run

        return run
    raise AttributeError(f"module 'mvspec' has no attribute {name!r}")
