"""A run on record: every token with its thread, position, author, logprob and forward."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AllowInfNan,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from mvspec.disk import append_line
from mvspec.errors import Diagnostic, LimitExceeded, VerifyError
from mvspec.law.metrics import Metrics
from mvspec.law.threads import Chain, law_of_threads
from mvspec.shown import REPR_LIMIT, as_html, as_layout, as_plan, excerpt, screen, visible
from mvspec.tree.ir import Document
from mvspec.tree.node import verify_error

Author = Literal["prompt", "engine", "model"]

VERSION: Final = 2
VERSION_1: Final = {
    "ends": "forward_seconds",
    "owners": "thread_ids",
    "rows": "forward_tokens",
    "steps": "forward_ids",
    "texts": "token_texts",
}
"""What version 1 of the file format called its columns; it had no field `version`."""


def current_names(value: dict[str, Any]) -> dict[str, Any]:
    """Return the object of a trace with the names of this version.

    >>> current_names({"owners": [0], "ids": [7]})
    {'thread_ids': [0], 'ids': [7]}
    """
    if "version" in value:
        return value
    return {VERSION_1.get(name, name): found for name, found in value.items()}


# What a file says is taken as it is: "3" and true are no numbers.
WholeNumber = Annotated[int, Strict(), Field(ge=-(2**31), lt=2**31)]
RealNumber = Annotated[float, Strict()]
FiniteNumber = Annotated[float, Strict(), AllowInfNan(False)]
StrictText = Annotated[str, Strict()]


# Built when a trace is first read: most commands import the class and read none.
FROZEN = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class TracedThread(BaseModel):
    """The root thread (number 0) or one path.

    Args:
        id: its number: threads are listed by it, and a path comes after its parent.
        label: of the path, as `1` or `2.1`; "" at the root.
        title: of the path: its outline; "" where there is none.
        parent: the thread that forked it; None at the root.
        block: number of the block that it is a path of; -1 at the root.
    """

    model_config = FROZEN

    id: WholeNumber
    label: StrictText = ""
    title: StrictText = ""
    parent: WholeNumber | None = None
    block: WholeNumber = -1


class FilledHole(BaseModel):
    """The tokens of one hole: those at [start, stop) in surface order.

    Args:
        text: its value as text.
        cut: whether max_tokens ended it inside its constraint.
    """

    model_config = FROZEN

    name: str
    start: int
    stop: int
    text: str
    cut: bool = False


class Trace(BaseModel):
    """A run as plain data; `ids` to `forward_ids` are [tokens], in the order of the surface form.

    Args:
        version: of the file format; `from_json` reads version 1 too, which had no such field.
        model: of the engine.
        vocabulary: whose ids these are, as `Vocabulary.fingerprint` has it; "" where it was not
            kept.
        form: the surface form of the assistant's turn.
        seed: of its random streams.
        share: paths read each other after every so many tokens; 0 for never.
        threads: the root first.
        ids, token_texts: the tokens, and what each adds to its thread's text.
        thread_ids: each token's thread.
        position_ids: each token's position id.
        authors: who wrote each: "prompt", "engine" (forced) or "model".
        logprobs: of tokens that were drawn, before temperature; None for the others.
        forward_ids: the forward after which each token was chosen, from 0; the prompt has -1.
        forward_seconds: [forwards]: seconds from the start of the run to the end of each forward.
        forward_tokens: [forwards]: how many of the run's tokens each forward read.
        holes: those that were filled.
        document: the result, where there is one.
        finish: "end" (the plan or the turn ended), "limit" (closed by force: tokens, positions
            or depth), "time" (closed by force at max_seconds) or "interrupted" (cut off).
        seconds: of the whole run.
    """

    model_config = FROZEN

    version: Literal[2] = VERSION
    model: str = ""
    vocabulary: StrictText = ""
    form: str = "multiverse"
    seed: int = 0
    share: int = Field(default=0, ge=0)
    threads: tuple[TracedThread, ...] = (TracedThread(id=0),)
    ids: tuple[WholeNumber, ...] = ()
    token_texts: tuple[StrictText, ...] = ()
    thread_ids: tuple[WholeNumber, ...] = ()
    position_ids: tuple[WholeNumber, ...] = ()
    authors: tuple[Author, ...] = ()
    logprobs: tuple[RealNumber | None, ...] = ()
    forward_ids: tuple[WholeNumber, ...] = ()
    forward_seconds: tuple[FiniteNumber, ...] = ()
    forward_tokens: tuple[WholeNumber, ...] = ()
    holes: tuple[FilledHole, ...] = ()
    document: Document | None = None
    finish: Literal["end", "limit", "time", "interrupted"] = "end"
    seconds: FiniteNumber = Field(default=0.0, ge=0)

    def __len__(self) -> int:
        return len(self.ids)

    @model_validator(mode="after")
    def _check(self) -> Trace:
        columns = (
            "token_texts", "thread_ids", "position_ids", "authors", "logprobs", "forward_ids",
        )  # fmt: skip
        for name in columns:
            if len(getattr(self, name)) != len(self.ids):
                raise ValueError(f"{name} has {len(getattr(self, name))} of {len(self.ids)} tokens")
        for index, thread in enumerate(self.threads):
            parent = -1 if thread.parent is None else thread.parent
            if thread.id != index or parent >= index or (parent < 0) != (index == 0):
                raise ValueError(f"threads[{index}] is not in order")
        if any(not 0 <= owner < len(self.threads) for owner in self.thread_ids):
            raise ValueError("thread_ids: a token's thread is not listed")
        forwards = len(self.forward_seconds)
        if any(forward >= forwards for forward in self.forward_ids):
            raise ValueError("forward_ids: a token's forward is not listed")
        if len(self.forward_tokens) != forwards:
            raise ValueError(
                f"forward_tokens has {len(self.forward_tokens)} of {forwards} forwards"
            )
        return self

    # Reading

    @cached_property
    def prompt(self) -> int:
        """How many tokens the run was given before its first own one."""
        own = (i for i, author in enumerate(self.authors) if author != "prompt")
        return next(own, len(self.ids))

    @cached_property
    def metrics(self) -> Metrics:
        """The counts of the assistant's tokens, by the law.

        Raises:
            VerifyError: the tokens are not in the order of the surface form.
        """
        owned = zip(self.thread_ids, (a != "prompt" for a in self.authors), strict=True)
        runs = ((thread, len(list(group)), own) for (thread, own), group in groupby(owned))
        return law_of_threads(self.threads, runs)[0].metrics

    @property
    def answer(self) -> int:
        """How many tokens are the assistant's."""
        return self.metrics.tokens

    @property
    def critical_path(self) -> int:
        """Length of the longest chain of the assistant's tokens."""
        return self.metrics.critical_path

    @property
    def parallelism(self) -> float:
        """The assistant's tokens over their critical path; 1 for a plain turn."""
        return self.metrics.parallelism

    @property
    def text(self) -> str:
        """The assistant's text, in the order of the surface form."""
        pairs = zip(self.token_texts, self.authors, strict=True)
        return "".join(text for text, author in pairs if author != "prompt")

    def chain(self, thread: int) -> Chain:
        """Return what decides whom a thread's tokens see, with `mvspec.law.threads.sees`."""
        links: list[tuple[int, int]] = []
        at: TracedThread | None = self.threads[thread]
        while at is not None and at.parent is not None:
            links.append((at.block, at.id))
            at = self.threads[at.parent]
        return tuple(reversed(links))

    def __repr__(self) -> str:
        several = [f"{len(self)} tokens, {self.prompt} of the prompt"]
        several += [f"{len(self.threads)} threads"] if len(self.threads) > 1 else []
        several += [f"{len(self.holes)} holes"] if self.holes else []
        return (
            f"<Trace of {excerpt(self.model, 60) or 'a model'}: {'; '.join(several)}; "
            f"{len(self.forward_seconds)} forwards, {self.seconds:.2f} s, {self.finish}>"
        )

    def __str__(self) -> str:
        return screen(f"{self!r}\n{visible(self.text)}".rstrip())

    def _repr_html_(self) -> str:
        return as_html(self)

    # As plans and layouts

    @cached_property
    def plan(self) -> Any:
        """The replay of the run, an `ExecutionPlan`: the same tokens, written, not generated."""
        return as_plan(self)

    @property
    def layout(self) -> Any:
        """The run's tokens laid out as in training: by the law, or in rounds where paths shared.

        A `mvspec.compiler.Layout`. Rounds have another order than `ids`.
        """
        return as_layout(self)

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Append the trace to a JSONL file, a line each."""
        append_line(path, self.model_dump_json(exclude_none=True))

    @classmethod
    def from_json(cls, text: str | bytes) -> Trace:
        """Read one line of a file that `save` wrote, in this version or an earlier one.

        Raises:
            VerifyError: it is no trace; the address says where.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise VerifyError("trace", f"is not JSON: {error}") from None
        return cls.from_dict(value)

    @classmethod
    def from_dict(cls, value: Any) -> Trace:
        """Read the object that a line of JSON holds, as `from_json` does."""
        try:
            return cls.model_validate(current_names(value) if isinstance(value, dict) else value)
        except ValidationError as error:
            raise verify_error(error) from None


