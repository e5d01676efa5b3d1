"""The in-process engine: batches, streams, traces, and what it refuses."""

from __future__ import annotations

import asyncio
import copy
import signal
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from bpe import untagged_tokenizer  # noqa: E402
from tiny import chat, tiny_engine  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.compiler import ExecutionPlan, plan_document  # noqa: E402
from mvspec.errors import LimitExceeded, Unsupported, VerifyError  # noqa: E402
from mvspec.law.limits import Limits  # noqa: E402
from mvspec.runtime import (  # noqa: E402
    Finished,
    Forked,
    HoleFilled,
    Interrupted,
    Joined,
    ModelError,
    Options,
    TorchEngine,
    Trace,
    Written,
)
from mvspec.runtime.engine.kv_cache import KVCache, token_bytes  # noqa: E402


def ask(*body: Any) -> mv.Document:
    return mv.document(mv.user("Well?"), mv.assistant(*body))


def forked(tokens: int = 6) -> mv.Document:
    return ask(
        mv.parallel(
            mv.branch("a", "A", mv.gen("a", tokens)),
            mv.branch("b", "B", mv.gen("b", 3)),
            conclusion=["So", mv.gen("end", 4)],
        )
    )


def test_many_requests_share_steps() -> None:
    engine = tiny_engine(max_concurrent_requests=3)
    documents = [ask("N", mv.gen("x", count)) for count in (9, 2, 2, 2, 9)]
    alone = [engine.run(document).values for document in documents]
    engine.scheduler.steps = 0
    results = engine.run_many(documents)
    assert [result.values for result in results] == alone
    # A finished request leaves and a waiting one enters.
    assert 9 < engine.scheduler.steps < sum((9, 2, 2, 2, 9))


def test_events_add_up_to_the_trace() -> None:
    engine = tiny_engine()
    texts: dict[int, str] = {}
    kinds: list[str] = []
    for event in engine.stream(forked()):
        kinds.append(type(event).__name__)
        if isinstance(event, Written):
            texts[event.thread] = texts.get(event.thread, "") + event.text
        if isinstance(event, Finished):
            result = event.result
    assert kinds[-1] == "Finished"
    assert kinds.index("Forked") < kinds.index("HoleFilled") < kinds.index("Joined")
    trace = result.trace
    for thread in trace.threads:
        columns = zip(trace.token_texts, trace.thread_ids, trace.authors, strict=True)
        own = [t for t, id, author in columns if id == thread.id and author != "prompt"]
        assert "".join(own) == texts[thread.id]
    assert [thread.title for thread in trace.threads] == ["", "a", "b"]
    assert {Forked.__name__, Joined.__name__, HoleFilled.__name__} < set(kinds)


def test_leaving_a_stream_drops_the_request() -> None:
    engine = tiny_engine()
    stream = engine.stream(forked())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not engine.step()
    assert engine.run(forked()).values


def test_tasks_share_steps() -> None:
    engine = tiny_engine()

    async def both() -> list[Any]:
        runs = (engine.run_async(ask("N", mv.gen("x", 12)), name=str(n)) for n in range(4))
        return await asyncio.gather(*runs)

    alone = engine.run(ask("N", mv.gen("x", 12))).values
    engine.scheduler.steps = 0
    results = asyncio.run(both())
    assert [result.values for result in results] == [alone] * 4
    assert engine.scheduler.steps < 3 * 13


def test_one_thread_at_a_time_writes_the_same() -> None:
    engine = tiny_engine()
    together = engine.run(forked())
    alone = engine.run(forked(), Options(threads=1))
    assert alone.trace.ids == together.trace.ids
    assert alone.trace.position_ids == together.trace.position_ids
    assert len(alone.trace.forward_seconds) > len(together.trace.forward_seconds)


