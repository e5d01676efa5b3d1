"""Doing the ops of a static plan: texts are written, threads fork and join, holes are opened."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from mvspec.compiler.plan import Adaptive, ExecutionPlan, Extend, Fork, Generate, Op
from mvspec.runtime.adaptive_driver import AdaptiveDriver, AdaptiveTurn
from mvspec.runtime.budget import HoleBudget
from mvspec.runtime.hole_driver import FilledHoles, HoleDriver
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.options import Options
from mvspec.runtime.sampling import DrawnToken
from mvspec.runtime.thread_state import (
    Action,
    AllowedTokens,
    Driver,
    EndPath,
    EndRun,
    ForkThread,
    HandOver,
    KeepToken,
    NewPath,
    ThreadState,
    WriteTokens,
)
from mvspec.tree.ir import Parallel


class PlanScript:
    """A plan as its threads carry it out: the ops of each, and what they share.

    Args:
        plan: verified.
        options: how it is run.
        lexicon: of the engine's tokenizer.
        context: how many positions the model has; None where it does not say.

    Attributes:
        replay: whether all of it is written, and nothing is drawn.
        holes: that are filled.
        turn: of the model, once it decides by itself how it goes on.

    Raises:
        MvspecError: the plan cannot be run.
    """

    def __init__(
        self, plan: ExecutionPlan, options: Options, lexicon: Lexicon, context: int | None
    ) -> None:
        self.options = options
        self.lexicon = lexicon
        self.context = context
        self.turn: AdaptiveTurn | None = None
        limits = options.limits
        self._bounded = limits.max_tokens is not None or limits.max_position is not None
        self.replay = not any(isinstance(op, Generate | Adaptive) for op in plan.ops)
        budget = HoleBudget(plan, options.limits, context)
        self.holes = FilledHoles(plan, lexicon, budget, share=bool(options.share))
        self.programs, self.joins = plan.programs()
        blocks = list(plan.document.walk(Parallel)) if plan.document else []
        forks = [op for op in plan.ops if isinstance(op, Fork)]
        # By a fork's first path: forks come in another order than their blocks stand in.
        self._outlines = {
            fork.paths[0]: block.goal.outlines
            for fork, block in zip(forks, blocks, strict=False)
            if len(block.paths) == len(fork.paths)
        }

    @property
    def bounded(self) -> bool:
        """Whether limits other than time may close a thread."""
        return self._bounded or self.turn is not None

    def paths(self, fork: Fork, above: PlanDriver) -> list[NewPath]:
        """Return the paths that a fork begins, as the document's outlines name them."""
        names = [(each.label, each.text) for each in self._outlines.get(fork.paths[0], ())]
        names = names or [(str(index + 1), "") for index in range(len(fork.paths))]
        return [
            NewPath(PlanDriver(self, thread, above), label, title)
            for thread, (label, title) in zip(fork.paths, names, strict=True)
        ]


class PlanDriver:
    """Does the ops of one thread of a plan, whose number changes with every join.

    Args:
        script: that the thread belongs to.
        thread: its number in the plan.
        above: does the ops of the thread that forked it.
    """

    draws = False
    given = None
    sampling = None
    revocable = 0

    def __init__(self, script: PlanScript, thread: int, above: PlanDriver | None = None) -> None:
        self._script = script
        self._thread = thread
        self._above = above
        self._ops = script.programs[thread]

    def advance(self, thread: ThreadState) -> Iterator[Action]:
        """See `Driver`."""
        script = self._script
        while self._ops:
            op = self._ops.popleft()
            if isinstance(op, Extend):
                tokens: Sequence[int] = op.tokens
                if script.options.decode and op.author == "model":
                    if not thread.predicted:  # nothing predicts the first: it is just written
                        yield WriteTokens(tokens[:1], op.author)
                        tokens = tokens[1:]
                    if tokens:
                        yield HandOver(ReplayDriver(tokens, self))
                        return
                else:
                    yield WriteTokens(tokens, op.author)
            elif isinstance(op, Generate):
                following = self._ops[0] if self._ops else None
                written = isinstance(following, Extend) and bool(following.tokens)
                yield HandOver(
                    HoleDriver(
                        op,
                        thread.tail,
                        _beginning(self._ops, script.lexicon),
                        following is not None and not written,
                        replace(script.options.sampling, **op.hole.sampling),
                        thread.shared,
                        self,
                        script.holes,
                        script.lexicon,
                    )
                )
                return
            elif isinstance(op, Fork):
                yield ForkThread(script.paths(op, self))
                return
            elif isinstance(op, Adaptive):
                script.turn = AdaptiveTurn(
                    op.limits, script.options, script.lexicon, script.context, thread
                )
                yield HandOver(AdaptiveDriver(script.turn, 0))
                return
        join = script.joins.get(self._thread)
        if join is None or self._above is None:
            yield EndRun()
        else:
            self._above._go_on_as(join.thread)
            yield EndPath()

    def _go_on_as(self, thread: int) -> None:
        """Do the ops of another thread of the plan, which a join has made."""
        self._thread, self._ops = thread, self._script.programs[thread]

    def allowed(self, thread: ThreadState) -> AllowedTokens:
        """See `Driver`; nothing is drawn."""
        return AllowedTokens(None)

    def take(self, thread: ThreadState, drawn: DrawnToken) -> None:
        """See `Driver`; nothing is drawn."""

    def close(self, thread: ThreadState, cut: str) -> None:
        """See `Driver`; what is written is written whole."""


class ReplayDriver:
    """Lets tokens that are known take a step each, as when they were drawn.

    Args:
        ids: of the tokens; at least one.
        back: goes on after them.
    """

    draws = True
    sampling = None
    revocable = 0

    def __init__(self, ids: Iterable[int], back: Driver) -> None:
        self._ids = deque(ids)
        self._back = back

    @property
    def given(self) -> int | None:
        """The next token."""
        return self._ids[0]

    def advance(self, thread: ThreadState) -> Iterable[Action]:
        """See `Driver`: all tokens are drawn."""
        return ()

    def allowed(self, thread: ThreadState) -> AllowedTokens:
        """See `Driver`: the token is known."""
        return AllowedTokens(None)

    def take(self, thread: ThreadState, drawn: DrawnToken) -> KeepToken | Iterable[Action]:
        """See `Driver`."""
        self._ids.popleft()
        return KeepToken() if self._ids else (KeepToken(), HandOver(self._back))

    def close(self, thread: ThreadState, cut: str) -> None:
        """See `Driver`; a replay is written whole."""


def _beginning(ops: Iterable[Op], lexicon: Lexicon) -> str:
    """Return the beginning of the fixed text that ops write; other holes may stay empty."""
    for op in ops:
        if isinstance(op, Extend):
            ids = op.tokens[:16]
            text = next((i for i, id in enumerate(ids) if id in lexicon.control), len(ids))
            return lexicon.vocabulary.decode(ids[:text])
        if not isinstance(op, Generate):
            break
    return ""
