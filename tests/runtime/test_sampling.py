"""How tokens are drawn: filters, penalties, seeds, logprobs; all exact, nothing left to luck."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from scripted import ask, training_logits  # noqa: E402
from tiny import tiny_engine  # noqa: E402
from torch import Tensor  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.errors import VerifyError  # noqa: E402
from mvspec.runtime import Options, Result, Sampling, TorchEngine  # noqa: E402
from mvspec.runtime.sampling import DrawnToken, DrawRequest, draw_tokens  # noqa: E402


def draw(logits: Tensor, requests: list[DrawRequest]) -> list[DrawnToken]:
    """Draw several tokens from the same logits."""
    return draw_tokens(logits.expand(len(requests), -1), requests)


def logits_of(size: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    """Return random logits without near ties: [size]."""
    generator = torch.Generator().manual_seed(seed)
    logits: Tensor = scale * torch.randn(size, generator=generator, dtype=torch.float64)
    return logits


def expected_weights(logits: Tensor, sampling: Sampling) -> list[float]:
    """Return what each token is drawn with, not normalised: the definition, token by token."""
    top = float(logits.max())
    weights = [math.exp((float(x) - top) / sampling.temperature) for x in logits]
    total = sum(weights)
    weights = [w / total for w in weights]
    if sampling.min_p:
        weights = [w if w >= sampling.min_p * max(weights) else 0.0 for w in weights]
    ranked = sorted(range(len(weights)), key=lambda id: -weights[id])
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
    whole, before, kept = sum(weights[id] for id in ranked), 0.0, set()
    for id in ranked:
        if before < sampling.top_p * whole:
            kept.add(id)
        before += weights[id]
    return [w if id in kept else 0.0 for id, w in enumerate(weights)]


def expected_draw(logits: Tensor, sampling: Sampling, stream: str, index: int) -> int:
    """Return the token at which the sum of the weights passes the random number."""
    sums = [*accumulate(expected_weights(logits, sampling))]
    at = sampling.uniform(stream, index) * sums[-1]
    return next(id for id, total in enumerate(sums) if total > at)


@given(
    size=st.integers(1, 60),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([1.0, 0.99, 0.6, 0.05]),
    top_k=st.sampled_from([0, 0, 1, 5, 1000]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.9, 1.0]),
)
def test_draws_are_the_inverse_of_the_filtered_distribution(
    size: int, seed: int, temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    sampling = Sampling(temperature, top_p, top_k, min_p, seed=seed)
    logits = logits_of(size, seed)
    wanted = [DrawRequest(sampling, "0/1.0", index) for index in range(20)]
    found = [drawn.id for drawn in draw(logits, wanted)]
    assert found == [expected_draw(logits, sampling, "0/1.0", index) for index in range(20)]


def test_a_large_vocabulary_is_filtered_alike() -> None:
    """Where the likeliest thousand tokens do not reach top_p, all are sorted."""
    for scale in (0.1, 6.0):
        logits = logits_of(4000, 1, scale)
        sampling = Sampling(1.0, top_p=0.9, seed=3)
        found = [d.id for d in draw(logits, [DrawRequest(sampling, "", n) for n in range(40)])]
        assert found == [expected_draw(logits, sampling, "", n) for n in range(40)]


def test_frequencies_are_the_models_probabilities() -> None:
    """Chi-square over 4,000 draws; the random numbers are fixed, so the outcome is."""
    logits = logits_of(12, 5)
    for seed, temperature in ((0, 1.0), (1, 2.5)):
        sampling = Sampling(temperature, seed=seed)
        counts = [0] * 12
        for drawn in draw(logits, [DrawRequest(sampling, "", index) for index in range(4000)]):
            counts[drawn.id] += 1
        probabilities = torch.softmax(logits / temperature, -1).tolist()
        expected = [4000 * p for p in probabilities]
        squares = sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True))
        assert squares < 31.3  # 1 in 1,000 with 11 degrees of freedom


def test_random_numbers_are_even_and_new_at_every_place() -> None:
    numbers = [
        Sampling(seed=seed).uniform(stream, index)
        for seed in (0, 1)
        for stream in ("0/", "1/", "0/0.0", "0/0.1")
        for index in range(500)
    ]
    assert len(set(numbers)) == 4000
    assert all(0 <= number < 1 for number in numbers)
    tenths = [sum(int(10 * number) == tenth for number in numbers) for tenth in range(10)]
    assert sum((count - 400) ** 2 / 400 for count in tenths) < 27.9  # 1 in 1,000


@pytest.mark.parametrize("temperature", [1e-310, 1e-9, 1e9])
def test_extreme_temperatures(temperature: float) -> None:
    logits = logits_of(30).float()
    found = {
        d.id for d in draw(logits, [DrawRequest(Sampling(temperature), "", n) for n in range(200)])
    }
    assert found == {int(logits.argmax())} if temperature < 1 else len(found) == 30


def test_what_is_not_allowed_is_never_drawn() -> None:
    logits = logits_of(30, 2)
    allowed = torch.zeros(20, dtype=torch.bool)  # ids past it are not allowed either
    allowed[[3, 7]] = True
    for sampling in (Sampling(), Sampling(9.0), Sampling(9.0, top_p=0.9), Sampling(9.0, top_k=9)):
        found = {
            d.id for d in draw(logits, [DrawRequest(sampling, "", n, allowed) for n in range(50)])
        }
        assert found == {3, 7} if sampling.temperature else {max((3, 7), key=lambda n: logits[n])}


def test_the_likeliest_tokens_are_told_as_the_model_sees_them() -> None:
    """Whatever temperature, filters, penalties and masks make of them."""
    logits = logits_of(30, 4)
    expected = torch.log_softmax(logits, -1)
    allowed = torch.arange(30) < 3
    sampling = Sampling(0.3, top_k=2, repetition_penalty=3.0, logprobs=4)
    (drawn,) = draw(logits, [DrawRequest(sampling, "", 0, allowed, seen=[0, 1, 2])])
    assert drawn.logprob == pytest.approx(float(expected[drawn.id]))
    assert [id for id, _ in drawn.top] == expected.argsort(descending=True)[:4].tolist()
    for id, logprob in drawn.top:
        assert logprob == pytest.approx(float(expected[id]))
    (few,) = draw(logits[:5], [DrawRequest(Sampling(logprobs=100), "", 0)])
    assert len(few.top) == 5


def test_the_penalty_is_ctrls() -> None:
    logits = torch.tensor([2.0, 1.9, -0.1, -5.0])
    cases = [((), 0), ((0,), 1), ((0, 1), 0), ((0, 1, 1, 0), 0)]
    for seen, best in cases:
        (drawn,) = draw(logits, [DrawRequest(Sampling(repetition_penalty=1.5), "", 0, seen=seen)])
        assert drawn.id == best
    logits = torch.tensor([-1.0, -1.1])  # negative ones are multiplied
    (drawn,) = draw(logits, [DrawRequest(Sampling(repetition_penalty=1.2), "", 0, seen=(0,))])
    assert drawn.id == 1


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-1.0, math.inf, math.nan, "1", None]),
        ("top_p", [0.0, 1.1, math.nan]),
        ("top_k", [-1, 1.5]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("repetition_penalty", [0.0, -1.0, math.inf, math.nan]),
        ("seed", [0.5, "one"]),
        ("logprobs", [-1, 101, 2.0]),
        ("stop", ["end", ("",), (3,), 7]),
    ],
)
def test_bad_settings(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(VerifyError, match=rf"^{name}: .* is not a"):
            Sampling(**{name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sampling", [0.7, None]),
        ("limits", [{"max_tokens": 3}, None]),
        ("structure", [1, None]),
        ("share", [-1, 0.5, "2"]),
        ("threads", [-1, 1.5, None]),
        ("decode", ["yes"]),
        ("logits", [2]),
    ],
)
def test_bad_options(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(VerifyError, match=rf"^{name}: .* is not (a|True)"):
            Options(**{name: value})


# In the engine


def block(*bodies: Any) -> mv.Document:
    """Return a document of parallel paths."""
    return ask(mv.parallel(*(mv.branch("b", *body) for body in bodies), conclusion="Done"))


def drawn_in(result: Result, thread: int) -> list[int]:
    """Return what the model drew in one thread."""
    trace = result.trace
    columns = zip(trace.ids, trace.thread_ids, trace.logprobs, strict=True)
    return [id for id, owner, logprob in columns if owner == thread and logprob is not None]


def replayed(engine: TorchEngine, document: mv.Document, result: Result, sampling: Sampling) -> int:
    """Draw every token again from the logits of training; return how many there were."""
    trace = result.trace
    leads = {op.hole.name: op.lead for op in engine.plan(document).ops if op.op == "generate"}
    starts = {hole.start: leads[hole.name] for hole in trace.holes}
    whole = training_logits(engine, result)
    count: dict[int, int] = {}
    places = {0: ""} | {t.id: f"0.{t.id - 1}" for t in trace.threads[1:]}
    drawn = 0
    for index, owner in enumerate(trace.thread_ids):
        at = count[owner] = count.get(owner, -1) + 1
        if trace.logprobs[index] is None:
            continue
        logits = whole[int(trace.layout.parent[index])]
        seen = [
            id
            for id, other in zip(trace.ids[:index], trace.thread_ids, strict=False)
            if other in (0, owner)
        ]
        allowed = engine.lexicon.starting(starts.get(index, "")).mask
        (again,) = draw(logits, [DrawRequest(sampling, f"0/{places[owner]}", at, allowed, seen)])
        assert again.id == trace.ids[index]
        assert again.logprob == pytest.approx(trace.logprobs[index], abs=1e-9)
        if sampling.logprobs:
            assert [id for id, _ in result.top_logprobs[index]] == [id for id, _ in again.top]
        drawn += 1
    return drawn


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, seed=4),
        Sampling(0.8, top_p=0.9, top_k=30, min_p=0.01, seed=5, logprobs=3),
        Sampling(repetition_penalty=1.3),
        Sampling(2.0, repetition_penalty=5.0, seed=6),
    ],
)
def test_the_engine_draws_from_what_training_sees(sampling: Sampling) -> None:
    """Every token again: from its parent's logits, its stream, its index, what its thread sees."""
    engine = tiny_engine()
    document = block([mv.gen("a", 12)], ["x", mv.gen("b", 20)], [mv.gen("c", 5)])
    result = engine.run(document, Options(sampling))
    assert replayed(engine, document, result, sampling) >= 10
    assert len(result.top_logprobs) == (len(result.trace) if sampling.logprobs else 0)


