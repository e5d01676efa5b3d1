"""The in-process engine against one path after the other, one request at a time, and `generate`.

    python benchmarks/runtime.py [--model FOLDER] [--device cuda] [--dtype bfloat16] [--tries]
    python benchmarks/runtime.py --step [--against CHECKOUT] [--device cuda]

The second measures what Python takes of a step of 256 threads: 64 requests of 4 paths, on a random
model so small that it hardly counts; with another checkout in turns, each in processes of its own.
Every comparison is made in this process, its two sides in turns, and the medians are printed.
Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from step import compare
from synthetic import block_plan
from torch import Tensor

from mvspec import gen
from mvspec.compiler.plan import ExecutionPlan, Extend, Generate
from mvspec.runtime import Options, Sampling, TorchEngine
from mvspec.runtime.engine import graphs


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


def long_answer(engine: TorchEngine) -> tuple[Tensor, ExecutionPlan]:
    """Return a prompt [1, 64] whose likeliest answer has 64 tokens, and the plan that asks it."""
    for seed in range(50):
        draw = torch.Generator().manual_seed(seed)
        prompt = torch.randint(100, 40_000, (1, 64), generator=draw)
        ask = Extend(thread=0, tokens=tuple(prompt[0].tolist()), author="prompt")
        plan = ExecutionPlan(ops=(ask, Generate(thread=0, hole=gen("x", 64))), form="untagged")
        if engine.run(plan).trace.answer == 64:
            return prompt.to(engine.model.device), plan
    raise SystemExit("the model ends every answer early")


def tries(engine: TorchEngine, repeats: int) -> None:
    """Print what graphs cost, where they stop paying, and what compiling pieces adds."""
    decode, model = Options(decode=True), engine.model.model
    apart = TorchEngine(model, engine.tokenizer, graphs=False)
    plan = block_plan(200, 8, 64)
    apart.run(plan, decode)
    before = torch.cuda.memory_allocated()
    times = [in_turns(1, lambda: engine.run(plan, decode))[0] for _ in range(5)]
    held = (torch.cuda.memory_allocated() - before) / 1e6
    print(f"runs of a block of 8 paths, s: {[round(t, 2) for t in times]}; {held:.0f} MB held")
    limit, graphs.MAX_COLUMNS = graphs.MAX_COLUMNS, 1 << 40
    for paths, prompt in ((8, 4000), (64, 4000), (64, 8000), (64, 16000), (256, 4000)):
        plan = block_plan(prompt, paths, 16)
        sides = [lambda e=e, p=plan: e.run(p, decode) for e in (engine, apart)]
        in_turns(3, *sides)
        ours, other = in_turns(repeats, *sides)
        row(f"{paths} paths over {prompt} tokens", ours, other, "without CUDA graphs")
    graphs.MAX_COLUMNS = limit
    for module in model.modules():
        if type(module).__name__.endswith(("RMSNorm", "MLP")):
            module.compile(dynamic=True)
    compiled = TorchEngine(model, engine.tokenizer)
    for paths in (2, 8, 16):
        plan = block_plan(200, paths, 64)
        sides = [lambda e=e, p=plan: e.run(p, decode) for e in (compiled, engine)]
        in_turns(4, *sides)
        ours, other = in_turns(repeats, *sides)
        row(f"{paths} paths, norms and MLPs compiled", ours, other, "not compiled")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tries", action="store_true", help="what else was tried, on a GPU")
    parser.add_argument("--step", action="store_true", help="what Python takes of a step")
    parser.add_argument("--against", metavar="CHECKOUT", help="with --step: another checkout")
    args = parser.parse_args()
    if args.step:
        compare(args.against, args.device or "cpu", args.repeats)
        return
    engine = TorchEngine.load(args.model, device=args.device, dtype=args.dtype)
    model = engine.model.model
    print(f"{engine.model.name}, {model.dtype}, {engine.model.device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")  # fmt: skip

    if args.tries:
        tries(engine, args.repeats)
        return

    def warm(side: Callable[[], object]) -> None:
        if engine.model.graphs:
            side()  # graphs are captured

    decode, alone = Options(decode=True), Options(decode=True, threads=1)
    engine.run(block_plan(16, 2, 12), decode)  # warm
    print("| What | ours, s | other, s | other is | times faster |")
    print("| --- | --- | --- | --- | --- |")
    for paths in (2, 4, 8, 16):
        plan = block_plan(200, paths, 64)
        warm(lambda p=plan: engine.run(p, decode))
        ours, other = in_turns(
            args.repeats, lambda p=plan: engine.run(p, decode), lambda p=plan: engine.run(p, alone)
        )
        row(f"a block of {paths} paths of 64 tokens", ours, other, "one path after the other")
    prompt, hole = long_answer(engine)

    def generate(cache: str | None = None, *, drawn: bool = False) -> object:
        how = {"do_sample": True, "temperature": 0.8, "top_p": 0.95} if drawn else {}
        with torch.inference_mode():
            return model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=64,
                min_new_tokens=64,
                pad_token_id=0,
                cache_implementation=cache,
                **{"do_sample": False, **how},
            )

    sides: dict[str, Callable[[], object]] = {"transformers' `generate`": generate}
    if engine.model.graphs:
        apart = TorchEngine(model, engine.tokenizer, graphs=False)
        sides["without CUDA graphs"] = lambda: apart.run(hole)
        sides["`generate`, static cache, compiled"] = lambda: generate("static")
        generate("static")  # compiles
    ours, *others = in_turns(args.repeats, lambda: engine.run(hole), *sides.values())
    for against, other in zip(sides, others, strict=True):
        row("64 tokens of plain text", ours, other, against)
    # A seed whose text does not end before.
    each = (Options(Sampling(temperature=0.8, top_p=0.95, seed=seed)) for seed in range(50))
    drawn = next(how for how in each if engine.run(hole, how).trace.answer == 64)
    ours, other = in_turns(
        args.repeats, lambda: engine.run(hole, drawn), lambda: generate(drawn=True)
    )
    row("64 tokens drawn with top-p", ours, other, "transformers' `generate`")
    many = [hole] * 16
    warm(lambda: engine.run_many(many))
    ours, other = in_turns(
        1, lambda: engine.run_many(many), lambda: [engine.run(each) for each in many]
    )
    row("16 requests of 64 tokens", ours, other, "one request after the other")
    print("\n| Blocks of 4 paths of 4 tokens | seconds | ms a forward |\n| --- | --- | --- |")
    for blocks in (4, 16, 64):
        result = engine.run(block_plan(16, 4, 4, blocks, after=1), decode)
        trace = result.trace
        each = 1e3 * trace.seconds / len(trace.forward_seconds)
        print(f"| {blocks} | {trace.seconds:.2f} | {each:.1f} |")


if __name__ == "__main__":
    main()
