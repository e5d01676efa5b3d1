"""Correctness on a GPU: Flex logits of a transformers model equal dense eager's.

python benchmarks/gpu_check.py
"""

from __future__ import annotations

import json
from typing import Any

import synthetic
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mvspec.compiler import additive_mask, block_mask, concatenate

SHAPE = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip


def run(model: Any, ids: Tensor, mask: Any, positions: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(ids, attention_mask=mask, position_ids=positions).logits
    return logits.float()


def main() -> None:
    torch.manual_seed(0)
    first = synthetic.layout(1500, 0.6, block=400)
    second = synthetic.layout(1100, 0.9, block=300, seed=1)
    batch = [concatenate([first, second]), synthetic.layout(2600, 0.5, block=500, seed=2)]
    ids, positions = (
        torch.stack([torch.from_numpy(getattr(layout, name)) for layout in batch]).long().cuda()
        for name in ("input_ids", "position_ids")
    )
    for kind, config in ((LlamaForCausalLM, LlamaConfig), (Qwen2ForCausalLM, Qwen2Config)):
        model = kind(config(**SHAPE)).cuda().eval()
        for dtype in (torch.float32, torch.bfloat16):
            model = model.to(dtype)
            additive = additive_mask(batch, dtype=dtype, device="cuda")
            causal = torch.full_like(additive, torch.finfo(dtype).min).triu(1)
            masks = {
                "eager": additive,
                "sdpa": additive,
                "flex_attention": block_mask(batch, device="cuda"),
            }
            logits = {}
            for attention, mask in masks.items():
                model.set_attn_implementation(attention)
                logits[attention] = run(model, ids, mask, positions)
            model.set_attn_implementation("eager")
            control = run(model, ids, causal, positions)
            eager = logits["eager"]
            print(json.dumps({
                "model": kind.__name__, "dtype": str(dtype),
                "flex - eager": float((logits["flex_attention"] - eager).abs().max()),
                "sdpa - eager": float((logits["sdpa"] - eager).abs().max()),
                "plain causal - eager (control)": float((control - eager).abs().max()),
                "largest logit": float(eager.abs().max()),
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
