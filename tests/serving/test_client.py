"""The engine on a server: what TorchEngine does with the same weights, token for token."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections import defaultdict
from typing import Any

import httpx
import pytest
from bpe import untagged_tokenizer
from pydantic import BaseModel, Field
from served import Served
from tiny import chat

import mvspec as mv
from mvspec.compiler.plan import ExecutionPlan
from mvspec.errors import MvspecError, Unsupported, VerifyError
from mvspec.limits import Limits
from mvspec.runtime import (
    Finished,
    HoleFilled,
    Interrupted,
    Options,
    Sampling,
    SGLangEngine,
    TakenBack,
    Written,
)
from mvspec.runtime.result import Result
from mvspec.runtime.serving.job import Job
from mvspec.runtime.serving.wire import decode_result, encode_event, encode_result
from mvspec.runtime.trace import Trace


class Count(BaseModel):
    """What a hole of a schema gives."""

    n: int = Field(ge=0, le=9)


STATIC = mv.document(
    mv.user("Well?"),
    mv.assistant(
        mv.parallel(
            mv.branch("One", "It is ", mv.gen("a", 12)),
            mv.branch("Two", "So ", mv.gen("b", 5, choices=["yes", "no"])),
            mv.branch("Three", mv.gen("c", 30, schema=Count)),
            conclusion=["Then ", mv.gen("d", 8, stop=["A"])],
        )
    ),
)
ASK = mv.document(mv.user("Well?"))
LONG = Options(limits=Limits(max_tokens=3000))


def seeded(seed: int, end: int = 150) -> Options:
    # A limit on all threads together would cut them by who is ahead, which timing decides.
    return Options(Sampling(temperature=1.0, seed=seed), Limits(max_position=end))


def same(found: Trace, wanted: Trace) -> None:
    """Two traces tell of the same tokens, written by the same threads."""
    assert found.ids == wanted.ids
    for name in ("texts", "position_ids", "authors", "owners", "threads", "holes", "document"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert found.finish == wanted.finish
    for one, other in zip(found.logprobs, wanted.logprobs, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or abs(one - other) < 5e-5


@pytest.mark.parametrize("options", [Options(), Options(Sampling(temperature=1.0, seed=3))])
def test_a_static_plan_is_that_of_the_other_engine(
    engine: Any, reference: Any, options: Options
) -> None:
    found, wanted = engine.run(STATIC, options), reference.run(STATIC, options)
    same(found.trace, wanted.trace)
    assert dict(found.values) == dict(wanted.values)
    assert dict(found.texts) == dict(wanted.texts)
    assert dict(found.errors) == dict(wanted.errors)
    assert found.document == wanted.document
    assert found.trace.model == str(engine.model)


def test_a_schema_gives_an_instance_of_its_class(engine: Any, reference: Any) -> None:
    document = mv.document(
        mv.user("How many?"), mv.assistant(mv.gen("count", 60, schema=Count, stop=()))
    )
    for seed in range(8):
        options = Options(Sampling(temperature=1.0, seed=seed))
        found = engine.run(document, options)
        assert dict(found.values) == dict(reference.run(document, options).values)
        if found.values:
            assert isinstance(found["count"], Count)
            return
    raise AssertionError("no seed filled the hole")


def test_adaptive_turns_are_those_of_the_other_engine(engine: Any, reference: Any) -> None:
    options = [seeded(seed) for seed in range(6)]
    found = engine.run_many([ASK] * 6, options)
    wanted = reference.run_many([ASK] * 6, options)
    for one, other in zip(found, wanted, strict=True):
        same(one.trace, other.trace)
        assert one.document == other.document
    assert max(len(one.trace.threads) for one in found) > 2


def test_a_replay_returns_the_same_layout(engine: Any) -> None:
    trace = engine.run(ASK, seeded(2)).trace
    again = engine.run(trace.plan, Options(decode=True)).trace
    assert again.ids == trace.ids
    assert (again.layout.position_ids == trace.layout.position_ids).all()
    one, other = trace.logprobs[trace.prompt], again.logprobs[trace.prompt]
    assert one is not None
    assert other is not None
    assert abs(one - other) < 5e-5


def test_the_likeliest_tokens_come_too(engine: Any, reference: Any) -> None:
    options = Options(Sampling(logprobs=3), Limits(max_tokens=20))
    found, wanted = engine.run(ASK, options), reference.run(ASK, options)
    assert len(found.top_logprobs) == len(wanted.top_logprobs) == len(found.trace)
    for one, other in zip(found.top_logprobs, wanted.top_logprobs, strict=True):
        assert [id for id, _ in one] == [id for id, _ in other]
        assert all(abs(a - b) < 5e-5 for (_, a), (_, b) in zip(one, other, strict=True))


def test_events_hold_the_trace(engine: Any, reference: Any) -> None:
    for document, options in ((STATIC, Options()), (ASK, seeded(2))):
        *events, last = engine.stream(document, options)
        assert isinstance(last, Finished)
        written: dict[int, list[int]] = defaultdict(list)
        for event in events:
            assert event.request == "0"
            if isinstance(event, Written):
                written[event.thread].append(event.id)
            elif isinstance(event, TakenBack):
                del written[event.thread][-event.count :]
        trace = last.result.trace
        own: dict[int, list[int]] = defaultdict(list)
        for id, owner, author in zip(trace.ids, trace.owners, trace.authors, strict=True):
            if author != "prompt":
                own[owner].append(id)
        assert written == own

        def told(events: list[Any]) -> list[Any]:
            kinds = [e for e in events if not isinstance(e, Written | TakenBack | Finished)]
            return sorted((type(e).__name__, e.thread) for e in kinds)

        assert told(events) == told(list(reference.stream(document, options)))


def test_events_come_while_it_goes_on(server: Served, engine: Any) -> None:
    job = engine.submit(ASK, Options(limits=Limits(max_tokens=400)))
    events = engine.follow(job)
    first = next(event for event in events if isinstance(event, Written))
    assert not server.lines(f'mvspec {{"rid": "{job.rid}"')  # what the log says at its end
    last = [event for event in events if isinstance(event, Written)][-1]
    assert first.step < last.step
    assert ended(server, job.rid)["tokens"] == 400


def test_a_filled_hole_is_told_with_its_value(engine: Any) -> None:
    values = {
        event.name: event.value
        for event in engine.stream(STATIC, Options())
        if isinstance(event, HoleFilled)
    }
    assert values["b"] in ("yes", "no")


def test_a_number_of_any_size_comes_back() -> None:
    filled = HoleFilled("0", 0, "n", "9" * 40, int("9" * 40), cut=False, step=3)
    done = Result(document=None, values={}, texts={}, trace=Trace(ids=(), seed=2**70))
    text = encode_result(done, [encode_event(filled)])
    result, events = decode_result(text, ExecutionPlan(ops=()), "m")
    assert (result.trace.seed, result.trace.model) == (2**70, "m")
    assert events[0]["value"] == filled.value


def test_several_at_once_without_blocking(engine: Any, reference: Any) -> None:
    async def main() -> list[Any]:
        runs = [engine.run_async(ASK, seeded(seed), name=str(seed)) for seed in range(4)]
        return list(await asyncio.gather(*runs))

    options = [seeded(seed) for seed in range(4)]
    for found, wanted in zip(
        asyncio.run(main()), reference.run_many([ASK] * 4, options), strict=True
    ):
        same(found.trace, wanted.trace)


def test_tokens_are_sent_only_where_somebody_reads_them(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: list[Any] = []
    take = Job.take

    def counted(job: Job, chunk: Any) -> None:
        chunks.append(chunk)
        take(job, chunk)

    monkeypatch.setattr(Job, "take", counted)
    options = Options(limits=Limits(max_tokens=150))
    streamed = list(engine.stream(ASK, options))[-1].result
    many = len(chunks)
    assert many > 20
    same(engine.run(ASK, options).trace, streamed.trace)
    same(asyncio.run(engine.run_async(ASK, options)).trace, streamed.trace)
    assert len(chunks) - many < 10


def test_run_takes_a_url(server: Served, reference: Any) -> None:
    found = mv.run(ASK, server.url, temperature=1.0, seed=2, limits=Limits(max_position=90))
    same(found.trace, reference.run(ASK, seeded(2, 90)).trace)


# What ends it early


def live_threads(server: Served) -> float:
    text = httpx.get(f"{server.url}/metrics/", timeout=10.0).text
    found = [line for line in text.splitlines() if line.startswith("mvspec_live_threads{")]
    return float(found[-1].rpartition(" ")[2])


def ended(server: Served, rid: str) -> dict[str, Any]:
    line = server.wait_for(f'mvspec {{"rid": "{rid}"')
    return dict(json.loads(line[line.index("{") :]))


def test_leaving_a_stream_ends_the_request(server: Served, engine: Any) -> None:
    job = engine.submit(ASK, LONG)
    for event in engine.follow(job):
        if isinstance(event, Written):
            break
    assert ended(server, job.rid)["finish"] == "abort"


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
        while live_threads(server) < len(documents) and time.monotonic() < until:
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
    while live_threads(server):
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
        engine.run(STATIC, options)
    assert len(server.lines("mvspec {")) == before


def test_another_tokenizer_is_refused(server: Served) -> None:
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
        SGLangEngine(f"{server.url}/v1")


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
    job = Job("0", engine.plan(ASK), Options(), "the server", "model")
    job.take(chunk)
    assert isinstance(job.error, Unsupported)
    assert "without mvspec's plugin" in str(job.error)
