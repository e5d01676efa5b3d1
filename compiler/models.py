"""Models for which a layout's mask would silently not be the model's."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from mvspec.errors import Unsupported

# Layers that see what the mask shows and nothing else.
_FULL = {"full_attention", "attention"}
# By model type, what no other field of the config tells.
_NAMED = {
    **dict.fromkeys(
        ("bamba", "falcon_h1", "falcon_mamba", "jamba", "lfm2", "lfm2_moe", "mamba", "mamba2",
         "minimax", "nemotron_h", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2"),
        "its layers keep a recurrent state",
    ),
    **dict.fromkeys(("bloom", "mpt"), "its ALiBi ignores position_ids"),
    **dict.fromkeys(
        ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta",
         "xlm-roberta-xl", "xmod"),
        "its positions are counted from the padding token's id",
    ),
    "blt": "it reads patches of several tokens",
}  # fmt: skip
# Fields of a config that, where they are set, say what its attention does beyond the mask.
_FIELDS = {
    "alibi": "its ALiBi ignores position_ids",
    "attention_chunk_size": "its attention is chunked",
    "index_topk": "its attention picks the tokens that it sees",
    "linear_attn_config": "its attention is linear",
    "ssm_cfg": "its layers keep a recurrent state",
}
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
_WITHOUT_MASKS = ("flash_attention", "flash_mla", "paged|")


def check_model(model_or_config: Any) -> None:
    """Refuse a model whose attention is not decided by a mask and position ids alone.

    Args:
        model_or_config: a transformers model or its config.

    Raises:
        Unsupported: sliding windows, chunked, sparse or linear attention, a recurrent state,
            ALiBi, no position ids, RoPE whose frequencies depend on the length, or kernels that
            take no mask; the message names the model and why.

    >>> from transformers import LlamaConfig
    >>> check_model(LlamaConfig())
    """
    config = _text_config(model_or_config)
    if not hasattr(config, "model_type"):
        raise Unsupported(f"{type(config).__name__} is neither a transformers model nor a config")
    why = next(_reasons(config), None)
    if why:
        kind = str(getattr(config, "model_type", "this model"))
        raise Unsupported(f"model type {kind!r}: {why}, so a custom mask would be silently wrong")


def position_limit(model_or_config: Any) -> int | None:
    """Return how many positions a model has, or was trained for; None if its config does not say.

    >>> from transformers import GPT2Config
    >>> position_limit(GPT2Config(n_positions=512))
    512
    """
    found: int | None = getattr(_text_config(model_or_config), "max_position_embeddings", None)
    return found


def _text_config(model_or_config: Any) -> Any:
    config = getattr(model_or_config, "config", model_or_config)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _reasons(config: Any) -> Iterator[str]:
    kind = getattr(config, "model_type", "")
    if kind in _NAMED:
        yield _NAMED[kind]
    for field, why in _FIELDS.items():
        if getattr(config, field, None):
            yield f"{why} ({field})"
    layers = set(getattr(config, "layer_types", None) or ())
    other = sorted(layers - _FULL)
    if other:
        yield f"it has layers of type {', '.join(other)}"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        yield "it has layers of local attention"
    window = getattr(config, "sliding_window", None)
    if window and not layers and getattr(config, "use_sliding_window", True):
        yield f"it attends within a sliding window of {window} tokens"
    for scheme in _rope_types(config):
        if scheme in _LENGTH_DEPENDENT_ROPE:
            yield f"its RoPE ({scheme}) depends on the length of the text"
    if not _reads_position_ids(config):
        yield "it takes no position_ids"
    attention = str(getattr(config, "_attn_implementation", None) or "")
    if attention.startswith(_WITHOUT_MASKS):
        yield (
            f"attn_implementation={attention!r} takes no mask (load it with "
            "'flex_attention', 'sdpa' or 'eager')"
        )


def _rope_types(config: Any) -> Iterator[str]:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # One scheme for all layers, or one for each type of layer.
    for each in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        yield str(each.get("rope_type", each.get("type", "default")))


def _reads_position_ids(config: Any) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        return True  # not transformers' own: nothing is known
    model = found[0] if isinstance(found, tuple) else found
    return "position_ids" in inspect.signature(model.forward).parameters
