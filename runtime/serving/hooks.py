"""Hooks of the plugin into SGLang, and what is checked before: versions, signatures, features.

With adapter.py, kv_pool.py, sglang_req.py and logprobs.py all contact with SGLang's scheduler:
nothing else in mvspec imports that. An engine of this process is asked in endpoint.py.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any, NamedTuple

from packaging.version import Version

from mvspec.compiler.models import check_model
from mvspec.errors import Unsupported

OLDEST, NEWEST = Version("0.5.16"), Version("0.5.23")
"""The versions that were tested; others are refused."""

_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_BATCH = "sglang.srt.managers.schedule_batch"
_PARTS = "sglang.srt.managers.scheduler_components"


class HookTarget(NamedTuple):
    """One place of SGLang that the plugin wraps.

    Args:
        kind: "before", "after" or "around": when SGLang's hook registry calls us.
        target: dotted path of a method.
        parameters: those that it must have, by name and in this order, `self` left out; others
            may follow.
    """

    kind: str
    target: str
    parameters: tuple[str, ...] = ()


HOOKS = {
    "begin": HookTarget("before", f"{_SCHEDULER}.run_event_loop"),
    "admit": HookTarget("around", f"{_SCHEDULER}.handle_generate_request", ("recv_req",)),
    "schedule": HookTarget(
        "before", f"{_SCHEDULER}.get_next_batch_to_run", ("running_batch", "last_batch")
    ),
    "prefill": HookTarget("around", f"{_SCHEDULER}.get_new_batch_prefill", ("running_batch",)),
    "launch": HookTarget("before", f"{_SCHEDULER}.run_batch", ("batch",)),
    "processed": HookTarget("after", f"{_SCHEDULER}.process_batch_result", ("batch", "result")),
    "abort": HookTarget("around", f"{_SCHEDULER}.abort_request", ("recv_req",)),
    "idle": HookTarget("after", f"{_SCHEDULER}.is_fully_idle"),
    "state": HookTarget("after", f"{_SCHEDULER}.get_internal_state", ("recv_req",)),
    "pause": HookTarget("before", "sglang.srt.managers.scheduler.retract_all", ("reqs",)),
    "retract": HookTarget("around", f"{_BATCH}.ScheduleBatch.retract_decode"),
    "place": HookTarget(
        "after",
        "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new",
        ("batch", "model_runner"),
    ),
    "sample": HookTarget(
        "around",
        "sglang.srt.model_executor.model_runner.ModelRunner.sample",
        ("logits_output", "forward_batch"),
    ),
    "stream": HookTarget(
        "before",
        f"{_PARTS}.output_streamer.SchedulerOutputStreamer.stream_output",
        ("reqs", "return_logprob"),
    ),
    "wait": HookTarget(
        "around",
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._wait_one_response",
        ("obj", "request"),
    ),
    "count": HookTarget(
        "after",
        f"{_PARTS}.invariant_checker.SchedulerInvariantChecker._get_total_uncached_sizes",
    ),
}
"""What the plugin wraps, by its method that does so."""

FRONTEND_HOOKS = {
    "chat": HookTarget(
        "around",
        "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._convert_to_internal_request",
        ("request", "raw_request"),
    ),
    "prompt": HookTarget(
        "before",
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
        ("obj", "request"),
    ),
}
"""What the frontend wraps, where requests fork by themselves."""

_NEEDED = {
    f"{_BATCH}.Req": (("_refresh_fill_ids", "refresh_fill_ids"), ("update_finish_state",)),
    f"{_BATCH}.ScheduleBatch": (("prepare_for_extend",), ("filter_batch",), ("merge_batch",)),
    "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache": (
        ("cache_unfinished_req", "checkpoint"),
        ("dec_lock_ref",),
        ("evictable_size",),
    ),
    "sglang.srt.managers.scheduler": (("NextBatchPlan",),),
    f"{_PARTS}.metrics_reporter": (("PrefillStats",),),
    "sglang.srt.observability.metrics_collector": (("QueueCount",),),
    "sglang.srt.mem_cache.common": (("release_kv_cache",),),
    "sglang.srt.constrained.base_grammar_backend": (("BaseGrammarObject",),),
}
"""What the plugin calls besides, by where it is: one of the names each, by version."""


def verify(places: Mapping[str, HookTarget]) -> str:
    """Check that this SGLang is one that the plugin was made for.

    Args:
        places: that it wraps.

    Returns:
        Its version.

    Raises:
        Unsupported: it is not; the message names what is missing.
    """
    version = importlib.metadata.version("sglang")
    if not OLDEST <= Version(version) <= NEWEST:
        raise Unsupported(f"sglang {version} was not tested: use {OLDEST} to {NEWEST}")
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for path in (*(place.target for place in places.values()), *_NEEDED):
        try:
            found[path] = pkgutil.resolve_name(path)
        except (AttributeError, ImportError) as error:
            wrong.append(f"{path} is missing ({error})")
    for place in places.values():
        if place.target in found:
            held = inspect.signature(found[place.target]).parameters
            names = [name for name in held if name not in ("self", "cls")]
            if tuple(names[: len(place.parameters)]) != place.parameters:
                wrong.append(f"{place.target} takes ({', '.join(names)})")
    wrong += [
        f"{owner}.{' or '.join(either)} is missing"
        for owner, needed in _NEEDED.items()
        for either in needed
        if owner in found and not any(hasattr(found[owner], name) for name in either)
    ]
    if wrong:
        raise Unsupported(f"sglang {version} is not as the plugin expects: {'; '.join(wrong)}")
    return version


def apply(plugin: object, places: Mapping[str, HookTarget]) -> None:
    """Register the methods of a plugin with SGLang, each at the place of its name."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for name, place in places.items():
        HookRegistry.register(place.target, getattr(plugin, name), HookType(place.kind))


