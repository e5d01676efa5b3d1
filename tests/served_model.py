"""A small model in a folder, which likes to fork: what the tests let a server serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tiny import chat

from mvspec.law.tags import Tag

__all__ = ["save_model"]

LIKED = {
    Tag.PARALLEL: 4.0, Tag.END_GOAL: 3.5, Tag.END_OUTLINE: 4.0, Tag.END_PATH: 4.0,
    Tag.END_CONCLUSION: 4.0, Tag.OUTLINE: 4.0,
}  # fmt: skip
"""How much more each tag is liked than random weights say."""


def save_model(folder: Path, kind: str = "Qwen2", context: int = 4096) -> Any:
    """Write a random model with its tokenizer, float32; return the model.

    The first dimension of its hidden states is the same for all tokens, so that a column of its
    head is a bias.
    """
    tokenizer = chat()
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.float32).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 60.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        head = model.lm_head.weight
        head[:, 0] = 0
        liked = {tokenizer.convert_tokens_to_ids(tag.value): bias for tag, bias in LIKED.items()}
        for id, bias in (liked | {tokenizer.encode("\n")[0]: 4.0}).items():
            head[id] = 0
            head[id, 0] = bias
    config.torch_dtype = "float32"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
