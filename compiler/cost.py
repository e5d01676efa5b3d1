"""Cost of a plan before it runs: tokens, critical path, steps, threads, keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mvspec.compiler.plan import Adaptive, ExecutionPlan, Extend, Generate
from mvspec.errors import MvspecError, Unsupported
from mvspec.law.threads import StructuralLaw
from mvspec.shown import as_html

__all__ = ["PlanCost", "plan_cost"]


@dataclass(frozen=True)
class PlanCost:
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
            f"{self.kv_tokens} KV tokens, degree of parallelism {self.parallelism:.3f}, "
            f"predicted speedup {self.speedup:.2f}"
        )


def plan_cost(
    plan: ExecutionPlan, step_cost: Callable[[int], float] = lambda threads: 1.0
) -> PlanCost:
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
    law, clock = StructuralLaw(), StructuralLaw()  # in tokens, in decode steps
    stretches: list[tuple[int, int]] = []  # [from, to) in steps, for every decoding thread
    generated = 0
    plan.verify()
    for (op, thread), (_, timed) in zip(plan.fold(law), plan.fold(clock), strict=True):
        if isinstance(op, Adaptive):
            raise Unsupported("an adaptive plan's size is the model's choice: it has no cost yet")
        size = op.hole.max_tokens if isinstance(op, Generate) else len(op.tokens)
        if isinstance(op, Extend) and op.author == "prompt":
            law.tokens(thread, size, own=0)
            continue
        law.tokens(thread, size)
        chosen = isinstance(op, Generate) or op.author == "model"
        generated += size if chosen else 0
        steps = size if chosen else min(size, 1)
        start = clock.tokens(timed, steps)
        stretches.append((start, start + steps))
    parallel, peak = _sweep(stretches, step_cost)
    alone = sum(end - start for start, end in stretches) * step_cost(1)
    metrics = law.metrics
    return PlanCost(
        tokens=law.count,
        generated=generated,
        critical_path=metrics.critical_path,
        steps=clock.metrics.critical_path,
        peak_threads=peak,
        kv_tokens=law.count,
        parallelism=metrics.parallelism,
        speedup=alone / parallel if parallel else 1.0,
    )


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


@as_html.register
def plan_html(plan: ExecutionPlan) -> str:
    """Return a plan as one HTML element: its cost, and its ops."""
    from mvspec.view.notebook import panel_html, text_html  # a plan that runs is not drawn

    try:
        cost = str(plan_cost(plan)).removeprefix("cost: ").split(", ")
        facts = [("cost", ", ".join(cost))]
    except MvspecError as error:  # the model decides what an adaptive plan becomes
        facts = [("cost", str(error))]
    return panel_html("plan", facts, [text_html(str(plan))])
