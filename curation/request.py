"""Requests to a model, its answers, and the failures in between."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from typing import Any, Protocol

from mvspec.errors import MvspecError


@dataclass(frozen=True)
class ModelRequest:
    """One question to a model; equal requests have equal keys, and are paid once.

    Args:
        step: which step of curation asks, for ledgers and reports.
        model: as the provider calls it.
        system: the instructions.
        prompt: what they are about.
        schema: the JSON schema of the answer as JSON text; None for free text.
        max_tokens: the most tokens of the answer, thoughts included.
        temperature: None for the model's default.
        thinking: a budget in tokens or a level by name; None for the model's default.
        attempt: counts equal questions; it is the seed too.
    """

    step: str
    model: str
    system: str
    prompt: str
    schema: str | None = None
    max_tokens: int = 32_768
    temperature: float | None = None
    thinking: int | str | None = None
    attempt: int = 0

    @cached_property
    def key(self) -> str:
        """The SHA-256 of everything that decides the answer.

        >>> one, same = (ModelRequest("parse", "m", "s", "p") for _ in range(2))
        >>> one.key == same.key
        True
        """
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @cached_property
    def size(self) -> int:
        """Bytes of the question: no tokenizer makes more tokens of them than there are bytes."""
        texts = (self.system, self.prompt, self.schema or "")
        return sum(len(text.encode(errors="replace")) for text in texts)


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens that the provider counted; thoughts are paid as output."""

    prompt: int = 0
    output: int = 0
    thoughts: int = 0
    cached: int = 0

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(*(sum(pair) for pair in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """Answer of a model, which was paid.

    Args:
        text: the text; "" where there is none.
        finish: "stop" for a whole answer, "length" for one that ran out of tokens, "blocked"
            for one that the service withheld, "empty" for none at all.
        reason: the service's own word for it, such as SAFETY.
        usage: tokens.
        version: of the model that answered.
    """

    text: str
    finish: str = "stop"
    reason: str = ""
    usage: TokenUsage = TokenUsage()
    version: str = ""

    def to_json(self) -> str:
        """Return the answer as JSON text; `from_json` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelAnswer:
        """Read what `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields | {"usage": TokenUsage(**fields["usage"])})


class ModelProvider(Protocol):
    """Model or service that answers requests: one method."""

    async def ask(self, request: ModelRequest) -> ModelAnswer:
        """Return the model's answer.

        Raises:
            RequestUnanswered: the service failed; asking again may help.
            RequestRefused: the service will not take this request, or any.
        """


class RequestUnanswered(MvspecError):
    """The service gave no answer this time.

    Args:
        after: seconds that the service asks to wait; None where it does not say.
        paid: whether the request may be billed although no answer came.
        crowded: the service has too many requests: all of them should wait.
    """

    def __init__(
        self,
        message: str,
        *,
        after: float | None = None,
        paid: bool = False,
        crowded: bool = False,
    ) -> None:
        super().__init__(message)
        self.after = after
        self.paid = paid
        self.crowded = crowded


class RequestRefused(MvspecError):
    """The service will not take a request.

    Args:
        all: whether it takes none at all: a wrong key, no such model, the day's quota used up.
        one: whether it is this request's own fault, which others do not have: it is too long.
    """

    def __init__(self, message: str, *, all: bool = False, one: bool = False) -> None:
        super().__init__(message)
        self.all = all
        self.one = one


class CurationStopped(MvspecError):
    """Nothing more is asked in this run: the budget is used up, or somebody stopped it."""
