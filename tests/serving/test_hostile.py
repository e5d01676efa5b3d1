"""What must not happen: a request that harms a server, or that runs as something else."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from served import Served

import mvspec as mv
from mvspec.compiler.plan import ExecutionPlan, Extend, Fork, Generate, Join
from mvspec.runtime import Options
from mvspec.runtime.serving.protocol import PlanPayload


def post(server: Served, payload: Any, **more: Any) -> httpx.Response:
    params = {"max_new_tokens": 8, "temperature": 0, "custom_params": {"mvspec": payload}}
    params |= more.pop("sampling_params", {})
    body = {"input_ids": [5, 6, 7], "sampling_params": params, **more}
    return httpx.post(f"{server.url}/generate", json=body, timeout=120.0)


def refused(answer: httpx.Response) -> str:
    assert answer.status_code == 400, answer.text[:500]
    return str(answer.json()["error"]["message"])


@pytest.fixture(autouse=True)
def goes_on(server: Served, engine: Any) -> Any:
    """After every one of these, the server runs a plan."""
    yield
    document = mv.document(mv.user("Well?"), mv.assistant("So ", mv.gen("a", 3)))
    assert engine.run(document).trace.finish == "end"
    assert server.process.poll() is None


def payload(engine: Any, **changes: Any) -> dict[str, Any]:
    """A payload that would run, with changes."""
    document = mv.document(
        mv.user("Well?"), mv.assistant(mv.parallel(mv.branch("One", mv.gen("a", 4))))
    )
    _, made = PlanPayload.of(engine.plan(document), Options(), live=False)
    return made.model_dump(mode="json") | changes


HOLE = '{"ops": [{"op": "generate", "thread": 0, "hole": {"name": "a", %s}}]}'
OPTIONS = json.loads(PlanPayload().model_dump_json())["options"]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ("{", "Invalid JSON"),
        ("[]", "should be an object"),
        ("", "Invalid JSON"),
        ("null", "should be an object"),
        ('{"ops": 3}', "ops"),
        ('{"ops": [{"op": "dance"}]}', "op"),
        ('{"what": 1}', "what"),
        (3, "is JSON text, not int"),
        (None, "is JSON text, not NoneType"),
        ({"ops": "x"}, "is JSON text, not dict"),
        ('{"ops": [{"op": "fork", "thread": 0, "paths": []}]}', "paths"),
        ('{"ops": [{"op": "extend", "thread": 7, "tokens": [1]}]}', "%7 was not made before"),
        ('{"ops": [{"op": "fork", "thread": 0, "paths": [1, 2]}]}', "never joined"),
        ('{"ops": [{"op": "extend", "thread": 0, "tokens": [-1]}]}', "tokens"),
        ('{"ops": [{"op": "extend", "thread": 0, "tokens": [99999]}]}', "99999, which is not in"),
        ('{"ops": [{"op": "extend", "thread": 0, "tokens": [2147483648]}]}', "tokens"),
        ('{"ops": [{"op": "extend", "thread": 0, "tokens": [true]}]}', "tokens"),
        ('{"ops": [{"op": "extend", "thread": 0, "tokens": [5.0]}]}', "tokens"),
        (HOLE % '"max_tokens": -4', "max_tokens"),
        (HOLE % '"regex": "("', "regex"),
        ('{"form": "latin"}', "latin"),
        ('{"name": "' + "x" * 300 + '"}', "name"),
    ],
)  # fmt: skip
def test_what_is_no_order_is_refused(server: Served, sent: Any, reason: str) -> None:
    assert reason in refused(post(server, sent))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"limits": {"max_tokens": -1}}, "max_tokens"),
        ({"limits": {"max_depth": 10**9}}, "max_depth"),
        ({"limits": {"max_seconds": -1.0}}, "max_seconds"),
        ({"sampling": {"temperature": -1.0}}, "temperature"),
        ({"sampling": {"top_p": 0}}, "top_p"),
        ({"share": 2}, "no option 'share'"),
        ({"threads": 1}, "no option 'threads'"),
        ({"logits": True}, "no option 'logits'"),
        ({"wings": True}, "wings"),
    ],
)
def test_what_is_no_option_is_refused(server: Served, options: dict[str, Any], reason: str) -> None:
    sent = {name: (OPTIONS[name] | value) if isinstance(value, dict) else value
            for name, value in options.items()}  # fmt: skip
    assert reason in refused(post(server, json.dumps({"options": OPTIONS | sent})))


def test_a_million_paths(server: Served) -> None:
    ops = [
        {"op": "fork", "thread": 0, "paths": list(range(1, 1_000_001))},
        {"op": "join", "thread": 2_000_000, "paths": list(range(1, 1_000_001))},
    ]
    assert "characters; at most" in refused(post(server, json.dumps({"ops": ops})))
    paths = list(range(1, 5001))
    ops = [
        {"op": "fork", "thread": 0, "paths": paths},
        {"op": "join", "thread": 6000, "paths": paths},
    ]
    assert "5,000 paths; at most" in refused(post(server, json.dumps({"ops": ops})))


def test_a_label_of_a_megabyte(server: Served) -> None:
    label = "1" * (1 << 20)
    turn = json.loads(
        mv.document(mv.user("a"), mv.assistant(mv.parallel(mv.branch("a", "b")))).to_json()
    )
    block = turn["messages"][1]["body"][0]
    for place in (block["goal"]["outlines"][0], block["paths"][0]):
        place["label"] = label
    sent = json.dumps({"document": turn})
    assert "has 1,048,576 characters; at most" in refused(post(server, sent))


def test_a_plan_that_nests_too_deep(server: Served) -> None:
    ops: list[dict[str, Any]] = [
        {"op": "fork", "thread": depth, "paths": [depth + 1]} for depth in range(2000)
    ]
    last = 2000
    for depth in reversed(range(2000)):
        ops.append({"op": "join", "paths": [last], "thread": 3000 + 2000 - depth})
        last = 3000 + 2000 - depth
    answer = post(server, json.dumps({"ops": ops}))
    assert answer.status_code in (200, 400)


def test_json_that_nests_too_deep(server: Served) -> None:
    sent = '{"document": ' + '{"a": ' * 5000 + "1" + "}" * 5001
    refused(post(server, sent))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"sampling_params": {"json_schema": '{"type": "object"}'}}, "grammar of the whole answer"),
        ({"sampling_params": {"regex": "a*"}}, "grammar of the whole answer"),
        ({"sampling_params": {"n": 2}}, "n above 1"),
        ({"sampling_params": {"frequency_penalty": 0.5}}, "frequency_penalty"),
        ({"sampling_params": {"stop_token_ids": [5]}}, "stop_token_ids"),
        ({"sampling_params": {"ignore_eos": True}}, "ignore_eos"),
        ({"sampling_params": {"logit_bias": {"5": 1.0}}}, "logit_bias"),
        ({"lora_path": "other"}, "LoRA"),
        ({"return_hidden_states": True}, "hidden states"),
        ({"return_logprob": True, "top_logprobs_num": 100_000}, "likeliest tokens"),
        ({"input_ids": [5, -3]}, "-3, which is not in the vocabulary"),
        ({"input_ids": [5, 99_999]}, "99999"),
        ({"input_ids": [5, 1 << 31]}, "2147483648"),
    ],
)
def test_what_plans_cannot_be_combined_with_is_refused_by_name(
    server: Served, engine: Any, more: dict[str, Any], reason: str
) -> None:
    assert reason in refused(post(server, json.dumps(payload(engine)), **more))


def test_ids_of_tags_in_a_prompt_need_a_plan(server: Served, engine: Any) -> None:
    tags = sorted(engine.vocabulary.tag_ids.values())
    body = {"input_ids": [5, *tags], "sampling_params": {"max_new_tokens": 4}}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=60.0)
    assert "the prompt's ids hold tags" in refused(answer)


def test_without_a_plan_ids_and_likeliest_tokens_are_checked_too(server: Served) -> None:
    body = {"text": "Well", "return_logprob": True, "top_logprobs_num": 100_000}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=60.0)
    assert "likeliest tokens" in refused(answer)
    answer = httpx.post(f"{server.url}/generate", json={"input_ids": [5, -3]}, timeout=60.0)
    assert "-3, which is not in" in refused(answer)
    answer = httpx.post(f"{server.url}/generate", json={"input_ids": [5, 99_999]}, timeout=60.0)
    assert "99999, which is not in" in refused(answer)


@pytest.mark.parametrize("custom", ["mvspec", True, 7])
def test_custom_params_that_are_no_object_are_no_plan(server: Served, custom: Any) -> None:
    body = {"text": "Well", "sampling_params": {"max_new_tokens": 3, "custom_params": custom}}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=60.0)
    assert answer.status_code == 200, answer.text[:500]
    assert answer.json()["meta_info"]["completion_tokens"] <= 3


def test_paths_that_begin_with_a_hole_wait_for_rows(
    server: Served, engine: Any, reference: Any
) -> None:
    """Each reads its parent's last token once more, however long it has waited."""
    paths = tuple(range(1, 101))
    ops = (
        Extend(thread=0, tokens=tuple(engine.vocabulary.encode("Well? So it is")), author="prompt"),
        Fork(thread=0, paths=paths),
        *[Generate(thread=path, hole=mv.gen(f"a{path}", 3 + path % 5)) for path in paths],
        Join(thread=101, paths=paths),
    )
    plan = ExecutionPlan(ops=ops, form="untagged")
    for _ in range(2):
        found, wanted = engine.run(plan).trace, reference.run(plan).trace
        assert found.ids == wanted.ids
        for one, other in zip(found.logprobs, wanted.logprobs, strict=True):
            assert (one is None) == (other is None)
            assert one is None or other is None or abs(one - other) < 5e-5


