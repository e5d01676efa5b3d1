"""One hole while it is filled: what may come next, and where it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from mvspec.compiler.vocabulary import Vocabulary
from mvspec.runtime.constraint import Constraint
from mvspec.tree.ir import Gen

__all__ = ["OpenHole", "cut_at_stop"]


@dataclass(slots=True)
class OpenHole:
    """A hole with the tokens that it has so far.

    Args:
        hole: its name, bounds and constraint.
        lead: what its tokens begin with, before its value.
        before: the end of the text before it, since the last control token.
        after: the beginning of the fixed text after it.
        constraint: its matcher, where it has a constraint.
        rest: what the engine still has to write of it: it takes nothing else then.
        written: how many of its tokens the engine wrote.
    """

    hole: Gen
    lead: str
    before: str
    after: str
    constraint: Constraint | None
    ids: list[int] = field(default_factory=list)
    rest: list[int] = field(default_factory=list)
    written: int = 0

    @property
    def full(self) -> bool:
        """Whether it takes no more tokens, whatever the model would say."""
        if self.constraint is not None and self.constraint.ended:
            return True
        return len(self.ids) - self.written >= self.hole.max_tokens


def cut_at_stop(
    ids: list[int], stops: tuple[str, ...], vocabulary: Vocabulary, start: int = 0
) -> tuple[int, str] | None:
    """Return (tokens to keep, text to write after them) where a stop string has come.

    The stop string may begin inside a token: that token goes, and what it says before the stop
    string is written again.

    Args:
        ids: of the text so far; only its last token is new.
        start: how many characters stand before the text in which stop strings count.

    >>> from tokenizers import Tokenizer, decoders, models
    >>> tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "Ċ": 3}, [("a", "b")]))
    >>> tokenizer.decoder = decoders.ByteLevel()
    >>> vocabulary = Vocabulary.__new__(Vocabulary)
    >>> vocabulary.backend = tokenizer
    >>> cut_at_stop([0, 2], ("b",), vocabulary)
    (1, 'a')
    """
    if not stops:
        return None
    # Every token but control tokens writes at least a byte, so a stop string that the last one
    # completes lies in the last few.
    longest = max(len(stop.encode()) for stop in stops) + 4
    if not any(stop in vocabulary.decode(ids[-longest:]) for stop in stops):
        return None
    text = vocabulary.decode(ids)
    found = [at for stop in stops if (at := text.find(stop, start)) >= 0]
    if not found:
        return None
    value = text[: min(found)]
    keep = len(ids) - 1
    while not value.startswith(vocabulary.decode(ids[:keep])):
        keep -= 1
    return keep, value[len(vocabulary.decode(ids[:keep])) :]
