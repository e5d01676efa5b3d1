"""Plain requests get what a stock server answers: every field, with the plugin loaded or not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fuzz import Side, fuzz
from served import Served, serve

NIGHTLY = os.environ.get("MVSPEC_PROFILE") == "nightly"
USER = {"role": "user", "content": "Well?"}
CHAT, GENERATE, COMPLETION = "/v1/chat/completions", "/generate", "/v1/completions"

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (GENERATE, {"text": "Well", "sampling_params": {"max_new_tokens": 4, "temperature": 0}}),
    (GENERATE, {"text": ["Well", "So"], "sampling_params": {"max_new_tokens": 3, "top_k": 1}}),
    (GENERATE, {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 3, "temperature": 0}}),
    (
        GENERATE,
        {
            "text": "Well",
            "return_logprob": True,
            "top_logprobs_num": 2,
            "sampling_params": {"max_new_tokens": 4, "temperature": 0, "stop": ["zzz"]},
        },
    ),
    (
        GENERATE,
        {
            "text": "Well",
            "return_logprob": True,
            "sampling_params": {"max_new_tokens": 4, "temperature": 0.5, "top_k": 1},
        },
    ),
    (
        GENERATE,
        {
            "text": "Well",
            "stream": True,
            "sampling_params": {"max_new_tokens": 5, "temperature": 0},
        },
    ),
    (CHAT, {"messages": [USER], "max_tokens": 4, "temperature": 0}),
    (CHAT, {"messages": [USER], "max_tokens": 4, "temperature": 0, "n": 2, "seed": 3}),
    (CHAT, {"messages": [USER], "max_tokens": 3, "temperature": 0, "logprobs": True,
            "top_logprobs": 2}),
    (CHAT, {"messages": [USER], "max_tokens": 3, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}}),
    (CHAT, {"messages": [USER], "max_tokens": 3, "temperature": 0, "user": "<Goal>",
            "stop": ["</Goal>"], "rid": "a<Path>b"}),
    (COMPLETION, {"prompt": "Well", "max_tokens": 4, "temperature": 0, "echo": True}),
    (COMPLETION, {"prompt": ["Well", "So"], "max_tokens": 4, "temperature": 0, "logprobs": 1}),
    (COMPLETION, {"prompt": "Well", "max_tokens": 4, "temperature": 0, "stream": True}),
]  # fmt: skip

VOLATILE = (
    "id", "rid", "created", "e2e_latency", "queue_time", "latency", "cached_tokens",
    "cached_tokens_details", "forward_entry_time", "prefill_finished_time", "decode_throughput",
)  # fmt: skip
"""Fields whose values are the moment's."""


