"""The protocol of engines: they take plans, tell events and return results."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from mvspec.compiler.plan import ExecutionPlan, Extend
from mvspec.compiler.planning import plan_document
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import MvspecError, Unsupported, VerifyError
from mvspec.events import Event, Finished
from mvspec.forms.syntax import Syntax
from mvspec.runtime.interrupt import Interrupted
from mvspec.runtime.options import Options, options_of_each
from mvspec.trace import Result
from mvspec.tree.ir import Document

Runnable = Document | ExecutionPlan


@dataclass(frozen=True)
class Capabilities:
    """Capabilities that an engine declares; a plan that asks for more is refused by name.

    Args:
        engine: its name, for errors.
        model: what traces call its model.
        vocabulary: how many tokens its tokenizer has.
        context: how many positions its model has; None where it does not say.
        forms: the surface forms of assistants' turns that it writes and reads.
        constraints: of holes: "regex", "choices", "json_schema".
        options: those of `Options` that it honours, beside `sampling` and `limits`.
        weights: whether `set_weights` works.
        plain: whether `run_plain` works.
    """

    engine: str
    model: str
    vocabulary: int
    context: int | None
    forms: frozenset[str]
    constraints: frozenset[str] = frozenset({"regex", "choices", "json_schema"})
    options: frozenset[str] = frozenset({"structure", "share", "threads", "decode", "logits"})
    weights: bool = False
    plain: bool = False

    def check(self, plan: ExecutionPlan, options: Options) -> None:
        """Refuse a plan or options that the engine cannot run, before anything starts.

        Raises:
            Unsupported: names the engine and the capability, or the token, that it lacks.
        """
        if plan.form not in self.forms:
            raise Unsupported(
                f"{self.engine}: the plan is in form {plan.form!r}, and the tokenizer has no "
                "tags: call mvspec.compiler.add_tags(tokenizer) and resize the model's "
                "embeddings, or plan the document with syntax=UNTAGGED"
            )
        for index, op in enumerate(plan.ops):
            if isinstance(op, Extend):
                check_ids(op.tokens, self.vocabulary, f"{self.engine}: ops[{index}]")
        for name in ("share", "threads", "decode", "logits"):
            if getattr(options, name) and name not in self.options:
                raise Unsupported(
                    f"{self.engine} has no option {name!r}: leave it out, or use TorchEngine"
                )
        for hole in plan.holes:
            for name in ("regex", "choices", "json_schema"):
                if getattr(hole, name) is not None and name not in self.constraints:
                    raise Unsupported(
                        f"{self.engine}: hole {hole.name!r} has the constraint {name!r}, which it "
                        "cannot keep: leave it out, or use TorchEngine"
                    )


def check_ids(ids: Sequence[int], size: int, where: str) -> None:
    """Refuse ids that no token has: a forward with one of them would end all requests in it.

    Args:
        size: of the vocabulary.
        where: they stand, for the message.

    Raises:
        Unsupported: names the first of them.
    """
    for id in ids:
        if type(id) is not int or not 0 <= id < size:
            raise Unsupported(
                f"{where} has the id {id!r}, which is not in the vocabulary of {size:,} tokens: "
                "plan with the engine's own tokenizer"
            )


class EngineRequest(Protocol):
    """A request that was submitted: an engine follows it."""

    @property
    def name(self) -> str:
        """Names the request; random streams depend on it."""

    @property
    def events(self) -> deque[Event]:
        """What has happened and was not taken yet."""

    @property
    def finish(self) -> str:
        """How it ended, as in `Trace.finish`; "" while it goes on."""

    @property
    def error(self) -> MvspecError | None:
        """Why it ended before its end."""


class Engine(Protocol):
    """An engine, which runs documents and plans; callers use nothing else of one.

    An engine of its own says how a request is prepared, started, advanced and dropped; how runs
    are made of that is said here.

    Attributes:
        tokenizer: of the engine's model.
        vocabulary: the view of it that plans are made with.
        syntax: the surface form in which documents run.
        capabilities: what the engine can run.
    """

    tokenizer: Any
    vocabulary: Vocabulary
    syntax: Syntax
    capabilities: Capabilities

    # An engine's own

    def plan(self, document: Runnable) -> ExecutionPlan:
        """Return the plan that the engine runs for a document.

        Raises:
            VerifyError: there is nothing for the model to go on from.
            Unsupported: the tokenizer or its chat template cannot hold the document.
        """

    def prepare(
        self, document: Runnable, options: Options | None, name: str, *, quiet: bool = False
    ) -> Any:
        """Return an `EngineRequest` that can be run and has not started.

        Args:
            quiet: whether nobody follows its single tokens.
        """

    def start(self, requests: Sequence[Any]) -> None:
        """Let requests run."""

    def advance(self, request: Any) -> None:
        """Wait until more of a request has happened."""

    def follow_async(self, request: Any) -> AsyncGenerator[Event, None]:
        """Start a request and yield what happens, without blocking the event loop."""

    def result(self, request: Any) -> Result:
        """Return what a request has done so far."""

    def drop(self, request: Any) -> None:
        """Forget a request; nothing of it runs any more."""

    def set_weights(self, weights: Mapping[str, Any]) -> None:
        """Let the model go on with other weights, by their names in its state dict."""

    def describe(self) -> dict[str, Any]:
        """Return engine, model and device, for the notes of a measurement."""

    def run_plain(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        """Run plain requests at once, which no plan has a part in, for measurements.

        Args:
            prompts: ids of each.
            tokens: that each goes on by, whatever they are.

        Raises:
            Unsupported: the engine runs everything as a plan.
            MvspecError: a server refuses one or goes away.
        """
        raise Unsupported(
            f"{self.capabilities.engine} has no plain requests: replay a plan without a fork"
        )

    # Runs

    def run(self, document: Runnable, options: Options | None = None) -> Result:
        """Run a document or a plan to its end; paths advance together.

        Args:
            document: a document, whose holes are filled or whose next turn is written; or a plan.
            options: how it is run; by default the likeliest tokens, without limits.

        Returns:
            Values by hole name, the document, the trace.

        Raises:
            VerifyError: the document gives the model nothing to go on from.
            Unsupported: a hole has a constraint that cannot be honoured, or the chat template
                cannot hold the document.
            LimitExceeded: the plan does not fit into the model or its limits.
            MvspecError: a server refuses it or goes away.
            Interrupted: Ctrl-C; `trace` is what was done so far.
        """
        result: Result = self.run_many([document], options)[0]
        return result

    def run_many(
        self,
        documents: Sequence[Runnable],
        options: Options | Sequence[Options] | None = None,
        *,
        return_errors: bool = False,
    ) -> list[Any]:
        """Run several documents or plans at once; return their results.

        Args:
            documents: what to run; the random streams of each depend on its index.
            options: one for all, or one for each.
            return_errors: return what ended a request in the place of its result, and let the
                others go on; else the first error is raised, and the others are dropped.

        Raises:
            VerifyError: there are not as many options as documents.
            Interrupted: Ctrl-C; `traces` is what each had done so far.
            MvspecError: as `run`; none is run then, or all are dropped.
        """
        each = options_of_each(len(documents), options)
        results: list[Any] = []
        requests: list[Any] = []
        for index, (document, option) in enumerate(zip(documents, each, strict=True)):
            try:
                results.append(self.prepare(document, option, str(index), quiet=True))
                requests.append(results[-1])
            except MvspecError as error:
                if not return_errors:
                    raise
                results.append(error)
        try:
            self.start(requests)
            for request in requests:
                while not request.finish:
                    self.advance(request)
                if request.error and not return_errors:
                    raise request.error
        except KeyboardInterrupt:
            for request in requests:
                self.drop(request)
            raise Interrupted([self.result(request).trace for request in requests]) from None
        finally:
            for request in requests:
                self.drop(request)
        return [
            each if isinstance(each, MvspecError) else each.error or self.result(each)
            for each in results
        ]

    def submit(self, document: Runnable, options: Options | None = None, *, name: str = "0") -> Any:
        """Start a request, an `EngineRequest`, which is run while it is followed.

        Args:
            document: a document or a plan.
            options: how it is run.
            name: of the request; random streams depend on it.

        Raises:
            MvspecError: it cannot be run; what a server refuses comes while it is followed.
        """
        request = self.prepare(document, options, name)
        self.start([request])
        return request

    def follow(self, request: Any) -> Iterator[Event]:
        """Yield what happens to a request that was submitted, as `stream` does."""
        try:
            while True:
                while request.events:
                    yield request.events.popleft()
                if request.finish:
                    break
                self.advance(request)
            if request.error:
                raise request.error
            yield Finished(request.name, self.result(request))
        except KeyboardInterrupt:
            raise Interrupted([self.result(request).trace]) from None
        finally:
            self.drop(request)

    def stream(self, document: Runnable, options: Options | None = None) -> Iterator[Event]:
        """Run a document or a plan and yield what happens; the last event is `Finished`.

        Leaving the loop drops the request.
        """
        yield from self.follow(self.submit(document, options))

    async def run_async(
        self, document: Runnable, options: Options | None = None, *, name: str = "0"
    ) -> Result:
        """Run a document or a plan; requests of several tasks share the engine's steps."""
        request = await asyncio.to_thread(self.prepare, document, options, name, quiet=True)
        async for event in self.follow_async(request):
            if isinstance(event, Finished):
                return event.result
        raise AssertionError("the last event is Finished")

    async def stream_async(
        self, document: Runnable, options: Options | None = None, *, name: str = "0"
    ) -> AsyncIterator[Event]:
        """Run a document or a plan and yield what happens; the event loop stays free."""
        request = await asyncio.to_thread(self.prepare, document, options, name)
        async with aclosing(self.follow_async(request)) as events:
            async for event in events:
                yield event


def plan_for(document: Runnable, tokenizer: Any, syntax: Syntax) -> ExecutionPlan:
    """Return the plan that an engine runs for a document.

    Args:
        tokenizer: of the engine's model.
        syntax: the surface form in which documents run.

    Raises:
        VerifyError: there is nothing for the model to go on from.
        Unsupported: the tokenizer or its chat template cannot hold the document.
    """
    if isinstance(document, ExecutionPlan):
        return document.verify()
    if not document.messages:
        raise VerifyError("messages", "an empty document has nothing to run: add user('...')")
    template = bool(getattr(tokenizer, "chat_template", None)) or None
    return plan_document(document, tokenizer, syntax=syntax, template=template)
