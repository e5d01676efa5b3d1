"""Laws 7 and 8 on a GPU, with CUDA graphs and without: training equals inference.

    python benchmarks/graph_check.py [--tokenizer FOLDER] [--kinds Llama]

Random models; replays of blocks, several at once, a token of each path a step. Every logit of the
engine is compared with one training forward over the run's layout; then a token of one path is
changed, and no logit of its siblings may move. Prints a line of JSON for each model.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
import transformers
from synthetic import block_plan
from torch import Tensor, nn

from mvspec.compiler import additive_mask
from mvspec.compiler.plan import ExecutionPlan
from mvspec.compiler.vocabulary import load_tokenizer
from mvspec.law.threads import sees
from mvspec.runtime import Options, Result, TorchEngine
from mvspec.runtime.engine.default_model import default_model

SHAPE = {
    "vocab_size": 49_152, "hidden_size": 384, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64,
    "max_position_embeddings": 8192, "initializer_range": 0.1,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
DECODE = Options(decode=True, logits=True)


def training_logits(model: Any, result: Result) -> Tensor:
    layout, device = result.trace.layout, model.device
    with torch.inference_mode():
        out = model(
            input_ids=torch.tensor(layout.input_ids[None], dtype=torch.int64, device=device),
            position_ids=torch.tensor(layout.position_ids[None], dtype=torch.int64, device=device),
            attention_mask=additive_mask(layout, dtype=model.dtype, device=device),
        )
    logits: Tensor = out.logits[0]
    return logits


def difference(model: Any, result: Result) -> float:
    """Return the largest difference of a logit to one training forward."""
    assert result.logits is not None
    whole = training_logits(model, result)
    return max(
        float((row - expected).abs().max())
        for row, expected in zip(result.logits, whole, strict=True)
        if row is not None
    )


def moved(engine: TorchEngine, before: Result, at: int) -> tuple[int, int]:
    """Change one token of a path; return how many logits of siblings moved, and of its own."""
    trace = before.trace
    ids = list(trace.ids)
    ids[at] = 100 + (ids[at] + 1) % 40_000
    plan = trace.model_copy(update={"ids": tuple(ids)}).plan
    after = engine.run(plan, DECODE)
    assert before.logits is not None
    assert after.logits is not None
    others = own = 0
    for index, (a, b) in enumerate(zip(before.logits, after.logits, strict=True)):
        if a is None or b is None:
            continue
        changed = not torch.equal(a, b)
        if (
            not sees(trace.chain(trace.thread_ids[index]), trace.chain(trace.thread_ids[at]))
            or index < at
        ):
            others += changed
        else:
            own += changed
    return others, own


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", help="folder; by default the default model's")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kinds", nargs="+", default=["Llama", "Qwen2", "Qwen3"])
    args = parser.parse_args()
    tokenizer = load_tokenizer(str(args.tokenizer or default_model()))
    plans: list[ExecutionPlan] = [
        block_plan(30 + 37 * index, 2 + index % 5, 12 + 3 * index, blocks=1 + index % 3, seed=index)
        for index in range(8)
    ]
    for kind in args.kinds:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            torch.manual_seed(0)
            config = getattr(transformers, f"{kind}Config")(**SHAPE, attn_implementation="sdpa")
            model = (
                getattr(transformers, f"{kind}ForCausalLM")(config).to(args.device, dtype).eval()
            )
            for graphs in (False,) if dtype == torch.float64 else (True, False):
                engine = TorchEngine(model, tokenizer, graphs=graphs)
                for _ in range(5 if graphs else 1):  # the first ones let them be captured
                    together = engine.run_many(plans, DECODE)
                    alone = [engine.run(plan, DECODE) for plan in plans[:3]]
                paths = [i for i, owner in enumerate(alone[1].trace.thread_ids) if owner]
                both = [moved(engine, alone[1], paths[len(paths) * n // 5]) for n in range(5)]
                made = engine.model.graphs
                print(json.dumps({
                    "model": kind, "dtype": str(dtype), "graphs": bool(made and not made.off),
                    "replays": made.replays if made else 0, "steps": engine.scheduler.steps,
                    "off": made.off if made else "",
                    "together - training": max(difference(model, each) for each in together),
                    "alone - training": max(difference(model, each) for each in alone),
                    "logits of siblings that moved": sum(others for others, _ in both),
                    "own logits that moved": sum(own for _, own in both),
                    "largest logit": float(training_logits(model, alone[0]).abs().max()),
                }), flush=True)  # fmt: skip
    if args.device == "cuda":
        falls_back(tokenizer)


def falls_back(tokenizer: Any) -> None:
    """A model that cannot be captured, and one whose graph would lie, go on without graphs."""

    class Asks(nn.Module):
        """Asks the GPU for a number in the middle of a forward."""

        def forward(self, x: Tensor) -> Tensor:
            return x if bool((x.abs().sum() >= 0).item()) else -x

    class Counts(nn.Module):
        """Computes something else each time, by a number that Python keeps."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * (1 if x.shape[1] > 4 or self.calls % 2 else 3)

    plan = block_plan(20, 2, 12)
    for made in (Asks(), Counts()):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**SHAPE)
        model = transformers.LlamaForCausalLM(config).to("cuda").eval()
        model.model.norm = nn.Sequential(model.model.norm, made)
        engine = TorchEngine(model, tokenizer)
        results = [engine.run(plan, DECODE) for _ in range(2)]
        print(json.dumps({
            "model": type(made).__name__, "off": engine.model.graphs.off,
            "replays": engine.model.graphs.replays, "steps": engine.scheduler.steps,
            "difference": difference(model, results[-1]) if isinstance(made, Asks) else None,
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
