"""One plan on its way through the engine: its threads do its ops, and wait for draws."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

from torch import Tensor

from mvspec.compiler.plan import Adaptive, ExecutionPlan, Extend, Fork, Generate
from mvspec.errors import MvspecError
from mvspec.law.tags import Tag
from mvspec.runtime.adaptive import Interpreter
from mvspec.runtime.budget import Budget
from mvspec.runtime.engine.store import Store
from mvspec.runtime.filling import Filling
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.options import Options
from mvspec.runtime.sampling import Draw, Wanted
from mvspec.runtime.thread import Live, Token
from mvspec.runtime.threads import Threads
from mvspec.tree.ir import Parallel

__all__ = ["Request"]


class Request(Threads):
    """A run of a plan.

    Args:
        name: of the run; random streams depend on it.
        plan: verified.
        options: how it is run.
        lexicon: of the engine's tokenizer.
        store: an empty one.
        context: how many positions the model has.

    Raises:
        MvspecError: the plan cannot be run.
    """

    def __init__(
        self,
        name: str,
        plan: ExecutionPlan,
        options: Options,
        lexicon: Lexicon,
        store: Store,
        context: int | None = None,
    ) -> None:
        super().__init__(name, options, lexicon, store)
        self.plan = plan
        self.finish = ""
        """How the run ended, as in `Trace.finish`; "" while it goes on."""
        self.ending = "end"
        """How it will have ended: "end" until something was closed by force."""
        self.error: MvspecError | None = None
        """Why the run ended before its end."""
        self.cut = ""
        """"time" once all that is open has to close."""
        self.rows: list[int] = []
        self.started = time.perf_counter()
        self.ready: deque[Live] = deque()
        self._programs, self._joins = plan.programs()
        blocks = list(plan.document.walk(Parallel)) if plan.document else []
        forks = [op for op in plan.ops if isinstance(op, Fork)]
        # By a fork's first path: forks come in another order than their blocks stand in.
        self._outlines = {
            fork.paths[0]: block.goal.outlines
            for fork, block in zip(forks, blocks, strict=False)
            if len(block.paths) == len(fork.paths)
        }
        self._done = False
        self._replay = not any(isinstance(op, Generate | Adaptive) for op in plan.ops)
        self.interpreter = Interpreter(self, context)
        self.filling = Filling(self, Budget(plan, options.limits, context))
        self.root.ops = self._programs[0]
        self.ready.append(self.root)
        self.pump()

    # What the engine asks

    def read(self, kept: Sequence[tuple[Live, Token]], logits: Iterable[Tensor], rows: int) -> None:
        """Take the logits of tokens that the model has read, in a forward of `rows` of them."""
        self.ends.append(time.perf_counter() - self.started)
        self.rows.append(rows)
        for (live, token), row in zip(kept, logits, strict=True):
            if self.options.logits:
                token.logits = row
            if not live.unread:
                live.logits = row
                if live.ended:
                    self.release(live)
        seconds = self.options.limits.max_seconds
        if seconds is not None and self.ends[-1] >= seconds:
            self.cut = "time"
        self.pump()
        self._finish()

    def wanted(self) -> list[tuple[Live, Wanted]]:
        """Return the draws that threads wait for."""
        waiting = [live for live in self.active if self.wants(live)]
        if self.options.threads:
            waiting = sorted(waiting, key=lambda live: live.place)[: self.options.threads]
        return [(live, self.want(live)) for live in waiting]

    def wants(self, live: Live) -> bool:
        """Whether a thread waits for a draw."""
        if live.unread or live.paths or live.ended:
            return False
        if not (
            live.given or (live.hole and not live.hole.rest) or (live.adaptive and not live.script)
        ):
            return False
        return (not self.rounds or self.room(live) > 0) and live.predicting is not None

    def allowed(self, live: Live) -> Tensor | None:
        """Return what may be drawn for a thread: bool [at most vocabulary]; None for anything."""
        allowed = (self.interpreter if live.adaptive else self.filling).allowed(live)
        if allowed is None:
            allowed = self.lexicon.known
        if live.banned and allowed is not None:
            allowed = allowed.clone()
            allowed[live.banned] = False
        return allowed

    def want(self, live: Live) -> Wanted:
        """Return the draw that a thread waits for."""
        logits = live.predicting
        assert logits is not None
        want = self.drawing(live, logits)
        if live.given:
            want.given = live.given[0]
            return want
        want.allowed = self.allowed(live)
        if self.options.sampling.repetition_penalty != 1.0:
            want.seen = list(live.seen())
        return want

    def drawing(self, live: Live, logits: Tensor) -> Wanted:
        """Return a draw from logits that hold already what may come and what is penalised."""
        stream = f"{self.name}/{live.stream}"
        return Wanted(logits, self.options.sampling, stream, live.count)

    def choose(self, live: Live, draw: Draw) -> bool:
        """Take a drawn token; False where it may not stand, and another has to be drawn."""
        if live.given:
            live.given.popleft()
            self.append(live, draw.id, self.push(live, 1), "model", draw=draw)
            if not live.given:
                self.ready.append(live)
            return True
        return (self.interpreter if live.adaptive else self.filling).choose(live, draw)

    def push(self, live: Live, width: int) -> int:
        """Tell a static plan's machine of tokens; return the first one's position."""
        return live.machine.write(live.id, "x", width)

    # Running

    def pump(self) -> None:
        """Do all that can be done without the model."""
        while not self.finish:
            if self.ready:
                self._advance(self.ready.popleft())
            elif not (self._closed() or (self.rounds and self.rounds.turn() and self._wake())):
                return

    def _closed(self) -> bool:
        """Close what the limits end; say whether anything was."""
        for live in self.active:
            if live.unread and not self.cut:
                continue
            if live.hole and self.filling.close(live):
                return True
            if live.adaptive and not live.unread and self.interpreter.close(live):
                return True
        return False

    def _wake(self) -> bool:
        # Written runs stop at the end of a round.
        self.ready.extend(
            live
            for live in self.active
            if live.script or (live.hole and live.hole.rest) or (live.ops and not live.busy)
        )
        return True

    def _advance(self, live: Live) -> None:
        """Carry out a thread's ops until it waits for the model, its paths, or its round."""
        if live.script:
            self.interpreter.advance(live)
            return
        if live.hole and live.hole.rest:
            self.filling.write(live)
            return
        while live.ops and not live.busy:
            op = live.ops.popleft()
            if isinstance(op, Extend):
                if self.options.decode and op.author == "model" and live.predicted:
                    live.given.extend(op.tokens)
                    continue
                room = max(self.room(live), 0)
                if self.options.decode and op.author == "model":
                    room = min(room, 1)  # nothing predicts the first: it is just written
                now, later = op.tokens[:room], op.tokens[room:]
                if now:
                    self.extend(live, now, self.push(live, len(now)), op.author)
                if later:
                    live.ops.appendleft(op.model_copy(update={"tokens": later}))
                    if not now:
                        return
            elif isinstance(op, Generate):
                self.filling.open(live, op)
            elif isinstance(op, Fork):
                self._fork(live, op)
            elif isinstance(op, Adaptive):
                self.interpreter.begin(live, op.limits)
        if not live.ops and not live.busy:
            self._end(live)

    def _fork(self, live: Live, op: Fork) -> None:
        count = len(op.paths)
        goal = [Tag.PARALLEL, Tag.GOAL, *[Tag.OUTLINE, Tag.END_OUTLINE] * count, Tag.END_GOAL]
        for tag in goal:
            step = live.machine.push(live.id, tag, 0)
        names = [(each.label, each.text) for each in self._outlines.get(op.paths[0], ())]
        names = names or [(str(index + 1), "") for index in range(count)]
        for path, thread in zip(self.fork(live, step.forked, names), op.paths, strict=True):
            path.plan_thread = thread
            path.ops = self._programs[thread]
            path.machine.push(path.id, Tag.PATH, 0)
            self.ready.append(path)

    def _end(self, live: Live) -> None:
        """A thread has done all its ops: join its block, or finish."""
        join = self._joins.get(live.plan_thread)
        parent = live.parent
        if join is None or parent is None:
            self._done = True
            self._finish()
            return
        step = live.machine.push(live.id, Tag.END_PATH, 0)
        if self.join(live, last=step.joined is not None):
            for tag in (Tag.CONCLUSION, Tag.END_CONCLUSION, Tag.END_PARALLEL):
                parent.machine.push(parent.id, tag, 0)
            parent.plan_thread = join.thread
            parent.ops = self._programs[join.thread]
            self.ready.append(parent)

    def _finish(self) -> None:
        """Finish a plan whose ops are done; a replay once the model has read all of it."""
        if self._done and not (self.waiting and (self._replay or self.options.logits)):
            self.end(self.ending)

    def end(self, how: str) -> None:
        """Finish the run; `how` is `Trace.finish`."""
        for live in self.active:
            self.settle(live)
        self.finish = how
