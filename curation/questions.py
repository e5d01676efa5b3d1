"""Questions of a chain: prompts of each step, asked again a bounded number of times."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mvspec.curation.answers import schema_text
from mvspec.curation.chain import ReasoningChain, numbered
from mvspec.curation.request import ModelAnswer, ModelRequest
from mvspec.curation.structure import (
    BlockPlan,
    ChainStep,
    PlanBody,
    SentenceRun,
    UnusableAnswer,
    runs_of,
)

Ask = Callable[[ModelRequest], Awaitable[ModelAnswer]]

BEFORE = 40
"""Sentences before a block that a path is shown with."""

LONGEST = 65_536
"""Tokens that an answer may take in the end; one that was cut may take twice as many next time."""

REASONS = 3
"""Refusals that a model is told of: the last ones."""

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CurationOptions:
    """Settings that decide how a chain becomes a document.

    Args:
        model: that is asked.
        max_distance: of a document's sequential reading to its source, 0 to 1.
        max_path_distance: the same of a path's own sentences.
        attempts: answers of one question that may be refused before the record is.
        max_depth, max_paths: blocks inside blocks, and paths of a block.
        independence: whether the rules look for paths whose words lean on a sibling.
        judge: whether the model is asked as well.
        sequential: keep chains in which nothing runs side by side, as documents without blocks.
        trigger: a line that ends the text before a block; "" for none.
        prefix: how the answer begins.
        temperature, thinking, max_tokens: of the requests.
    """

    model: str
    max_distance: float = 0.2
    max_path_distance: float = 0.5
    attempts: int = 3
    max_depth: int = 3
    max_paths: int = 16
    independence: bool = True
    judge: bool = False
    sequential: bool = False
    trigger: str = "Let's think in parallel."
    prefix: str = "Answer: "
    temperature: float | None = None
    thinking: int | str | None = None
    max_tokens: int = 32_768

    def request(self, step: str) -> ModelRequest:
        """Return a request of a step, with its instructions and without a prompt."""
        return ModelRequest(
            step,
            self.model,
            system=instructions(step),
            prompt="",
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            thinking=self.thinking,
        )


@cache
def instructions(step: str) -> str:
    """Return the instructions of a step, as they stand in `prompts/`."""
    return files("mvspec.curation").joinpath("prompts", f"{step}.md").read_text("utf-8")


def parse_prompt(chain: ReasoningChain) -> str:
    """Show the whole chain, sentence by sentence."""
    return _sections(
        ("Question", chain.question),
        (f"Sentences 1 to {len(chain.sentences)}", numbered(chain.sentences)),
    )


def group_prompt(
    chain: ReasoningChain, steps: Sequence[ChainStep], max_depth: int, max_paths: int
) -> str:
    """Show the steps with their sentences."""

    def lines(steps: Sequence[ChainStep]) -> str:
        return "\n".join(
            f"## {step.label} {step.title}\n"
            + (lines(step.steps) if step.steps else _run_lines(chain, step))
            for step in steps
        )

    return _sections(
        ("Question", chain.question),
        ("Steps", lines(steps)),
        ("Limits", f"Groups nest at most {max_depth} deep; a group has 2 to {max_paths} paths."),
    )


def frame_prompt(chain: ReasoningChain, block: BlockPlan) -> str:
    """Show the paths of a block, for their goals and the conclusion."""
    return _sections(
        ("Question", chain.question),
        ("Before the block", _before(chain, block)),
        *(
            (
                f"Path {index} ({' / '.join(path.titles)})",
                "\n".join(_run_lines(chain, run) for run in runs_of(path.body)),
            )
            for index, path in enumerate(block.paths, 1)
        ),
    )


def rewrite_prompt(
    chain: ReasoningChain, block: BlockPlan, index: int, goals: Sequence[str]
) -> str:
    """Show one path as a thread sees it: what comes before the block, the goals, no sibling.

    Args:
        index: of the path, from 0.
    """
    return _sections(
        ("Question", chain.question),
        ("Before the block", _before(chain, block)),
        ("Goals of the block", "\n".join(f"{n}. {goal}" for n, goal in enumerate(goals, 1))),
        (f"Path {index + 1}", _own_text(chain, block.paths[index].body)),
    )


def judge_prompt(texts: Sequence[str], goals: Sequence[str]) -> str:
    """Show the finished paths of a block side by side."""
    pairs = zip(goals, texts, strict=True)
    return _sections(*((f"Path {n}: {goal}", text) for n, (goal, text) in enumerate(pairs, 1)))


def _sections(*sections: tuple[str, str]) -> str:
    return "\n\n".join(f"# {title}\n{text.strip()}" for title, text in sections if text.strip())


def _before(chain: ReasoningChain, block: BlockPlan) -> str:
    start = next(runs_of(block.paths[0].body)).first - 1
    first = max(0, start - BEFORE)
    return numbered(chain.sentences[first:start], first + 1)


def _own_text(chain: ReasoningChain, body: PlanBody) -> str:
    lines: list[str] = []
    for item in body:
        if isinstance(item, SentenceRun):
            lines.append(_run_lines(chain, item))
        else:
            titles = "; ".join(title for path in item.paths for title in path.titles)
            lines.append(f"(here this path forks into: {titles})")
    return "\n".join(lines)


def _run_lines(chain: ReasoningChain, run: SentenceRun | ChainStep) -> str:
    return numbered(chain.sentences[run.first - 1 : run.last], run.first)


class ChainQuarantined(Exception):
    """A record that is given up; `code` names the check that it did not pass."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass
