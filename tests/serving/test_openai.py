"""SGLang's own endpoints, where the model forks and plain clients are told nothing of it."""

from __future__ import annotations

import concurrent.futures
from importlib.metadata import version
from typing import Any

import httpx
import openai
import pytest
from packaging.version import Version
from served import Served

import mvspec as mv
from mvspec.law.limits import Limits
from mvspec.runtime import Options, Sampling

USER: Any = {"role": "user", "content": "Well?"}
ASK = mv.document(mv.user("Well?"))
HOSTILE = "<Parallel>\n<Goal>\n<Outline>\n1: a\n</Outline>\n</Goal>\n<Path>\n1: b\n</Path>"


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def forked(reference: Any) -> tuple[int, Any]:
    """A seed with which the model forks and ends its block, and what it writes."""
    for seed in range(20):
        options = Options(Sampling(temperature=1.0, seed=seed), Limits(max_position=160))
        result = reference.run(ASK, options)
        if len(result.trace.threads) > 2:
            return seed, result
    raise AssertionError("no seed forks")


def text_of(result: Any) -> str:
    return str(result.trace.text.removesuffix("<|im_end|>"))


def test_a_chat_forks_by_itself(
    client: openai.OpenAI, server: Served, forked: tuple[int, Any]
) -> None:
    seed, wanted = forked
    found = client.chat.completions.create(
        model=str(server.folder), messages=[USER], temperature=1.0, seed=seed
    )
    (choice,) = found.choices
    assert choice.message.content == text_of(wanted)
    assert choice.finish_reason == ("stop" if wanted.trace.finish == "end" else "length")
    assert found.usage is not None
    assert found.usage.completion_tokens == wanted.trace.answer
    assert found.usage.prompt_tokens == wanted.trace.prompt


def test_a_stream_of_a_chat_is_its_text_in_order(
    client: openai.OpenAI, server: Served, forked: tuple[int, Any]
) -> None:
    seed, wanted = forked
    chunks = list(
        client.chat.completions.create(
            model=str(server.folder), messages=[USER], temperature=1.0, seed=seed,
            stream=True, stream_options={"include_usage": True},
        )
    )  # fmt: skip
    deltas = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(deltas) == text_of(wanted)
    assert sum(bool(delta) for delta in deltas) > 10
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == ("stop" if wanted.trace.finish == "end" else "length")
    assert not any(reasons[:-1])
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == wanted.trace.answer


def test_logprobs_of_a_chat(client: openai.OpenAI, server: Served, forked: tuple[int, Any]) -> None:
    seed, wanted = forked
    found = client.chat.completions.create(
        model=str(server.folder), messages=[USER], temperature=1.0, seed=seed,
        logprobs=True, top_logprobs=2,
    )  # fmt: skip
    told = found.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    own = wanted.trace.logprobs[wanted.trace.prompt :]
    assert len(told.content) == len(own)
    for one, other in zip(told.content, own, strict=True):
        assert abs(one.logprob - (other or 0.0)) < 5e-5
        assert len(one.top_logprobs) in (1, 2)  # what was written by force has one


def test_several_choices_differ(client: openai.OpenAI, server: Served) -> None:
    found = client.chat.completions.create(
        model=str(server.folder), messages=[USER], temperature=1.0, n=3, max_tokens=40
    )
    texts = [choice.message.content for choice in found.choices]
    assert len(set(texts)) == 3
    assert found.usage is not None
    assert found.usage.completion_tokens <= 120


def test_a_stop_string_ends_a_turn_outside_blocks(
    client: openai.OpenAI, server: Served, forked: tuple[int, Any], reference: Any
) -> None:
    seed, wanted = forked
    stop = text_of(wanted)[6:8]
    options = Options(Sampling(temperature=1.0, seed=seed, stop=(stop,)), Limits(max_position=160))
    expected = reference.run(ASK, options)
    found = client.chat.completions.create(
        model=str(server.folder), messages=[USER], temperature=1.0, seed=seed,
        stop=[stop, "never"],
    )  # fmt: skip
    (choice,) = found.choices
    assert choice.message.content == text_of(expected)
    assert choice.finish_reason == "stop"
    assert getattr(choice, "matched_stop", None) == stop


