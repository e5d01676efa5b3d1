"""Training steps on a GPU: a Multiverse layout against plain causal and dense-mask attention.

    python benchmarks/training.py --out training.jsonl          # one GPU: speed and memory
    python benchmarks/training.py --part curve --out curve.json # two GPUs against one
    python benchmarks/training.py --smoke                       # a toy shape on a CPU: both parts

Every step is the trainer's whole one: mask, forward, loss, backward, clipping, AdamW. Shapes are
those of Qwen2.5-0.5B and 1.5B (as Llama: without biases), with random weights in bfloat16; a row
is one synthetic document, half of it in paths. What a budget of seconds does not reach is said.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import synthetic
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig

from mvspec.compiler import compile_document
from mvspec.training import Batch, LanguageModel, LayoutData, Optimizer
from mvspec.training.logs import step_flops
from mvspec.training.network import ATTENTIONS

sys.path.append(str(Path(__file__).parents[1] / "tests"))

COMMON = {"tie_word_embeddings": True, "max_position_embeddings": 1 << 17}
SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": COMMON | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936,
    },
    "1.5B": COMMON | {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151_936,
    },
    "toy": COMMON | {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024,
    },
    "0.1B": COMMON | {
        "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 1024,
    },
}  # fmt: skip
VARIANTS = ("causal", "flex", "flash", "dense", "eager")
"""What is not named is plain: dense is an additive mask through SDPA, eager one through softmax."""
CAUSAL = "benchmark_causal"


def causal(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: Any, **rest: Any
) -> tuple[Tensor, None]:
    """Plain causal attention, as a trainer without blocks has it."""
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(CAUSAL, causal)
ATTENTIONS["causal"] = CAUSAL


class Model(LanguageModel):
    """The trainer's model; the causal one makes no mask."""

    def mask(self, batch: Batch) -> Any:
        if self.attention == "causal":
            return torch.zeros(1, 1, 1, 1, device=self.device)  # passed through, never read
        return super().mask(batch)


