"""Correctness on a GPU: Flex logits of a transformers model equal dense eager's.

    python benchmarks/gpu_check.py
"""

from __future__ import annotations

import json

import synthetic
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mvspec.compiler import additive_mask, block_mask, concatenate

SHAPE = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    layouts = [synthetic.layout(1500, 0.6, block=400), synthetic.layout(1100, 0.9, block=300, seed=1)]
    batch = [concatenate(layouts), synthetic.layout(2600, 0.5, block=500, seed=2)]
    ids = torch.stack([torch.from_numpy(layout.input_ids) for layout in batch]).long().cuda()
    positions = torch.stack([torch.from_numpy(layout.position_ids) for layout in batch]).long().cuda()
    for kind, config in ((LlamaForCausalLM, LlamaConfig), (Qwen2ForCausalLM, Qwen2Config)):
        model = kind(config(**SHAPE)).cuda().eval()
        for dtype in (torch.float32, torch.bfloat16):
            model = model.to(dtype)
            logits = {}
            for attention in ("eager", "sdpa", "flex_attention"):
                model.set_attn_implementation(attention)
                flex = attention == "flex_attention"
                mask = block_mask(batch, device="cuda") if flex else additive_mask(batch, dtype=dtype, device="cuda")
                with torch.no_grad():
                    logits[attention] = model(ids, attention_mask=mask, position_ids=positions).logits.float()
            causal = torch.full((1, 1, 2600, 2600), torch.finfo(dtype).min, device="cuda", dtype=dtype).triu(1)
            model.set_attn_implementation("eager")
            with torch.no_grad():
                control = model(ids, attention_mask=causal.expand(2, -1, -1, -1), position_ids=positions).logits.float()
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
