"""The errors a user can meet, and the located diagnostics that they carry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from rich.cells import cell_len


class MvspecError(Exception):
    """Base of every error that mvspec raises on user input."""


class VerifyError(MvspecError):
    """A tree breaks an invariant; the message gives the path into the tree and the fix."""

    def __init__(self, address: str, message: str) -> None:
        super().__init__(f"{address}: {message}" if address else message)
        self.address = address


class Unsupported(MvspecError):
    """A form, engine or model cannot do what is asked; the message names the capability."""


class LimitExceeded(MvspecError):
    """A document or a run passes one of its `Limits`."""


class RequestFailed(MvspecError):
    """Something failed on one request of an engine; the others go on, and `__cause__` is what."""

    @classmethod
    def of(cls, name: str, error: Exception) -> RequestFailed:
        """Return the error of a request, by its name, that has met another error."""
        made = cls(
            f"request {name} failed ({type(error).__name__}: {error}): where no constraint or "
            "callback of yours has raised it, please report it"
        )
        made.__cause__ = error
        return made


_BLOCK = 4096
"""Characters between two places whose line is remembered."""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One violation in a text, and the edit that repairs it.

    Replacing `text[offset:end]` by `inserted` for every diagnostic of a text gives canonical
    text, so what recovery drops is exactly `dropped` and what it adds is exactly `inserted`.

    Args:
        offset: where it starts, in characters from 0.
        end: where the replaced span ends, in characters.
        line, column: the same place, both from 1, columns in characters.
        code: stable name of the kind of violation (docs/diagnostics.md lists them).
        message: what is wrong, what was expected.
        dropped: the text that the repair leaves out.
        inserted: the text that the repair writes instead.
        severity: "error" for a violation, "warning" for legal but unusual text.
        address: which text of a chat it is in, or where in a document, as `messages[1].content`.
    """

    offset: int
    end: int
    line: int
    column: int
    code: str
    message: str
    dropped: str = ""
    inserted: str = ""
    severity: str = "error"
    address: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return the object that `mvspec check --json` prints for this diagnostic."""
        out: dict[str, object] = {
            "offset": self.offset,
            "line": self.line,
            "column": self.column,
            "code": self.code,
            "message": self.message,
        }
        if self.dropped:
            out["dropped"] = self.dropped
        if self.inserted:
            out["inserted"] = self.inserted
        if self.severity != "error":
            out["severity"] = self.severity
        if self.address:
            out["address"] = self.address
        return out


class Source:
    """A text with its name; turns offsets into lines, columns and excerpts with a caret."""

    def __init__(self, text: str, name: str = "<text>") -> None:
        self.text = text
        self.name = name

    @cached_property
    def _marks(self) -> list[tuple[int, int]]:
        # For each block of the text: the newlines before it, and where its first line starts.
        marks: list[tuple[int, int]] = []
        lines = start = 0
        for at in range(0, len(self.text) + 1, _BLOCK):
            marks.append((lines, start))
            lines += self.text.count("\n", at, at + _BLOCK)
            start = max(start, self.text.rfind("\n", at, at + _BLOCK) + 1)
        return marks

    def position(self, offset: int) -> tuple[int, int]:
        """Return (line, column) of `offset`, both from 1, in bounded time."""
        block = offset // _BLOCK
        lines, start = self._marks[block]
        lines += self.text.count("\n", block * _BLOCK, offset)
        start = max(start, self.text.rfind("\n", block * _BLOCK, offset) + 1)
        return lines + 1, offset - start + 1

    def diagnostic(
        self,
        offset: int,
        code: str,
        message: str,
        *,
        end: int | None = None,
        inserted: str = "",
        severity: str = "error",
    ) -> Diagnostic:
        """Locate a diagnostic at `offset` that replaces `text[offset:end]` by `inserted`."""
        end = offset if end is None else end
        line, column = self.position(offset)
        dropped = self.text[offset:end]
        return Diagnostic(offset, end, line, column, code, message, dropped, inserted, severity)

    def excerpt(self, offset: int, width: int = 72) -> str:
        """Return the line around `offset`, at most `width` characters, and a caret under it."""
        line, column = self.position(offset)
        start = offset - column + 1
        stop = self.text.find("\n", offset)
        stop = len(self.text) if stop < 0 else stop
        left = max(start, min(offset - width // 2, stop - width))
        right = min(stop, left + width)
        head = "…" if left > start else ""
        tail = "…" if right < stop else ""
        shown = "".join(c if c.isprintable() else "·" for c in self.text[left:right])
        gutter = f"{line:>5} | "
        # A terminal gives a wide character two columns, and a combining one none.
        caret = " " * cell_len(gutter + head + shown[: offset - left]) + "^"
        return f"{gutter}{head}{shown}{tail}\n{caret}"


class ParseError(MvspecError):
    """A text is not of its form; carries the first violation, located.

    Attributes:
        diagnostic: the first violation.
        cut: whether the text is a proper prefix of a well-formed one.
    """

    def __init__(self, source: Source, diagnostic: Diagnostic, *, cut: bool = False) -> None:
        where = f"{source.name}:{diagnostic.line}:{diagnostic.column}"
        super().__init__(
            f"{where}: {diagnostic.message} [{diagnostic.code}]\n"
            f"{source.excerpt(diagnostic.offset)}"
        )
        self.source = source
        self.diagnostic = diagnostic
        self.cut = cut
