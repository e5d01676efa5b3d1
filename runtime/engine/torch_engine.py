"""The in-process engine: plans of several requests on one transformers model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from mvspec.compiler.plan import ExecutionPlan
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import VerifyError
from mvspec.events import Event, Finished
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.untagged import UNTAGGED
from mvspec.law.tags import Tag
from mvspec.runtime.engine.default_model import ModelError
from mvspec.runtime.engine.kv_cache import token_bytes
from mvspec.runtime.engine.model import EngineModel, load_model
from mvspec.runtime.engine.scheduler import RequestScheduler
from mvspec.runtime.interrupt import Interrupted
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.options import Options, options_of_each
from mvspec.runtime.protocol import Capabilities, Runnable, plan_for
from mvspec.runtime.request import PlanRequest
from mvspec.runtime.result import result_of
from mvspec.runtime.sampling import is_whole
from mvspec.trace import Result

__all__ = ["TorchEngine"]


class TorchEngine:
    """Runs documents and plans on a transformers causal language model: an `Engine`.

    All live threads of all requests are rows of one forward: weights are read once a step.

    Args:
        model: a causal language model with full attention, in eval mode.
        tokenizer: its fast tokenizer; with the tags, documents run in the `multiverse` form,
            without them in the `untagged` one.
        max_concurrent_requests: how many requests run at once; others wait.
        max_batched_tokens: how many tokens one forward reads; long prompts take several forwards.
        max_kv_bytes: how many bytes a request's keys and values may take; by default what the
            memory holds.
        graphs: launch small steps on a GPU as CUDA graphs, as docs/run.md says.

    Attributes:
        scheduler: has the requests that run and that wait.

    Raises:
        Unsupported: the model cannot honour the mask or the positions.
        VerifyError: a number is below 1.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_concurrent_requests: int = 64,
        max_batched_tokens: int | None = None,
        max_kv_bytes: int | None = None,
        graphs: bool = True,
    ) -> None:
        sizes = {
            "max_concurrent_requests": max_concurrent_requests,
            "max_batched_tokens": max_batched_tokens,
            "max_kv_bytes": max_kv_bytes,
        }
        for name, most in sizes.items():
            if most is not None and not (is_whole(most) and most >= 1):
                raise VerifyError(name, f"{most!r} is not a whole number from 1 up")
        self.model = model if isinstance(model, EngineModel) else EngineModel(model, graphs=graphs)
        tokens = max_batched_tokens or (256 if self.model.device.type == "cpu" else 4096)
        self.scheduler = RequestScheduler(self.model, max_concurrent_requests, tokens)
        self.tokenizer = tokenizer
        self.max_kv_bytes = max_kv_bytes
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        tagged = all(backend.token_to_id(tag.value) is not None for tag in Tag)
        self.syntax = MULTIVERSE if tagged else UNTAGGED
        self.vocabulary = Vocabulary.of(tokenizer, tagged=tagged)
        eos = getattr(tokenizer, "eos_token_id", None)
        ends = self.model.ends or frozenset([] if eos is None else [eos])
        self.lexicon = Lexicon(self.vocabulary, self.model.size, ends)
        self.capabilities = Capabilities(
            "TorchEngine",
            self.model.name,
            self.vocabulary.size,
            self.model.context,
            frozenset({self.syntax.name, UNTAGGED.name}),
            weights=True,
        )

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        **sizes: Any,
    ) -> TorchEngine:
        """Load a model and its tokenizer.

        Args:
            model: a folder or a hub name; by default SmolLM2-135M-Instruct, fetched once.
            device: by default the GPU where there is one, else the CPU.
            dtype: by default float32 on the CPU, bfloat16 on a GPU.
            sizes: max_concurrent_requests, max_batched_tokens, max_kv_bytes and graphs, as in the
                constructor.

        Raises:
            ModelError: it cannot be fetched or loaded, or does not fit into the memory.
        """
        try:
            loaded, tokenizer = load_model(model, device=device, dtype=dtype)
        except MemoryError as error:
            raise ModelError(
                f"the model {model or 'SmolLM2-135M-Instruct'} does not fit into the memory "
                f"({error}): free some, take a smaller one, or dtype='bfloat16'"
            ) from None
        return cls(loaded, tokenizer, **sizes)

    # Plans and steps

    def plan(self, document: Runnable) -> ExecutionPlan:
        """Return the plan that the engine runs for a document.

        Raises:
            VerifyError: there is nothing for the model to go on from.
            Unsupported: the tokenizer or its chat template cannot hold the document.
        """
        return plan_for(document, self.tokenizer, self.syntax)

    def submit(
        self, document: Runnable, options: Options | None = None, *, name: str = "0"
    ) -> PlanRequest:
        """Add a request, which runs when the engine steps.

        Args:
            document: a document or a plan.
            options: how it is run.
            name: of the request; random streams depend on it.

        Raises:
            MvspecError: the request cannot be run; the message says why.
        """
        return self._submit(document, options, name)

    def _submit(
        self, document: Runnable, options: Options | None, name: str, *, quiet: bool = False
    ) -> PlanRequest:
        plan, options = self.plan(document), options or Options()
        self.capabilities.check(plan, options)
        cache = self.model.cache()
        if self.max_kv_bytes is not None:
            cache.restrict(self.max_kv_bytes, token_bytes(self.model.model))
        request = PlanRequest(
            name, plan, options, self.lexicon, cache, self.model.context, quiet=quiet
        )
        self.scheduler.add(request)
        return request

    def step(self) -> bool:
        """Read the waiting tokens of all running requests and draw the next; False if idle.

        Raises:
            LimitExceeded: there is not enough memory; all running requests are dropped.
        """
        return self.scheduler.step()

    def drop(self, request: PlanRequest) -> None:
        """Forget a request; its memory is free again."""
        self.scheduler.drop(request)

    def set_weights(self, weights: Mapping[str, Any]) -> None:
        """Let the model go on with other weights, between two steps.

        They are copied to where the model's own lie, so CUDA graphs stay good. Requests that run
        keep the keys and values that they have: let them end before.

        Args:
            weights: as of the model's `state_dict()`; those that are not named stay.

        Raises:
            VerifyError: a name or a shape is not the model's; nothing has changed.
        """
        with self.scheduler.lock:
            self.model.set_weights(weights)

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
        requests: list[PlanRequest] = []
        try:
            for index, (document, option) in enumerate(zip(documents, each, strict=True)):
                requests.append(self._submit(document, option, str(index), quiet=True))
            for request in requests:
                while not request.finish:
                    self.scheduler.advance(request)
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

    def result(self, request: PlanRequest) -> Result:
        """Return what a request has done so far."""
        return result_of(request, self.model.name)

    def stream(self, document: Runnable, options: Options | None = None) -> Iterator[Event]:
        """Run a document or a plan and yield what happens; the last event is `Finished`.

        The engine steps when the next event is asked for; leaving the loop drops the request.
        """
        yield from self.follow(self.submit(document, options))

    def follow(self, request: PlanRequest) -> Iterator[Event]:
        """Yield what happens to a request that was submitted, as `stream` does."""
        try:
            while True:
                while request.events:
                    yield request.events.popleft()
                if request.finish:
                    break
                self.scheduler.advance(request)
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
        request = await asyncio.to_thread(self._submit, document, options, name, quiet=True)
        async for event in self._follow_async(request):
            if isinstance(event, Finished):
                return event.result
        raise AssertionError("the last event is Finished")

    async def stream_async(
        self, document: Runnable, options: Options | None = None, *, name: str = "0"
    ) -> AsyncIterator[Event]:
        """Run a document or a plan and yield what happens; the event loop stays free."""
        request = await asyncio.to_thread(self._submit, document, options, name)
        async with aclosing(self._follow_async(request)) as events:
            async for event in events:
                yield event

    async def _follow_async(self, request: PlanRequest) -> AsyncGenerator[Event, None]:
        try:
            while True:
                while request.events:
                    yield request.events.popleft()
                if request.finish:
                    break
                await asyncio.to_thread(self.scheduler.advance, request)
            if request.error:
                raise request.error
            yield Finished(request.name, self.result(request))
        finally:
            self.drop(request)
