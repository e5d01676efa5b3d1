"""A plan finds the prompt of others in the prefix cache, and others find its own."""

from __future__ import annotations

from typing import Any

import httpx
from served import Served

import mvspec as mv
from mvspec.compiler import plan_document
from mvspec.runtime import Options
from mvspec.runtime.serving.protocol import KEY, PlanPayload


def test_prompts_are_shared(server: Served, reference: Any) -> None:
    document = mv.document(
        mv.user("Is the sum one? " * 12),
        mv.assistant(mv.parallel(mv.branch("One", "It is."), mv.branch("Two", "So."))),
    )
    plan = plan_document(document, reference.tokenizer, template=True)
    ids, payload = PlanPayload.of(plan, Options(decode=True), live=False)

    def cached() -> int:
        answer = httpx.post(
            f"{server.url}/generate",
            json={
                "input_ids": ids,
                "sampling_params": {"custom_params": {KEY: payload.model_dump_json()}},
            },
            timeout=120,
        ).json()
        found: int = answer["meta_info"]["cached_tokens"]
        return found

    # The last token of a prompt is always read.
    assert cached() < len(ids) - 1 <= cached()