def test_a_refusal_is_in_the_log(server: Served) -> None:
    assert refused(post(server, '{"form": "old norse"}'))
    line = server.wait_for("old norse")
    told = json.loads(line[line.index("{") :])
    assert told["finish"] == "refused"


def test_an_order_without_a_prompt(server: Served, engine: Any) -> None:
    params = {"custom_params": {"mvspec": json.dumps(payload(engine))}}
    body = {"input_ids": [], "sampling_params": params}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=60.0)
    assert answer.status_code == 400


def test_a_refusal_is_told_in_a_stream_too(server: Served) -> None:
    body = {
        "input_ids": [5],
        "stream": True,
        "sampling_params": {"custom_params": {"mvspec": '{"ops": 3}'}},
    }
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=60.0)
    lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    (told,) = map(json.loads, (line[6:] for line in lines))
    finish = told["meta_info"]["finish_reason"]
    assert finish["status_code"] == 400
    assert finish["err_type"] == "VerifyError"
    assert "ops" in finish["message"]


def test_prompts_of_one_batch_each_run_the_plan(server: Served, engine: Any) -> None:
    """SGLang gives them one dictionary of parameters."""
    params = {"custom_params": {"mvspec": json.dumps(payload(engine))}, "max_new_tokens": 40}
    body = {"input_ids": [[5, 6, 7], [8, 9]], "sampling_params": params}
    found = httpx.post(f"{server.url}/generate", json=body, timeout=120.0).json()
    assert len(found) == 2
    assert all("mvspec" in each["meta_info"]["finish_reason"] for each in found)
