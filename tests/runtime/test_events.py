"""Streams: whoever applies the events holds the tokens of the trace, whatever is taken back."""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bpe import loose_tokenizer, small_tokenizer, untagged_tokenizer  # noqa: E402
from dice import Dice, dice_engine  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from scripted import ask, scripted_engine  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.law.limits import Limits  # noqa: E402
from mvspec.runtime import (  # noqa: E402
    Event,
    Finished,
    Forked,
    HoleFilled,
    Joined,
    Options,
    PathEnded,
    Result,
    Sampling,
    TakenBack,
    TorchEngine,
    Written,
)
from mvspec.runtime.budget import HoleBudget  # noqa: E402

ENGINES = {
    name: dice_engine(tokenizer, liking)
    for name, tokenizer, liking in (
        ("small", small_tokenizer(), 0.0),
        ("forking", small_tokenizer(), 4.0),
        ("loose", loose_tokenizer(), 4.0),
        ("untagged", untagged_tokenizer(), 0.0),
    )
}


def fold(engine: TorchEngine, events: list[Event]) -> tuple[dict[int, list[Written]], Result]:
    """Apply the events of one run: each thread's tokens, and the result."""
    threads: dict[int, list[Written]] = {0: []}
    open_paths: dict[int, set[int]] = {}
    ended: set[int] = set()
    result = None
    for event in events:
        assert result is None, "nothing comes after Finished"
        match event:
            case Written(thread=thread):
                assert thread not in ended
                assert thread not in open_paths
                threads[thread].append(event)
            case TakenBack(thread=thread, count=count):
                assert thread not in ended
                assert 0 < count <= len(threads[thread])
                del threads[thread][-count:]
            case Forked(thread=thread, paths=paths, labels=labels, titles=titles):
                assert len(paths) == len(labels) == len(titles)
                open_paths[thread] = set(paths)
                threads.update((path, []) for path in paths)
            case PathEnded(thread=thread):
                assert thread not in ended
                ended.add(thread)
            case Joined(thread=thread, paths=paths):
                assert open_paths.pop(thread) == set(paths) <= ended
            case HoleFilled(thread=thread, name=name, text=text):
                own = [each.id for each in threads[thread] if each.hole == name]
                assert engine.vocabulary.decode(own).endswith(text)
            case Finished():
                result = event.result
    assert result is not None
    return threads, result


def check(engine: TorchEngine, events: list[Event]) -> Result:
    """The events add up to the trace, field by field."""
    threads, result = fold(engine, events)
    trace = result.trace
    assert threads.keys() == {thread.id for thread in trace.threads}
    for thread, tokens in threads.items():
        own = [
            (trace.ids[i], trace.position_ids[i], trace.token_texts[i], trace.authors[i],
             trace.logprobs[i], trace.forward_ids[i])
            for i, owner in enumerate(trace.thread_ids)
            if owner == thread and trace.authors[i] != "prompt"
        ]  # fmt: skip
        assert own == [(t.id, t.position, t.text, t.author, t.logprob, t.forward) for t in tokens]
    for hole in trace.holes:
        span = trace.ids[hole.start : hole.stop]
        found = [t.id for tokens in threads.values() for t in tokens if t.hole == hole.name]
        assert list(span) == found
    forked = [event for event in events if isinstance(event, Forked)]
    told = {
        path: (label, title)
        for event in forked
        for path, label, title in zip(event.paths, event.labels, event.titles, strict=True)
    }
    assert told == {t.id: (t.label, t.title) for t in trace.threads if t.id}
    return result


def holes(seed: int, share: int) -> mv.Document:
    """Return a document of many holes that end in all ways."""
    dice = random.Random(seed)
    names = iter(f"h{n}" for n in range(99))
    long = [] if share else ["th", "nd a", "答案", ".\n"]

    def hole() -> Any:
        stops = dice.sample([".", "\n", "e", "a", " ", *long], dice.randint(0, 3))
        if dice.random() < 0.2:
            return mv.gen(next(names), dice.randint(3, 9), regex="[a-e]{2,6}")
        return mv.gen(next(names), dice.randint(1, 12), stop=stops)

    def body() -> list[Any]:
        return [
            dice.choice(["So:", "It is ", "\n1: ", "é"]),
            hole(),
            *[hole()] * dice.randint(0, 1),
        ]

    def block(depth: int) -> Any:
        def path(n: int) -> Any:
            inner = [block(depth - 1)] if depth and dice.random() < 0.4 else []
            return mv.branch(f"p{n}", *body(), *inner)

        paths = [path(n) for n in range(dice.randint(1, 3))]
        return mv.parallel(*paths, conclusion=body())

    return ask(*body(), block(1), *body())


