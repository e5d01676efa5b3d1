"""One hole while it is filled: which token comes next, and where it ends."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import LimitExceeded, Unsupported, VerifyError
from mvspec.ir import TAG
from mvspec.runtime.plan import Fill

__all__ = ["OpenHole", "Sampling", "check_hole"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn.

    Args:
        temperature: 0 takes the likeliest token; else logits are divided by it.
        seed: of the random streams; each depends on it, the hole's name and the index only.

    Raises:
        VerifyError: the temperature is below 0.
    """

    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise VerifyError("temperature", f"{self.temperature} is not a number from 0 up")

    def draw(self, logits: Tensor, hole: str, index: int) -> int:
        """Return a token id.

        Args:
            logits: [vocabulary]; a banned token has minus infinity.
            hole, index: the hole's name and the token's index in it, from 0.
        """
        if self.temperature == 0:
            return int(logits.argmax())
        key = hashlib.blake2b(f"{self.seed}/{hole}/{index}".encode(), digest_size=8).digest()
        stream = torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
        weights = torch.softmax(logits.double().cpu() / self.temperature, dim=-1)
        return int(torch.multinomial(weights, 1, generator=stream))


def check_hole(fill: Fill, vocabulary: Vocabulary) -> None:
    """Refuse a hole that this engine cannot fill.

    Raises:
        Unsupported: it has a constraint that the engine does not know.
        LimitExceeded: a choice is longer than the hole.
        VerifyError: a choice holds a tag.
    """
    hole = fill.hole
    for constraint in ("regex", "json_schema"):
        if getattr(hole, constraint) is not None:
            raise Unsupported(
                f"hole {hole.name!r}: this engine lacks the capability {constraint!r}; "
                "use choices or stop strings"
            )
    for choice in hole.choices or ():
        if TAG.search(choice):
            raise VerifyError(f"hole {hole.name!r}", f"the choice {choice!r} holds a tag")
        length = len(vocabulary.encode_outside(choice))
        if length > hole.max_tokens:
            raise LimitExceeded(
                f"hole {hole.name!r}: the choice {choice!r} is {length} tokens and max_tokens "
                f"is {hole.max_tokens}: raise it"
            )


@dataclass(slots=True)
class OpenHole:
    """A hole with the tokens that it has so far.

    Args:
        fill: the hole and the fixed text after it.
        before: the end of the text before it.
        vocabulary: of the model.
        ends: ids that end a turn, and so the hole.
        sampling: how tokens are drawn.
    """

    fill: Fill
    before: str
    vocabulary: Vocabulary
    ends: frozenset[int]
    sampling: Sampling
    ids: list[int] = field(default_factory=list)
    choices: tuple[tuple[int, ...], ...] = ()
    control: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        encode = self.vocabulary.encode_outside
        self.choices = tuple(tuple(encode(choice)) for choice in self.fill.hole.choices or ())
        added = self.vocabulary.backend.get_added_tokens_decoder()
        self.control = frozenset(id for id, token in added.items() if token.special) - self.ends

    @property
    def text(self) -> str:
        """What the tokens so far say."""
        return self.vocabulary.decode(self.ids)

    @property
    def full(self) -> bool:
        """Whether the hole takes no more tokens, whatever the model would say."""
        if self.choices:
            return not self._continuations()
        return len(self.ids) >= self.fill.hole.max_tokens

    def choose(self, logits: Tensor) -> int | None:
        """Return the next token, None where the model ends the hole.

        Args:
            logits: of the thread's last token, [vocabulary]; not changed.
        """
        logits = logits.clone()
        if self.choices:
            allowed = self._continuations()
            if tuple(self.ids) in self.choices:  # it starts a longer one: the model decides
                allowed |= self.ends
            banned = torch.ones_like(logits, dtype=torch.bool)
            banned[sorted(allowed)] = False
            logits[banned] = -torch.inf
        else:
            logits[sorted(self.control)] = -torch.inf
        while True:
            token = self.sampling.draw(logits, self.fill.hole.name, len(self.ids))
            if token in self.ends:
                return None
            if self.choices or not self._completes_tag(token):
                return token
            logits[token] = -torch.inf

    def _continuations(self) -> set[int]:
        here = len(self.ids)
        return {c[here] for c in self.choices if len(c) > here and list(c[:here]) == self.ids}

    def _completes_tag(self, token: int) -> bool:
        """Whether the document, filled so far, would hold a tag in plain characters."""
        # No tag is longer than 16 characters, and every token but control tokens writes some.
        text = self.vocabulary.decode([*self.ids[-16:], token])
        before = self.before[-16:] if len(self.ids) < 16 else ""
        return TAG.search(before + text + self.fill.after[:16]) is not None

    def stop(self) -> tuple[int, str] | None:
        """Return (tokens to keep, text to write after them) once a stop string has come.

        The stop string may begin inside a token: that token goes, and what it says before the
        stop string is written again.
        """
        if self.choices:
            return None
        text = self.text
        found = [at for stop in self.fill.hole.stop if (at := text.find(stop)) >= 0]
        if not found:
            return None
        value = text[: min(found)]
        keep = len(self.ids) - 1
        while not value.startswith(self.vocabulary.decode(self.ids[:keep])):
            keep -= 1
        return keep, value[len(self.vocabulary.decode(self.ids[:keep])) :]
