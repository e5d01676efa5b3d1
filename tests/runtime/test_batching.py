"""Several requests on one engine: they share steps, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from scripted import ask, scripted_engine  # noqa: E402
from tiny import FORKING, tiny_engine  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.compiler.plan import Adaptive, ExecutionPlan, Extend  # noqa: E402
from mvspec.errors import LimitExceeded, RequestFailed, Unsupported, VerifyError  # noqa: E402
from mvspec.law.limits import Limits  # noqa: E402
from mvspec.runtime import (  # noqa: E402
    Event,
    Finished,
    Forked,
    HoleFilled,
    Interrupted,
    Joined,
    Options,
    PathEnded,
    Result,
    Sampling,
    Written,
)
from mvspec.runtime.engine.kv_cache import token_bytes  # noqa: E402
from mvspec.runtime.sampling import choose_ids  # noqa: E402

SAYS = {f"{name}:": name.lower() * 99 for name in "ABCDF"}


def hole(name: str, tokens: int) -> mv.Document:
    return ask(f"{name}:", mv.gen("x", tokens))


def block() -> mv.Document:
    return ask(
        mv.parallel(
            mv.branch("a", "A:", mv.gen("a", 5)),
            mv.branch("b", "B:", mv.gen("b", 2)),
            conclusion=["C:", mv.gen("c", 3)],
        )
    )


@pytest.mark.parametrize("most", [1, 2, 3, 64])
def test_a_finished_request_leaves_and_a_waiting_one_enters(most: int) -> None:
    engine = scripted_engine(SAYS, max_concurrent_requests=most)
    forward, sizes = engine.model.forward, []

    def counted(chunks: Any) -> Any:
        sizes.append(len(chunks))
        return forward(chunks)

    engine.model.forward = counted  # type: ignore[method-assign]
    lengths = dict(zip("ABCDF", (9, 2, 5, 1, 7), strict=True))
    results = engine.run_many([hole(name, count) for name, count in lengths.items()])
    assert [result["x"] for result in results] == [n.lower() * c for n, c in lengths.items()]
    assert max(sizes) == min(most, 5)
    if most == 1:
        assert sizes == [1] * sum(lengths.values())
    # None waits while there is a place: the fifth runs beside what is left of the first.
    if most == 2:
        assert engine.scheduler.steps == 15
    if most == 64:
        assert engine.scheduler.steps == 9


def test_a_long_prompt_takes_several_steps_and_lets_others_go_on() -> None:
    engine = tiny_engine(max_batched_tokens=16)
    long = mv.document(mv.user("word " * 200), mv.assistant("A:", mv.gen("x", 2)))
    alone = [engine.run(document).trace.ids for document in (long, hole("B", 6))]
    read = engine.submit(long)
    quick = engine.submit(hole("B", 6))
    ends: list[bool] = []
    while engine.step():
        ends.append(bool(quick.finish) and not read.finish)
    assert any(ends)
    for request, ids in zip((read, quick), alone, strict=True):
        assert engine.result(request).trace.ids == ids
        assert max(request.forward_tokens) <= 16


def test_options_for_each() -> None:
    engine = tiny_engine()
    documents = [hole("A", 8)] * 3
    each = [Options(), Options(Sampling(2.0, seed=1)), Options(limits=Limits(max_position=26))]
    greedy, drawn, short = engine.run_many(documents, each)
    assert greedy.trace.ids == engine.run(documents[0]).trace.ids
    assert drawn.trace.ids != greedy.trace.ids
    assert short.trace.finish == "limit"


@pytest.mark.parametrize("count", [0, 1, 4])
def test_options_are_one_or_as_many(count: int) -> None:
    engine = tiny_engine()
    with pytest.raises(VerifyError, match=f"options: {count} for 3 documents"):
        engine.run_many([hole("A", 3)] * 3, [Options()] * count)
    assert engine.run_many([], []) == []


def test_one_that_cannot_run_stops_all_before_they_start() -> None:
    engine = tiny_engine()
    with pytest.raises(VerifyError, match="empty document"):
        engine.run_many([hole("A", 3), mv.Document()])
    assert not engine.step()
    assert engine.scheduler.steps == 0


def test_streams_share_steps() -> None:
    """Two loops by turns: each step moves both."""
    engine = scripted_engine(SAYS)
    streams: list[Iterator[Event]] = [engine.stream(hole(name, 8)) for name in "AB"]
    for stream in streams:
        next(stream)
    found = [list(stream)[-1] for stream in streams]
    assert [event.result["x"] for event in found if isinstance(event, Finished)] == [
        "aaaaaaaa",
        "bbbbbbbb",
    ]
    assert engine.scheduler.steps < 16


def test_events_come_in_order() -> None:
    engine = scripted_engine(SAYS)
    events = list(engine.stream(block()))
    assert isinstance(events[-1], Finished)
    result = events[-1].result
    assert not any(isinstance(event, Finished) for event in events[:-1])
    steps = [event.forward for event in events if not isinstance(event, Finished)]
    assert steps == sorted(steps)
    forked, joined = (
        next(i for i, event in enumerate(events) if isinstance(event, kind))
        for kind in (Forked, Joined)
    )
    assert events[forked] == Forked("0", 0, (1, 2), ("1", "2"), ("a", "b"), -1)
    assert isinstance(events[joined], Joined)
    assert all(forked < i < joined for i, e in enumerate(events) if e in written(events, 1, 2))
    ended = [event.thread for event in events if isinstance(event, PathEnded)]
    assert ended == [2, 1]
    filled = [(e.thread, e.name, e.value, e.cut) for e in events if isinstance(e, HoleFilled)]
    assert filled == [(2, "b", "bb", False), (1, "a", "aaaaa", False), (0, "c", "ccc", False)]
    # What is told of a token is what the trace holds of it.
    trace = result.trace
    for thread in (0, 1, 2):
        own = [
            (trace.position_ids[i], trace.ids[i], trace.token_texts[i], trace.authors[i],
             trace.logprobs[i], trace.forward_ids[i])
            for i, owner in enumerate(trace.thread_ids)
            if owner == thread and trace.authors[i] != "prompt"
        ]  # fmt: skip
        assert own == [
            (e.position, e.id, e.text, e.author, e.logprob, e.forward)
            for e in written(events, thread)
        ]
    assert {e.hole for e in written(events, 0, 1, 2) if e.author == "model"} == {"a", "b", "c"}


def written(events: list[Event], *threads: int) -> list[Written]:
    return [e for e in events if isinstance(e, Written) and e.thread in threads]


def test_leaving_a_stream_frees_the_request() -> None:
    engine = scripted_engine(SAYS, max_concurrent_requests=1)
    for event in engine.stream(hole("A", 50)):
        if isinstance(event, Written) and event.author == "model":
            break
    assert engine.scheduler.steps == 1
    assert engine.run(hole("B", 2)).values == {"x": "bb"}

    async def leave() -> Result:
        stream = engine.stream_async(hole("A", 50))
        async for event in stream:
            if isinstance(event, Written) and event.author == "model":
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return await engine.run_async(hole("C", 2))

    assert asyncio.run(leave()).values == {"x": "cc"}


# Tasks


def test_tasks_share_steps() -> None:
    engine = scripted_engine(SAYS)
    lengths = dict(zip("ABCDF", (20, 12, 5, 19, 1), strict=True))

    async def all_() -> list[Result]:
        runs = [engine.run_async(hole(n, c), name=n) for n, c in lengths.items()]
        return await asyncio.gather(*runs)

    results = asyncio.run(all_())
    assert [result["x"] for result in results] == [n.lower() * c for n, c in lengths.items()]
    # They need not begin at once, but none runs for itself.
    assert 20 <= engine.scheduler.steps < 40


def test_a_tasks_events_are_those_of_a_stream() -> None:
    engine = scripted_engine(SAYS)

    async def both() -> tuple[list[Event], list[Event]]:
        async def collect(document: mv.Document) -> list[Event]:
            return [event async for event in engine.stream_async(document)]

        return await asyncio.gather(collect(block()), collect(hole("D", 30)))

    (events, _), expected = asyncio.run(both()), list(engine.stream(block()))
    assert events[:-1] == expected[:-1]
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.result.values == {"a": "aaaaa", "b": "bb", "c": "ccc"}


def test_a_task_that_is_cancelled_or_refused_leaves_the_others_alone() -> None:
    engine = scripted_engine(SAYS, max_concurrent_requests=2)

    async def some() -> list[Any]:
        long = asyncio.create_task(engine.run_async(hole("A", 200)))
        runs = [engine.run_async(hole("B", 9)), engine.run_async(mv.Document())]
        found: list[Any] = await asyncio.gather(*runs, return_exceptions=True)
        long.cancel()
        found += await asyncio.gather(long, return_exceptions=True)
        return [*found, await engine.run_async(hole("C", 2))]

    good, refused, cancelled, later = asyncio.run(some())
    assert good["x"] == "bbbbbbbbb"
    assert isinstance(refused, VerifyError)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert later["x"] == "cc"
    assert not engine.step()


def test_a_request_without_memory_leaves_the_others_alone() -> None:
    engine = tiny_engine(bias={65: 1e4})  # it says one letter
    each = token_bytes(engine.model.model)
    engine.max_kv_bytes = 100 * each

    async def all_() -> list[Any]:
        long = mv.document(mv.user("x" * 30), mv.assistant("A:", mv.gen("x", 90)))
        runs = [engine.run_async(each) for each in (long, hole("B", 20), hole("C", 30))]
        return await asyncio.gather(*runs, return_exceptions=True)

    full, *others = asyncio.run(all_())
    assert isinstance(full, LimitExceeded)
    assert [len(result["x"]) for result in others] == [20, 30]


def test_an_interrupt_drops_what_waits() -> None:
    engine = scripted_engine(SAYS, max_concurrent_requests=1)
    forward = engine.model.forward

    def interrupted(chunks: Any) -> Any:
        if engine.scheduler.steps == 6:
            raise KeyboardInterrupt
        return forward(chunks)

    engine.model.forward = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as stop:
        engine.run_many([hole("A", 4), hole("B", 9), hole("C", 9)])
    trace = stop.value.trace  # of the one that was running
    assert trace.text == "B:bb"
    assert trace.finish == "interrupted"
    found = [(trace.text, trace.finish) for trace in stop.value.traces]
    assert found == [("A:aaaa<|im_end|>", "end"), ("B:bb", "interrupted"), ("C:", "interrupted")]
    engine.model.forward = forward  # type: ignore[method-assign]
    assert not engine.step()
    assert engine.run(hole("C", 2)).values == {"x": "cc"}


# What one request raises is its own


def refuses(*ids: Any) -> ExecutionPlan:
    """A plan with ids that no constructor lets through."""
    op = Extend.model_construct(thread=0, tokens=ids, author="prompt")
    return ExecutionPlan.model_construct(ops=(op, Adaptive(thread=0)), form="multiverse")


@pytest.mark.parametrize("bad", [-1, 1 << 20, 1 << 31, 1 << 70, True, 5.0, "5", None])
def test_an_id_that_no_token_has_is_refused_before_it_meets_others(bad: Any) -> None:
    engine = scripted_engine(SAYS)
    alone = engine.run(hole("A", 5)).values
    going = engine.submit(hole("A", 5))
    with pytest.raises(Unsupported, match="which is not in the vocabulary"):
        engine.submit(refuses(5, bad, 6), name="bad")
    if bad != 1 << 20:
        with pytest.raises(VerifyError, match="tokens"):
            ExecutionPlan.from_json(json.dumps({"ops": [EXTEND | {"tokens": [5, bad]}]}))
    results = engine.run_many([hole("A", 5), refuses(bad)], return_errors=True)
    assert results[0].values == alone
    assert isinstance(results[1], Unsupported)
    *_, last = engine.follow(going)
    assert isinstance(last, Finished)
    assert last.result.values == alone


EXTEND = {"op": "extend", "thread": 0, "author": "prompt"}
PLACES = {
    "mask": ("draw_request", 2),
    "waiting": ("waiting", 2),
    "draw": ("take", 1),
    "pump": ("pump", 2),
    "read": ("read", 2),
}


@pytest.mark.parametrize("place", PLACES)
def test_whatever_one_request_raises_ends_it_alone(place: str) -> None:
    engine = tiny_engine(bias=FORKING)
    documents = [mv.document(mv.user(f"Well, {n}?")) for n in range(4)]
    options = Options(Sampling(1.0, seed=4), Limits(max_tokens=40))
    wanted = engine.run_many(documents, options)
    requests = [engine.prepare(each, options, str(n)) for n, each in enumerate(documents)]
    name, after = PLACES[place]
    real, calls = getattr(requests[1], name), 0

    def fails(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise ZeroDivisionError("boom")
        return real(*args, **more)

    setattr(requests[1], name, fails)
    engine.start(requests)
    for number in (0, 2, 3):
        *_, last = engine.follow(requests[number])
        assert isinstance(last, Finished)
        assert last.result.trace.ids == wanted[number].trace.ids
        own, others = last.result.trace.logprobs, wanted[number].trace.logprobs
        assert [each or 0.0 for each in own] == pytest.approx([each or 0.0 for each in others])
    with pytest.raises(
        RequestFailed, match=r"request 1 failed \(ZeroDivisionError: boom\)"
    ) as told:
        list(engine.follow(requests[1]))
    assert isinstance(told.value.__cause__, ZeroDivisionError)


def test_what_is_drawn_after_a_refused_token_is_drawn_anew() -> None:
    """The same random number would fall beside the token that was refused."""
    engine = tiny_engine()
    request = engine.prepare(hole("A", 5), Options(Sampling(1.0)), "0")
    engine.start([request])
    first = request.draw_request(request.root)
    request.root.refused.append(1)
    again = request.draw_request(request.root)
    assert first.allowed is not None
    assert again.allowed is not None
    logits, four = torch.zeros(1, 4), torch.ones(4, dtype=torch.bool)
    three = torch.tensor([True, False, True, True])
    counts = [0] * 4
    for seed in range(3000):
        sampling = Sampling(1.0, seed=seed)
        (id,) = choose_ids(logits, [first._replace(sampling=sampling, allowed=four)]).tolist()
        if id == 1:
            draw = again._replace(sampling=sampling, allowed=three)
            (id,) = choose_ids(logits, [draw]).tolist()
        counts[id] += 1
    assert counts[1] == 0
    assert all(900 < count < 1100 for count in (counts[0], *counts[2:]))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_that_leaves_nothing_ends_its_request_alone(temperature: float) -> None:
    engine = tiny_engine()
    how = Options(Sampling(temperature), Limits(max_tokens=8))
    documents = [hole(letter, 5) for letter in "ABC"]
    wanted = engine.run_many(documents, how)
    requests: list[Any] = [engine.prepare(each, how, str(n)) for n, each in enumerate(documents)]
    real = requests[1].draw_request
    none = torch.zeros(engine.lexicon.size, dtype=torch.bool)
    requests[1].draw_request = lambda thread: real(thread)._replace(allowed=none)
    engine.start(requests)
    for number in (0, 2):
        *_, last = engine.follow(requests[number])
        assert isinstance(last, Finished)
        assert last.result.trace.ids == wanted[number].trace.ids
    with pytest.raises(mv.MvspecError):
        list(engine.follow(requests[1]))
