"""Gemini through google-genai's asynchronous client, one request at a time or in batches.

The client's own retries are off, and its HTTP client is one of httpx2 that is made here: with
aiohttp installed, google-genai sends a request again by itself when a connection breaks, which
may be paid twice and which no ledger would see (google-genai 3.6.1, `_async_request_once`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.request import getproxies
from uuid import uuid4

import httpx2
from google import genai
from google.genai import errors, types

from mvspec.curation.request import (
    ModelAnswer,
    ModelRequest,
    RequestRefused,
    RequestUnanswered,
    TokenUsage,
)
from mvspec.curation.store import CurationStore
from mvspec.data.records import InputError

NO_KEY = "Gemini needs a key: set GEMINI_API_KEY (or GOOGLE_API_KEY) in the environment"

POOL = 32
"""Connections of a pool."""

BATCH_BYTES = 15_000_000
"""Of the requests of a batch; the service documents 20 MB for one call."""

_ENDED = {"JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED"}
_READY = {"JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED"}
BatchAnswers = dict[str, ModelAnswer | Exception]
"""Answers of a batch, or why there is none, by the keys of its requests."""

BatchTask = asyncio.Task[BatchAnswers]

_LENGTH = {"MAX_TOKENS", "CONTINUATION", ""}  # without a reason, it has not ended
_CROWDED = {429, 503}
_AGAIN = {408, 429, 500, 502, 503, 504}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)s")


class GeminiProvider:
    """Provider that asks Gemini; the key comes from GEMINI_API_KEY or GOOGLE_API_KEY.

    Args:
        base_url: another address than the service's, such as a proxy's.
        timeout: seconds that an answer may take.
        connections: that are kept open.
        key: instead of the environment's.

    Raises:
        InputError: there is no key.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        timeout: float = 300.0,
        connections: int = 16,
        key: str | None = None,
    ) -> None:
        key = key or key_of()
        if not key:
            raise InputError(NO_KEY)
        self._key = key
        self.timeout = timeout
        # A proxy is found by httpx itself, where it may choose how to connect.
        transport = None if getproxies() else ConnectionPools(connections)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=connections)
        self._http = httpx2.AsyncClient(transport=transport, limits=limits, timeout=None)
        self.client = genai.Client(
            vertexai=False,
            api_key=self._key,
            http_options=types.HttpOptions(
                base_url=base_url,
                timeout=round(timeout * 1000),
                httpx_async_client=self._http,
                retry_options=types.HttpRetryOptions(attempts=1),
            ),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(self, request: ModelRequest) -> ModelAnswer:
        """Return the model's answer.

        Raises:
            RequestUnanswered: 408, 429, 5xx, a time-out or a broken connection.
            RequestRefused: any other status; for all requests where the key, the model or the day's
                quota is to blame.
        """
        config = config_of(request)
        try:
            # httpx's time-outs are of one read each: an answer that drips in would never end.
            async with asyncio.timeout(self.timeout):
                response = await self.client.aio.models.generate_content(
                    model=request.model, contents=request.prompt, config=config
                )
        except Exception as error:
            raise self.failure(error) from None  # its chain could hold headers, and so the key
        return answer_of(response)

    async def count(self, request: ModelRequest) -> int:
        """Return how many tokens a request has, as the service counts them; it is free.

        Raises:
            RequestUnanswered, RequestRefused: as `ask`.
        """
        try:
            async with asyncio.timeout(self.timeout):
                found = await self.client.aio.models.count_tokens(
                    model=request.model, contents=f"{request.system}\n\n{request.prompt}"
                )
        except Exception as error:
            raise self.failure(error) from None
        return found.total_tokens or 0

    def failure(self, error: Exception) -> RequestUnanswered | RequestRefused:
        """Return what an exception of the client means; its text never holds the key."""
        if isinstance(error, errors.APIError):
            return self._status(error)
        name = type(error).__name__
        text = self._hidden(f"{name}: {error}".rstrip(": "))
        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            return RequestUnanswered(f"time-out: no answer within {self.timeout:g} s", paid=True)
        if isinstance(error, httpx2.ConnectError):
            return RequestUnanswered(f"no connection: {text}")
        if isinstance(error, httpx2.TransportError):
            return RequestUnanswered(f"broken connection: {text}", paid=True)
        if isinstance(error, ValueError | TypeError | LookupError | AttributeError):
            # A body that is not JSON, or not shaped as the client expects.
            return RequestUnanswered(f"unreadable response: {text[:200]}", paid=True)
        raise error

    def _status(self, error: errors.APIError) -> RequestUnanswered | RequestRefused:
        details = _details(error.details)
        reasons = {str(each.get("reason")) for each in details}
        said = self._hidden(f"{error.status or ''} {error.message or ''}".strip())[:500]
        text = f"HTTP {error.code}: {said}"
        if error.code in _AGAIN:
            if error.code == 429 and "PerDay" in str([each.get("violations") for each in details]):
                return RequestRefused(f"{text} (the day's quota is used up)", all=True)
            return RequestUnanswered(
                text,
                after=_retry_after(error, details),
                paid=error.code not in _CROWDED,
                crowded=error.code in _CROWDED,
            )
        everyone = error.code in (401, 403, 404) or "API_KEY_INVALID" in reasons
        return RequestRefused(text, all=everyone)

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "[key]")


