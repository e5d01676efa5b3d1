"""What Python takes of a step of 256 threads; `benchmarks/runtime.py --step` runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from mvspec import gen
from mvspec.compiler.plan import ExecutionPlan, Extend, Fork, Generate, Join
from mvspec.runtime import TorchEngine

__all__ = ["compare"]


def step_seconds(device: str, rounds: int = 5) -> float:
    """Return the least CPU seconds of a step of 64 requests of 4 paths, over some rounds.

    The model's own forward, which no engine can do without, is left out.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=len(alphabet), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=16, max_position_embeddings=4096,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().to(device)
    with torch.no_grad():  # it says letters, as real text mostly does, and no parts of characters
        model.lm_head.weight[[id for c, id in alphabet.items() if not c.isascii()]] = 0
    engine = TorchEngine(model, tokenizer)
    paths = (1, 2, 3, 4)
    ops = [
        Extend(thread=0, tokens=tuple(range(65, 85)), author="prompt"),
        Fork(thread=0, paths=paths),
    ]
    for path in paths:
        ops += [
            Extend(thread=path, tokens=(65, 66, 67)),
            Generate(thread=path, hole=gen(f"x{path}", 64)),
        ]
    plan = ExecutionPlan(ops=(*ops, Join(paths=paths, thread=5)), form="untagged")
    found: list[float] = []
    for _ in range(rounds):
        # An older checkout counts its steps elsewhere.
        counter = getattr(engine, "scheduler", engine)
        before, start = counter.steps, time.process_time()
        engine.run_many([plan] * 64)
        found.append((time.process_time() - start) / (counter.steps - before))
    return min(found) - bare_seconds(model, device)


def bare_seconds(model: LlamaForCausalLM, device: str) -> float:
    """Return the least CPU seconds of the model's own forward over as many tokens."""
    ids = torch.full((1, 256), 65, device=device)
    found: list[float] = []
    with torch.inference_mode():
        for _ in range(100):
            start = time.process_time()
            model(input_ids=ids, use_cache=False)
            found.append(time.process_time() - start)
    return min(found)


def compare(checkout: str | None, device: str, repeats: int) -> None:
    """Print the step of this checkout and of another one, in turns, each in a new process."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folders = [here] if checkout is None else [here, checkout]
    times: dict[str, list[float]] = {folder: [] for folder in folders}
    for _ in range(repeats):
        for folder in folders:
            out = subprocess.run(
                [sys.executable, __file__, device],
                env={**os.environ, "PYTHONPATH": folder},
                check=True,
                capture_output=True,
                text=True,
            )
            times[folder].append(float(out.stdout.split()[-1]))
    ours, *other = [min(found) for found in times.values()]
    print(f"a step of 256 threads, the model's own forward left out: {1e3 * ours:.1f} ms")
    for least in other:
        print(f"the other checkout: {1e3 * least:.1f} ms; ours is {ours / least:.2f} of it")


if __name__ == "__main__":
    print(step_seconds(sys.argv[1]))
