"""Models for which a layout's mask would silently not be the model's."""

from __future__ import annotations

from typing import Any

from mvspec.errors import Unsupported

__all__ = ["check_model"]

# Position schemes that do not read position_ids, so that siblings could not share positions.
_WITHOUT_POSITION_IDS = {
    "bloom": "ALiBi ignores position_ids",
    "mpt": "ALiBi ignores position_ids",
    "falcon": "ALiBi variants ignore position_ids",
}
_RECURRENT = ("mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba", "zamba",
              "zamba2", "bamba", "xlstm", "lfm2", "minimax")  # fmt: skip
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def check_model(model_or_config: Any) -> None:
    """Refuse a model whose attention is not decided by a mask and position ids alone.

    Args:
        model_or_config: a transformers model or its config.

    Raises:
        Unsupported: sliding windows, chunked or linear attention, a recurrent state, ALiBi, or
            RoPE whose frequencies depend on the length; the message names the model and why.
    """
    config = getattr(model_or_config, "config", model_or_config)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    kind = str(getattr(config, "model_type", "this model"))

    def refuse(why: str) -> Unsupported:
        return Unsupported(f"model type {kind!r}: {why}, so a custom mask would be silently wrong")

    if kind in _WITHOUT_POSITION_IDS and (kind != "falcon" or getattr(config, "alibi", False)):
        raise refuse(_WITHOUT_POSITION_IDS[kind])
    if kind in _RECURRENT:
        raise refuse("its layers keep a recurrent state")
    layers = set(getattr(config, "layer_types", None) or ())
    other = sorted(layers - {"full_attention"})
    if other:
        raise refuse(f"it has layers of type {', '.join(other)}")
    window = getattr(config, "sliding_window", None)
    if window and not layers and getattr(config, "use_sliding_window", True):
        raise refuse(f"it attends within a sliding window of {window} tokens")
    for name in ("attention_chunk_size", "linear_attn_config", "ssm_cfg"):
        if getattr(config, name, None):
            raise refuse(f"its attention is chunked or linear ({name})")
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    scheme = rope.get("rope_type", rope.get("type", "default"))
    if scheme in _LENGTH_DEPENDENT_ROPE:
        raise refuse(f"its RoPE ({scheme}) depends on the length of the text")
