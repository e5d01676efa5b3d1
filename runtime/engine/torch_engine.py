"""The in-process engine: plans of several requests on one transformers model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Protocol

from mvspec.compiler.plan import ExecutionPlan
from mvspec.compiler.planning import plan_document
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import Unsupported, VerifyError
from mvspec.events import Event, Finished
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.forms.untagged import UNTAGGED
from mvspec.law.tags import Tag
from mvspec.runtime.engine.default_model import ModelError
from mvspec.runtime.engine.model import Model, load
from mvspec.runtime.engine.scheduler import Scheduler
from mvspec.runtime.engine.store import token_bytes
from mvspec.runtime.interrupt import Interrupted
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.options import Options, options_of_each
from mvspec.runtime.request import Request
from mvspec.runtime.result import result_of
from mvspec.runtime.sampling import is_whole
from mvspec.trace import Result
from mvspec.tree.ir import Document

__all__ = ["Engine", "Runnable", "TorchEngine", "plan_for"]

Runnable = Document | ExecutionPlan


class Engine(Protocol):
    """What every engine does: it takes plans, tells events and returns results."""

    def plan(self, document: Runnable) -> ExecutionPlan:
        """Return the plan that the engine runs for a document."""

    def run(self, document: Runnable, options: Options | None = None) -> Result:
        """Run a document or a plan to its end."""

    def stream(self, document: Runnable, options: Options | None = None) -> Iterator[Event]:
        """Run it and yield what happens; the last event is `Finished`."""


def plan_for(document: Runnable, tokenizer: Any, syntax: Syntax) -> ExecutionPlan:
    """Return the plan that an engine runs for a document.

    Args:
        tokenizer: of the engine's model.
        syntax: the form in which documents run.

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