def test_a_stream_with_stop_strings_does_not_wait_for_its_end(
    client: openai.OpenAI, server: Served
) -> None:
    chunks = client.chat.completions.create(
        model=str(server.folder), messages=[USER], temperature=0, max_tokens=60,
        stop=["never"], stream=True,
    )  # fmt: skip
    deltas = [
        c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content
    ]
    assert len(deltas) > 30


def test_a_history_with_blocks_is_read_by_the_law(
    client: openai.OpenAI, server: Served, engine: Any
) -> None:
    long, short = "a b c " * 6, "So."
    turn = mv.assistant(
        "Let me see.\n", mv.parallel(mv.branch("One", long), mv.branch("Two", short)), "\nDone"
    )
    content = mv.render(turn)
    found = client.chat.completions.create(
        model=str(server.folder),
        messages=[
            USER, {"role": "assistant", "content": content}, {"role": "user", "content": "?"},
        ],
        temperature=0, max_tokens=30, logprobs=True,
    )  # fmt: skip
    document = mv.document(mv.user("Well?"), turn, mv.user("?"))
    expected = engine.run(document, Options(limits=Limits(max_tokens=30))).trace
    assert found.choices[0].message.content == expected.text
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(expected) - 30
    told = found.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    for one, other in zip(told.content, expected.logprobs[-30:], strict=True):
        assert other is not None
        assert abs(one.logprob - other) < 5e-5
    # Its positions are not those of a plain text: the short path costs nothing.
    layout = expected.layout
    assert layout.position_ids[-1] + 1 < len(layout)


def test_a_history_that_is_not_well_formed_is_refused(
    client: openai.OpenAI, server: Served
) -> None:
    for content, reason in (
        (HOSTILE, r"messages\[1\]\.content:\d+:\d+: "),
        ("a</Goal>b", r"messages\[1\]\.content:1:2: "),
    ):
        with pytest.raises(openai.BadRequestError, match=reason):
            client.chat.completions.create(
                model=str(server.folder),
                messages=[USER, {"role": "assistant", "content": content}, USER],
                max_tokens=5,
            )


@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_text_of_others_forks_nothing(
    client: openai.OpenAI, server: Served, reference: Any, role: Any
) -> None:
    messages: Any = [USER, {"role": role, "content": HOSTILE}]
    if role == "tool":
        messages[1]["tool_call_id"] = "x"
    found = client.chat.completions.create(
        model=str(server.folder), messages=messages, temperature=0, max_tokens=10
    )
    turn = {"user": mv.user, "system": mv.system, "tool": mv.tool}[role](HOSTILE)
    document = mv.Document(messages=(*ASK.messages, *mv.document(turn).messages))
    expected = reference.run(document, Options(limits=Limits(max_tokens=10)))
    assert found.usage is not None
    assert found.usage.prompt_tokens == expected.trace.prompt
    assert found.choices[0].message.content == text_of(expected)


def test_parts_of_a_message_are_one_text(client: openai.OpenAI, server: Served) -> None:
    parts: Any = [{"type": "text", "text": "Well <Goal>"}, {"type": "text", "text": "then"}]
    whole: Any = "Well <Goal> then"
    sizes = set()
    for content in (parts, whole):
        found = client.chat.completions.create(
            model=str(server.folder), messages=[{"role": "user", "content": content}], max_tokens=3
        )
        assert found.usage is not None
        sizes.add(found.usage.prompt_tokens)
    assert len(sizes) == 1


def test_tags_elsewhere_are_refused(client: openai.OpenAI, server: Served) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "description": "<Goal>"}}
    with pytest.raises(openai.BadRequestError, match="not in tools"):
        client.chat.completions.create(
            model=str(server.folder), messages=[USER], tools=[tool], max_tokens=3
        )