def missing_hooks() -> list[str]:
    """Return the targets that SGLang failed to wrap; it only logs such failures."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    return [place.target for place in HOOKS.values() if place.target not in HookRegistry._patched]


REFUSED_FLAGS = {
    "--speculative-algorithm": "a draft is one line of tokens",
    "--enable-dp-attention": "the threads of a request are in one batch",
    "--enable-mixed-chunk": "threads are prefilled in batches of their own",
    "--enable-lora": "it was not tried",
    "--lora-paths": "it was not tried",
    "--enable-hierarchical-cache": "a joined sequence is no plain prefix",
    "--enable-lmcache": "a joined sequence is no plain prefix",
    "--enable-two-batch-overlap": "it was not tried",
    "--skip-tokenizer-init": "structure is enforced with the tokenizer",
    "--is-embedding": "an embedding model writes nothing",
}
"""Flags of SGLang that fork and join cannot be combined with, and why."""

ONLY_ONE = ("--page-size", "--pp-size")
"""Flags that may only be 1."""


def check_server(scheduler: Any, *, adaptive: bool = False) -> None:
    """Refuse a server whose features fork and join cannot be combined with.

    Args:
        scheduler: after its start.
        adaptive: whether requests fork by themselves.

    Raises:
        Unsupported: by the name of the flag, or why no mask and positions decide what the model's
            attention reads.
    """
    args = scheduler.server_args

    def given(flag: str) -> Any:
        return getattr(args, flag[2:].replace("-", "_"), None)

    refused = {
        **{flag: given(flag) for flag in REFUSED_FLAGS},
        **{f"{flag} above 1": (given(flag) or 1) > 1 for flag in ONLY_ONE},
        "--enable-priority-scheduling without --disable-priority-preemption": getattr(
            scheduler, "enable_priority_preemption", False
        ),
        "--enable-priority-scheduling and --max-queued-requests": (
            args.enable_priority_scheduling and args.max_queued_requests is not None
        ),
        "prefill and decode on different servers": args.disaggregation_mode != "null",
        "sliding windows": getattr(scheduler, "is_hybrid_swa", False) or _windows(scheduler),
        "state-space layers": getattr(scheduler, "is_hybrid_ssm", False),
        "multimodal positions": _has_mrope(scheduler),
        "an encoder": getattr(scheduler.model_config, "is_encoder_decoder", False),
        "diffusion decoding": getattr(scheduler, "dllm_config", None) is not None,
        "embeddings": not scheduler.is_generation,
        # SGLang loads no plugins in these.
        "--tokenizer-worker-num above 1": adaptive and (given("--tokenizer-worker-num") or 1) > 1,
    }
    _refuse(refused)
    check_model(scheduler.model_config.hf_config)


def _windows(scheduler: Any) -> bool:
    """Whether a layer of the model that runs attends within a window: SGLang counts it in slots."""
    layers = scheduler.tp_worker.model_runner.model.modules()
    return any((getattr(layer, "sliding_window_size", None) or -1) > 0 for layer in layers)


def _refuse(refused: Mapping[str, Any]) -> None:
    found = [name for name, there in refused.items() if there]
    if found:
        raise Unsupported(f"fork and join do not work with {', '.join(found)}: leave it out")


def _has_mrope(scheduler: Any) -> bool:
    config = scheduler.model_config.hf_text_config
    scaling = getattr(config, "rope_scaling", None) or {}
    return "mrope_section" in scaling


_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")

_REFUSED_FIELDS = (
    "session_params", "custom_logit_processor", "return_hidden_states", "token_ids_logprob",
    "return_sampling_mask",
)  # fmt: skip

_REFUSED_SAMPLING = (
    "logit_bias", "frequency_penalty", "presence_penalty", "min_new_tokens", "stop_token_ids",
    "ignore_eos",
)  # fmt: skip


def check_request(recv: Any, *, unasked: bool = False) -> None:
    """Refuse a request that asks for what fork and join cannot be combined with.

    Args:
        recv: as SGLang's scheduler receives it.
        unasked: whether it forks by itself; SGLang's own fields then say how it is sampled.

    Raises:
        Unsupported: by the name of the field.
    """
    sampling = recv.sampling_params
    refused = {
        "a grammar of the whole answer (give holes a constraint instead)": any(
            getattr(sampling, name, None) for name in _GRAMMARS
        ),
        "lora_path": getattr(recv, "lora_id", None),
        "input_embeds": getattr(recv, "input_embeds", None) is not None,
        "images, audio or video": getattr(recv, "mm_inputs", None) is not None,
        "n above 1 (send the plan several times, with a seed each)": not unasked
        and (getattr(sampling, "n", None) or 1) > 1,
        "stop_regex": getattr(sampling, "stop_regex_strs", None),
        "beam search": (getattr(sampling, "beam_width", None) or 1) > 1,
        "logprob_start_len": getattr(recv, "logprob_start_len", -1) not in (-1, None),
        **{name: getattr(recv, name, None) for name in _REFUSED_FIELDS},
        **{name: getattr(sampling, name, None) for name in _REFUSED_SAMPLING},
    }
    if unasked:  # `ClientResponse` looks for them in the answer
        del refused["stop_token_ids"]
    _refuse(refused)


def make_plain(recv: Any) -> None:
    """Take out what would let SGLang queue a request elsewhere: it is refused anyway."""
    for name in _GRAMMARS:
        if getattr(recv.sampling_params, name, None):
            setattr(recv.sampling_params, name, None)
