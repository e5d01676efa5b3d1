"""Traces as plans and layouts: the replay of a run, and its tokens laid out as in training."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from mvspec.compiler.layout import Layout
from mvspec.compiler.plan import ExecutionPlan, Extend, Fork, Join, Op
from mvspec.compiler.planning import plan_layout
from mvspec.law.threads import thread_events
from mvspec.shown import as_layout, as_plan
from mvspec.trace import Trace

__all__ = ["replay_plan", "trace_layout"]


@as_plan.register
def replay_plan(trace: Trace) -> ExecutionPlan:
    """Return the replay of a run: the same tokens, written instead of generated."""
    plan = ExecutionPlan(ops=tuple(_ops(trace)), form=trace.form, document=trace.document)
    return plan.verify()


@as_layout.register
def trace_layout(trace: Trace) -> Layout:
    """Return a run's tokens laid out as in training: by the law, or in rounds where paths shared.

    Rounds have another order than the trace's `ids`.
    """
    return plan_layout(trace.plan, share=trace.share)


def _ops(trace: Trace) -> Iterator[Op]:
    """Yield the ops of a trace's replay, in the order of the surface form."""
    runs = [(owner, author, len(list(group))) for (owner, author), group in
            groupby(zip(trace.thread_ids, trace.authors, strict=True))]  # fmt: skip
    following = iter(runs)
    names = {0: 0}  # thread -> the plan's number of it, which changes with every join
    made, at = 1, 0
    for event in thread_events(trace.threads, [owner for owner, _, _ in runs]):
        thread, paths = event.thread, event.paths
        if event.kind == "tokens":
            _, author, count = next(following)
            tokens = trace.ids[at : at + count]
            yield Extend(thread=names[thread], tokens=tokens, author=author)
            at += count
        elif event.kind == "fork":
            names.update(zip(paths, range(made, made + len(paths)), strict=True))
            yield Fork(thread=names[thread], paths=tuple(names[path] for path in paths))
            made += len(paths)
        elif paths:
            parent = trace.threads[thread].parent or 0
            names[parent], made = made, made + 1
            yield Join(paths=tuple(names[path] for path in paths), thread=names[parent])