class GeminiBatchProvider:
    """Provider that asks Gemini's Batch API: requests wait together, and cost less.

    A batch is made when for a while no request has come. It is noted in the store before that,
    and is found again by its display name: a run that was killed takes up its batches, and pays
    for none twice.

    Args:
        gemini: the connection.
        store: where batches are noted.
        linger: seconds without a new request after which those that wait become a batch.
        poll: seconds between two looks at a batch.
        most: requests of a batch.
    """

    def __init__(
        self,
        gemini: GeminiProvider,
        store: CurationStore,
        *,
        linger: float = 2.0,
        poll: float = 30.0,
        most: int = 1000,
    ) -> None:
        self.gemini = gemini
        self.store = store
        self.linger = linger
        self.poll = poll
        self.most = most
        self._waiting: dict[str, tuple[ModelRequest, asyncio.Future[BatchTask]]] = {}
        self._came = asyncio.Event()
        self._open: dict[str, list[tuple[str, str | None, list[str]]]] = {}
        for batch in store.batches():
            for key in batch[2]:
                self._open.setdefault(key, []).append(batch)
        self._resumed: dict[str, BatchTask] = {}
        self._made: set[BatchTask] = set()
        self._gathering: asyncio.Task[None] | None = None

    async def ask(self, request: ModelRequest) -> ModelAnswer:
        """Return the model's answer, when its batch has ended.

        Raises:
            RequestUnanswered: the batch failed, or the request in it.
            RequestRefused: the service does not take the batch.
        """
        batches = self._open.get(request.key)
        if batches:
            answers = await self._earlier(*batches[0])
            # One that failed here may be in a later batch too: whoever asks again looks there.
            batches.pop(0)
            found = answers.get(request.key) or RequestUnanswered("batch: it was never made")
        else:
            batch: asyncio.Future[BatchTask] = asyncio.get_running_loop().create_future()
            self._waiting[request.key] = request, batch
            self._came.set()
            if self._gathering is None or self._gathering.done():
                self._gathering = asyncio.create_task(self._gather())
            answers = await asyncio.shield(await batch)
            found = answers.get(request.key) or RequestUnanswered(
                "batch: it holds no response", paid=True
            )
        if isinstance(found, Exception):
            raise found
        return found

    async def _earlier(self, id: str, name: str | None, keys: Sequence[str]) -> BatchAnswers:
        """Return the answers of a batch of an earlier run."""
        if id not in self._resumed:
            self._resumed[id] = asyncio.create_task(self._resume(id, name, keys))
        try:
            return await asyncio.shield(self._resumed[id])
        except (RequestUnanswered, RequestRefused):
            self._resumed.pop(id, None)  # whoever asks again looks again
            raise

    async def _resume(self, id: str, name: str | None, keys: Sequence[str]) -> BatchAnswers:
        name = name or await self._named(id)
        if name is None:
            await self.store.batch(id, None, keys, open=False)
            return {}
        await self.store.batch(id, name, keys, open=True)
        return await self._read(id, name, keys)

    async def _named(self, id: str) -> str | None:
        """Return the name of the batch with our display name, where the service has it."""
        try:
            pager = await self.gemini.client.aio.batches.list(config={"page_size": 100})
            async for job in pager:
                if job.display_name == _display(id):
                    return job.name
        except Exception as error:
            raise self.gemini.failure(error) from None
        return None

    async def _gather(self) -> None:
        while self._waiting:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), self.linger)
            except TimeoutError:
                pass
            else:
                if len(self._waiting) < self.most:
                    continue
            while some := self._some():
                requests, batches = zip(*some, strict=True)
                task = asyncio.create_task(self._make(requests))
                self._made.add(task)
                task.add_done_callback(self._made.discard)
                for batch in batches:
                    batch.set_result(task)

    def _some(self) -> list[tuple[ModelRequest, asyncio.Future[BatchTask]]]:
        some: list[tuple[ModelRequest, asyncio.Future[BatchTask]]] = []
        size = 0
        for key, (request, batch) in list(self._waiting.items()):
            if not batch.done():  # else whoever asked has been stopped
                size += 2 * request.size
                if some and (size > BATCH_BYTES or len(some) == self.most):
                    break
                some.append((request, batch))
            del self._waiting[key]
        return some

    async def _make(self, requests: Sequence[ModelRequest]) -> BatchAnswers:
        keys = [request.key for request in requests]
        id = uuid4().hex
        await self.store.batch(id, None, keys, open=True)
        inlined = [
            types.InlinedRequest(
                model=request.model,
                contents=[types.Content(role="user", parts=[types.Part(text=request.prompt)])],
                config=config_of(request).model_copy(
                    # Of the client and not of the request: a batch does not take them.
                    update={"automatic_continuation": None, "automatic_function_calling": None}
                ),
                metadata={"key": request.key},
            )
            for request in requests
        ]
        try:
            job = await self.gemini.client.aio.batches.create(
                model=requests[0].model,
                src=types.BatchJobSource(inlined_requests=inlined),
                config=types.CreateBatchJobConfig(display_name=_display(id)),
            )
            name = job.name
        except Exception as error:
            failure = self.gemini.failure(error)
            if isinstance(failure, RequestRefused) or not failure.paid:
                await self.store.batch(id, None, keys, open=False)
                raise failure from None
            name = await self._named(id)  # the answer was lost, and perhaps not the batch
            if name is None:
                await self.store.batch(id, None, keys, open=False)
                raise RequestUnanswered(str(failure)) from None
        if name is None:
            raise RequestUnanswered("batch: it has no name", paid=True)
        await self.store.batch(id, name, keys, open=True)
        return await self._read(id, name, keys)

    async def _read(self, id: str, name: str, keys: Sequence[str]) -> BatchAnswers:
        """Wait for a batch and return its answers by key."""
        while True:
            try:
                job = await self.gemini.client.aio.batches.get(name=name)
            except Exception as error:
                failure = self.gemini.failure(error)
                if isinstance(failure, RequestRefused):
                    raise failure from None
                await asyncio.sleep(max(self.poll, failure.after or 0))
                continue
            state = job.state.value if job.state else ""
            if state in _READY:
                break
            if state in _ENDED:
                await self.store.batch(id, name, keys, open=False)
                said = job.error.message if job.error else ""
                failed = RequestUnanswered(f"batch: {state} {said or ''}".strip())
                return dict.fromkeys(keys, failed)
            await asyncio.sleep(self.poll)
        responses = (job.dest.inlined_responses if job.dest else None) or []
        found: BatchAnswers = {}
        for index, each in enumerate(responses):
            key = (each.metadata or {}).get("key") or (keys[index] if index < len(keys) else "")
            if each.response is not None:
                found[key] = answer_of(each.response)
            else:
                said = each.error.message if each.error else "no response"
                found[key] = RequestUnanswered(f"batch: {said}")
        return found  # the note stays until whoever asks has stored every answer


