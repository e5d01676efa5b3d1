"""What a plan costs, before it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mvspec.compiler.plan import Adaptive, ExecutionPlan, Extend, Fork, Generate, Join
from mvspec.errors import Unsupported

__all__ = ["Cost", "plan_cost"]


@dataclass(frozen=True)
class Cost:
    """Upper bounds, with every hole filled to its `max_tokens`.

    Args:
        tokens: all tokens, the prompt included.
        generated: tokens that the model chooses.
        critical_path: tokens of the longest chain, the prompt left out.
        steps: forward passes from the end of the prompt; a written run takes one.
        peak_threads: threads that are live in one step.
        kv_tokens: keys and values held at the end; forks and joins copy none.
        parallelism: the assistant's tokens over the critical path.
        speedup: time of one thread after the other over the time of the plan.
    """

    tokens: int
    generated: int
    critical_path: int
    steps: int
    peak_threads: int
    kv_tokens: int
    parallelism: float
    speedup: float

    def __str__(self) -> str:
        return (
            f"cost: {self.tokens} tokens, {self.generated} generated, critical path "
            f"{self.critical_path}, {self.steps} steps, at most {self.peak_threads} threads, "
            f"{self.kv_tokens} KV tokens, parallelism {self.parallelism:.2f}, "
            f"predicted speedup {self.speedup:.2f}"
        )


def plan_cost(plan: ExecutionPlan, step_cost: Callable[[int], float] = lambda threads: 1.0) -> Cost:
    """Predict the cost of a static plan or a replay.

    Args:
        step_cost: time of one decode step with so many live threads, in any unit; by default
            the same for any number, which is the limit of a memory-bound engine. In a replay,
            tokens that the model once chose count as decode steps.

    Raises:
        Unsupported: the plan is adaptive, so its size is the model's choice.

    >>> from mvspec.compiler.plan import ExecutionPlan, Extend, Fork, Join
    >>> paths = [Extend(thread=i, tokens=(0,) * 10, author="model") for i in (1, 2)]
    >>> plan = ExecutionPlan(ops=(Fork(thread=0, paths=(1, 2)), *paths,
    ...     Join(paths=(1, 2), thread=3)))
    >>> cost = plan_cost(plan)
    >>> cost.steps, cost.peak_threads, cost.parallelism, cost.speedup
    (10, 2, 2.0, 2.0)
    """
    chain: dict[int, int] = {0: 0}  # tokens of the longest chain to each thread's end
    clock: dict[int, int] = {0: 0}  # decode steps likewise
    stretches: list[tuple[int, int]] = []  # [from, to) in steps, for every decoding thread
    tokens = prompt = generated = 0
    for op in plan.verify().ops:
        if isinstance(op, Adaptive):
            raise Unsupported("an adaptive plan's size is the model's choice: it has no cost yet")
        if isinstance(op, Fork):
            for path in op.paths:
                chain[path], clock[path] = chain[op.thread], clock[op.thread]
        elif isinstance(op, Join):
            chain[op.thread] = max(chain[path] for path in op.paths)
            clock[op.thread] = max(clock[path] for path in op.paths)
        else:
            size, steps = _size(op)
            tokens += size
            if isinstance(op, Extend) and op.author == "prompt":
                prompt += size
                continue
            generated += size if _decoded(op) else 0
            chain[op.thread] += size
            stretches.append((clock[op.thread], clock[op.thread] + steps))
            clock[op.thread] += steps
    parallel, peak = _sweep(stretches, step_cost)
    alone = sum(end - start for start, end in stretches) * step_cost(1)
    critical = max(chain.values())
    return Cost(
        tokens=tokens,
        generated=generated,
        critical_path=critical,
        steps=max(clock.values()),
        peak_threads=peak,
        kv_tokens=tokens,
        parallelism=(tokens - prompt) / critical if critical else 1.0,
        speedup=alone / parallel if parallel else 1.0,
    )


def _decoded(op: Extend | Generate) -> bool:
    return isinstance(op, Generate) or op.author == "model"


def _size(op: Extend | Generate) -> tuple[int, int]:
    """Tokens of an op, and the steps that it takes."""
    if isinstance(op, Generate):
        return op.hole.max_tokens, op.hole.max_tokens
    size = len(op.tokens)
    return size, size if op.author == "model" else min(size, 1)


def _sweep(
    stretches: list[tuple[int, int]], step_cost: Callable[[int], float]
) -> tuple[float, int]:
    """Time of all steps, and the most threads in one."""
    changes: dict[int, int] = {}
    for start, end in stretches:
        changes[start] = changes.get(start, 0) + 1
        changes[end] = changes.get(end, 0) - 1
    time, live, peak, before = 0.0, 0, 0, 0
    for step in sorted(changes):
        if live:
            time += (step - before) * step_cost(live)
        live += changes[step]
        peak = max(peak, live)
        before = step
    return time, peak
