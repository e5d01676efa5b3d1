"""The engine on SGLang: plans run in the scheduler of a server, which tells what happens."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from functools import cached_property, partial
from typing import Any

from mvspec.compiler.plan import ExecutionPlan
from mvspec.compiler.tokenizer import load_tokenizer
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import MvspecError, Unsupported, VerifyError
from mvspec.events import Event, Finished
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.forms.untagged import UNTAGGED
from mvspec.law.tags import Tag
from mvspec.runtime.interrupt import Interrupted
from mvspec.runtime.options import Options, options_of_each
from mvspec.runtime.protocol import Runnable, plan_for
from mvspec.runtime.serving.client_request import ClientRequest
from mvspec.runtime.serving.endpoint import HttpEndpoint, LocalEndpoint
from mvspec.trace import Result

__all__ = ["SGLangEngine"]

_PATIENCE = 10.0
"""Seconds that an aborted request has to say what it had done."""


class SGLangEngine:
    """Runs documents and plans on SGLang, natively: `mvspec serve MODEL` starts such a server.

    Args:
        server: the URL of a server, or a `sglang.Engine` of this process.
        tokenizer: the server's; by default loaded from where the server says.
        api_key: of the server.
        timeout: seconds that the server may be silent.
        max_requests: how many requests of one call are sent at once.

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
        self.max_requests = max_requests
        self.tokenizer = tokenizer or self._load()
        backend = getattr(self.tokenizer, "backend_tokenizer", self.tokenizer)
        tagged = all(backend.token_to_id(tag.value) is not None for tag in Tag)
        self.syntax: Syntax = MULTIVERSE if tagged else UNTAGGED
        self.vocabulary = Vocabulary.of(self.tokenizer, tagged=tagged)
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

    @cached_property
    def model(self) -> str:
        """What the server calls its model."""
        return self.endpoint.model

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
    ) -> ClientRequest:
        """Send a request.

        Args:
            document: a document or a plan.
            options: how it is run.
            name: of the request; random streams depend on it.

        Raises:
            MvspecError: it cannot be run here; what the server refuses comes while it is followed.
        """
        request = self._request(document, options, name)
        self._send([request])
        return request

    def _request(
        self, document: Runnable, options: Options | None, name: str, *, live: bool = True
    ) -> ClientRequest:
        plan = self.plan(document)
        if plan.form not in (self.syntax.name, UNTAGGED.name):
            raise Unsupported(
                f"the plan is in form {plan.form!r}, and the server's tokenizer has no tags: "
                "plan the document with syntax=UNTAGGED"
            )
        return ClientRequest(
            name, plan, options or Options(), self.endpoint.name, self.model, live=live
        )

    def _send(self, requests: Sequence[ClientRequest]) -> None:
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
                    async with limit:
                        if not request.dropped:
                            async with aclosing(send(request.body)) as chunks:
                                async for chunk in chunks:
                                    request.put(chunk)
                                    if request.error:  # leaving ends it on the server
                                        break
                except Exception as error:
                    request.put(error)
                finally:
                    request.put(None)

            await asyncio.gather(*map(one, requests))

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

    # Runs

    def run(self, document: Runnable, options: Options | None = None) -> Result:
        """Run a document or a plan to its end; paths advance together.

        Args:
            document: a document, whose holes are filled or whose next turn is written; or a plan.
            options: how it is run; by default the likeliest tokens, without limits.

        Returns:
            Values by hole name, the document, the trace.

        Raises:
            MvspecError: it cannot be run, the server refuses it or goes away.
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
            MvspecError: as `run`; all are dropped then.
        """
        each = options_of_each(len(documents), options)
        pairs = zip(documents, each, strict=True)
        requests = [
            self._request(document, option, str(index), live=False)
            for index, (document, option) in enumerate(pairs)
        ]
        self._send(requests)
        try:
            for request in requests:
                while not request.finish:
                    request.receive()
                    request.events.clear()
                if request.error:
                    raise request.error
        except KeyboardInterrupt:
            for request in requests:
                self.drop(request)
            raise Interrupted([self.result(request).trace for request in requests]) from None
        finally:
            for request in requests:
                self.drop(request)
        return [request.result for request in requests]

    def stream(self, document: Runnable, options: Options | None = None) -> Iterator[Event]:
        """Run a document or a plan and yield what happens; the last event is `Finished`.

        Leaving the loop ends the request on the server.
        """
        yield from self.follow(self.submit(document, options))

    def follow(self, request: ClientRequest) -> Iterator[Event]:
        """Yield what happens to a request that was submitted, as `stream` does."""
        try:
            while True:
                while request.events:
                    yield request.events.popleft()
                if request.finish:
                    break
                request.receive()
            if request.error:
                raise request.error
            yield Finished(request.name, request.result)
        except KeyboardInterrupt:
            raise Interrupted([self.result(request).trace]) from None
        finally:
            self.drop(request)

    async def run_async(
        self, document: Runnable, options: Options | None = None, *, name: str | None = None
    ) -> Result:
        """Run a document or a plan; the event loop stays free."""
        result: Result | None = None
        async for event in self._follow_async(document, options, name, live=False):
            if isinstance(event, Finished):
                result = event.result
        assert result is not None
        return result

    async def stream_async(
        self, document: Runnable, options: Options | None = None, *, name: str | None = None
    ) -> AsyncIterator[Event]:
        """Run a document or a plan and yield what happens; the event loop stays free."""
        async with aclosing(self._follow_async(document, options, name, live=True)) as events:
            async for event in events:
                yield event

    async def _follow_async(
        self, document: Runnable, options: Options | None, name: str | None, *, live: bool
    ) -> AsyncGenerator[Event, None]:
        request = await asyncio.to_thread(self._request, document, options, name or "0", live=live)
        try:
            async with self.endpoint.session() as send, aclosing(send(request.body)) as chunks:
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
