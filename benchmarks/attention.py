"""Attention under a layout's mask on a GPU: building the mask, and forward + backward.

    python benchmarks/attention.py --lengths 8192 32768 131072 --coverage 0 0.5 0.9

Every figure is taken in one run, against plain causal attention on the same tokens.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import synthetic
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from mvspec.compiler import Layout, additive_mask, block_mask

HEADS, KV_HEADS, WIDTH = 28, 4, 128
Try = tuple[int, dict[str, Any] | None, Any]
"""Block size, kernel options, compiled FlexAttention."""


def milliseconds(function: Callable[[], object], repeats: int = 10, warmup: int = 3) -> float:
    """Median wall time of a function on the GPU."""
    for _ in range(warmup):
        function()
    torch.cuda.synchronize()
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def build(lengths: list[int], block: int) -> None:
    """Time `block_mask`, from a numpy layout to lists on the GPU."""
    for length in lengths:
        for coverage in (0.0, 0.5, 0.9):
            layout = synthetic.layout(length, coverage, block=block)
            times: list[float] = []
            for _ in range(40):
                torch.cuda.synchronize()
                start = time.perf_counter()
                block_mask(layout, device="cuda")
                torch.cuda.synchronize()
                times.append((time.perf_counter() - start) * 1e3)
            report("build", length, coverage, "block_mask", statistics.median(times[5:]))


def report(what: str, length: int, coverage: float, variant: str, value: float) -> None:
    print(
        json.dumps(
            {"what": what, "length": length, "coverage": coverage, "variant": variant,
             "ms": round(value, 3)}
        ),
        flush=True,
    )  # fmt: skip


def tensors(length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and the gradient of the output, bf16 [1, heads, length, 128]."""

    def make(heads: int) -> Tensor:
        return torch.randn(1, heads, length, WIDTH, device="cuda", dtype=torch.bfloat16)

    q, k, v = (make(heads).requires_grad_() for heads in (HEADS, KV_HEADS, KV_HEADS))
    return q, k, v, make(HEADS)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def step(attend: Attend, data: Data) -> Callable[[], None]:
    q, k, v, gradient = data

    def run() -> None:
        torch.autograd.grad(attend(q, k, v), (q, k, v), gradient)

    return run


def backend(kind: SDPBackend, mask: Tensor | None = None) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kind):
            return scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
            )

    return attend


def flex(mask: BlockMask, options: dict[str, Any] | None, compiled: Any) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = compiled(q, k, v, block_mask=mask, enable_gqa=True, kernel_options=options)
        return out

    return attend


def compare(lengths: list[int], coverages: list[float], tries: dict[str, Try], block: int) -> None:
    """Time forward + backward of every variant."""
    causal = {
        "cuDNN causal": SDPBackend.CUDNN_ATTENTION,
        "FlashAttention-2 causal": SDPBackend.FLASH_ATTENTION,
    }
    for length in lengths:
        data = tensors(length)
        for name, kind in causal.items():
            attempt(length, 0.0, name, partial(plain, kind, data))
        for coverage in coverages:
            layout = synthetic.layout(length, coverage, block=block)
            for name, each in tries.items():
                attempt(length, coverage, name, partial(sparse, layout, each, data))
        if length <= 32768:
            attempt(length, coverages[-1], "dense additive mask", partial(dense, layout, data))


def plain(kind: SDPBackend, data: Data) -> Callable[[], None]:
    return step(backend(kind), data)


def sparse(layout: Layout, each: Try, data: Data) -> Callable[[], None]:
    size, options, compiled = each
    mask = block_mask(layout, device="cuda", block_size=size)
    return step(flex(mask, options, compiled), data)


def dense(layout: Layout, data: Data) -> Callable[[], None]:
    mask = additive_mask(layout, dtype=torch.bfloat16, device="cuda").expand(1, HEADS, -1, -1)
    return step(backend(SDPBackend.EFFICIENT_ATTENTION, mask), expanded(data))


def expanded(data: Data) -> Data:
    q, k, v, gradient = data
    more = HEADS // KV_HEADS
    k, v = (x.detach().repeat_interleave(more, 1).requires_grad_() for x in (k, v))
    return q, k, v, gradient


def attempt(
    length: int, coverage: float, name: str, make: Callable[[], Callable[[], None]]
) -> None:
    try:
        report("attention", length, coverage, name, milliseconds(make()))
    except Exception as error:  # a try that fails is a result too
        row = {"what": "attention", "length": length, "coverage": coverage, "variant": name}
        print(json.dumps({**row, "failed": f"{type(error).__name__}: {str(error)[:300]}"}))


def recompilations(lengths: list[int]) -> None:
    """Count the graphs that one compiled call makes over many lengths and depths."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(flex_attention, dynamic=True)
    for index, length in enumerate(lengths):
        layout = synthetic.layout(length, (0.0, 0.5, 0.9)[index % 3], seed=index)
        mask = block_mask(layout, device="cuda")
        q, k, v, gradient = tensors(length)
        out = compiled(q, k, v, block_mask=mask, enable_gqa=True)
        torch.autograd.grad(out, (q, k, v), gradient)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    print(json.dumps({"what": "recompilation", "lengths": lengths, "graphs": graphs}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--coverage", type=float, nargs="+", default=[0.0, 0.5, 0.9])
    parser.add_argument("--block", type=int, default=2048, help="tokens of a block's paths")
    parser.add_argument("--tries", action="store_true", help="other block sizes and options too")
    parser.add_argument("--only", choices=["build", "recompile", "attention"])
    arguments = parser.parse_args()
    print(json.dumps({"torch": torch.__version__, "gpu": torch.cuda.get_device_name()}))
    if arguments.only in (None, "build"):
        build(arguments.lengths, arguments.block)
    if arguments.only in (None, "recompile"):
        recompilations([1000 + 733 * i for i in range(10)])
    if arguments.only in (None, "attention"):
        torch._dynamo.reset()
        fixed = torch.compile(flex_attention, dynamic=False)
        tries: dict[str, Try] = {"Flex": (128, None, fixed)}
        if importlib.util.find_spec("flash_attn"):
            tries["Flex, FLASH back end"] = (128, {"BACKEND": "FLASH"}, fixed)
        if arguments.tries:
            tuned = torch.compile(flex_attention, dynamic=False, mode="max-autotune-no-cudagraphs")
            tries |= {
                "Flex, block 256": (256, None, fixed),
                "Flex, autotuned": (128, None, tuned),
                "Flex, TMA": (128, {"USE_TMA": True}, fixed),
            }
        compare(arguments.lengths, arguments.coverage, tries, arguments.block)


if __name__ == "__main__":
    main()