@pytest.fixture(scope="module")
def others(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """A stock server, and one with the plugin in which nothing forks by itself."""
    logs = tmp_path_factory.mktemp("logs")
    with (
        serve(folder, logs / "stock.log", stock=True) as stock,
        serve(folder, logs / "plugin.log") as plugin,
    ):
        yield [stock, plugin]


def answer(server: Served, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    found = httpx.post(f"{server.url}{path}", json={"model": "m"} | body, timeout=120.0)
    if not body.get("stream"):
        return found.status_code, found.json()
    lines = [line[6:] for line in found.text.splitlines() if line.startswith("data: {")]
    return found.status_code, [json.loads(line) for line in lines]


def settled(value: Any) -> Any:
    """Return an answer without what differs from run to run."""
    if isinstance(value, dict):
        return {
            name: settled(each)
            for name, each in value.items()
            if name not in VOLATILE and not name.endswith(("_ts", "_time", "_latency"))
        }
    if isinstance(value, list):
        return [settled(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def fields(value: Any) -> Any:
    """Return the names of an answer's fields, and the kinds of their values."""
    if isinstance(value, dict):
        return {name: fields(each) for name, each in settled(value).items()}
    if isinstance(value, list):
        return [fields(value[0])] if value else []
    return "number" if isinstance(value, int | float) else type(value).__name__


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_every_field_is_the_stock_servers(
    others: list[Served], server: Served, path: str, body: dict[str, Any]
) -> None:
    stock, plugin = others
    wanted = answer(stock, path, body)
    assert wanted[0] == 200
    _, found = answer(plugin, path, body)
    status, told = answer(server, path, body)
    assert status == 200
    if body.get("stream"):  # how many chunks there are is a matter of time
        assert settled(found[-1]) == settled(wanted[1][-1])
        for at in (0, -1):
            assert fields(told[at]) == fields(found[at]) == fields(wanted[1][at])
    else:
        assert settled(found) == settled(wanted[1])
        assert fields(told) == fields(wanted[1])


def test_logprobs_of_a_plain_client_are_those_after_temperature(
    others: list[Served], server: Served
) -> None:
    """The model's own stand beside them."""
    for seed in (None, 7):
        params: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.5, "sampling_seed": seed}
        asked = {"return_logprob": True, "top_logprobs_num": 300}
        _, told = answer(server, GENERATE, {"text": "Well", "sampling_params": params} | asked)
        meta = told["meta_info"]
        own = meta["mvspec_logprobs"]
        assert len(own) == len(meta["output_token_logprobs"]) == 12
        prompt = answer(server, "/tokenize", {"prompt": "Well"})[1]["tokens"]
        params = {"max_new_tokens": 1, "temperature": 0}
        again = {"input_ids": [*prompt, *told["output_ids"]], "logprob_start_len": 0}
        _, model = answer(others[0], GENERATE, again | asked | {"sampling_params": params})
        wanted = [value for value, _, _ in model["meta_info"]["input_token_logprobs"][-12:]]
        assert own == pytest.approx(wanted, abs=5e-5)
        tops = model["meta_info"]["input_top_logprobs"][-12:]
        for (shown, id, _), top, under in zip(
            meta["output_token_logprobs"], meta["output_top_logprobs"], tops, strict=True
        ):
            values = {each: value for value, each, _ in top}
            assert shown == pytest.approx(values[id], abs=1e-5)
            assert [each for _, each, _ in top[:5]] == [each for _, each, _ in under[:5]]
            for one, other in zip(top[:5], under[:5], strict=True):
                assert one[0] - top[0][0] == pytest.approx(2 * (other[0] - under[0][0]), abs=1e-4)


def test_a_stop_string_ends_a_plain_answer_wherever_it_stands(server: Served) -> None:
    """As from any server: what is sent ends before the first place where the text has it."""
    ended = 0
    for seed in range(12):
        params: dict[str, Any] = {"temperature": 1.0, "sampling_seed": seed, "max_new_tokens": 150}
        _, whole = answer(server, GENERATE, {"text": "Well?", "sampling_params": params})
        text = whole["text"]
        at = text.find("</Path>")
        for stop in ["</Goal>", text[at - 3 : at + 2], "\n"] if at > 0 else ["</Goal>"]:
            for stream in (False, True):
                body = {
                    "text": "Well?",
                    "stream": stream,
                    "sampling_params": params | {"stop": [stop, "never"]},
                }
                _, found = answer(server, GENERATE, body)
                last = found[-1] if stream else found
                assert last["text"] == text.partition(stop)[0], (seed, stop)
                if stop in text:
                    finish = last["meta_info"]["finish_reason"]
                    assert (finish["type"], finish["matched"]) == ("stop", stop)
                    ended += 1
    assert ended > 6


def test_a_stop_token_ends_a_plain_answer(server: Served) -> None:
    params: dict[str, Any] = {"temperature": 1.0, "sampling_seed": 3, "max_new_tokens": 20}
    _, whole = answer(server, GENERATE, {"text": "Well?", "sampling_params": params})
    stop = whole["output_ids"][7]
    params |= {"stop_token_ids": [stop]}
    _, found = answer(server, GENERATE, {"text": "Well?", "sampling_params": params})
    ids = whole["output_ids"]
    assert found["output_ids"] == ids[: ids.index(stop) + 1]
    assert found["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}


def test_choices_of_one_seed_differ_and_come_again(server: Served) -> None:
    body = {"messages": [USER], "max_tokens": 20, "temperature": 1.0, "seed": 5, "n": 3}
    texts = []
    for _ in range(2):
        _, told = answer(server, CHAT, body)
        texts.append([each["message"]["content"] for each in told["choices"]])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    _, alone = answer(server, CHAT, body | {"n": 1})
    assert alone["choices"][0]["message"]["content"] == texts[0][0]
    body = {"prompt": ["Well", "So"], "max_tokens": 9, "temperature": 1.0, "seed": 5, "n": 2}
    _, told = answer(server, COMPLETION, body)
    found = [each["text"] for each in told["choices"]]
    assert len(set(found)) == 4
    _, alone = answer(server, COMPLETION, body | {"prompt": "So"})
    assert [each["text"] for each in alone["choices"]] == found[2:]


@pytest.mark.parametrize("temperature", [1e39, 1e308, 1e-300, 3.5e38])
@pytest.mark.parametrize("more", [{}, {"top_p": 0.9}, {"min_p": 0.5}, {"seed": 4}, {"top_k": 3}])
def test_no_number_of_a_request_harms_the_server(
    server: Served, temperature: float, more: dict[str, Any]
) -> None:
    body = {"messages": [USER], "max_tokens": 8, "temperature": temperature, **more}
    status, told = answer(server, CHAT, body)
    assert status == 200, told
    assert server.process.poll() is None


def test_what_runs_plain_says_so(server: Served) -> None:
    params = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
    _, told = answer(
        server, GENERATE, {"text": "Well", "sampling_params": params, "rid": "plainly"}
    )
    (reason,) = told["meta_info"]["mvspec_plain"]
    assert "ignore_eos" in reason
    assert server.ended("plainly")["finish"] == "plain"
    metrics = httpx.get(f"{server.url}/metrics/", timeout=10.0).text
    (line,) = [each for each in metrics.splitlines() if each.startswith("mvspec_plain_total{")]
    assert float(line.rpartition(" ")[2]) >= 1


def test_a_tag_as_a_word_in_the_history(server: Served) -> None:
    turn = {"role": "assistant", "content": "The tag <Path> opens a path"}
    body: dict[str, Any] = {"messages": [USER, turn, USER], "max_tokens": 3}
    status, told = answer(server, CHAT, body)
    assert status == 400
    assert '{"history": "text"}' in told["message"]
    status, told = answer(server, CHAT, body | {"mvspec": {"history": "text"}})
    assert status == 200
    for wrong in ({"history": "poem"}, {"past": "text"}, "text", 3):
        status, told = answer(server, CHAT, body | {"mvspec": wrong})
        assert status == 400
        assert "history" in told["message"]


def test_sums_are_current_while_a_server_idles(server: Served) -> None:
    def refused() -> float:
        text = httpx.get(f"{server.url}/metrics/", timeout=10.0).text
        (line,) = [each for each in text.splitlines() if each.startswith("mvspec_refused_total{")]
        return float(line.rpartition(" ")[2])

    before = refused()
    for _ in range(3):
        params = {"custom_params": {"mvspec": "{"}}
        assert answer(server, GENERATE, {"input_ids": [5], "sampling_params": params})[0] == 400
    assert refused() == before + 3
    assert server.live_threads() == 0


@pytest.mark.skipif(not NIGHTLY, reason="bodies that kill both are still found")
def test_nothing_that_a_stock_server_survives_harms_ours(
    others: list[Served], server: Served
) -> None:
    """fuzz.py in short; of 2,000 requests docs/serving.md tells."""
    sums, wrong = fuzz(Side(server.url), Side(others[0].url), 1000, seed=5)
    assert not wrong
    assert sums["200"] > 20
    assert server.process.poll() is None


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (GENERATE, {"sampling_params": {"regex": {"a": 1}}}, "regex: "),
        (GENERATE, {"sampling_params": {"skip_special_tokens": 7}}, "skip_special_tokens: 7"),
        (GENERATE, {"sampling_params": [{"top_k": 1 << 32}]}, "top_k: 4294967296"),
        (GENERATE, {"sampling_params": {"is_normalized": True}}, "is_normalized"),
        (GENERATE, {"sampling_params": {"logit_bias": {"5": 1e39}}}, "logit_bias: {'5': 1e+39}"),
        (GENERATE, {"logprob_start_len": [4096], "return_logprob": True}, "logprob_start_len is a"),
        (GENERATE, {"positional_embed_overrides": "a"}, "positional_embed_overrides hold"),
        (GENERATE, {"sampling_params": {"max_new_tokens": 1.0}}, "max_new_tokens: 1.0 is not"),
        (GENERATE, {"priority": (1 << 63) - 1}, "priority: 9223372036854775807"),
        (GENERATE, {"return_logprob": True, "top_logprobs_num": 9999}, "9999 likeliest tokens"),
        (COMPLETION, {"logprobs": 9999, "frequency_penalty": 1.0}, "9999 likeliest tokens"),
        (CHAT, {"top_k": 1 << 31, "min_tokens": 1}, "top_k: 2147483648"),
        (CHAT, {"top_k": 1 << 31, "stream": True}, "top_k: 2147483648"),
    ],
)
def test_what_a_stock_server_dies_of_is_refused(
    server: Served, path: str, body: dict[str, Any], reason: str
) -> None:
    prompt = {GENERATE: "text", COMPLETION: "prompt"}.get(path)
    asked = {prompt: "Well?"} if prompt else {"messages": [USER]}
    found = httpx.post(f"{server.url}{path}", json={"model": "m"} | asked | body, timeout=60.0)
    assert found.status_code == 400
    assert reason in found.text
