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
from collections.abc import Iterable, Mapping, Sequence
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

UNREADABLE = 5
"""Looks at a batch that could not be read, at most: it is not going to be another time."""

_ENDED = {"JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED"}
_READY = {"JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED"}
BatchAnswers = dict[str, ModelAnswer | Exception]
"""Answers of a batch, or why there is none, by the keys of its requests."""

BatchTask = asyncio.Task[BatchAnswers]

_LENGTH = {"MAX_TOKENS", "CONTINUATION", ""}  # without a reason, it has not ended
_CROWDED = {429, 503}
_AGAIN = {408, 429, 500, 502, 503, 504}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)s")

LONGEST_WAIT = 3600.0
"""Seconds that the service may ask to wait, at most; what is longer is no pause of a run."""

_RPC = {3: 400, 5: 404, 7: 403, 8: 429, 9: 400, 13: 500, 14: 503, 16: 401}
"""HTTP statuses of google.rpc's codes, which responses in a batch may have instead."""

_OF_ONE = re.compile(
    r"(?!.*(?:thinking|output)).*(?:token count|too many tokens|too (?:long|large)|payload size)",
    re.I | re.S,
)
"""What is said of a request that is too long: the next record's may be taken."""

_ADVICE = (
    (re.compile(r"API.?key|HTTP 401", re.I), "look at GEMINI_API_KEY", True),
    (
        re.compile(
            r"(?:location|country|region)\b.*\bsupported|\bsupported\b.*(?:country|region)", re.I
        ),
        "the service does not take requests from here: ask from where it does, or --base-url",
        True,
    ),
    (re.compile(r"\bbill|FAILED_PRECONDITION", re.I), "look at the billing of the key", True),
    (re.compile(r"HTTP 403"), "the key may not do that: look at its rights and its project", True),
    (re.compile(r"thinking", re.I), "give another --thinking, or leave it out", False),
    (re.compile(r"HTTP 404|\bmodels?\b", re.I), "give another --model", False),
    (re.compile(r"temperature", re.I), "give another --temperature", False),
    (re.compile(r"max.?output.?tokens", re.I), "give another --max-tokens", False),
)
"""Refusals that concern every record, what to do, and whether one alone tells that for sure."""


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
        hooks: dict[str, Any] = {"response": [_read_whole]}
        self._http = httpx2.AsyncClient(
            transport=transport, limits=limits, timeout=None, event_hooks=hooks
        )
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
        config = config_of(request).model_copy(update={"should_return_http_response": True})
        try:
            # httpx's time-outs are of one read each: an answer that drips in would never end.
            async with asyncio.timeout(self.timeout):
                response = await self.client.aio.models.generate_content(
                    model=request.model, contents=request.prompt, config=config
                )
            raw: Any = response.sdk_http_response
            return answer_of(json.loads(raw.body))
        except Exception as error:
            raise self.failure(error) from None  # its chain could hold headers, and so the key

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
            headers = getattr(error.response, "headers", None) or {}
            said = f"{error.status or ''} {error.message or ''}".strip()
            return self.status(error.code, said, _details(error.details), headers)
        name = type(error).__name__
        text = self._hidden(f"{name}: {error}".rstrip(": "))
        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            return RequestUnanswered(f"time-out: no answer within {self.timeout:g} s", paid=True)
        if isinstance(error, httpx2.ConnectError):
            return RequestUnanswered(f"no connection: {text}")
        if isinstance(error, httpx2.TransportError):
            return RequestUnanswered(f"broken connection: {text}", paid=True)
        wrong = (
            ValueError, TypeError, LookupError, AttributeError, RecursionError,
            httpx2.DecodingError,
        )  # fmt: skip
        if isinstance(error, wrong):
            # A body that is not UTF-8, not JSON, or not shaped as the client expects.
            return RequestUnanswered(f"unreadable response: {text[:200]}", paid=True)
        raise error

    def status(
        self,
        code: int,
        said: str,
        details: Sequence[dict[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> RequestUnanswered | RequestRefused:
        """Return what a status other than 200 means, and what to do about it."""
        text = f"HTTP {code}: {' '.join(self._hidden(said).split())[:500]}".rstrip(": ")
        if code in _AGAIN:
            if code == 429 and "PerDay" in str([each.get("violations") for each in details]):
                return RequestRefused(f"{text} (the day's quota is used up)", all=True)
            return RequestUnanswered(
                text,
                after=_retry_after(headers or {}, details),
                paid=code not in _CROWDED,
                crowded=code in _CROWDED,
            )
        if code in (400, 413) and _OF_ONE.match(said):
            return RequestRefused(text, one=True)
        reasons = " ".join(str(each.get("reason")) for each in details)
        for pattern, advice, sure in _ADVICE:
            if pattern.search(f"{text} {reasons}"):
                return RequestRefused(f"{text} ({advice})", all=sure or code == 404)
        return RequestRefused(text)

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
        unreadable = 0
        while True:
            try:
                job = await self.gemini.client.aio.batches.get(name=name)
            except Exception as error:
                failure = self.gemini.failure(error)
                unreadable += str(failure).startswith("unreadable")
                if isinstance(failure, RequestRefused) or unreadable > UNREADABLE:
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
                found[key] = answer_of(
                    each.response.model_dump(mode="json", by_alias=True, exclude_none=True)
                )
            else:
                found[key] = self._failed(each.error)
        return found  # the note stays until whoever asks has stored every answer

    def _failed(self, error: types.JobError | None) -> RequestUnanswered | RequestRefused:
        """Return what the error of a response in a batch means."""
        code = 0 if error is None else error.code or 0
        said = (error and error.message) or "no response"
        found = self.gemini.status(_RPC.get(code, code), said)
        refused = isinstance(found, RequestRefused) and code
        return found if refused else RequestUnanswered(f"batch: {said}")


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


def answer_of(body: Any) -> ModelAnswer:
    """Return what the JSON of a response says, and why it ends there.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it is not shaped as a response is.
    """
    counted = body.get("usageMetadata")
    counted = counted if isinstance(counted, dict) else {}
    usage = TokenUsage(*(_count(counted.get(name)) for name in _COUNTS))
    version = str(body.get("modelVersion") or "")
    if not body.get("candidates"):
        blocked = str((body.get("promptFeedback") or {}).get("blockReason") or "")
        return ModelAnswer("", "blocked" if blocked else "empty", blocked, usage, version)
    first = body["candidates"][0]
    parts = (first.get("content") or {}).get("parts") or []
    text = "".join(part["text"] for part in parts if part.get("text") and not part.get("thought"))
    text.encode()  # half a surrogate pair is no text
    reason = str(first.get("finishReason") or "")
    if reason == "STOP":
        finish = "stop" if text else "empty"
    else:
        finish = "length" if reason in _LENGTH else "blocked"
    return ModelAnswer(text, finish, reason, usage, version)


_COUNTS = (
    "promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "cachedContentTokenCount",
)  # fmt: skip
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.0+)?")


def _count(value: Any) -> int:
    """Return a count of tokens; 0, as if nothing were said, for what cannot be one."""
    found = None if isinstance(value, bool) else _NUMBER.fullmatch(str(value))
    return int(float(found.group())) if found else 0


async def _read_whole(response: httpx2.Response) -> None:
    """Read a response before google-genai does, which takes U+FFFD for what is not UTF-8.

    Raises:
        UnicodeDecodeError: it is an answer, and not UTF-8.
        APIError: it is an error, of whatever bytes.
    """
    data = await response.aread()
    response.encoding = "utf-8"
    if response.status_code == 200:
        data.decode()
        return
    try:
        body = json.loads(data.decode(errors="replace"))
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, list):
        body = next(iter(body), None)
    inner = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(inner, dict):
        text = data.decode(errors="replace")
        inner = {"message": text if inner is None else str(inner), "status": ""}
    raise errors.APIError(response.status_code, {"error": inner}, response)


def _details(body: Any) -> list[dict[str, Any]]:
    inner = body.get("error", body) if isinstance(body, dict) else {}
    found = inner.get("details") if isinstance(inner, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _retry_after(headers: Mapping[str, str], details: Iterable[dict[str, Any]]) -> float | None:
    """Return the seconds to wait: of google.rpc.RetryInfo, else of the header Retry-After."""
    for each in details:
        match = _DURATION.fullmatch(str(each.get("retryDelay", "")))
        if match:
            return min(float(match.group(1)), LONGEST_WAIT)
    try:
        return min(max(0.0, float(headers.get("retry-after", ""))), LONGEST_WAIT)
    except ValueError:  # absent, or a date
        return None
