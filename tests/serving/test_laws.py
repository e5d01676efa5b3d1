"""Laws 7 to 10 on stock servers: every token as in training, whatever else the server does."""

from __future__ import annotations

import asyncio
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from reference import Reference, random_document
from served import Served, serve
from soak import Soak
from transformers import AutoTokenizer

import mvspec as mv
from mvspec.compiler import plan_document, plan_layout
from mvspec.runtime import Options
from mvspec.runtime.serving.protocol import KEY, PlanPayload
from mvspec.trace import Trace

NIGHTLY = os.environ.get("MVSPEC_PROFILE") == "nightly"

SERVERS = {
    # Long prompts are read in pieces, rows and slots run out, and threads take turns. Requests are
    # let in although their answers will not fit, so that some are given up and rebuilt.
    "scarce": ("--chunked-prefill-size", "32", "--max-total-tokens", "900",
               "--max-running-requests", "6", "--schedule-conservativeness", "0.05"),
    "no overlap": ("--disable-overlap-schedule", "--max-total-tokens", "900"),
    "no prefix cache": ("--disable-radix-cache", "--max-total-tokens", "1200"),
    "two ranks": ("--tp", "2"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SERVERS) if NIGHTLY else ["scarce"])
def test_random_requests_are_as_in_training(name: str, folder: Path, tmp_path: Path) -> None:
    more = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1"}
    if name == "two ranks":
        # Else torch compiles what splits the vocabulary first.
        more |= {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", "TORCHDYNAMO_DISABLE": "1"}
    with serve(folder, tmp_path / "log", flags=SERVERS[name], environment=more) as served:
        soak = Soak(served.url, str(folder), seed=5, give_up=0.15)
        requests = 2500 if NIGHTLY else 60
        assert asyncio.run(soak.run(requests, 24)), soak.wrong
        # How many are let in at once depends on what came before.
        rebuilt = any(press(served, folder) for _ in range(4))
        assert rebuilt or name != "scarce"
        state = httpx.get(f"{served.url}/server_info", timeout=60).json()["internal_states"][0]
        assert state["mvspec"]["counters"]["faults"] == 0
        assert state["mvspec"]["requests"] == []
        assert soak.sums["paths"] > 20


def press(served: Served, folder: Path) -> int:
    """Send turns with two blocks that do not fit in memory together; say how many were rebuilt.

    Those that were given up in their second block read their first one again.
    """
    reference = Reference(str(folder))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def block(words: int) -> mv.Parallel:
        text = " ".join(["It is one"] * words)
        return mv.parallel(mv.branch("One", text), mv.branch("Two", text), conclusion="Both.")

    document = mv.document(mv.user("Well?"), mv.assistant(block(2), "\nSo.\n", block(20)))
    plan = plan_document(document, tokenizer, template=True)
    payload = PlanPayload.of(plan, Options(decode=True), live=False)
    with ThreadPoolExecutor() as pool:
        traces = list(pool.map(lambda _: replay(served, *payload), range(8)))
    assert all(reference.worst(trace)[1] < 5e-5 for trace in traces)
    state = httpx.get(f"{served.url}/server_info", timeout=60).json()["internal_states"][0]
    rebuilt: int = state["mvspec"]["counters"]["rebuilt"]
    return rebuilt


def replay(server: Served, ids: list[int], payload: PlanPayload) -> Trace:
    """Return the trace of a plan that a server was given."""
    answer = httpx.post(
        f"{server.url}/generate",
        json={
            "input_ids": ids,
            "return_logprob": True,
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": 2000,
                "custom_params": {KEY: payload.model_dump_json()},
            },
        },
        timeout=120,
    ).json()
    told = json.loads(answer["meta_info"]["finish_reason"][KEY])
    return Trace.model_validate(told["trace"])


@pytest.mark.parametrize("seed", range(40 if NIGHTLY else 4))
def test_a_replay_is_the_document_and_the_layout(
    server: Served, folder: Path, reference: Any, seed: int
) -> None:
    document = random_document(random.Random(seed), depth=3)
    document = document.fill({hole.name: "It is one" for hole in document.holes}, check=False)
    plan = plan_document(document, reference.tokenizer, template=True)
    trace = replay(server, *PlanPayload.of(plan, Options(decode=True), live=False))
    count, worst = Reference(str(folder)).worst(trace)
    layout, wanted = trace.layout, plan_layout(plan)
    assert count == wanted.loss_mask.sum()
    assert worst < 5e-5
    assert trace.document == document
    for name in ("input_ids", "position_ids", "parent", "loss_mask"):
        assert (getattr(layout, name) == getattr(wanted, name)).all(), name


def test_siblings_do_not_interfere(server: Served, reference: Any) -> None:
    def logprobs(text: str) -> list[float | None]:
        document = mv.document(
            mv.user("Well?"),
            mv.assistant(
                mv.parallel(
                    mv.branch("One", text),
                    mv.branch("Two", "It is one and the other"),
                    conclusion="Both.",
                )
            ),
        )
        plan = plan_document(document, reference.tokenizer, template=True)
        trace = replay(server, *PlanPayload.of(plan, Options(decode=True), live=False))
        second = next(thread.id for thread in trace.threads if thread.label == "2")
        both = zip(trace.thread_ids, trace.logprobs, strict=True)
        return [logprob for owner, logprob in both if owner == second]

    one, other = logprobs("It is A"), logprobs("It is B")
    assert any(logprob is not None for logprob in one)
    assert one == other  # to the last bit
