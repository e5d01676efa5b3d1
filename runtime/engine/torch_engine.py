"""The in-process engine: plans of several requests on one transformers model."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import torch

from mvspec.compiler.chat_template import asking
from mvspec.compiler.plan import ExecutionPlan
from mvspec.compiler.vocabulary import Vocabulary, has_tags
from mvspec.errors import VerifyError
from mvspec.events import Event, Finished
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.untagged import UNTAGGED
from mvspec.runtime.engine.default_model import ModelError
from mvspec.runtime.engine.kv_cache import token_bytes
from mvspec.runtime.engine.model import EngineModel, load_model
from mvspec.runtime.engine.scheduler import RequestScheduler
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.options import Options
from mvspec.runtime.protocol import Capabilities, Engine, Runnable, plan_for
from mvspec.runtime.request import PlanRequest
from mvspec.runtime.result import result_of
from mvspec.runtime.sampling import is_whole
from mvspec.trace import Result


class TorchEngine(Engine):
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
        chat_template_kwargs: the chat template's own arguments, as `enable_thinking`.

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
        chat_template_kwargs: Mapping[str, Any] | None = None,
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
        tokenizer = self.tokenizer = asking(tokenizer, chat_template_kwargs)
        self.max_kv_bytes = max_kv_bytes
        tagged = has_tags(tokenizer)
        self.syntax = MULTIVERSE if tagged else UNTAGGED
        self.vocabulary = Vocabulary.of(tokenizer, tagged=tagged)
        eos = getattr(tokenizer, "eos_token_id", None)
        ends = self.model.ends or frozenset([] if eos is None else [eos])
        self.lexicon = Lexicon.of_chat(self.vocabulary, self.model.size, ends)
        self.capabilities = Capabilities(
            "TorchEngine",
            self.model.name,
            min(self.vocabulary.size, self.model.size),
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
            sizes: max_concurrent_requests, max_batched_tokens, max_kv_bytes, graphs and
                chat_template_kwargs, as in the constructor.

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
        """See `Engine`."""
        return plan_for(document, self.tokenizer, self.syntax)

    def prepare(
        self, document: Runnable, options: Options | None, name: str, *, quiet: bool = False
    ) -> PlanRequest:
        """See `Engine`."""
        plan, options = self.plan(document), options or Options()
        self.capabilities.check(plan, options)
        cache = self.model.cache()
        if self.max_kv_bytes is not None:
            cache.restrict(self.max_kv_bytes, token_bytes(self.model.model))
        return PlanRequest(
            name, plan, options, self.lexicon, cache, self.model.context, quiet=quiet
        )

    def start(self, requests: Sequence[PlanRequest]) -> None:
        """Let requests run when the engine steps."""
        for request in requests:
            self.scheduler.add(request)

    def advance(self, request: PlanRequest) -> None:
        """See `Engine`: the engine steps once."""
        self.scheduler.advance(request)

    async def follow_async(self, request: PlanRequest) -> AsyncGenerator[Event, None]:
        """See `Engine`."""
        try:
            self.start([request])
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

    def result(self, request: PlanRequest) -> Result:
        """See `Engine`."""
        return result_of(request, self.model.name)

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

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        device = self.model.device
        cuda = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if cuda else platform.processor() or device.type
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        return {
            "engine": "torch", "model": self.model.name, "device": name,
            "dtype": str(self.model.model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(), "torch": torch.__version__, "load": load,
        }  # fmt: skip
