"""Traces as plans and layouts: the replay of a run, and its tokens laid out as in training."""

from __future__ import annotations

from collections.abc import Iterator

from mvspec.compiler.layout import Layout
from mvspec.compiler.plan import ExecutionPlan, Extend, Fork, Join, Op
from mvspec.compiler.planning import plan_layout
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
    blocks: dict[int, list[int]] = {}
    for thread in trace.threads[1:]:
        blocks.setdefault(thread.block, []).append(thread.id)
    name = {0: 0}  # thread -> the plan's number of it, which changes with every join
    made = 1
    opened: list[list[int]] = []
    index, n = 0, len(trace)

    def fork(block: int, thread: int) -> Fork:
        nonlocal made
        paths = tuple(range(made, made + len(blocks[block])))
        made += len(paths)
        name.update(zip(blocks[block], paths, strict=True))
        opened.append([block, thread])
        return Fork(thread=name[thread], paths=paths)

    def join() -> Join:
        nonlocal made
        block, thread = opened.pop()
        ends = tuple(name[path] for path in blocks[block])
        name[thread], made = made, made + 1
        return Join(paths=ends, thread=name[thread])

    while index < n:
        owner = trace.thread_ids[index]
        chain = trace.chain(owner)
        inside = [block for block, _ in chain]
        while [block for block, _ in opened] != inside[: len(opened)]:
            yield join()
        for block in inside[len(opened) :]:
            parent = trace.threads[blocks[block][0]].parent
            yield fork(block, parent or 0)
        stop = index
        author = trace.authors[index]
        while stop < n and (trace.thread_ids[stop], trace.authors[stop]) == (owner, author):
            stop += 1
        yield Extend(thread=name[owner], tokens=trace.ids[index:stop], author=author)
        index = stop
    while opened:
        yield join()
