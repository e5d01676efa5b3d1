"""The in-process engine against one path after the other, one request at a time, and `generate`.

    python benchmarks/runtime.py [--model FOLDER] [--device cuda]

Every comparison is made in this process, its two sides in turns, and the medians are printed.
Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mvspec.compiler.plan import ExecutionPlan, Extend, Fork, Join
from mvspec.runtime import Options, TorchEngine


def block_plan(
    prompt: int, paths: int, tokens: int, blocks: int = 1, after: int = 8
) -> ExecutionPlan:
    """Return a replay of blocks with equal paths; the model's tokens take a step each."""
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(100, 40_000, (count,), generator=draw).tolist())

    ops: list[Any] = [Extend(thread=0, tokens=ids(prompt), author="prompt")]
    at, made = 0, 1
    for _ in range(blocks):
        each = tuple(range(made, made + paths))
        made += paths
        ops.append(Fork(thread=at, paths=each))
        for path in each:
            ops.append(Extend(thread=path, tokens=ids(4)))
            ops.append(Extend(thread=path, tokens=ids(tokens), author="model"))
        ops.append(Join(paths=each, thread=made))
        at, made = made, made + 1
        ops.append(Extend(thread=at, tokens=ids(after)))
    return ExecutionPlan(ops=tuple(ops), form="untagged").verify()


def in_turns(repeats: int, *sides: Callable[[], object]) -> list[float]:
    """Return the median seconds of each side, run in turns."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, found in zip(sides, times, strict=True):
            start = time.perf_counter()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def row(what: str, ours: float, other: float, against: str) -> None:
    """Print one comparison."""
    print(f"| {what} | {ours:.2f} | {other:.2f} | {against} | {other / ours:.2f} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    engine = TorchEngine.load(args.model, device=args.device, dtype=args.dtype)
    model = engine.model.model
    print(f"{engine.model.name}, {model.dtype}, {engine.model.device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")  # fmt: skip
    decode, alone = Options(decode=True), Options(decode=True, threads=1)
    engine.run(block_plan(16, 2, 4), decode)  # warm
    print("| What | ours, s | other, s | other is | times faster |")
    print("| --- | --- | --- | --- | --- |")
    for paths in (2, 4, 8, 16):
        plan = block_plan(200, paths, 64)
        ours, other = in_turns(
            args.repeats, lambda p=plan: engine.run(p, decode), lambda p=plan: engine.run(p, alone)
        )
        row(f"a block of {paths} paths of 64 tokens", ours, other, "one path after the other")
    prompt = torch.randint(100, 40_000, (1, 64), device=engine.model.device)
    plain = ExecutionPlan(
        ops=(
            Extend(thread=0, tokens=tuple(prompt[0].tolist()), author="prompt"),
            Extend(thread=0, tokens=(7,) * 64, author="model"),
        ),
        form="untagged",
    )

    def generate() -> object:
        with torch.inference_mode():
            return model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=64,
                min_new_tokens=64,
                do_sample=False,
                pad_token_id=0,
            )

    ours, other = in_turns(args.repeats, lambda: engine.run(plain, decode), generate)
    row("64 tokens of plain text", ours, other, "transformers' generate")
    many = [plain] * 16
    ours, other = in_turns(
        1,
        lambda: engine.run_many(many, decode),
        lambda: [engine.run(each, decode) for each in many],
    )
    row("16 requests of 64 tokens", ours, other, "one request after the other")
    print("\n| Blocks of 4 paths of 4 tokens | seconds | ms a forward |\n| --- | --- | --- |")
    for blocks in (4, 16, 64):
        result = engine.run(block_plan(16, 4, 4, blocks, after=1), decode)
        trace = result.trace
        print(f"| {blocks} | {trace.seconds:.2f} | {1e3 * trace.seconds / len(trace.ends):.1f} |")


if __name__ == "__main__":
    main()
