"""Endpoints that take an engine's requests: a server of SGLang by URL, or one in this process.

Both have the same members: the model and the tokenizer's path, a check of tokenizers, a session
that sends requests, and an abort.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cached_property
from typing import Any

import httpx

from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import MvspecError, Unsupported
from mvspec.law.tags import Tag

Body = dict[str, Any]
Send = Callable[[Body], AsyncGenerator[dict[str, Any], None]]
"""Sends a request of SGLang's `/generate` and yields the chunks of its answer."""

_PROBE = "".join(tag.value for tag in Tag) + "Let me see:\n\n1.2: été, 答案, x<y & 30 %\n"
"""What two tokenizers are compared by."""


class ServerGone(MvspecError):
    """A server could not be reached, or went away."""


class HttpEndpoint:
    """A server of SGLang.

    Args:
        url: where it answers, such as http://127.0.0.1:30000.
        api_key: as the server was given with --api-key.
        timeout: seconds that it may be silent.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 600.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise Unsupported(f"{url!r} is no URL of a server: it begins with http:// or https://")
        if url.rstrip("/").endswith("/v1"):
            raise Unsupported(
                f"{url!r} is the address of OpenAI's API: plans go to the server itself, "
                f"{url.rstrip('/').removesuffix('/v1')!r}"
            )
        self.url = self.name = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._settings: dict[str, Any] = {
            "base_url": self.url,
            "headers": self._headers,
            "timeout": httpx.Timeout(timeout, connect=10.0),
            "limits": httpx.Limits(max_connections=None),
        }

    def _ask(self, method: str, path: str, body: Body | None = None) -> httpx.Response:
        with self._reached(), httpx.Client(**self._settings) as client:
            return client.request(method, path, json=body)

    @cached_property
    def _info(self) -> dict[str, Any]:
        answer = self._ask("GET", "/model_info")
        if answer.status_code != 200:
            raise MvspecError(
                f"{self.url}/model_info answers with status {answer.status_code}: is it a "
                f"server of SGLang{', and its API key given' * (answer.status_code == 401)}?"
            )
        try:
            return dict(answer.json())
        except ValueError:
            raise MvspecError(f"{self.url} is no server of SGLang") from None

    @property
    def model(self) -> str:
        """What it calls its model."""
        return str(self._info.get("model_path", ""))

    @property
    def tokenizer_path(self) -> str:
        """Folder or hub name of its tokenizer."""
        return str(self._info.get("tokenizer_path") or self.model)

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse a tokenizer that is not the server's.

        Raises:
            Unsupported: the two write a text as different ids.
        """
        wanted: Any = vocabulary.encode(_PROBE)
        body = {"model": self.model, "prompt": _PROBE, "add_special_tokens": False}
        answer, key = self._ask("POST", "/tokenize", body), "tokens"
        if answer.status_code == 500:
            # 0.5.16 fails where a tokenizer names no length, since transformers then says 10^30;
            # and it closes the connection.
            back = {"model": self.model, "tokens": wanted, "skip_special_tokens": False}
            answer, key = self._ask("POST", "/detokenize", back), "text"
            wanted = vocabulary.decode(wanted)
        if answer.status_code in (404, 405):
            return  # a router in front may lack it
        if answer.status_code != 200:
            raise MvspecError(f"{answer.url}: {_reason(answer.text)}")
        if answer.json().get(key) != wanted:
            raise Unsupported(
                f"the tokenizer {vocabulary.name} is not that of {self.url}, which writes "
                f"{_PROBE!r} as other ids: pass tokenizer= the one of {self.tokenizer_path}"
            )

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Say what is wrong where the server cannot be reached, or goes away."""
        try:
            yield
        except httpx.ConnectError as error:
            remedy = "start one with `mvspec serve MODEL`"
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                remedy = "name the certificate that it was signed with in SSL_CERT_FILE"
            what = f"no server answers at {self.url} ({error}): {remedy}"
        except httpx.TimeoutException:
            what = f"{self.url} was silent for too long: raise timeout, or look at the server's log"
        except httpx.TransportError as error:
            what = (
                f"{self.url} went away before the answer had ended "
                f"({str(error) or type(error).__name__}): look at the server's log"
            )
        except httpx.InvalidURL as error:
            what = f"{self.url!r} is no URL: {error}"
        else:
            return
        raise ServerGone(what)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Send]:
        """Give a `Send` over shared connections."""
        async with httpx.AsyncClient(**self._settings) as client:

            async def send(body: Body) -> AsyncGenerator[dict[str, Any], None]:
                with self._reached():
                    async with client.stream("POST", "/generate", json=body) as answer:
                        if answer.status_code != 200:
                            await answer.aread()
                            raise MvspecError(f"{self.url}: {_reason(answer.text)}")
                        async for line in answer.aiter_lines():
                            if line.startswith("data: ") and line != "data: [DONE]":
                                yield json.loads(line[6:])

            yield send

    def drive(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine to its end, in the calling thread."""
        asyncio.run(make())

    def abort(self, rid: str) -> None:
        """Ask for the end of a request; the server may be gone."""
        path, body = f"{self.url}/abort_request", {"rid": rid}
        with suppress(httpx.HTTPError):
            httpx.post(path, json=body, headers=self._headers, timeout=10.0)


class LocalEndpoint:
    """An engine of SGLang in this process.

    Args:
        engine: a `sglang.Engine`. It answers in one event loop only: its own for calls that
            block, or that of the program which awaits.
    """

    name = "sglang.Engine"

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._manager = engine.tokenizer_manager
        self._busy = threading.Lock()
        self.tokenizer: Any = self._manager.tokenizer
        self.model = str(self._manager.model_path)
        self.tokenizer_path = str(engine.server_args.tokenizer_path or self.model)

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse a tokenizer that is not the engine's."""
        own = Vocabulary.of(self.tokenizer, tagged=vocabulary.tagged)
        if own.encode(_PROBE) != vocabulary.encode(_PROBE):
            raise Unsupported(f"the tokenizer {vocabulary.name} is not that of the engine")

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Send]:
        """Give a `Send` into the engine."""
        loop = self._manager.event_loop
        if loop is not None and loop is not asyncio.get_running_loop():
            raise Unsupported(
                "this sglang.Engine answers in another event loop: use either run and stream, or "
                "run_async and stream_async in one loop"
            )

        async def send(body: Body) -> AsyncGenerator[dict[str, Any], None]:
            from sglang.srt.managers.io_struct import GenerateReqInput

            try:
                async for chunk in self._manager.generate_request(GenerateReqInput(**body), None):
                    yield chunk
            except ValueError as error:
                raise MvspecError(str(error)) from None

        yield send

    def drive(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine to its end, in the calling thread; one at a time."""
        with self._busy:
            self._engine.loop.run_until_complete(make())

    def abort(self, rid: str) -> None:
        """Ask for the end of a request."""
        loop = self._manager.event_loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._manager.abort_request, rid)


def _reason(text: str) -> str:
    """Return the message in the body of an error."""
    try:
        found = json.loads(text)
    except ValueError:
        return text[:500]
    error = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(error, dict):
        return str(error.get("message") or error)[:2000]
    return str(error)[:2000]
