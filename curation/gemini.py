"""Gemini through google-genai's asynchronous client.

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
from collections.abc import Iterable
from typing import Any
from urllib.request import getproxies

import httpx2
from google import genai
from google.genai import errors, types

from mvspec.curation.request import Answer, Refused, Request, Unanswered, Usage
from mvspec.data.records import InputError

__all__ = ["NO_KEY", "Gemini", "answer_of", "config_of", "key_of"]

NO_KEY = "Gemini needs a key: set GEMINI_API_KEY (or GOOGLE_API_KEY) in the environment"

POOL = 32
"""Connections of a pool."""

_LENGTH = {"MAX_TOKENS", "CONTINUATION", ""}  # without a reason, it has not ended
_CROWDED = {429, 503}
_AGAIN = {408, 429, 500, 502, 503, 504}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)s")


class Gemini:
    """Asks Gemini; the key comes from GEMINI_API_KEY or GOOGLE_API_KEY.

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
        transport = None if getproxies() else Pools(connections)
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

    async def ask(self, request: Request) -> Answer:
        """Return the model's answer.

        Raises:
            Unanswered: 408, 429, 5xx, a time-out or a broken connection.
            Refused: any other status; for all requests where the key, the model or the day's
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

    async def count(self, request: Request) -> int:
        """Return how many tokens a request has, as the service counts them; it is free.

        Raises:
            Unanswered, Refused: as `ask`.
        """
        try:
            async with asyncio.timeout(self.timeout):
                found = await self.client.aio.models.count_tokens(
                    model=request.model, contents=f"{request.system}\n\n{request.prompt}"
                )
        except Exception as error:
            raise self.failure(error) from None
        return found.total_tokens or 0

    def failure(self, error: Exception) -> Unanswered | Refused:
        """Return what an exception of the client means; its text never holds the key."""
        if isinstance(error, errors.APIError):
            return self._status(error)
        name = type(error).__name__
        text = self._hidden(f"{name}: {error}".rstrip(": "))
        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            return Unanswered(f"time-out: no answer within {self.timeout:g} s", paid=True)
        if isinstance(error, httpx2.ConnectError):
            return Unanswered(f"no connection: {text}")
        if isinstance(error, httpx2.TransportError):
            return Unanswered(f"broken connection: {text}", paid=True)
        if isinstance(error, ValueError | TypeError | LookupError | AttributeError):
            # A body that is not JSON, or not shaped as the client expects.
            return Unanswered(f"unreadable response: {text[:200]}", paid=True)
        raise error

    def _status(self, error: errors.APIError) -> Unanswered | Refused:
        details = list(_details(error.details))
        reasons = {str(each.get("reason")) for each in details}
        said = self._hidden(f"{error.status or ''} {error.message or ''}".strip())[:500]
        text = f"HTTP {error.code}: {said}"
        if error.code in _AGAIN:
            if error.code == 429 and any("PerDay" in quota for quota in _quotas(details)):
                return Refused(f"{text} (the day's quota is used up)", all=True)
            return Unanswered(
                text,
                after=_retry_after(error, details),
                paid=error.code not in _CROWDED,
                crowded=error.code in _CROWDED,
            )
        everyone = error.code in (401, 403, 404) or "API_KEY_INVALID" in reasons
        return Refused(text, all=everyone)

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "[key]")


class Pools(httpx2.AsyncBaseTransport):
    """Many small pools of connections in place of a large one, in turns.

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


def config_of(request: Request) -> types.GenerateContentConfig:
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


def answer_of(response: types.GenerateContentResponse) -> Answer:
    """Return what a response says, and why it ends there."""
    counted = response.usage_metadata
    usage = Usage() if counted is None else Usage(
        counted.prompt_token_count or 0,
        counted.candidates_token_count or 0,
        counted.thoughts_token_count or 0,
        counted.cached_content_token_count or 0,
    )  # fmt: skip
    version = response.model_version or ""
    feedback = response.prompt_feedback
    if not response.candidates:
        if feedback is not None and feedback.block_reason is not None:
            return Answer("", "blocked", _name(feedback.block_reason), usage, version)
        return Answer("", "empty", "", usage, version)
    first = response.candidates[0]
    parts = (first.content.parts if first.content else None) or []
    text = "".join(part.text for part in parts if part.text and not part.thought)
    reason = _name(first.finish_reason)
    if reason == "STOP":
        finish = "stop" if text else "empty"
    else:
        finish = "length" if reason in _LENGTH else "blocked"
    return Answer(text, finish, reason, usage, version)


def _name(reason: Any) -> str:
    return "" if reason is None else str(getattr(reason, "value", reason))


def _details(body: Any) -> Iterable[dict[str, Any]]:
    inner = body.get("error", body) if isinstance(body, dict) else {}
    found = inner.get("details") if isinstance(inner, dict) else None
    for each in found if isinstance(found, list) else ():
        if isinstance(each, dict):
            yield each


def _quotas(details: Iterable[dict[str, Any]]) -> Iterable[str]:
    for each in details:
        violations = each.get("violations")
        for violation in violations if isinstance(violations, list) else ():
            if isinstance(violation, dict):
                yield str(violation.get("quotaId", ""))


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