class TorchEngine(Scheduler):
    """Runs documents and plans on a transformers causal language model.

    All live threads of all requests are rows of one forward: weights are read once a step.

    Args:
        model: a causal language model with full attention, in eval mode.
        tokenizer: its fast tokenizer; with the tags, documents run in the `multiverse` form,
            without them in the `untagged` one.
        max_requests: how many requests run at once; others wait.
        max_rows: how many tokens one forward reads; long prompts take several forwards.
        max_kv_bytes: how many bytes a request's keys and values may take; by default what the
            memory holds.
        graphs: launch small steps on a GPU as CUDA graphs, as docs/run.md says.

    Raises:
        Unsupported: the model cannot honour the mask or the positions.
        VerifyError: a number is below 1.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_requests: int = 64,
        max_rows: int | None = None,
        max_kv_bytes: int | None = None,
        graphs: bool = True,
    ) -> None:
        sizes = {"max_requests": max_requests, "max_rows": max_rows, "max_kv_bytes": max_kv_bytes}
        for name, most in sizes.items():
            if most is not None and not (is_whole(most) and most >= 1):
                raise VerifyError(name, f"{most!r} is not a whole number from 1 up")
        model = model if isinstance(model, Model) else Model(model, graphs=graphs)
        rows = max_rows or (256 if model.device.type == "cpu" else 4096)
        super().__init__(model, max_requests, rows)
        self.tokenizer = tokenizer
        self.max_kv_bytes = max_kv_bytes
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        tagged = all(backend.token_to_id(tag.value) is not None for tag in Tag)
        self.syntax = MULTIVERSE if tagged else UNTAGGED
        self.vocabulary = Vocabulary.of(tokenizer, tagged=tagged)
        eos = getattr(tokenizer, "eos_token_id", None)
        ends = self.model.ends or frozenset([] if eos is None else [eos])
        self.lexicon = Lexicon(self.vocabulary, self.model.size, ends)

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        max_requests: int = 64,
        max_rows: int | None = None,
        max_kv_bytes: int | None = None,
        graphs: bool = True,
    ) -> TorchEngine:
        """Load a model and its tokenizer.

        Args:
            model: a folder or a hub name; by default SmolLM2-135M-Instruct, fetched once.
            device: by default the GPU where there is one, else the CPU.
            dtype: by default float32 on the CPU, bfloat16 on a GPU.
            max_requests, max_rows, max_kv_bytes, graphs: as in the constructor.

        Raises:
            ModelError: it cannot be fetched or loaded, or does not fit into the memory.
        """
        try:
            loaded, tokenizer = load(model, device=device, dtype=dtype)
        except MemoryError as error:
            raise ModelError(
                f"the model {model or 'SmolLM2-135M-Instruct'} does not fit into the memory "
                f"({error}): free some, take a smaller one, or dtype='bfloat16'"
            ) from None
        return cls(
            loaded,
            tokenizer,
            max_requests=max_requests,
            max_rows=max_rows,
            max_kv_bytes=max_kv_bytes,
            graphs=graphs,
        )

    # Plans

    def plan(self, document: Runnable) -> ExecutionPlan:
        """Return the plan that the engine runs for a document.

        Raises:
            VerifyError: there is nothing for the model to go on from.
            Unsupported: the tokenizer or its chat template cannot hold the document.
        """
        return plan_for(document, self.tokenizer, self.syntax)

    def submit(
        self, document: Runnable, options: Options | None = None, *, name: str = "0"
    ) -> Request:
        """Add a request, which runs when the engine steps.

        Args:
            document: a document or a plan.
            options: how it is run.
            name: of the request; random streams depend on it.

        Raises:
            MvspecError: the request cannot be run; the message says why.
        """
        plan = self.plan(document)
        if plan.form != self.syntax.name and plan.form != UNTAGGED.name:
            raise Unsupported(
                f"the plan is in form {plan.form!r}, and the tokenizer has no tags: call "
                "mvspec.compiler.add_tags(tokenizer) and resize the model's embeddings, or plan "
                "the document with syntax=UNTAGGED"
            )
        store = self.model.store()
        if self.max_kv_bytes is not None:
            store.restrict(self.max_kv_bytes, token_bytes(self.model.model))
        options = options or Options()
        request = Request(name, plan, options, self.lexicon, store, self.model.context)
        self.add(request)
        return request

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
            Interrupted: Ctrl-C; `trace` is what was done so far.
        """
        return self.run_many([document], options)[0]

    def run_many(
        self, documents: Sequence[Runnable], options: Options | Sequence[Options] | None = None
    ) -> list[Result]:
        """Run several documents or plans at once.

        Args:
            documents: what to run; the random streams of each depend on its index.
            options: one for all, or one for each.

        Raises:
            VerifyError: there are not as many options as documents.
            Interrupted: Ctrl-C; `traces` is what each had done so far.
            MvspecError: as `run`; none is run then, or all are dropped.
        """
        each = options_of_each(len(documents), options)
        requests: list[Request] = []
        try:
            for index, (document, option) in enumerate(zip(documents, each, strict=True)):
                requests.append(self.submit(document, option, name=str(index)))
            for request in requests:
                while not request.finish:
                    self.advance(request)
                if request.error:
                    raise request.error
        except KeyboardInterrupt:
            if not requests:
                raise
            raise Interrupted([self.result(request).trace for request in requests]) from None
        finally:
            for request in requests:
                self.drop(request)
        return [self.result(request) for request in requests]

    def result(self, request: Request) -> Result:
        """Return what a request has done so far."""
        return result_of(request, self.model.name)

    def stream(self, document: Runnable, options: Options | None = None) -> Iterator[Event]:
        """Run a document or a plan and yield what happens; the last event is `Finished`.

        The engine steps when the next event is asked for; leaving the loop drops the request.
        """
        yield from self.follow(self.submit(document, options))

    def follow(self, request: Request) -> Iterator[Event]:
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

    async def run_async(
        self, document: Runnable, options: Options | None = None, *, name: str = "0"
    ) -> Result:
        """Run a document or a plan; requests of several tasks share the engine's steps."""
        result: Result | None = None
        async for event in self.stream_async(document, options, name=name):
            if isinstance(event, Finished):
                result = event.result
        assert result is not None
        return result

    async def stream_async(
        self, document: Runnable, options: Options | None = None, *, name: str = "0"
    ) -> AsyncIterator[Event]:
        """Run a document or a plan and yield what happens; the event loop stays free."""
        request = await asyncio.to_thread(self.submit, document, options, name=name)
        try:
            while True:
                while request.events:
                    yield request.events.popleft()
                if request.finish:
                    break
                await asyncio.to_thread(self.advance, request)
            if request.error:
                raise request.error
            yield Finished(request.name, self.result(request))
        finally:
            self.drop(request)