class RetriedQuestion:
    """A step's question about one thing, asked again with the reason for each refused answer.

    Args:
        ask: how it is asked.
        base: the request without prompt, schema and attempt.
        where: what it is about, for people.
        attempts: answers that may be refused before the record is.
        log: its answers: step, where, attempt (from 0), key of the request in the store, check that
            the answer did not pass ("" where it passed), and problem.
    """

    ask: Ask
    base: ModelRequest
    where: str
    attempts: int
    log: list[dict[str, Any]] = field(default_factory=list)
    tries: int = 0
    blocked: int = 0
    reasons: list[str] = field(default_factory=list)

    async def answer(self, reply: type[R], prompt: str, check: Callable[[R], T]) -> T:
        """Return what `check` makes of the first answer that passes.

        Args:
            reply: the model of the answer.
            prompt: what is asked, without earlier refusals.
            check: returns the value, or raises UnusableAnswer with the reason.

        Raises:
            ChainQuarantined: too many answers were refused.
        """
        while True:
            answer = await self.text(prompt + self._refusals(), schema_text(reply))
            if answer.finish != "stop":
                self._unfinished(answer)
                continue
            try:
                return check(read_reply(reply, answer.text))
            except ValidationError as error:
                self.refuse("schema", _said(error))
            except UnusableAnswer as problem:
                self.refuse(self.base.step, str(problem))

    async def text(self, prompt: str, schema: str | None = None) -> ModelAnswer:
        """Return the next answer, whole or cut."""
        request = replace(self.base, prompt=prompt, schema=schema, attempt=self.tries)
        answer = await self.ask(request)
        self.log.append({
            "step": request.step, "where": self.where, "attempt": self.tries, "key": request.key,
            "check": "", "problem": "",
        })  # fmt: skip
        return answer

    def refuse(self, check: str, reason: str) -> None:
        """Send the last answer back; the next question says why.

        Raises:
            ChainQuarantined: it was one too many.
        """
        self.reasons.append(reason)
        self._count(check, reason)

    def _unfinished(self, answer: ModelAnswer) -> None:
        if answer.finish == "length":
            # What was missing were tokens: the same question, and more of them.
            self._count("length", f"the answer was cut at {self.base.max_tokens} tokens")
            most = max(self.base.max_tokens, min(2 * self.base.max_tokens, LONGEST))
            self.base = replace(self.base, max_tokens=most)
        elif answer.finish == "blocked":
            self.blocked += 1
            if self.blocked > 1:  # once may be chance; twice is the service's opinion
                self.tries = self.attempts
            self._count("blocked", f"the service withheld the answer ({answer.reason})")
        else:
            self._count("empty", "there was no text in the answer")

    def _count(self, check: str, reason: str) -> None:
        self.log[-1] |= {"check": check, "problem": reason}
        self.tries += 1
        if self.tries > self.attempts:
            where = f"{self.where}: " if self.where else ""
            raise ChainQuarantined(check, f"{where}{reason}")

    def _refusals(self) -> str:
        if not self.reasons:
            return ""
        lines = "\n".join(f"- {reason[:800]}" for reason in self.reasons[-REASONS:])
        return f"\n\n# Why your earlier answers were refused\n{lines}"


class ChainQuestions:
    """All questions of one chain.

    Args:
        chain: that they are about.
        options: of the curation.
        ask: how a model is asked.
    """

    def __init__(self, chain: ReasoningChain, options: CurationOptions, ask: Ask) -> None:
        self.chain = chain
        self.options = options
        self.ask = ask
        self.opened: list[RetriedQuestion] = []

    def open(self, step: str, where: str = "") -> RetriedQuestion:
        """Open a question of a step."""
        made = RetriedQuestion(self.ask, self.options.request(step), where, self.options.attempts)
        self.opened.append(made)
        return made

    def history(self) -> list[dict[str, Any]]:
        """Return all answers, question by question in the order in which they were opened."""
        return [dict(event) for question in self.opened for event in question.log]


_FENCE = re.compile(r"```[a-z]*\s*(?={)", re.I)


def read_reply(reply: type[R], text: str) -> R:
    """Read a reply as JSON, also where it stands in a code fence with text around it.

    Raises:
        ValidationError: it is not JSON of the schema.
        UnusableAnswer: several code fences hold different replies.

    >>> from mvspec.curation.answers import GroupsReply
    >>> read_reply(GroupsReply, 'Here it is:\\n```json\\n{"groups": []}\\n```')
    GroupsReply(groups=())
    """
    said: list[ValidationError] = []
    try:
        return reply.model_validate_json(text)
    except ValidationError as error:
        said.append(error)
    found: list[R] = []
    at = 0
    while fence := _FENCE.search(text, at):
        at = fence.end()
        try:
            # Up to its last brace, and not to the next fence, which may stand in a string of it.
            _, end = json.JSONDecoder().raw_decode(text, at)
            found.append(reply.model_validate_json(text[at:end]))
            at = end
        except ValidationError as error:
            said.append(error)
        except (ValueError, RecursionError):
            pass
    if not found:
        raise said[-1]
    if any(each != found[0] for each in found):
        raise UnusableAnswer("several code fences hold different answers: give one")
    return found[0]


def _said(error: ValidationError) -> str:
    first: Any = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(step) for step in first["loc"])
    return f"the answer is not JSON of the schema: {place or 'the whole'}: {first['msg']}"
