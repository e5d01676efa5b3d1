"""A declarative spec and compiler for generation that forks and joins."""

from mvspec.builder import (
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
from mvspec.errors import (
    Diagnostic,
    LimitExceeded,
    MvspecError,
    ParseError,
    Unsupported,
    VerifyError,
)
from mvspec.forms import parse, render
from mvspec.ir import (
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
