"""Fork and join in SGLang against plain requests of the same server.

    python benchmarks/serving.py --model FOLDER [--dummy] [--only speed joins ...] [--json FILE]

FOLDER holds a configuration and a tokenizer with the twelve tags; with --dummy no weights.
Every comparison is made between servers that run side by side in this process's children, in
turns. Prints tables in Markdown as it goes.

- speed: requests of so many tokens and such a degree of parallelism, against plain requests of
  as many tokens, and against the limit: what steps of plain requests cost with as many live
  threads and as much text before them.
- joins: decode steps and seconds of a fork and its join.
- plugin: plain requests with the plugin and without.
- structure: adaptive turns, held to the grammar or not.
- precision: logprobs against one forward of transformers, with weights made here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from mvspec.compiler import additive_mask
from mvspec.compiler.plan import ExecutionPlan, Extend
from mvspec.law.limits import Limits
from mvspec.runtime import Options, Sampling
from mvspec.runtime.evaluation.speed import HEADER, ReplayShape, replay, shape_of_degree, token_ids
from mvspec.runtime.serving.protocol import KEY, PlanPayload
from mvspec.trace import Trace

PROMPT = 64
"""Tokens of a prompt."""

SHAPES = {1.11: 3, 1.25: 3, 1.5: 3, 3.07: 4, 4.68: 5}
"""Degrees of parallelism, and how many paths a request of that degree has."""

Request = tuple[list[int], dict[str, Any]]


class Draws:
    """Random token ids, and requests made of them."""

    def __init__(self, most: int, seed: int = 0) -> None:
        self.ids = token_ids(most, seed)

    def plain(self, tokens: int, prompt: int = PROMPT) -> Request:
        """Return a request of plain text."""
        return list(self.ids(prompt)), {
            "temperature": 0, "max_new_tokens": tokens, "ignore_eos": True,
        }  # fmt: skip

    def blocks(self, before: int, paths: int, each: int, after: int, blocks: int = 1) -> Request:
        """Return a replay of blocks: the model's tokens take a decode step each.

        Args:
            before: tokens in front of every block.
            paths: of a block.
            each: tokens of a path, those written by force included.
            after: tokens behind the last block, likewise.
        """
        shape = ReplayShape(before, paths, each, after, blocks)
        return self.decoded(replay(shape, PROMPT, self.ids))

    def replay(self, ops: tuple[Any, ...]) -> Request:
        """Return a replay whose tokens of the model take a decode step each."""
        return self.decoded(ExecutionPlan(ops=ops, form="untagged").verify())

    def decoded(self, plan: ExecutionPlan) -> Request:
        """Return a replay as a request."""
        tokens = sum(len(getattr(op, "tokens", ())) for op in plan.ops)
        return ordered(plan, Options(decode=True), tokens)


def ordered(plan: ExecutionPlan, options: Options, tokens: int) -> Request:
    """Return a plan as a request to the server."""
    ids, payload = PlanPayload.of(plan, options, live=False)
    return ids, {
        "temperature": options.sampling.temperature, "max_new_tokens": tokens + 64,
        "custom_params": {KEY: payload.model_dump_json()},
    }  # fmt: skip


# Servers


class Served:
    """A server in a process of its own.

    Args:
        plugin: whether it has the plugin.
        options: of `sglang.Engine`.
    """

    def __init__(self, plugin: bool, options: dict[str, Any]) -> None:
        os.environ["MVSPEC"] = "require" if plugin else "off"
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, options))
        self._process.start()

    def ready(self) -> float:
        """Wait until it is up; return the seconds that its start took."""
        seconds: float = self._pipe.recv()
        return seconds

    def run(self, requests: Sequence[Request], *, logprob: bool = False) -> dict[str, Any]:
        """Run requests at the same time, once all of them are made.

        Returns:
            seconds, and outs: what each was answered. Of plain requests also times: seconds from
            the start to each token of the first one.
        """
        self._pipe.send((list(requests), logprob))
        answer: dict[str, Any] = self._pipe.recv()
        for out in answer["outs"]:
            if out["meta_info"]["finish_reason"]["type"] == "abort":
                raise RuntimeError(out["meta_info"]["finish_reason"])
        return answer

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(30)
        self._process.terminate()


def _serve(pipe: Connection, options: dict[str, Any]) -> None:
    import sglang

    start = time.perf_counter()
    engine = sglang.Engine(**options)
    pipe.send(time.perf_counter() - start)
    while (asked := pipe.recv()) is not None:
        requests, logprob = asked
        pipe.send(engine.loop.run_until_complete(_run(engine, requests, logprob)))
    engine.shutdown()


async def _run(engine: Any, requests: list[Request], logprob: bool) -> dict[str, Any]:
    start = time.perf_counter()
    times: list[float] = []

    async def first() -> Any:
        ids, params = requests[0]
        if KEY in params.get("custom_params", {}):
            return await engine.async_generate(
                input_ids=ids, sampling_params=params, return_logprob=logprob
            )
        last: Any = None
        async for out in await engine.async_generate(
            input_ids=ids, sampling_params=params, return_logprob=logprob, stream=True
        ):
            times.append(time.perf_counter() - start)
            last = out
        return last

    async def rest() -> Any:
        return await engine.async_generate(
            input_ids=[ids for ids, _ in requests[1:]],
            sampling_params=[params for _, params in requests[1:]],
            return_logprob=logprob,
        )

    outs = [await first()] if len(requests) == 1 else await asyncio.gather(first(), rest())
    seconds = time.perf_counter() - start
    outs = [outs[0], *(outs[1] if len(outs) > 1 else ())]
    return {"seconds": seconds, "times": times, "outs": outs}


def trace_of(out: dict[str, Any]) -> dict[str, Any]:
    """Return the trace of an answer."""
    found: dict[str, Any] = json.loads(out["meta_info"]["finish_reason"][KEY])["trace"]
    return found


# What is measured


class Report:
    """Prints tables and keeps all figures."""

    def __init__(self, file: str | None) -> None:
        self.file = file
        self.figures: list[dict[str, Any]] = []
        self._columns: list[str] = []

    def row(self, part: str, **cells: Any) -> None:
        """Print a row, under a header where the columns are new."""
        columns = [part, *cells]
        if columns != self._columns:
            self._columns = columns
            print(f"\n### {part}\n\n| {' | '.join(cells)} |\n|{' ---: |' * len(cells)}")
        shown = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in cells.values()]
        print(f"| {' | '.join(shown)} |", flush=True)
        self.keep(part, **cells)

    def keep(self, part: str, **cells: Any) -> None:
        """Keep figures without a row."""
        self.figures.append({"part": part, **cells})
        if self.file:
            Path(self.file).write_text(json.dumps(self.figures, indent=1))


def steps_cost(times: list[float], first: int, count: int) -> float:
    """Return what `count` steps cost from the `first` on, in seconds.

    The first steps of all are left out: others' prefills fall among them.
    """
    first = max(first, 4)
    last = min(first + count, len(times) - 1)
    return count * (times[last] - times[first]) / (last - first)


def speed(served: Served, draws: Draws, report: Report, args: argparse.Namespace) -> None:
    """Measure requests of several shapes against plain ones."""
    for batch in args.batches:
        plain: list[dict[str, Any]] = []
        ours: dict[float, list[float]] = {degree: [] for degree in args.degrees}
        wide: dict[float, list[float]] = {degree: [] for degree in args.degrees}
        traces: dict[float, dict[str, Any]] = {}
        shapes = {d: shape_of_degree(args.tokens, d, SHAPES[d]) for d in args.degrees}
        for _ in range(args.repeats):
            plain.append(served.run([draws.plain(args.tokens) for _ in range(batch)]))
            for degree in args.degrees:
                before, each, after = _sizes(shapes[degree])
                paths = SHAPES[degree]
                found = served.run([draws.blocks(before, paths, each, after) for _ in range(batch)])
                ours[degree].append(found["seconds"])
                traces[degree] = trace_of(found["outs"][-1])
                found = served.run([draws.plain(before + each) for _ in range(batch * paths)])
                wide[degree].append(steps_cost(found["times"], before, each))
        seconds = statistics.median(each["seconds"] for each in plain)
        # Of all prompts, as ours have them too: what the first steps took, less as many steps.
        admission = statistics.median(
            each["times"][4] - steps_cost(each["times"], 0, 4) for each in plain
        )
        for degree in args.degrees:
            before, each, after = _sizes(shapes[degree])
            limit = admission + statistics.median(wide[degree])
            for first, count in ((0, before), (args.tokens - after, after)):
                limit += statistics.median(steps_cost(p["times"], first, count) for p in plain)
            took = statistics.median(ours[degree])
            trace = traces[degree]
            real = sum(author != "prompt" for author in trace["authors"])
            real /= 1 + max(trace["position_ids"]) - PROMPT
            ends = np.diff(trace["forward_seconds"])
            report.row(
                "speed", batch=batch, P=round(real, 2), threads=batch * SHAPES[degree],
                plain_s=seconds, admission_s=admission, ours_s=took, limit_s=limit,
                times_faster=seconds / took, share_of_ideal=seconds / took / real,
                share_of_limit=limit / took,
            )  # fmt: skip
            report.keep(
                "speed steps", batch=batch, P=round(real, 2), shape=_sizes(shapes[degree]),
                ours=ours[degree], plain=[each["seconds"] for each in plain],
                forwards=len(trace["forward_tokens"]), trace_s=trace["seconds"],
                first_s=trace["forward_seconds"][0],
                one_ms=1e3 * float(np.median(ends[2 : max(before - 3, 4)])),
                many_ms=1e3 * float(np.median(ends[before + 5 : before + each - 10])),
                plain_one_ms=1e3 * steps_cost(plain[0]["times"], 0, args.tokens) / args.tokens,
                plain_many_ms=1e3 * wide[degree][-1] / each, ends=trace["forward_seconds"],
                rows=trace["forward_tokens"],
            )  # fmt: skip


def _sizes(shape: ReplayShape) -> tuple[int, int, int]:
    """Return the tokens before a block, of each of its paths, and after it."""
    return shape.before, shape.each, shape.after


def joins(served: Served, draws: Draws, report: Report, args: argparse.Namespace) -> None:
    """Count the decode steps of a fork and its join."""
    for blocks, paths in ((1, 2), (8, 2), (8, 8), (32, 4)):
        before, each, after = 8, 24, 24
        request = draws.blocks(before, paths, each, after, blocks)
        drawn = blocks * (before + each - HEADER) + after - HEADER
        runs = [served.run([request]) for _ in range(args.repeats)]
        trace = trace_of(runs[-1]["outs"][0])
        took = statistics.median(run["seconds"] for run in runs)
        plain = statistics.median(
            served.run([draws.plain(drawn)])["seconds"] for _ in range(args.repeats)
        )
        report.row(
            "joins", blocks=blocks, paths=paths, drawn_on_the_critical_path=drawn,
            forwards=len(trace["forward_tokens"]),
            more_per_block=(len(trace["forward_tokens"]) - drawn - 1) / blocks,
            ms_more_per_block=1e3 * (took - plain) / blocks,
        )  # fmt: skip


def plugin(on: Served, off: Served, draws: Draws, report: Report, args: argparse.Namespace) -> None:
    """Measure plain requests with the plugin and without, in turns."""
    for batch in args.batches:
        tokens = 256
        requests = [draws.plain(tokens) for _ in range(batch)]
        sides: tuple[list[float], list[float]] = ([], [])
        for _ in range(2 * args.repeats + 2):
            for served, found in zip((on, off), sides, strict=True):
                found.append(served.run(requests)["seconds"])
        with_, without = (statistics.median(found[1:]) for found in sides)
        report.row(
            "plugin", batch=batch, tokens=tokens, with_s=with_, without_s=without,
            slower=f"{100 * (with_ / without - 1):+.2f} %",
        )  # fmt: skip
        report.keep("plugin runs", batch=batch, on=sides[0], off=sides[1])


def structure(served: Served, draws: Draws, report: Report, args: argparse.Namespace) -> None:
    """Measure turns in which the model decides, held to the grammar or not."""
    tokens = 256
    for batch in args.batches:
        for temperature in (0.0, 1.0):
            costs: list[float] = []
            for enforced in (True, False):
                options = Options(
                    sampling=Sampling(temperature=temperature, seed=1),
                    structure=enforced,
                    limits=Limits(max_tokens=tokens),
                )
                requests = []
                for _ in range(batch):
                    ids = draws.ids(PROMPT)
                    requests.append((list(ids), {
                        "temperature": temperature, "max_new_tokens": tokens + 64,
                        "custom_params": {KEY: PlanPayload(options=options).model_dump_json()},
                    }))  # fmt: skip
                found = served.run(requests)
                ends = np.diff(trace_of(found["outs"][-1])["forward_seconds"])
                costs.append(1e3 * float(np.median(ends[4:])))
            plain = [draws.plain(tokens) for _ in range(batch)]
            for _, params in plain:
                params["temperature"] = temperature
            times = served.run(plain)["times"]
            report.row(
                "structure", batch=batch, temperature=temperature, enforced_ms=costs[0],
                not_enforced_ms=costs[1], plain_ms=1e3 * float(np.median(np.diff(times)[4:])),
            )  # fmt: skip


@contextmanager
def random_model(folder: Path, source: str) -> Iterator[Path]:
    """Yield a folder with a model of random weights that is sure of what comes next, bf16."""
    folder.mkdir(parents=True)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    vocabulary = transformers.AutoConfig.from_pretrained(source).vocab_size
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=vocabulary, hidden_size=896, intermediate_size=2432, num_hidden_layers=8,
        num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=8192,
        initializer_range=0.15, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.config.torch_dtype = "bfloat16"
    model.save_pretrained(folder)
    del model
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def precision(draws: Draws, report: Report, args: argparse.Namespace) -> None:
    """Compare logprobs with one forward of transformers in float32."""
    with random_model(Path(args.scratch) / "precision", args.model) as folder:
        served = Served(True, engine_options(args, str(folder), dummy=False))
        served.ready()
        kinds: dict[str, list[Request]] = {
            "forked": [draws.blocks(40, 4, 40, 40), draws.blocks(20, 3, 30, 30, blocks=3),
                       draws.blocks(8, 8, 60, 20)],
            "replay without a fork": [
                draws.replay((Extend(thread=0, tokens=draws.ids(PROMPT), author="prompt"),
                              Extend(thread=0, tokens=draws.ids(280), author="model")))
                for _ in range(3)
            ],
            "plain": [draws.plain(280) for _ in range(3)],
        }  # fmt: skip
        for _, params in kinds["plain"]:
            params["temperature"] = 1.0
        answers = {
            kind: served.run(requests, logprob=True)["outs"] for kind, requests in kinds.items()
        }
        served.close()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).to(device)

        def logprobs(ids: Any, positions: Any, mask: torch.Tensor | None) -> torch.Tensor:
            with torch.inference_mode():
                logits = model(
                    input_ids=torch.as_tensor(ids, device=device).long()[None],
                    position_ids=torch.as_tensor(positions, device=device).long()[None],
                    attention_mask=None if mask is None else mask.to(device),
                ).logits[0]
                return torch.log_softmax(logits, -1).cpu()

        for kind, outs in answers.items():
            wrong: list[float] = []
            control: list[float] = []
            for (prompt, _), out in zip(kinds[kind], outs, strict=True):
                if kind == "plain":
                    ids = prompt + out["output_ids"]
                    found = logprobs(ids, np.arange(len(ids)), None)
                    told = [each[0] for each in out["meta_info"]["output_token_logprobs"]]
                    first = len(prompt)
                    wrong += [
                        abs(float(found[first + i - 1, ids[first + i]]) - value)
                        for i, value in enumerate(told)
                    ]
                    continue
                trace = Trace.model_validate(trace_of(out))
                layout = trace.layout
                found = logprobs(
                    layout.input_ids, layout.position_ids,
                    additive_mask(layout, dtype=torch.float32),
                )  # fmt: skip
                causal = logprobs(layout.input_ids, np.arange(len(trace.ids)), None)
                for index, value in enumerate(trace.logprobs):
                    if value is not None:
                        id = trace.ids[index]
                        wrong.append(abs(float(found[layout.parent[index], id]) - value))
                        control.append(abs(float(causal[index - 1, id]) - value))
            report.row(
                "precision", requests=kind, tokens=len(wrong), largest_difference=max(wrong),
                mean_difference=statistics.mean(wrong),
                control=max(control) if control and kind == "forked" else "",
            )  # fmt: skip


# The command


def engine_options(args: argparse.Namespace, model: str, *, dummy: bool) -> dict[str, Any]:
    """Return what `sglang.Engine` is started with."""
    options: dict[str, Any] = {
        "model_path": model, "log_level": args.log_level, "max_total_tokens": args.slots,
        "max_running_requests": args.rows, "sampling_backend": "pytorch",
    }  # fmt: skip
    if dummy:
        options["load_format"] = "dummy"
    if torch.cuda.is_available():
        sizes = [1, 2, 4, 5, 8, 12, 16, 20, 24, 32, 40, 64, 96, 128, 160, 256, 384, 512, 640]
        options |= {
            "dtype": "bfloat16", "attention_backend": "triton", "mem_fraction_static": 0.6,
            "cuda_graph_bs_decode": [size for size in sizes if size <= args.rows],
            "disable_prefill_cuda_graph": True,
        }  # fmt: skip
    else:
        options |= {
            "device": "cpu", "dtype": "float32", "attention_backend": "torch_native",
            "disable_cuda_graph": True, "mem_fraction_static": 0.1,
        }  # fmt: skip
    return options


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dummy", action="store_true", help="random weights of the model's shape")
    parts = ["speed", "joins", "plugin", "structure", "precision"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8, 32, 128])
    parser.add_argument("--degrees", nargs="+", type=float, default=list(SHAPES))
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=704, help="most threads at a time")
    parser.add_argument("--slots", type=int, default=400_000, help="tokens of keys and values")
    parser.add_argument("--scratch", default="/tmp")
    parser.add_argument("--log-level", default="error")
    parser.add_argument("--json", help="file for all figures")
    args = parser.parse_args()
    report = Report(args.json)
    vocabulary = transformers.AutoConfig.from_pretrained(args.model).vocab_size
    draws = Draws(min(vocabulary, 40_000) if vocabulary > 1000 else 300)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    from importlib.metadata import version

    print(f"{card}, sglang {version('sglang')}, torch {torch.__version__}", flush=True)
    on = off = None
    start = time.perf_counter()
    if set(args.only) - {"precision"}:
        options = engine_options(args, args.model, dummy=args.dummy)
        on = Served(True, options | {"port": 31000})
        off = Served(False, options | {"port": 32000}) if "plugin" in args.only else None
        for served in (on, off):
            if served is not None:
                served.ready()
        print(f"up after {time.perf_counter() - start:.0f} s", flush=True)
    try:
        measure(on, off, draws, report, args)
    finally:
        for served in (on, off):
            if served is not None:
                served.close()


def measure(
    on: Served | None, off: Served | None, draws: Draws, report: Report, args: argparse.Namespace
) -> None:
    """Measure all parts that were asked for."""
    start = time.perf_counter()
    if on is not None:
        on.run([draws.plain(8)])
        on.run([draws.blocks(4, 2, 8, 8)])
    for part in args.only:
        if part == "precision":
            precision(draws, report, args)
        elif part == "plugin" and on is not None and off is not None:
            plugin(on, off, draws, report, args)
        elif on is not None:
            {"speed": speed, "joins": joins, "structure": structure}[part](on, draws, report, args)
        print(f"\n{part} done after {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
