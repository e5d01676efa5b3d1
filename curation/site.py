"""A place of the pipeline that asks a model until its answer passes, a bounded number of times."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from mvspec.curation.answers import Reply, schema_text
from mvspec.curation.chain import Chain
from mvspec.curation.options import Curation
from mvspec.curation.request import Answer, Request
from mvspec.curation.steps import instructions
from mvspec.curation.structure import Problem

__all__ = ["Ask", "Event", "Quarantined", "Questions", "Site"]

Ask = Callable[[Request], Awaitable[Answer]]

LONGEST = 65_536
"""Tokens that an answer may take in the end; one that was cut may take twice as many next time."""

REASONS = 3
"""Refusals that a model is told of: the last ones."""

R = TypeVar("R", bound=Reply)
T = TypeVar("T")


class Quarantined(Exception):
    """A record that is given up; `code` names the check that it did not pass."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass
class Event:
    """One answer, and what was wrong with it.

    Args:
        step: that asked.
        where: the block and path that it was about, as `block 1, path 2`.
        attempt: from 0.
        key: of the request, in the store.
        check: what the answer did not pass; "" where it passed.
        problem: why.
    """

    step: str
    where: str
    attempt: int
    key: str
    check: str = ""
    problem: str = ""


@dataclass
class Site:
    """A step's question about one thing, with all its answers.

    Args:
        ask: how it is asked.
        base: the request without prompt, schema and attempt.
        where: what it is about, for people.
        attempts: answers that may be refused before the record is.
        log: its events.
    """

    ask: Ask
    base: Request
    where: str
    attempts: int
    log: list[Event] = field(default_factory=list)
    tries: int = 0
    blocked: int = 0
    reasons: list[str] = field(default_factory=list)

    async def answer(self, reply: type[R], prompt: str, check: Callable[[R], T]) -> T:
        """Return what `check` makes of the first answer that passes.

        Args:
            reply: the model of the answer.
            prompt: what is asked, without earlier refusals.
            check: returns the value, or raises Problem with the reason.

        Raises:
            Quarantined: too many answers were refused.
        """
        while True:
            request = replace(
                self.base,
                system=instructions(self.base.step),
                prompt=prompt + self._refusals(),
                schema=schema_text(reply),
                attempt=self.tries,
            )
            answer = await self.ask(request)
            self.log.append(Event(self.base.step, self.where, self.tries, request.key))
            if answer.finish != "stop":
                self._unfinished(answer)
                continue
            try:
                found = reply.model_validate_json(answer.text)
            except ValidationError as error:
                self.refuse("schema", _said(error))
                continue
            try:
                return check(found)
            except Problem as problem:
                self.refuse(self.base.step, str(problem))

    async def text(self, prompt: str) -> Answer:
        """Return the answer to a question without a schema, whole or cut."""
        request = replace(
            self.base, system=instructions(self.base.step), prompt=prompt, attempt=self.tries
        )
        answer = await self.ask(request)
        self.log.append(Event(self.base.step, self.where, self.tries, request.key))
        return answer

    def refuse(self, check: str, reason: str) -> None:
        """Send the last answer back; the next question says why.

        Raises:
            Quarantined: it was one too many.
        """
        self.reasons.append(reason)
        self._count(check, reason)

    def _unfinished(self, answer: Answer) -> None:
        if answer.finish == "length":
            # What was missing were tokens: the same question, and more of them.
            self._count("length", f"the answer was cut at {self.base.max_tokens} tokens")
            self.base = replace(self.base, max_tokens=min(2 * self.base.max_tokens, LONGEST))
        elif answer.finish == "blocked":
            self.blocked += 1
            if self.blocked > 1:  # once may be chance; twice is the service's opinion
                self.tries = self.attempts
            self._count("blocked", f"the service withheld the answer ({answer.reason})")
        else:
            self._count("empty", "there was no text in the answer")

    def _count(self, check: str, reason: str) -> None:
        self.log[-1].check, self.log[-1].problem = check, reason
        self.tries += 1
        if self.tries > self.attempts:
            where = f"{self.where}: " if self.where else ""
            raise Quarantined(check, f"{where}{reason}")

    def _refusals(self) -> str:
        if not self.reasons:
            return ""
        lines = "\n".join(f"- {reason[:800]}" for reason in self.reasons[-REASONS:])
        return f"\n\n# Why your earlier answers were refused\n{lines}"


class Questions:
    """All sites of one chain.

    Args:
        chain: that they are about.
        options: of the curation.
        ask: how a model is asked.
    """

    def __init__(self, chain: Chain, options: Curation, ask: Ask) -> None:
        self.chain = chain
        self.options = options
        self.ask = ask
        self.sites: list[Site] = []

    def site(self, step: str, where: str = "") -> Site:
        """Open a site."""
        made = Site(self.ask, self.options.request(step), where, self.options.attempts)
        self.sites.append(made)
        return made

    def history(self) -> list[dict[str, Any]]:
        """Return all events, site by site in the order in which they were opened."""
        return [asdict(event) for site in self.sites for event in site.log]


def _said(error: ValidationError) -> str:
    first: Any = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(step) for step in first["loc"])
    return f"the answer is not JSON of the schema: {place or 'the whole'}: {first['msg']}"