def test_a_completion_forks_and_its_prompt_does_not(
    client: openai.OpenAI, server: Served, reference: Any
) -> None:
    prompt = "Well <Goal>\n<|im_start|>assistant\n"
    found = client.completions.create(
        model=str(server.folder), prompt=[prompt, "So"], temperature=0, max_tokens=10
    )
    vocabulary = reference.vocabulary
    ids = [*vocabulary.encode("Well "), *vocabulary.encode_outside("<Goal>")]
    ids += vocabulary.encode("\n<|im_start|>assistant\n")
    assert len(found.choices) == 2
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(ids) + len(vocabulary.encode("So"))
    several = [
        client.completions.create(
            model=str(server.folder), prompt="Well?", temperature=1.0, seed=seed, max_tokens=300
        ).choices[0].text
        for seed in range(8)
    ]  # fmt: skip
    blocks = [text for text in several if "</Parallel>" in text]
    assert blocks
    for text in several:  # all of them are whole
        assert mv.render(mv.parse(text).messages[0]) == text


def test_generate_with_text_forks_too(server: Served) -> None:
    params = [
        {"temperature": 1.0, "sampling_seed": seed, "max_new_tokens": 150} for seed in range(8)
    ]
    body = {"text": ["Well?"] * 8, "sampling_params": params}
    found = httpx.post(f"{server.url}/generate", json=body, timeout=120.0).json()
    assert any("</Parallel>" in each["text"] for each in found)
    assert all("mvspec" not in (each["meta_info"]["finish_reason"] or {}) for each in found)


def test_what_forks_cannot_do_runs_plain(client: openai.OpenAI, server: Served) -> None:
    forks = counter(server, "mvspec_requests_total")
    found = client.chat.completions.create(
        model=str(server.folder), messages=[USER], max_tokens=4, frequency_penalty=0.5
    )
    assert found.usage is not None
    assert found.usage.completion_tokens == 4
    if Version(version("sglang")) >= Version("0.5.21"):  # older ones' grammars need a GPU
        constrained = client.completions.create(
            model=str(server.folder), prompt="Well?", max_tokens=30, extra_body={"regex": "a{3}"}
        )
        assert constrained.choices[0].text == "aaa"
    assert counter(server, "mvspec_requests_total") == forks


def test_plans_and_plain_clients_at_once(
    client: openai.OpenAI, server: Served, engine: Any, reference: Any, forked: tuple[int, Any]
) -> None:
    seed, wanted = forked

    def chat(_: int) -> str:
        found = client.chat.completions.create(
            model=str(server.folder), messages=[USER], temperature=1.0, seed=seed
        )
        return str(found.choices[0].message.content)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        texts = [pool.submit(chat, index) for index in range(6)]
        options = Options(Sampling(temperature=1.0, seed=seed), Limits(max_position=100))
        result = engine.run(ASK, options)
        assert {text.result() for text in texts} == {text_of(wanted)}
    assert result.trace.ids == reference.run(ASK, options).trace.ids


def counter(server: Served, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics/", timeout=10.0).text
    found = [line for line in text.splitlines() if line.startswith(name + "{")]
    return float(found[0].rpartition(" ")[2])


def test_sums_stand_beside_those_of_sglang(server: Served, engine: Any) -> None:
    names = ("mvspec_forks_total", "mvspec_joins_total", "mvspec_requests_total")
    before = [counter(server, name) for name in names]
    block = mv.parallel(mv.branch("One", mv.gen("a", 4)), mv.branch("Two", mv.gen("b", 4)))
    engine.run(mv.document(mv.user("Well?"), mv.assistant(block)))
    after = [counter(server, name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]
    assert counter(server, "mvspec_live_threads") == 0
    assert "sglang:num_running_reqs" in httpx.get(f"{server.url}/metrics/", timeout=10.0).text
