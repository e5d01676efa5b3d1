"""The in-process engine: plans of several requests on one transformers model."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from mvspec.compiler.plan import ExecutionPlan
from mvspec.compiler.planning import plan_document
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import LimitExceeded, MvspecError, Unsupported, VerifyError
from mvspec.ir import Document
from mvspec.runtime.events import Event, Finished
from mvspec.runtime.interrupt import Interrupted, deferred
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.model import Model, load
from mvspec.runtime.options import Options
from mvspec.runtime.request import Request
from mvspec.runtime.result import Result, result_of
from mvspec.runtime.sampling import draw
from mvspec.syntax import MULTIVERSE, UNTAGGED, Tag

__all__ = ["Engine", "TorchEngine"]

Runnable = Document | ExecutionPlan


class Engine(Protocol):
    """What every engine does: it takes plans, tells events and returns results."""

    def plan(self, document: Runnable) -> ExecutionPlan:
        """Return the plan that the engine runs for a document."""

    def run(self, document: Runnable, options: Options | None = None) -> Result:
        """Run a document or a plan to its end."""

    def stream(self, document: Runnable, options: Options | None = None) -> Iterator[Event]:
        """Run it and yield what happens; the last event is `Finished`."""


class TorchEngine:
    """Runs documents and plans on a transformers causal language model.

    All live threads of all requests are rows of one forward: weights are read once a step.

    Args:
        model: a causal language model with full attention, in eval mode.
        tokenizer: its fast tokenizer; with the tags, documents run in the `multiverse` form,
            without them in the `untagged` one.
        max_requests: how many requests run at once; others wait.
        max_rows: how many tokens one forward reads; long prompts take several forwards.
        graphs: launch small steps on a GPU as CUDA graphs, as docs/run.md says.

    Raises:
        Unsupported: the model cannot honour the mask or the positions.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_requests: int = 64,
        max_rows: int | None = None,
        graphs: bool = True,
    ) -> None:
        if max_requests < 1 or (max_rows is not None and max_rows < 1):
            raise VerifyError("TorchEngine", "max_requests and max_rows are at least 1")
        self.model = model if isinstance(model, Model) else Model(model, graphs=graphs)
        self.tokenizer = tokenizer
        self.max_requests = max_requests
        self.max_rows = max_rows or (256 if self.model.device.type == "cpu" else 4096)
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        tagged = all(backend.token_to_id(tag.value) is not None for tag in Tag)
        self.syntax = MULTIVERSE if tagged else UNTAGGED
        self.vocabulary = Vocabulary.of(tokenizer, tagged=tagged)
        eos = getattr(tokenizer, "eos_token_id", None)
        ends = self.model.ends or frozenset([] if eos is None else [eos])
        self.lexicon = Lexicon(self.vocabulary, self.model.size, ends)
        self._lock = threading.RLock()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._made = 0
        self.steps = 0

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        max_requests: int = 64,
        max_rows: int | None = None,
        graphs: bool = True,
    ) -> TorchEngine:
        """Load a model and its tokenizer.

        Args:
            model: a folder or a hub name; by default SmolLM2-135M-Instruct, fetched once.
            device: by default the GPU where there is one, else the CPU.
            dtype: by default float32 on the CPU, bfloat16 on a GPU.
            max_requests, max_rows, graphs: as in the constructor.

        Raises:
            ModelError: it cannot be fetched or loaded.
        """
        loaded, tokenizer = load(model, device=device, dtype=dtype)
        return cls(loaded, tokenizer, max_requests=max_requests, max_rows=max_rows, graphs=graphs)

    # Plans

    def plan(self, document: Runnable) -> ExecutionPlan:
        """Return the plan that the engine runs for a document.

        Raises:
            VerifyError: there is nothing for the model to go on from.
            Unsupported: the tokenizer or its chat template cannot hold the document.
        """
        if isinstance(document, ExecutionPlan):
            return document.verify()
        if not document.messages:
            raise VerifyError("messages", "an empty document has nothing to run: add user('...')")
        template = bool(getattr(self.tokenizer, "chat_template", None)) or None
        return plan_document(document, self.tokenizer, syntax=self.syntax, template=template)

    def submit(
        self, document: Runnable, options: Options | None = None, *, name: str | None = None
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
        with self._lock:
            if name is None:
                name = "0"
            request = Request(
                name,
                plan,
                options or Options(),
                self.lexicon,
                self.model.store(),
                self.model.context,
            )
            self._waiting.append(request)
        return request

    def drop(self, request: Request) -> None:
        """Forget a request; its memory is free again."""
        with self._lock:
            if request in self._running:
                self._running.remove(request)
            if request in self._waiting:
                self._waiting.remove(request)
            request.store.clear()

    # One step

    def step(self) -> bool:
        """Read the waiting tokens of all running requests and draw the next; False if idle.

        Raises:
            LimitExceeded: there is not enough memory; all running requests are dropped.
        """
        with self._lock:
            self._admit()
            parts, kept = self._schedule()
            if not parts:
                return False
            try:
                logits = self.model.forward(parts)
            except BaseException:
                # What the stores hold is unknown now, so no running request can go on.
                self._running.clear()
                raise
            with deferred():
                self.steps += 1
                for part, (request, tokens), rows in zip(parts, kept, logits, strict=True):
                    with self._alone(request):
                        request.read(tokens, rows, len(part.ids))
                self._draw()
            return True

    @contextmanager
    def _alone(self, request: Request) -> Iterator[None]:
        """Let an error of one request, such as a full store, end that request alone."""
        try:
            yield
        except MvspecError as error:
            request.error = error
            request.finish = "limit"

    def _admit(self) -> None:
        self._running = [request for request in self._running if not request.finish]
        while self._waiting and len(self._running) < self.max_requests:
            request = self._waiting.popleft()
            if not request.finish:
                self._running.append(request)

    def _schedule(self) -> tuple[list[Any], list[tuple[Request, Any]]]:
        """Choose what this step reads: those with few tokens first, so that none waits long."""
        parts, kept = [], []
        left = self.max_rows
        for request in sorted(self._running, key=lambda request: request.waiting):
            if request.waiting and left:
                part, tokens = request.take(left)
                left -= len(part.ids)
                parts.append(part)
                kept.append((request, tokens))
        return parts, kept

    def _draw(self) -> None:
        """Draw until every request has tokens to read: a draw may only have ended a hole."""
        asking = [request for request in self._running if not request.finish]
        while asking:
            wanted = [(r, live, want) for r in asking for live, want in r.wanted()]
            while wanted:
                draws = draw([want for _, _, want in wanted])
                again = []
                for (request, live, _), drawn in zip(wanted, draws, strict=True):
                    with self._alone(request):
                        if not request.finish and not request.choose(live, drawn):
                            again.append((request, live, request.want(live)))
                wanted = again
            for request in asking:
                with self._alone(request):
                    request.pump()
            asking = [
                request
                for request in asking
                if not request.finish and not request.waiting and request.wanted()
            ]

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
        each = [options] * len(documents) if not isinstance(options, Sequence) else options
        if len(each) != len(documents):
            raise VerifyError(
                "options",
                f"{len(each)} for {len(documents)} documents: give one for all, or one for each",
            )
        requests: list[Request] = []
        try:
            for index, (document, option) in enumerate(zip(documents, each, strict=True)):
                requests.append(self.submit(document, option, name=str(index)))
            for request in requests:
                while not request.finish:
                    self._advance(request)
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

    def _advance(self, request: Request) -> None:
        if not self.step() and not request.finish:
            with self._lock:
                lost = request not in self._running and request not in self._waiting
            if lost:
                raise LimitExceeded(
                    "the request was dropped when another one ended the engine's step"
                )
            raise MvspecError(f"request {request.name} waits for nothing: this is a bug of mvspec")

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
                self._advance(request)
            if request.error:
                raise request.error
            yield Finished(request.name, self.result(request))
        except KeyboardInterrupt:
            raise Interrupted([self.result(request).trace]) from None
        finally:
            self.drop(request)

    async def run_async(
        self, document: Runnable, options: Options | None = None, *, name: str | None = None
    ) -> Result:
        """Run a document or a plan; requests of several tasks share the engine's steps."""
        result: Result | None = None
        async for event in self.stream_async(document, options, name=name):
            if isinstance(event, Finished):
                result = event.result
        assert result is not None
        return result

    async def stream_async(
        self, document: Runnable, options: Options | None = None, *, name: str | None = None
    ) -> AsyncIterator[Event]:
        """Run a document or a plan and yield what happens; the event loop stays free."""
        request = await asyncio.to_thread(self.submit, document, options, name=name)
        try:
            while True:
                while request.events:
                    yield request.events.popleft()
                if request.finish:
                    break
                await asyncio.to_thread(self._advance, request)
            if request.error:
                raise request.error
            yield Finished(request.name, self.result(request))
        finally:
            self.drop(request)
