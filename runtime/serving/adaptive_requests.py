"""Adaptive requests: plain ones that fork because the model decides so, as it was taught.

Nobody sent a plan for them; `mvspec serve --native` lets the server's model fork by itself.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Set
from typing import Any

from pydantic import ValidationError

from mvspec.errors import MvspecError, Unsupported
from mvspec.law.limits import Limits
from mvspec.runtime.options import Options
from mvspec.runtime.sampling import Sampling
from mvspec.runtime.serving import hooks
from mvspec.runtime.serving.protocol import PlanPayload
from mvspec.tree.node import verify_error

ADAPTIVE_LIMITS = "MVSPEC_NATIVE"
"""The environment variable that lets plain requests fork: `Limits` as JSON, `{}` for none."""

_HEALTH_CHECK = "HEALTH_CHECK"
"""Names of SGLang's own probes begin with it."""


def adaptive_limits() -> Limits | None:
    """Return the limits of requests that fork by themselves; None where they do not.

    Raises:
        VerifyError: the environment variable is no `Limits`.
    """
    text = os.environ.get(ADAPTIVE_LIMITS, "")
    if not text:
        return None
    try:
        return Limits.model_validate_json(text)
    except ValidationError as error:
        raise verify_error(error) from None


def adaptive_payload(recv: Any, limits: Limits, tags: Set[int]) -> PlanPayload | str:
    """Return how a request forks by itself, or why it runs plain: "" where nobody would miss it.

    Args:
        recv: as SGLang's scheduler receives it.
        limits: of all such requests.
        tags: the ids of the tags.

    Raises:
        Unsupported: its prompt has tags, whose law only a plan says.
    """
    if recv.rid.startswith(_HEALTH_CHECK) or recv.input_ids is None:
        return ""
    if not tags.isdisjoint(recv.input_ids):
        raise Unsupported(
            "the prompt's ids hold tags, and only a plan says what they mean: send messages to "
            "/v1/chat/completions, text (where tags are plain characters), or a plan"
        )
    # SGLang itself asks for no token where it only wants a prompt in its cache.
    if recv.sampling_params.max_new_tokens == 0:
        return ""
    try:
        hooks.check_request(recv, unasked=True)
    except MvspecError as error:
        return str(error)
    return PlanPayload(unasked=True, options=adaptive_options(recv, limits))


def seed_of(name: str) -> int:
    """Return the seed that a name stands for, the same in every process.

    >>> seed_of("7/1") == seed_of("7/1") != seed_of("7/2")
    True
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big")


def adaptive_options(recv: Any, limits: Limits) -> Options:
    """Return SGLang's own sampling fields as options; its stop strings are `ClientResponse`'s.

    Args:
        recv: with sampling parameters that SGLang has normalised.
    """
    given = recv.sampling_params
    greedy = given.top_k == 1
    seed = given.sampling_seed
    if seed is None:  # its own, and the same in every process of the server
        seed = seed_of(recv.rid)
    sampling = Sampling(
        temperature=0.0 if greedy else given.temperature,
        top_p=given.top_p,
        top_k=0 if greedy or given.top_k >= 1 << 30 else given.top_k,
        min_p=given.min_p,
        repetition_penalty=given.repetition_penalty,
        seed=seed,
        logprobs=min(recv.top_logprobs_num or 0, 100) if recv.return_logprob else 0,
    )
    return Options(sampling=sampling, limits=limits)
