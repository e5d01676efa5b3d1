"""The engine on SGLang: plans run in the scheduler of a server, which tells what happens."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from mvspec.compiler.chat_template import asking
from mvspec.compiler.plan import ExecutionPlan
from mvspec.compiler.vocabulary import Vocabulary, has_tags, load_tokenizer
from mvspec.errors import MvspecError, Unsupported, VerifyError
from mvspec.events import Event, Finished
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.forms.untagged import UNTAGGED
from mvspec.runtime.options import Options
from mvspec.runtime.protocol import Engine, Runnable, plan_for
from mvspec.runtime.serving.client_request import ClientRequest
from mvspec.runtime.serving.endpoint import HttpEndpoint, LocalEndpoint, Send, ServerGone
from mvspec.runtime.serving.protocol import served_capabilities
from mvspec.trace import Result

_PATIENCE = 10.0
"""Seconds that an aborted request has to say what it had done."""


class SGLangEngine(Engine):
    """Runs documents and plans on SGLang, natively: `mvspec serve MODEL` starts such a server.

    Args:
        server: the URL of a server, or a `sglang.Engine` of this process.
        tokenizer: the server's; by default loaded from where the server says.
        api_key: of the server.
        timeout: seconds that the server may be silent.
        max_requests: how many requests of one call are sent at once.
        chat_template_kwargs: the chat template's own arguments, as `enable_thinking`.
        retries: how often a request is sent again where the server went away, or could not be
            reached, before it answered anything; the waits between double from one second.

    Raises:
        MvspecError: the server cannot be reached, or is none of SGLang.
        Unsupported: the tokenizer is not the server's.
    """

    def __init__(
        self,
        server: Any,
        tokenizer: Any = None,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        max_requests: int = 256,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        retries: int = 0,
    ) -> None:
        self.endpoint: HttpEndpoint | LocalEndpoint
        if isinstance(server, str):
            self.endpoint = HttpEndpoint(server, api_key=api_key, timeout=timeout)
        elif hasattr(server, "tokenizer_manager"):
            self.endpoint = LocalEndpoint(server)
            tokenizer = tokenizer or self.endpoint.tokenizer
        else:
            kind = type(server).__name__
            raise VerifyError("server", f"a {kind} is neither a URL nor a sglang.Engine")
        if max_requests < 1:
            raise VerifyError("max_requests", f"{max_requests} is not at least 1")
        if retries < 0:
            raise VerifyError("retries", f"{retries} is negative")
        self.max_requests = max_requests
        self.tokenizer = asking(tokenizer or self._load(), chat_template_kwargs)
        self.retries = retries
        tagged = has_tags(self.tokenizer)
        self.vocabulary = Vocabulary.of(self.tokenizer, tagged=tagged)
        self.syntax: Syntax = MULTIVERSE if tagged else UNTAGGED
        self.capabilities = served_capabilities(self.vocabulary, self.endpoint.model, None)
        self.endpoint.check(self.vocabulary)

    def _load(self) -> Any:
        path = self.endpoint.tokenizer_path
        try:
            return load_tokenizer(path)
        except MvspecError as error:
            raise Unsupported(
                f"the tokenizer of {self.endpoint.name} is {path!r}, which cannot be loaded here "
                f"({error}): pass tokenizer=, the same one"
            ) from None

    def plan(self, document: Runnable) -> ExecutionPlan:
        """See `Engine`."""
        return plan_for(document, self.tokenizer, self.syntax)

    def set_weights(self, weights: Mapping[str, Any]) -> None:
        """Refuse, as `capabilities.weights` says.

        Raises:
            Unsupported: always.
        """
        raise Unsupported(
            "SGLang: set_weights is not there; pause the server with POST /pause_generation, send "
            "its own POST /update_weights_from_disk, and go on with POST /continue_generation"
        )

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        return {
            "engine": "sglang", "model": self.capabilities.model, "server": self.endpoint.name
        }  # fmt: skip

    def run_plain(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        """See `Engine`: requests of SGLang's own, which the plugin leaves alone."""
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}

        async def all_of_them() -> None:
            async with self.endpoint.session() as send:

                async def one(ids: Sequence[int]) -> None:
                    body = {"input_ids": list(ids), "stream": True, "sampling_params": sampling}
                    async for chunk in send(body):
                        if "error" in chunk:
                            raise MvspecError(f"{self.endpoint.name} refuses it: {chunk['error']}")

                await asyncio.gather(*map(one, prompts))

        self.endpoint.drive(all_of_them)

    # Requests

    def prepare(
        self, document: Runnable, options: Options | None, name: str, *, quiet: bool = False
    ) -> ClientRequest:
        """See `Engine`."""
        plan, options = self.plan(document), options or Options()
        self.capabilities.check(plan, options)
        return ClientRequest(
            name, plan, options, self.endpoint.name, self.capabilities.model, live=not quiet
        )

    def start(self, requests: Sequence[ClientRequest]) -> None:
        """Send requests from a thread of their own, which Ctrl-C does not reach."""

        def work() -> None:
            try:
                self.endpoint.drive(partial(self._exchange, requests))
            except Exception as error:
                for request in requests:
                    request.put(error)

        threading.Thread(target=work, name="mvspec-sglang", daemon=True).start()

    async def _exchange(self, requests: Sequence[ClientRequest]) -> None:
        limit = asyncio.Semaphore(self.max_requests)
        async with self.endpoint.session() as send:

            async def one(request: ClientRequest) -> None:
                try:
                    async with limit, aclosing(self._chunks(send, request)) as chunks:
                        async for chunk in chunks:
                            request.put(chunk)
                            if request.error:  # leaving ends it on the server
                                break
                except Exception as error:
                    request.put(error)
                finally:
                    request.put(None)

            await asyncio.gather(*map(one, requests))

    async def _chunks(
        self, send: Send, request: ClientRequest
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the chunks of an answer; what was not answered at all may be sent again."""
        for attempt in range(self.retries + 1):
            answered = False
            try:
                if not request.dropped:
                    async with aclosing(send(request.body)) as chunks:
                        async for chunk in chunks:
                            answered = True
                            yield chunk
                return
            except ServerGone:
                if answered or attempt == self.retries:
                    raise
            await asyncio.sleep(2.0**attempt)

    def advance(self, request: ClientRequest) -> None:
        """See `Engine`."""
        request.receive()

    async def follow_async(self, request: ClientRequest) -> AsyncGenerator[Event, None]:
        """See `Engine`; an engine of this process answers in the loop that awaits."""
        try:
            async with (
                self.endpoint.session() as send,
                aclosing(self._chunks(send, request)) as chunks,
            ):
                async for chunk in chunks:
                    request.take(chunk)
                    while request.events:
                        yield request.events.popleft()
                    if request.error:
                        break
            if not request.finish:
                request.fail()
            if request.error:
                raise request.error
            yield Finished(request.name, request.result)
        finally:
            if not request.finish:
                await asyncio.to_thread(self.drop, request)

    def drop(self, request: ClientRequest) -> None:
        """End a request that nobody waits for any more."""
        if not (request.finish or request.dropped):
            request.dropped = True
            self.endpoint.abort(request.rid)

    def result(self, request: ClientRequest) -> Result:
        """Return the result of a request; one that has not ended is ended, as far as it came."""
        self.drop(request)
        until = time.monotonic() + _PATIENCE
        try:
            while not request.finish:
                request.receive(max(until - time.monotonic(), 0.0))
        except queue.Empty:
            pass
        return request.result