def test_siblings_tokens_do_not_count_for_the_penalty() -> None:
    """Both paths like the same tokens; each says each of them once before its own penalty."""
    liked = {id: 60.0 - 10 * n for n, id in enumerate(range(40, 52))}
    engine = tiny_engine(bias=liked)
    paths = [[mv.gen("a", 6)], [mv.gen("b", 6)]]
    together = engine.run(block(*paths), Options(Sampling(repetition_penalty=1e6)))
    one, two = drawn_in(together, 1)[1:], drawn_in(together, 2)[1:]  # the first have a space
    assert one == two == [*range(40, 45)]
    # A conclusion sees both.
    end = ask(mv.parallel(*(mv.branch("b", *p) for p in paths), conclusion=["So", mv.gen("c", 6)]))
    result = engine.run(end, Options(Sampling(repetition_penalty=1e6)))
    assert {*drawn_in(result, 0)}.isdisjoint(one)


def test_a_seeded_result_does_not_change_with_what_else_runs() -> None:
    document = block([mv.gen("a", 9)], [mv.gen("b", 14)], ["So ", mv.gen("c", 5)])
    option = Options(Sampling(1.0, seed=11))
    alone = tiny_engine().run(document, option)
    for rows in (1, 3, 50):
        found = tiny_engine(max_batched_tokens=rows).run(document, option)
        assert found.trace.ids == alone.trace.ids
    others = [ask("x" * n, mv.gen("x", n + 3)) for n in range(5)]
    for engine in (
        tiny_engine(),
        tiny_engine(max_concurrent_requests=2),
        tiny_engine(max_batched_tokens=7),
    ):
        first, *_ = engine.run_many([document, *others], option)
        assert first.trace.ids == alone.trace.ids
        assert first.values == alone.values
    for threads in (1, 2):
        slow = tiny_engine().run(document, Options(option.sampling, threads=threads))
        assert slow.trace.ids == alone.trace.ids
        assert slow.trace.thread_ids == alone.trace.thread_ids


def test_streams_differ_by_seed_request_and_thread() -> None:
    document = block([mv.gen("a", 12)], [mv.gen("a2", 12)])
    engine = tiny_engine()
    option = Options(Sampling(1.0, seed=1))
    same, again = engine.run_many([document] * 2, option)
    assert same.trace.ids != again.trace.ids
    other = engine.run(document, Options(Sampling(1.0, seed=2)))
    assert other.trace.ids != same.trace.ids
    assert engine.run(document, option).trace.ids == same.trace.ids
    assert drawn_in(same, 1) != drawn_in(same, 2)
    # Greedy ones are all alike.
    first, second = engine.run_many([document] * 2)
    assert first.trace.ids == second.trace.ids