def test_plans_and_traces_travel_as_json(tmp_path: Path) -> None:
    engine = tiny_engine()
    plan = ExecutionPlan.from_json(engine.plan(forked()).to_json())
    result = engine.run(plan)
    assert result.values == engine.run(forked()).values
    file = tmp_path / "traces.jsonl"
    result.trace.save(file)
    result.trace.save(file)
    first, second = file.read_text(encoding="utf-8").splitlines()
    assert first == second
    again = Trace.from_json(first)
    assert again == result.trace
    replay = engine.run(again.plan, Options(decode=True))
    assert replay.trace.ids == result.trace.ids
    assert replay.trace.layout == result.trace.layout
    assert replay.document == result.document
    drawn = [p for p in result.trace.logprobs if p is not None]
    assert len(drawn) > 6
    for before, after in zip(result.trace.logprobs, replay.trace.logprobs, strict=True):
        assert before is None or after == pytest.approx(before, abs=1e-9)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "JSON"),
        ('{"ids": [1]}', "token_texts has 0 of 1"),
        ('{"thread_ids": 3}', "thread_ids"),
        ("[]", "valid dictionary"),
        ('{"owners": 3}', "thread_ids"),
        ('{"version": 2, "owners": []}', "owners"),
        ('{"version": 3}', "version"),
    ],
)
def test_what_is_no_trace_is_refused(line: str, why: str) -> None:
    with pytest.raises(VerifyError, match=why):
        Trace.from_json(line)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_interrupt_keeps_the_trace(monkeypatch: pytest.MonkeyPatch, streamed: bool) -> None:
    engine = tiny_engine()
    forward, calls = engine.model.forward, []

    def interrupted(parts: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(parts)

    monkeypatch.setattr(engine.model, "forward", interrupted)
    with pytest.raises(Interrupted) as stop:
        list(engine.stream(forked())) if streamed else engine.run(forked())
    trace = stop.value.trace
    assert trace.finish == "interrupted"
    assert trace.answer > 6
    assert trace.layout.position_ids.tolist() == list(trace.position_ids)
    assert engine.run(forked()).trace.finish == "end"


# Python drops an interrupt that comes while an object is finalised, and warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_time_leaves_whole_traces() -> None:
    """Real signals, from a timer: they come in the model, between steps, and in bookkeeping."""
    engine = tiny_engine(bias=dict.fromkeys([chat().eos_token_id], -99.0))
    document, found = forked(200), 0
    before = signal.signal(signal.SIGALRM, lambda *args: signal.raise_signal(signal.SIGINT))
    # A shell's background jobs ignore Ctrl-C.
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for count in range(60):
            signal.setitimer(signal.ITIMER_REAL, 0.004 + 0.001 * (count % 30))
            traces: tuple[Trace, ...] = ()
            try:
                engine.run_many([document, forked(3)])
            except Interrupted as stop:
                traces = stop.traces
            except KeyboardInterrupt:
                pass  # before anything ran
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for trace in traces:
                assert Trace.from_json(trace.model_dump_json()) == trace
                assert trace.layout.position_ids.tolist() == list(trace.position_ids)
            found += any(trace.finish == "interrupted" for trace in traces)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, ctrl_c)
    assert found
    assert engine.run(forked(3)).trace.finish == "end"


def test_forks_and_joins_copy_no_keys() -> None:
    engine = tiny_engine()
    blocks = [
        mv.parallel(mv.branch("a", "One."), mv.branch("b", "Two."), conclusion="Both.")
        for _ in range(12)
    ]
    stores: list[KVCache] = []

    def roomy() -> KVCache:
        stores.append(KVCache(engine.model.device, capacity=4096))
        return stores[-1]

    engine.model.cache = roomy  # type: ignore[method-assign]
    request = engine.submit(ask(*blocks))
    while engine.step():
        pass
    assert sum(t.block >= 0 for t in engine.result(request).trace.threads) == 24
    assert stores[0].nbytes > 0
    assert stores[0].copied == 0
    engine.drop(request)
    assert stores[0].nbytes == 0  # whoever still holds the request


def test_a_growing_store_copies_a_token_once_on_average() -> None:
    store = KVCache(torch.device("cpu"), capacity=8)
    key, row = torch.ones(1, 2, 1, 4), store.fork(None)
    for _ in range(1000):
        column = store.allocate(row, 1)
        store.write(0, key, key, column)
    assert store.copied < 2 * 1000 * 2 * key.nbytes
    assert bool((store.keys[0][:, :, :1000] == 1).all())


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
def test_a_requests_keys_and_values_are_limited(kind: str) -> None:
    """From the first token on, and to the last byte."""
    engine = tiny_engine(kind)
    plan, whole = engine.plan(forked()), engine.run(forked())
    each = token_bytes(engine.model.model)
    assert each == 2 * 2 * 2 * 8 * 8  # keys and values, layers, heads, width, float64
    # The last token of all is drawn and never read, but it has its place.
    tight = tiny_engine(kind, max_kv_bytes=len(whole.trace) * each)
    assert tight.run(plan).trace.ids == whole.trace.ids
    tight = tiny_engine(kind, max_kv_bytes=len(whole.trace) * each - 1)
    with pytest.raises(LimitExceeded, match=rf"{len(whole.trace)} tokens' .* the limit of a req"):
        tight.run(plan)
    # What does not even hold the prompt is refused before it starts.
    small = tiny_engine(kind, max_kv_bytes=each)
    with pytest.raises(LimitExceeded, match=r"5 tokens' keys and values"):
        small.run(plan)
    assert small.scheduler.steps == 0


def test_a_model_that_needs_more_than_it_says_is_limited_too() -> None:
    engine = tiny_engine()
    store = KVCache(engine.model.device)
    store.restrict(60_000, 1)
    engine.model.cache = lambda: store  # type: ignore[method-assign]
    with pytest.raises(LimitExceeded, match=r"256 tokens' .* take 0\.1 MB and the limit"):
        engine.run(forked())


