"""Execution plans: the ops of a runtime, in the order of the surface form, and their cost.

    %0 = start
    extend %0 prompt 21 tokens
    %1, %2 = fork %0
    extend %1 6 tokens
    generate %1 $cost max 64
    extend %2 6 tokens
    generate %2 $speed max 64
    %3 = join %1, %2
    generate %3 $verdict max 32

A value is a thread between a fork and a join; `fork` and `join` use up what they take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mvspec.errors import MvspecError, Unsupported, VerifyError
from mvspec.forms import FORMS, JSON
from mvspec.law.limits import Limits
from mvspec.law.threads import LawThread, StructuralLaw
from mvspec.shown import REPR_LIMIT, as_html, excerpt
from mvspec.tree.ir import Document, Gen
from mvspec.tree.node import verify_error

ThreadId = Annotated[int, Field(ge=0, strict=True)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31, strict=True)]


class _Op(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Extend(_Op):
    """Write tokens into a thread.

    Args:
        author: "prompt" (what the model is given), "engine" (written at run time), or "model"
            (in a replay: the model chose them once, so they count as its own).
    """

    op: Literal["extend"] = "extend"
    thread: ThreadId
    tokens: tuple[TokenId, ...]
    author: Literal["prompt", "engine", "model"] = "engine"

    def __str__(self) -> str:
        author = "" if self.author == "engine" else f" {self.author}"
        return f"extend %{self.thread}{author} {len(self.tokens)} tokens"


class Generate(_Op):
    """Let the model fill a hole.

    Args:
        lead: what the hole's tokens begin with, before its value: a space that a tokenizer
            joins with the word after it, so that it cannot be written alone.
    """

    op: Literal["generate"] = "generate"
    thread: ThreadId
    hole: Gen
    lead: str = ""

    def __str__(self) -> str:
        out = f"generate %{self.thread} ${self.hole.name} max {self.hole.max_tokens}"
        if self.hole.choices is not None:
            return f"{out} of {len(self.hole.choices)} choices"
        if self.hole.regex is not None:
            return f"{out} matching {self.hole.regex!r}"
        return f"{out} as JSON" if self.hole.json_schema is not None else out


class Fork(_Op):
    """Split a thread: each path goes on from its end and sees none of the others."""

    op: Literal["fork"] = "fork"
    thread: ThreadId
    paths: tuple[ThreadId, ...] = Field(min_length=1)

    def __str__(self) -> str:
        return f"{', '.join(f'%{path}' for path in self.paths)} = fork %{self.thread}"


class Join(_Op):
    """Let all paths of one fork meet: the thread goes on after the longest and sees them all."""

    op: Literal["join"] = "join"
    paths: tuple[ThreadId, ...] = Field(min_length=1)
    thread: ThreadId

    def __str__(self) -> str:
        return f"%{self.thread} = join {', '.join(f'%{path}' for path in self.paths)}"


class Adaptive(_Op):
    """Let the model decide when to fork, to the end of its turn or of the limits."""

    op: Literal["adaptive"] = "adaptive"
    thread: ThreadId
    limits: Limits = Limits()

    def __str__(self) -> str:
        limits = self.limits.model_dump(exclude_none=True)
        return f"adaptive %{self.thread} " + " ".join(f"{k}={v}" for k, v in limits.items())


Op = Annotated[Extend | Generate | Fork | Join | Adaptive, Field(discriminator="op")]


class ExecutionPlan(BaseModel):
    """A verified sequence of ops; thread %0 is there at the start.

    Args:
        ops: in the order of the surface form: all of path 1, then all of path 2.
        form: the surface form of the assistant's turn.
        document: what was planned; results are put into its holes.

    >>> plan = ExecutionPlan(ops=(Extend(thread=0, tokens=(5, 6), author="prompt"),
    ...     Fork(thread=0, paths=(1, 2)), Extend(thread=1, tokens=(7,)),
    ...     Extend(thread=2, tokens=(8,)), Join(paths=(1, 2), thread=3)))
    >>> print(plan)
    %0 = start
    extend %0 prompt 2 tokens
    %1, %2 = fork %0
    extend %1 1 tokens
    extend %2 1 tokens
    %3 = join %1, %2
    >>> ExecutionPlan.from_json(plan.to_json()) == plan
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ops: tuple[Op, ...]
    form: str = "multiverse"
    document: Document | None = None

    def __repr__(self) -> str:
        return excerpt(super().__repr__(), REPR_LIMIT)

    def __str__(self) -> str:
        return "\n".join(["%0 = start", *map(str, self.ops)])

    def _repr_html_(self) -> str:
        return as_html(self)

    @property
    def holes(self) -> tuple[Gen, ...]:
        """The holes that the plan fills, in surface order."""
        return tuple(op.hole for op in self.ops if isinstance(op, Generate))

    def fold(
        self, law: StructuralLaw, *, backwards: bool = False
    ) -> Iterator[tuple[Extend | Generate | Adaptive, LawThread]]:
        """Yield the ops that write, each with its thread in the law, which forks and joins.

        Args:
            law: a new one; whoever iterates tells it how long each op is.
            backwards: from the last op on: joins split a thread and forks end paths.
        """
        ops, start = self.ops, 0
        if backwards and ops:
            ops, last = ops[::-1], ops[-1]
            start = last.paths[0] if isinstance(last, Fork) else last.thread
        threads = {start: law.root}
        for op in ops:
            if not isinstance(op, Fork | Join):
                yield op, threads[op.thread]
            elif isinstance(op, Fork) is not backwards:
                paths = law.fork(threads[op.thread], len(op.paths))
                threads.update(zip(op.paths, paths, strict=True))
            else:
                for path in op.paths:
                    thread = threads[path]
                    # A single path may run to the end of the plan without a join.
                    threads[op.thread] = law.end(thread) or thread if thread.parent else thread

    def programs(self) -> tuple[dict[int, deque[Op]], dict[int, Join]]:
        """Return the ops of each thread, and for each path the join that it ends in."""
        ops: dict[int, deque[Op]] = {0: deque()}
        joins: dict[int, Join] = {}
        for op in self.ops:
            if isinstance(op, Join):
                joins.update(dict.fromkeys(op.paths, op))
                ops[op.thread] = deque()
                continue
            ops[op.thread].append(op)
            if isinstance(op, Fork):
                ops.update((path, deque()) for path in op.paths)
        return ops, joins

    def to_json(self, indent: int | None = None) -> str:
        """Return the plan as JSON text; `ExecutionPlan.from_json` reads it back."""
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> ExecutionPlan:
        """Read and verify JSON text.

        Raises:
            VerifyError: it is not a plan; the address says which op.
        """
        try:
            plan = cls.model_validate_json(text)
        except ValidationError as error:
            raise verify_error(error) from None
        return plan.verify()

    def verify(self) -> ExecutionPlan:
        """Return the plan if a runtime can run it: on entry and on exit of every pass.

        Raises:
            VerifyError: a thread is used before it is made or after it is used up, a join does
                not take all paths of one fork in order, a hole occurs twice, or something
                follows `adaptive`; the address is the op.
        """
        if self.form not in FORMS or self.form == JSON:
            raise VerifyError("form", f"no form is named {self.form!r}: use {', '.join(FORMS)}")
        live, made = {0}, {0}
        forks: dict[int, Fork] = {}
        names: set[str] = set()
        adaptive: set[int] = set()

        def fault(op: Op) -> str:
            """Take an op, or say why it cannot come here."""
            takes = op.paths if isinstance(op, Join) else (op.thread,)
            for thread in takes:
                if thread not in live:
                    return f"%{thread} was {'used up' if thread in made else 'not made'} before"
                if thread in adaptive:
                    return f"%{thread} is adaptive: nothing can follow there"
            if isinstance(op, Generate) and op.hole.name in names:
                return f"hole {op.hole.name!r} occurs twice"
            fork = forks.get(takes[0])
            if isinstance(op, Join) and (fork is None or fork.paths != op.paths):
                want = f"; %{takes[0]} was forked with {_brief(str(fork))}" if fork else ""
                return f"a join takes all paths of one fork in order{want}"
            if isinstance(op, Generate):
                names.add(op.hole.name)
            elif isinstance(op, Adaptive):
                adaptive.add(op.thread)
            elif isinstance(op, Fork | Join):
                makes = op.paths if isinstance(op, Fork) else (op.thread,)
                for thread in makes:
                    if thread in made:
                        return f"%{thread} is made twice"
                    made.add(thread)
                live.difference_update(takes)
                live.update(makes)
                if isinstance(op, Fork):
                    forks.update(dict.fromkeys(makes, op))
                elif fork and (outer := forks.get(fork.thread)):
                    # The thread goes on in the place of the forked one.
                    paths = tuple(op.thread if p == fork.thread else p for p in outer.paths)
                    renamed = outer.model_copy(update={"paths": paths})
                    forks.update(dict.fromkeys(paths, renamed))
            return ""

        for index, op in enumerate(self.ops):
            if wrong := fault(op):
                raise VerifyError(f"ops[{index}] ({_brief(str(op))})", wrong)
        if len(live) > 1:
            left = ", ".join(f"%{thread}" for thread in sorted(live))
            raise VerifyError("plan", f"{_brief(left)} are never joined")
        return self


def _brief(text: str, limit: int = 200) -> str:
    # A fork may have a million paths.
    return text if len(text) <= limit else f"{text[:limit]}…"


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
