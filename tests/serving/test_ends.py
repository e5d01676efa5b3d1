"""How a request of the client's ends before its time: left, interrupted, refused, no server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import httpx
import pytest
from bpe import untagged_tokenizer
from served import Served
from tiny import chat

import mvspec as mv
from mvspec.errors import MvspecError, Unsupported, VerifyError
from mvspec.law.limits import Limits
from mvspec.runtime import Interrupted, Options, SGLangEngine, Written
from mvspec.runtime.serving.client_request import ClientRequest

ASK = mv.document(mv.user("Well?"))
LONG = Options(limits=Limits(max_tokens=3000))


def test_leaving_a_stream_ends_the_request(server: Served, engine: Any) -> None:
    request = engine.submit(ASK, LONG)
    for event in engine.follow(request):
        if isinstance(event, Written):
            break
    assert server.ended(request.rid)["finish"] == "abort"


def test_leaving_an_async_stream_ends_the_request(server: Served, engine: Any) -> None:
    before = len(server.lines('"finish": "abort"'))

    async def main() -> None:
        events = engine.stream_async(ASK, LONG)
        async for event in events:
            if isinstance(event, Written):
                break
        await events.aclose()

    asyncio.run(main())
    until = time.monotonic() + 20
    while len(server.lines('"finish": "abort"')) == before:
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("several", [False, True])
def test_an_interrupt_keeps_the_trace(server: Served, engine: Any, several: bool) -> None:
    documents = [ASK, ASK] if several else [ASK]

    def interrupt() -> None:
        until = time.monotonic() + 30
        while server.live_threads() < len(documents) and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell's background jobs ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(Interrupted) as stop:
            engine.run_many(documents, LONG)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(stop.value.traces) == len(documents)
    trace = stop.value.trace
    assert trace.finish == "interrupted"
    assert 0 < trace.answer < 3000
    assert (trace.layout.input_ids == trace.ids).all()
    until = time.monotonic() + 20
    while server.live_threads():
        assert time.monotonic() < until
        time.sleep(0.1)


# What is refused


@pytest.mark.parametrize(
    "options", [Options(share=2), Options(threads=1), Options(logits=True)], ids=str
)
def test_options_that_a_server_lacks_are_refused_before_anything_is_sent(
    server: Served, engine: Any, options: Options
) -> None:
    before = len(server.lines("mvspec {"))
    with pytest.raises(Unsupported, match=r"SGLang has no option '(share|threads|logits)'"):
        engine.run(ASK, options)
    assert len(server.lines("mvspec {")) == before


def test_another_tokenizer_is_refused(server: Served) -> None:
    body = {"model": str(server.folder), "prompt": "Well?"}
    if httpx.post(f"{server.url}/tokenize", json=body, timeout=20.0).status_code == 500:
        pytest.skip("this version cannot say how it writes a text")
    other = chat(untagged_tokenizer())
    with pytest.raises(Unsupported, match="is not that of http"):
        SGLangEngine(server.url, other)


def test_no_server_is_a_clear_error() -> None:
    with pytest.raises(MvspecError, match=r"no server answers at http://127\.0\.0\.1:9"):
        SGLangEngine("http://127.0.0.1:9")
    with pytest.raises(Unsupported, match="is no URL"):
        SGLangEngine("127.0.0.1:30000")
    with pytest.raises(VerifyError, match="neither a URL nor"):
        SGLangEngine(3)


def test_another_server_is_a_clear_error(server: Served) -> None:
    with pytest.raises(MvspecError, match=r"status 404: is it a server of SGLang"):
        SGLangEngine(f"{server.url}/docs/v3")


def test_a_plan_that_does_not_fit_says_so(engine: Any) -> None:
    document = mv.document(mv.user("Well?"), mv.assistant("x " * 5000, mv.gen("a", 5)))
    with pytest.raises(MvspecError, match=r"context|tokens"):
        engine.run(document)


def test_a_refusal_keeps_its_kind(engine: Any) -> None:
    document = mv.document(
        mv.user("Well?"), mv.assistant(mv.parallel(mv.branch("One", mv.gen("a", 9))))
    )
    with pytest.raises(mv.LimitExceeded):
        engine.run(document, Options(limits=Limits(max_tokens=1)))


def test_an_answer_of_a_server_without_the_plugin_is_recognised(
    server: Served, engine: Any
) -> None:
    """The chunk is a real one, of a request that did not ask for a plan."""
    body = {"text": "Well", "sampling_params": {"max_new_tokens": 2, "stop_token_ids": [1]}}
    chunk = httpx.post(f"{server.url}/generate", json=body, timeout=60.0).json()
    for end in (chunk["meta_info"]["finish_reason"], None):  # the last one, and one before it
        chunk["meta_info"]["finish_reason"] = end
        for live in (True, False):
            request = ClientRequest(
                "0", engine.plan(ASK), Options(), "the server", "model", live=live
            )
            request.take(chunk)
            assert isinstance(request.error, Unsupported)
            assert "without mvspec's plugin" in str(request.error)


def test_a_request_is_sent_again_where_nothing_was_answered(server: Served) -> None:
    """Through a proxy that drops connections to /generate, the first two of them."""
    host, port = server.url.removeprefix("http://").split(":")
    left = [2]

    def pass_on(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def serve_one(client: socket.socket) -> None:
        with client, suppress(OSError):
            head = client.recv(65536)
            if left[0] and head.startswith(b"POST /generate"):
                left[0] -= 1
                return
            with socket.create_connection((host, int(port))) as behind:
                behind.sendall(head)
                up = threading.Thread(target=pass_on, args=(client, behind), daemon=True)
                up.start()
                pass_on(behind, client)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve_one, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        document = mv.document(mv.user("Well?"), mv.assistant("So ", mv.gen("a", 3)))
        with pytest.raises(MvspecError, match="went away"):
            SGLangEngine(url, retries=0).run(document)
        left[0] = 1
        assert SGLangEngine(url, retries=1).run(document).trace.finish == "end"
        assert not left[0]


def test_the_address_of_openais_api_is_named(server: Served) -> None:
    with pytest.raises(Unsupported, match=server.url):
        SGLangEngine(f"{server.url}/v1/")