class Clock(Callback):
    """Seconds of each step, the device included."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.seconds: list[float] = []
        self.first = 0.0
        self._begun = 0.0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.warmup and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._begun = now()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 1:
            self.first = now() - self._begun
        if trainer.global_step > self.warmup:
            self.seconds.append(now() - self._begun)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def tokenizer() -> Any:
    from bpe import chat_tokenizer

    return chat_tokenizer()


def fresh(name: str, dtype: torch.dtype, device: str) -> Any:
    """A model with random weights, made where it is used: on a CPU that takes longer than a run."""
    config = LlamaConfig(**SHAPES[name])
    make: Any = AutoModelForCausalLM.from_config
    torch.manual_seed(0)
    with torch.device(device):
        return make(config, dtype=dtype)


def trainer(root: Path, **more: Any) -> Trainer:
    return Trainer(
        default_root_dir=root, logger=False, enable_checkpointing=False, max_epochs=-1,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **more,
    )  # fmt: skip


def steps(name: str, length: int, variant: str, checkpointing: bool, given: Any) -> dict[str, Any]:
    """Time training steps of one kind; return what is reported."""
    torch._dynamo.reset()
    dtype = torch.float32 if given.smoke else torch.bfloat16
    model = Model(
        fresh(name, dtype, "cpu" if given.smoke else "cuda"),
        tokenizer(),
        dtype="float32" if given.smoke else "bfloat16",
        attention={"flash": "flex", "dense": "sdpa"}.get(variant, variant),
        kernel_options={"BACKEND": "FLASH"} if variant == "flash" else None,
        gradient_checkpointing=checkpointing,
        compile=not given.no_compile,
        optimizer=Optimizer(schedule="constant"),
    )
    layout = synthetic.layout(length, given.coverage, block=min(2048, length // 4))
    clock = Clock(given.warmup)
    run = trainer(
        Path(tempfile.gettempdir()), accelerator="cpu" if given.smoke else "gpu", devices=1,
        precision="32-true" if given.smoke else "bf16-true", callbacks=[clock],
        max_steps=given.warmup + given.steps,
    )  # fmt: skip
    run.fit(model, LayoutData([layout]))
    batch = next(iter(LayoutData([layout]).train_dataloader()))
    pairs = length * (length + 1) // 2 if variant == "causal" else batch.pairs
    flops = step_flops(model.built(), batch.tokens, batch.loss_tokens, pairs)
    seconds = statistics.median(clock.seconds)
    peak = given.peak
    if peak is None and not given.smoke:
        peak = get_available_flops(model.device, torch.bfloat16)
    memory = 0 if given.smoke else torch.cuda.max_memory_allocated()
    return {
        "ms": round(seconds * 1e3, 2),
        "tokens_per_second": round(length / seconds),
        "mfu": round(flops / seconds / peak, 4) if peak else None,
        "peak_gib": round(memory / 2**30, 2) or None,
        "first_step_s": round(clock.first, 1),
        "loss": round(float(run.callback_metrics["train/loss"]), 4),
    }


def speed(given: Any) -> list[dict[str, Any]]:
    """Time every shape, length and variant that the budget reaches."""
    if not given.smoke:
        # The fastest causal kernel there is; a mask takes the one that allows it.
        torch.backends.cuda.enable_math_sdp(False)
        torch.backends.cuda.enable_flash_sdp(False)
    begun = time.perf_counter()
    found: list[dict[str, Any]] = []
    for name in given.shapes:
        for length in given.lengths:
            checkpointing = given.checkpointing == "on"
            for variant in given.variants:
                if variant in ("dense", "eager") and length not in given.dense_lengths:
                    continue
                row = {"part": "speed", "shape": name, "length": length, "variant": variant}
                if time.perf_counter() - begun > given.budget:
                    report(row | {"skipped": "out of budget"}, given.out)
                    continue
                if variant == "flash" and not importlib.util.find_spec("flash_attn"):
                    report(row | {"skipped": "flash-attn-4 is not installed"}, given.out)
                    continue
                checkpointing = attempt(row, checkpointing, found, given)
    return found


def attempt(
    row: dict[str, Any], checkpointing: bool, found: list[dict[str, Any]], given: Any
) -> bool:
    """Time one variant, with checkpointing where it does not fit without; say whether it was."""
    for again in (checkpointing, True):
        try:
            values = steps(row["shape"], row["length"], row["variant"], again, given)
        except torch.OutOfMemoryError:
            # The length's other variants are measured alike, so they are comparable.
            checkpointing = given.checkpointing == "auto" or checkpointing
            if again or not checkpointing:
                report(row | {"failed": "out of memory", "checkpointing": again}, given.out)
                break
        except Exception as error:  # a variant that fails is a result too
            report(row | {"failed": f"{type(error).__name__}: {str(error)[:300]}"}, given.out)
            break
        else:
            report(row | values | {"checkpointing": again}, given.out)
            found.append(row | values | {"checkpointing": again})
            break
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return checkpointing


def report(row: dict[str, Any], out: Path | None) -> None:
    line = json.dumps(row)
    print(line, flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(line + "\n")


def table(rows: list[dict[str, Any]]) -> None:
    """Print what was found, each beside the causal step of its shape and length."""
    print(f"\n{'shape':6}{'length':>8} {'variant':8}{'ms':>10}{'tokens/s':>11}{'of causal':>11}"
          f"{'MFU':>7}{'GiB':>8}  checkpointing")  # fmt: skip
    causal_ms = {(r["shape"], r["length"]): r["ms"] for r in rows if r["variant"] == "causal"}
    for row in rows:
        base = causal_ms.get((row["shape"], row["length"]))
        share = f"{base / row['ms']:.3f}" if base else "-"
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.3f}"
        memory = "-" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        print(f"{row['shape']:6}{row['length']:8} {row['variant']:8}{row['ms']:10.1f}"
              f"{row['tokens_per_second']:11,}{share:>11}{mfu:>7}{memory:>8}"
              f"  {'yes' if row['checkpointing'] else 'no'}")  # fmt: skip


class Losses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            self.values.append(float(trainer.callback_metrics["train/loss"]))


RUNS = {"one": (1, 1, 2, 1), "again": (1, 1, 1, 2), "two": (2, 1, 1, 1), "split": (1, 2, 2, 1)}
"""Of a curve: devices that share the weights, and that share each matrix; rows, and batches."""


def curve(given: Any) -> None:
    """Train on synthetic documents, and write the losses; rows of a step are the same always."""
    made = tokenizer()
    documents = [
        compile_document(synthetic.document(given.tokens, seed=i), made) for i in range(32)
    ]
    sharded, split, batch, accumulate = RUNS[given.run]
    losses = Losses()
    strategy: Any = "auto"
    if sharded * split > 1:
        strategy = ModelParallelStrategy(data_parallel_size=sharded, tensor_parallel_size=split)
    run = trainer(
        Path(tempfile.gettempdir()), accelerator="cpu" if given.smoke else "gpu",
        devices=sharded * split, strategy=strategy, precision=given.precision,
        accumulate_grad_batches=accumulate, callbacks=[losses], max_steps=given.curve_steps,
    )  # fmt: skip
    model = Model(
        fresh("toy" if given.smoke else "0.1B", torch.float32, "cpu"), made,
        compile=not given.no_compile and not given.smoke,
        optimizer=Optimizer(lr=1e-3, schedule="constant", warmup=10),
    )  # fmt: skip
    started = time.perf_counter()
    run.fit(model, LayoutData(documents, batch_size=batch, length=given.tokens, pack=True))
    if run.is_global_zero:
        seconds = time.perf_counter() - started
        report({"run": given.run, "seconds": round(seconds, 1), "losses": losses.values}, given.out)


def curves(given: Any) -> None:
    """Compare two devices with one, in both ways, and one with itself summed in another order."""
    folder = Path(given.out).parent if given.out else Path(tempfile.gettempdir())
    found: dict[str, list[float]] = {}
    for name in RUNS:
        file = folder / f"curve-{os.getpid()}-{name}.json"
        command = [sys.executable, __file__, "--part", "run", "--run", name, "--out", str(file)]
        command += ["--smoke"] * given.smoke + ["--no-compile"] * given.no_compile
        command += ["--curve-steps", str(given.curve_steps), "--tokens", str(given.tokens)]
        command += ["--precision", given.precision]
        subprocess.run(command, check=True)
        found[name] = json.loads(file.read_text())["losses"]
        file.unlink()

    def apart(a: str, b: str) -> float:
        return max(abs(x - y) for x, y in zip(found[a], found[b], strict=True))

    report(
        {
            "part": "curve",
            "steps": given.curve_steps,
            "first": found["one"][0],
            "last": {name: values[-1] for name, values in found.items()},
            "precision": given.precision,
            "two_apart_from_one": apart("one", "two"),
            "split_apart_from_one": apart("one", "split"),
            "one_apart_from_itself_accumulated": apart("one", "again"),
        },
        given.out,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["speed", "curve", "run", "all"])
    parser.add_argument("--shapes", nargs="+", default=["0.5B", "1.5B"], choices=list(SHAPES))
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS[:4]), choices=VARIANTS)
    parser.add_argument("--dense-lengths", type=int, nargs="+", default=[16384])
    parser.add_argument("--coverage", type=float, default=0.5, help="share of tokens in paths")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--checkpointing", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--budget", type=float, default=330.0, help="seconds of the speed part")
    parser.add_argument("--peak", type=float, help="the device's operations a second, in bfloat16")
    parser.add_argument("--curve-steps", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=2048, help="of a row of the curves")
    parser.add_argument("--precision", default="bf16-mixed", help="of the curves")
    parser.add_argument("--run", choices=list(RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="append lines of JSON to this file")
    parser.add_argument("--smoke", action="store_true", help="a toy shape on a CPU")
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    random.seed(0)
    torch.manual_seed(0)
    if given.smoke:
        torch.set_num_threads(1)
        given.shapes, given.lengths, given.dense_lengths = ["toy"], [256, 512], [512]
        given.variants = ["causal", "dense"]  # FlexAttention has no backward pass on a CPU
        given.no_compile, given.steps = True, 2
        given.curve_steps, given.tokens = min(given.curve_steps, 8), 512
        given.precision = "32-true"
    part = given.part or ("all" if given.smoke else "speed")
    if part == "run":
        curve(given)
        return
    name = "CPU" if given.smoke else torch.cuda.get_device_name()
    report({"torch": torch.__version__, "device": name}, given.out)
    if part in ("speed", "all"):
        table(speed(given))
    if part in ("curve", "all"):
        curves(given)


if __name__ == "__main__":
    main()