@dataclass(frozen=True)
class Result:
    """A document that a model has filled or written.

    Args:
        document: with all holes filled, or with the turn that the model wrote; None where a
            plan came without a document and its form cannot be read back.
        values: by hole name: the text, or for a hole with a schema what its JSON says, as an
            instance where the schema was a Pydantic class. A hole that was cut inside its
            constraint is missing; `result["name"]` says why.
        texts: by hole name, as text.
        trace: every token with its thread, position, logprob and forward.
        diagnostics: what is malformed, where structure was not enforced.
        top_logprobs: for each token the likeliest ones, where they were asked for.
        logits: those that follow each token, [tokens, vocabulary], where they were asked for.
    """

    document: Document | None
    values: Mapping[str, Any]
    texts: Mapping[str, str]
    trace: Trace
    diagnostics: tuple[Diagnostic, ...] = ()
    top_logprobs: Sequence[tuple[tuple[int, float], ...]] = ()
    logits: Sequence[Any] | None = None
    errors: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, hole: str) -> Any:
        if hole in self.errors:
            if any(each.name == hole and each.cut for each in self.trace.holes):
                raise LimitExceeded(f"hole {hole!r}: {self.errors[hole]}")
            raise VerifyError(f"hole {hole!r}", self.errors[hole])
        if hole not in self.values:
            known = ", ".join(self.values) or "none"
            raise VerifyError(f"hole {hole!r}", f"the document has no such hole: it has {known}")
        return self.values[hole]

    def __repr__(self) -> str:
        values = excerpt(repr(dict(self.values)), REPR_LIMIT)
        wrong = f", {len(self.diagnostics)} diagnostics" if self.diagnostics else ""
        return f"<Result: values {values}{wrong}, {self.trace!r}>"

    def __str__(self) -> str:
        lines = [repr(self.trace)]
        lines += [f"{name}: {excerpt(str(value), 400)}" for name, value in self.values.items()]
        lines += [f"{name}: {problem}" for name, problem in self.errors.items()]
        lines += [f"malformed: {each.message}" for each in self.diagnostics]
        if len(lines) == 1:  # no holes: the turn itself
            turn = self.document and self.document.messages[-1]
            lines.append(visible(self.text) if turn is None else str(turn))
        return screen("\n".join(lines))

    def _repr_html_(self) -> str:
        return as_html(self)

    @property
    def text(self) -> str:
        """The assistant's text as the model read and wrote it, in surface order."""
        return self.trace.text
