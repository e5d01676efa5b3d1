"""What a run returns: the values of the holes, the filled document, and every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mvspec.ir import Document
from mvspec.structure import Chain

__all__ = ["Result", "TokenRecord"]


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """One token of a run.

    Args:
        thread: 0 for the root, others in the order in which they were forked.
        position: its position id.
        id: its token id.
        author: "template", "outside", "engine" (forced tokens) or "model".
        chain: decides whom it sees, with `mvspec.structure.sees`.
        hole: the hole that it fills; "" for fixed text.
    """

    thread: int
    position: int
    id: int
    author: str
    chain: Chain = ()
    hole: str = ""

    @property
    def forced(self) -> bool:
        """Whether the engine wrote it: a header, or what a stop string left of a token."""
        return self.author == "engine"


@dataclass(frozen=True)
class Result:
    """A document with its holes filled.

    Args:
        document: the filled document.
        values: hole name to text; `result["name"]` is short for it.
        trace: every token in surface order, the prompt first.
        seconds: how long the model ran.
    """

    document: Document
    values: Mapping[str, str]
    trace: tuple[TokenRecord, ...]
    seconds: float

    def __getitem__(self, hole: str) -> str:
        return self.values[hole]

    @property
    def answer(self) -> tuple[TokenRecord, ...]:
        """The assistant's tokens."""
        return tuple(t for t in self.trace if t.author in ("engine", "model"))

    @property
    def critical_path(self) -> int:
        """Positions from the assistant's first token to its last."""
        positions = [token.position for token in self.answer]
        return max(positions) - min(positions) + 1 if positions else 0

    @property
    def parallelism(self) -> float:
        """The assistant's tokens over their critical path; 1 for a plain turn."""
        return len(self.answer) / self.critical_path if self.answer else 1.0