@given(
    which=st.sampled_from(sorted(ENGINES)),
    seed=st.integers(0, 10**6),
    share=st.sampled_from([0, 0, 0, 1, 5]),
    threads=st.sampled_from([0, 0, 1, 2]),
    rows=st.sampled_from([1, 7, 256]),
    budget=st.one_of(st.none(), st.integers(0, 60)),
)
def test_events_of_holes_add_up(
    which: str, seed: int, share: int, threads: int, rows: int, budget: int | None
) -> None:
    engine = ENGINES[which]
    engine.scheduler.max_batched_tokens = rows
    plan = engine.plan(holes(seed, share))
    limits = Limits()
    if budget is not None:
        limits = Limits(max_tokens=HoleBudget(plan, limits).fixed + budget)
    options = Options(Sampling(1.0, seed=seed), limits, share=share, threads=threads)
    check(engine, list(engine.stream(plan, options)))


@given(
    which=st.sampled_from(sorted(ENGINES)),
    seed=st.integers(0, 10**6),
    structure=st.booleans(),
    share=st.sampled_from([0, 0, 2]),
    max_tokens=st.integers(1, 150),
    stop=st.sampled_from([(), ("e",), ("\n", "th"), ("答",), ("nd a", "é")]),
)
def test_events_of_a_turn_add_up(
    which: str, seed: int, structure: bool, share: int, max_tokens: int, stop: tuple[str, ...]
) -> None:
    engine = ENGINES[which]
    engine.scheduler.max_batched_tokens = 256
    options = Options(
        Sampling(1.0, seed=seed, stop=stop), Limits(max_tokens=max_tokens), structure, share
    )
    result = check(engine, list(engine.stream(mv.document(mv.user("Well?")), options)))
    assert result.trace.answer <= max_tokens


def test_a_stop_string_is_told_when_it_is_taken_back() -> None:
    engine = scripted_engine({"So:": "one.[]"})
    events = list(engine.stream(ask("So:", mv.gen("it", stop=".["), "!")))
    assert check(engine, events)["it"] == "one"
    assert [event.count for event in events if isinstance(event, TakenBack)] == [1]


def test_a_newline_before_a_closing_tag_is_told_once() -> None:
    engine = scripted_engine({"A:": "xy\n</Path>"})
    events = list(engine.stream(ask(mv.parallel(mv.branch("a", "A:", mv.gen("a"))))))
    threads, _ = fold(engine, events)
    assert "".join(token.text for token in threads[1]) == "\n<Path>\n1: A:xy\n</Path>"
    check(engine, events)


def test_half_a_character_at_the_end_is_told_again() -> None:
    """Until the end something might have followed that makes it whole."""
    engine = scripted_engine({"assistant\n": "é" * 9}, tagged=False)
    options = Options(limits=Limits(max_tokens=3))
    events = list(engine.stream(mv.document(mv.user("Well?")), options))
    assert check(engine, events).text == "é\ufffd"
    assert [event.count for event in events if isinstance(event, TakenBack)] == [1]


def test_a_character_split_over_tokens_survives_what_is_taken_back() -> None:
    # "é" is two tokens here; the stop string takes back all from the "q" on.
    engine = scripted_engine({"A:": "éqzé", "B:": "é"})
    events = list(engine.stream(ask("A:", mv.gen("a", stop="qz"), "éB:", mv.gen("b"))))
    assert check(engine, events).trace.text == "A:ééB:é<|im_end|>"


def test_dice_make_half_characters() -> None:
    """The random models here do write what these tests are about."""
    engine = ENGINES["untagged"]
    assert isinstance(engine.model, Dice)
    halves = taken = 0
    for seed in range(30):
        events = list(engine.stream(holes(seed, 0), Options(Sampling(1.0, seed=seed))))
        result = check(engine, events)
        halves += result.text.count("\ufffd")
        taken += sum(isinstance(event, TakenBack) for event in events)
    assert halves > 30
    assert taken > 10