def test_out_of_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    limited = KVCache(engine.model.device)
    limited.restrict(30_000, 512)
    monkeypatch.setattr(engine.model, "cache", lambda: limited)
    with pytest.raises(LimitExceeded, match=r"59 tokens' keys and values take 0\.0 MB and the lim"):
        engine.run(forked(60))
    monkeypatch.undo()
    assert engine.run(forked()).values

    def full(**kwargs: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes")

    monkeypatch.setattr(engine.model, "model", FailingModel(engine.model.model, full))
    with pytest.raises(LimitExceeded, match=r"out of memory while .* tokens of 1 requests"):
        engine.run(forked())
    monkeypatch.undo()
    assert engine.run(forked()).values


def test_a_model_that_does_not_fit_into_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("Cannot allocate memory")

    monkeypatch.setattr("mvspec.runtime.engine.torch_engine.load_model", full)
    with pytest.raises(ModelError, match=r"the model big does not fit .*Cannot allocate"):
        TorchEngine.load("big")


class FailingModel:
    def __init__(self, model: Any, call: Any) -> None:
        self.model, self.call = model, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, **kwargs: Any) -> Any:
        return self.call(**kwargs)


def test_what_cannot_run_is_refused() -> None:
    engine = tiny_engine()
    with pytest.raises(LimitExceeded, match="4096"):
        engine.run(ask(mv.gen("x", 5000)))
    # Paths run side by side, so each may use what the context leaves.
    request = engine.submit(
        ask(mv.parallel(*(mv.branch("b", mv.gen(f"x{i}", 1900)) for i in "abc")))
    )
    engine.drop(request)
    with pytest.raises(VerifyError, match="empty document"):
        engine.run(mv.Document())
    bare = chat()
    bare.chat_template = None
    with pytest.raises(VerifyError, match="nothing predicts it"):
        tiny_engine(tokenizer=bare).run(mv.document(mv.assistant(mv.gen("x"))))
    with pytest.raises(Unsupported, match="'x'"):
        engine.run(ask(mv.gen("x", regex="a(?=b)")))
    with pytest.raises(LimitExceeded, match="max_position"):
        engine.run(forked(), Options(limits=Limits(max_position=3)))
    with pytest.raises(LimitExceeded, match="max_tokens"):
        engine.run(forked(), Options(limits=Limits(max_tokens=3)))
    for name in ("max_batched_tokens", "max_concurrent_requests", "max_kv_bytes"):
        for value in (0, -1, 1.5, "2"):
            more: dict[str, Any] = {name: value}
            with pytest.raises(VerifyError, match=f"{name}: {value!r} is not a whole number"):
                tiny_engine(**more)


def test_weights_are_copied_where_they_lie() -> None:
    engine = TorchEngine(copy.deepcopy(tiny_engine().model.model), chat())
    own = engine.model.model.state_dict()
    places = {name: weight.data_ptr() for name, weight in own.items()}
    before = engine.run(forked()).trace.ids
    other = {name: weight.flip(0) for name, weight in own.items() if weight.ndim == 2}
    kept = {name: own[name].clone() for name in other}
    engine.set_weights(other)
    assert engine.run(forked()).trace.ids != before
    engine.set_weights(kept)
    assert engine.run(forked()).trace.ids == before
    now = engine.model.model.state_dict()
    assert {name: weight.data_ptr() for name, weight in now.items()} == places
    for wrong in ({"nothing": torch.ones(1)}, {next(iter(other)): torch.ones(1)}):
        with pytest.raises(VerifyError, match="weights"):
            engine.set_weights(wrong)


def test_without_tags() -> None:
    tagged = tiny_engine()
    engine = tiny_engine(tokenizer=chat(untagged_tokenizer()))
    plan = plan_document(forked(), tagged.tokenizer)
    with pytest.raises(Unsupported, match="add_tags"):
        engine.run(plan)
    # A model that never forks generates plainly.
    result = engine.run(mv.document(mv.user("Go.")), Options(limits=Limits(max_tokens=12)))
    assert result.document is not None
    assert result.document.messages[-1].role == "assistant"
    assert result.trace.parallelism == 1.0
    assert len(result.trace.threads) == 1


def test_models_that_cannot_honour_the_mask() -> None:
    engine = tiny_engine()
    model = engine.model.model
    for name, value, what in [
        ("layer_types", ["sliding_attention"], "sliding_attention"),
        ("rope_parameters", {"rope_type": "dynamic"}, "dynamic"),
        ("alibi", True, "ALiBi"),
    ]:
        before = getattr(model.config, name, None)
        setattr(model.config, name, value)
        with pytest.raises(Unsupported, match=what):
            TorchEngine(model, engine.tokenizer)
        setattr(model.config, name, before)
    with pytest.raises(Unsupported):
        TorchEngine(transformers.BloomForCausalLM(transformers.BloomConfig(
            n_layer=1, n_head=2, hidden_size=8, vocab_size=9)), engine.tokenizer)  # fmt: skip