def _display(id: str) -> str:
    return f"mvspec-{id}"


class ConnectionPools(httpx2.AsyncBaseTransport):
    """HTTP transport of many small pools of connections in place of a large one, in turns.

    A pool looks through all of its connections for every request that begins or ends: with a
    thousand of them, that was half of a call's time. How many requests are on their way at once
    is not bounded here; whoever asks has a bound.
    """

    def __init__(self, connections: int) -> None:
        context = httpx2.create_ssl_context()
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=POOL)
        pools = [
            httpx2.AsyncHTTPTransport(verify=context, limits=limits)
            for _ in range(-(-connections // POOL))
        ]
        self._pools = pools
        self._turns = itertools.cycle(pools)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request through the next pool."""
        return await next(self._turns).handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        for pool in self._pools:
            await pool.aclose()


def key_of() -> str | None:
    """Return the key that the environment holds."""
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        key = os.environ.get(name, "").strip()
        if key:
            return key
    return None


def config_of(request: ModelRequest) -> types.GenerateContentConfig:
    """Return a request's configuration as google-genai has it."""
    thinking: types.ThinkingConfig | None = None
    if isinstance(request.thinking, int):
        thinking = types.ThinkingConfig(thinking_budget=request.thinking)
    elif request.thinking is not None:
        thinking = types.ThinkingConfig(thinking_level=types.ThinkingLevel(request.thinking))
    schema = None if request.schema is None else json.loads(request.schema)
    return types.GenerateContentConfig(
        system_instruction=request.system,
        response_mime_type=None if schema is None else "application/json",
        response_json_schema=schema,
        max_output_tokens=request.max_tokens,
        temperature=request.temperature,
        seed=request.attempt,
        thinking_config=thinking,
        candidate_count=1,
        automatic_continuation=False,  # it would send, and bill, a second request
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )


def answer_of(response: types.GenerateContentResponse) -> ModelAnswer:
    """Return what a response says, and why it ends there."""
    counted = response.usage_metadata
    usage = TokenUsage() if counted is None else TokenUsage(
        counted.prompt_token_count or 0,
        counted.candidates_token_count or 0,
        counted.thoughts_token_count or 0,
        counted.cached_content_token_count or 0,
    )  # fmt: skip
    version = response.model_version or ""
    feedback = response.prompt_feedback
    if not response.candidates:
        if feedback is not None and feedback.block_reason is not None:
            return ModelAnswer("", "blocked", _name(feedback.block_reason), usage, version)
        return ModelAnswer("", "empty", "", usage, version)
    first = response.candidates[0]
    parts = (first.content.parts if first.content else None) or []
    text = "".join(part.text for part in parts if part.text and not part.thought)
    reason = _name(first.finish_reason)
    if reason == "STOP":
        finish = "stop" if text else "empty"
    else:
        finish = "length" if reason in _LENGTH else "blocked"
    return ModelAnswer(text, finish, reason, usage, version)


def _name(reason: Any) -> str:
    return "" if reason is None else str(getattr(reason, "value", reason))


def _details(body: Any) -> list[dict[str, Any]]:
    inner = body.get("error", body) if isinstance(body, dict) else {}
    found = inner.get("details") if isinstance(inner, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _retry_after(error: errors.APIError, details: Iterable[dict[str, Any]]) -> float | None:
    """Return the seconds to wait: of google.rpc.RetryInfo, else of the header Retry-After."""
    for each in details:
        match = _DURATION.fullmatch(str(each.get("retryDelay", "")))
        if match:
            return float(match.group(1))
    headers = getattr(error.response, "headers", None) or {}
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:  # absent, or a date
        return None
