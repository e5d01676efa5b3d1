"""One plan on its way through the engine: its threads, and the tokens that wait to be read.

Writing a token takes its column and its position at once; the model reads it later, in the order
of writing. What a token sees was written before it, so any cut of that queue into forwards
gives the same logits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tokenizers.decoders import DecodeStream
from torch import Tensor

from mvspec.compiler.plan import Adaptive, ExecutionPlan, Extend, Fork, Generate, Join, Op
from mvspec.errors import MvspecError
from mvspec.ir import Parallel
from mvspec.limits import Limits
from mvspec.runtime.adaptive import Interpreter
from mvspec.runtime.budget import Budget
from mvspec.runtime.events import Event, Forked, Joined, Written
from mvspec.runtime.filling import Filling
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.model import Part
from mvspec.runtime.rounds import Rounds
from mvspec.runtime.sampling import Draw, Sampling, Wanted
from mvspec.runtime.store import Store
from mvspec.runtime.thread import Live, Token
from mvspec.structure import Structure
from mvspec.syntax import Tag

__all__ = ["Options", "Request"]


@dataclass(frozen=True, slots=True)
class Options:
    """How a plan is run.

    Args:
        sampling: how tokens are drawn.
        limits: of the run; what cannot be closed in time is not opened, and what is open in the
            end is closed by force.
        structure: whether a model that decides when to fork is held to the grammar.
        share: let paths read each other after every so many tokens; 0 for never.
        threads: how many threads may take a token in one step, in surface order; 0 for all.
        decode: let the model's tokens of a replay take a step each, as when they were drawn.
        logits: keep the logits that follow every token.
    """

    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)
    structure: bool = True
    share: int = 0
    threads: int = 0
    decode: bool = False
    logits: bool = False


class Request:
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
        self.name = name
        self.plan = plan
        self.options = options
        self.lexicon = lexicon
        self.store = store
        self.events: deque[Event] = deque()
        self.finish = ""
        """How the run ended, as in `Trace.finish`; "" while it goes on."""
        self.ending = "end"
        """How it will have ended: "end" until something was closed by force."""
        self.error: MvspecError | None = None
        """Why the run ended before its end."""
        self.cut = ""
        """"time" once all that is open has to close."""
        self.ends: list[float] = []
        self.rows: list[int] = []
        self.started = time.perf_counter()
        self.active: list[Live] = []
        self.ready: deque[Live] = deque()
        self._queue: deque[tuple[Live, Token]] = deque()
        self._programs, self._joins = programs(plan)
        blocks = list(plan.document.walk(Parallel)) if plan.document else []
        forks = [op for op in plan.ops if isinstance(op, Fork)]
        # By a fork's first path: forks come in another order than their blocks stand in.
        self._outlines = {
            fork.paths[0]: block.goal.outlines
            for fork, block in zip(forks, blocks, strict=False)
            if len(block.paths) == len(fork.paths)
        }
        self._forks = 0
        self._threads = 1
        self._rounds: Rounds | None = None
        self._done = False
        self._replay = not any(isinstance(op, Generate | Adaptive) for op in plan.ops)
        self.interpreter = Interpreter(self, context)
        self.filling = Filling(self, Budget(plan, options.limits, context))
        self.root = Live(0, Structure(strict=False), 0, store.row(), self._stream())
        self.root.ops = self._programs[0]
        self.active.append(self.root)
        self.ready.append(self.root)
        self.pump()

    # What the engine asks

    @property
    def waiting(self) -> int:
        """How many tokens wait to be read."""
        return len(self._queue)

    def take(self, budget: int) -> tuple[Part, list[tuple[Live, Token]]]:
        """Take at most `budget` waiting tokens, in the order of writing.

        Returns:
            What the model reads, and the tokens whose logits are wanted.
        """
        taken = [self._queue.popleft() for _ in range(min(budget, len(self._queue)))]
        keep: list[int] = []
        for index, (live, _) in enumerate(taken):
            live.unread -= 1
            if not live.unread or self.options.logits:
                keep.append(index)
        part = Part(
            self.store,
            [token.id for _, token in taken],
            [token.position for _, token in taken],
            [live.row for live, _ in taken],
            taken[0][1].column,
            keep,
        )
        return part, [taken[index] for index in keep]

    def read(self, kept: Sequence[tuple[Live, Token]], logits: Iterable[Tensor], rows: int) -> None:
        """Take the logits of tokens that the model has read, in a forward of `rows` of them."""
        self.ends.append(time.perf_counter() - self.started)
        self.rows.append(rows)
        for (live, token), row in zip(kept, logits, strict=True):
            if self.options.logits:
                token.logits = row
            if not live.unread:
                live.logits = row
                self._release(live)
        seconds = self.options.limits.max_seconds
        if seconds is not None and self.ends[-1] >= seconds:
            self.cut = "time"
        self.pump()
        self._finish()

    def wanted(self) -> list[tuple[Live, Wanted]]:
        """Return the draws that threads wait for."""
        waiting = [
            live
            for live in self.active
            if not live.unread
            and (live.hole or live.given or (live.adaptive and not live.script))
            and self.room(live) > 0
            and _predicting(live) is not None
        ]
        if self.options.threads:
            waiting = sorted(waiting, key=lambda live: live.place)[: self.options.threads]
        return [(live, self.want(live)) for live in waiting]

    def want(self, live: Live) -> Wanted:
        """Return the draw that a thread waits for."""
        logits = _predicting(live)
        assert logits is not None
        sampling = self.options.sampling
        want = Wanted(logits, sampling, f"{self.name}/{live.stream}", live.count)
        if live.given:
            want.given = live.given[0]
            return want
        want.allowed = (self.interpreter if live.adaptive else self.filling).allowed(live)
        if live.banned and want.allowed is not None:
            want.allowed = want.allowed.clone()
            want.allowed[live.banned] = False
        if sampling.repetition_penalty != 1.0:
            want.seen = list(_seen(live))
        return want

    def choose(self, live: Live, draw: Draw) -> bool:
        """Take a drawn token; False where it may not stand, and another has to be drawn."""
        if live.given:
            live.given.popleft()
            self.append(live, draw.id, self.push(live, 1), "model", draw=draw)
            self.ready.append(live)
            return True
        return (self.interpreter if live.adaptive else self.filling).choose(live, draw)

    # Writing

    def _stream(self) -> DecodeStream:
        return DecodeStream(skip_special_tokens=False)

    def append(
        self,
        live: Live,
        id: int,
        position: int,
        author: str,
        *,
        hole: str = "",
        draw: Draw | None = None,
    ) -> Token:
        """Write one token into a thread; the model reads it later."""
        column = self.store.take(1)
        step = -1 if author == "prompt" else len(self.ends) - 1
        token = Token(id, position, author, column, step, hole)
        if draw is not None:
            token.logprob, token.top = draw.logprob, draw.top
        token.text = live.decoder.step(self.lexicon.backend, id) or ""
        self.store.show(live.row, column, column + 1)
        live.append(token, control=id in self.lexicon.control)
        self._queue.append((live, token))
        if author != "prompt":
            self.events.append(
                Written(
                    self.name, live.number, position, id, token.text, author, token.logprob, hole,
                    step,
                )
            )  # fmt: skip
        return token

    def extend(
        self, live: Live, ids: Sequence[int], position: int, author: str, hole: str = ""
    ) -> None:
        """Write several tokens."""
        for offset, id in enumerate(ids):
            self.append(live, id, position + offset, author, hole=hole)

    def rewind(self, live: Live, count: int) -> list[Token]:
        """Take back a thread's last tokens, which the model has read; nobody sees them now."""
        taken = live.rewind(count)
        self.store.hide(live.row, [token.column for token in taken])
        if taken:
            live.decoder = self._stream()
        return taken

    def push(self, live: Live, width: int) -> int:
        """Tell a static plan's machine of tokens; return the first one's position."""
        return live.machine.push(live.id, "x", width).position

    # Running

    def pump(self) -> None:
        """Do all that can be done without the model."""
        while not self.finish:
            if self.ready:
                self._advance(self.ready.popleft())
            elif not (self._closed() or (self._rounds and self._rounds.turn() and self._wake())):
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
            live for live in self.active if live.script or (live.ops and not live.busy)
        )
        return True

    def room(self, live: Live) -> int:
        """How many tokens a thread may write now."""
        return self._rounds.room(live) if self._rounds and live.place else 1 << 62

    def _advance(self, live: Live) -> None:
        """Carry out a thread's ops until it waits for the model, its paths, or its round."""
        if live.script:
            self.interpreter.advance(live)
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

    def fork(self, live: Live, ids: Sequence[int], names: Sequence[tuple[str, str]]) -> list[Live]:
        """Split a thread.

        Args:
            ids: the paths' numbers in the machine.
            names: label and title of each.
        """
        if self.options.share and not live.place:
            self._rounds = Rounds(self.options.share, live.position, self.store)
        for index, (id, (label, title)) in enumerate(zip(ids, names, strict=True)):
            row = self.store.row(live.row)
            path = Live(self._threads, live.machine, id, row, self._stream(), parent=live)
            path.place = (*live.place, (live.blocks, index))
            path.label, path.title, path.block = label, title, self._forks
            path.adaptive, path.predicted = live.adaptive, live.predicted
            self._threads += 1
            live.paths.append(path)
        self._forks += 1
        live.blocks += 1
        live.items.append(list(live.paths))
        if self._rounds:
            self._rounds.threads += live.paths
        self.active.remove(live)
        self.active += live.paths
        numbers = tuple(path.number for path in live.paths)
        labels = tuple(path.label for path in live.paths)
        self.events.append(Forked(self.name, live.number, numbers, labels, len(self.ends) - 1))
        return live.paths

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
        if self._done and not (self._queue and (self._replay or self.options.logits)):
            self.finish = self.ending

    def join(self, live: Live, *, last: bool) -> bool:
        """End a path; where it is the last of its block its parent goes on, and True comes back."""
        live.ended = True
        self.active.remove(live)
        parent = live.parent
        if not last or parent is None:
            return False
        ended, parent.paths = parent.paths, []
        self.store.merge(parent.row, [path.row for path in ended])
        if self._rounds and not parent.place:
            ended = self._rounds.threads
            self._rounds = None
        parent.after_join()
        self.active.append(parent)
        for path in ended:
            self._release(path)
        numbers = tuple(path.number for path in ended if path.parent is parent)
        self.events.append(Joined(self.name, parent.number, numbers, len(self.ends) - 1))
        return True

    def _release(self, live: Live) -> None:
        """Give a path's row back once its block has joined and the model has read all of it."""
        joined = live.parent is not None and live.ended and live not in live.parent.paths
        if joined and not live.unread and self._rounds is None and live.row >= 0:
            self.store.release(live.row)
            live.row = -1


def programs(plan: ExecutionPlan) -> tuple[dict[int, deque[Op]], dict[int, Join]]:
    """Return the ops of each of a plan's threads, and for each path the join that it ends in."""
    ops: dict[int, deque[Op]] = {0: deque()}
    joins: dict[int, Join] = {}
    for op in plan.ops:
        if isinstance(op, Join):
            joins.update(dict.fromkeys(op.paths, op))
            ops[op.thread] = deque()
            continue
        ops[op.thread].append(op)
        if isinstance(op, Fork):
            ops.update((path, deque()) for path in op.paths)
    return ops, joins


def _predicting(live: Live) -> Tensor | None:
    """Return the logits that a thread's next token is drawn from; None before they are there."""
    while live.parent is not None and not live.count:  # a path is predicted by its fork
        live = live.parent
    return live.logits


def _seen(live: Live) -> Iterator[int]:
    """Yield the ids that a thread sees: its own, and those of the threads above it."""
    at: Live | None = live
    while at is not None:
        last = at.items[-1:]
        items = at.items[:-1] if at.paths and last and isinstance(last[0], list) else at.items
        for item in items:
            if isinstance(item, Token):
                yield item.id
            else:
                for path in item:
                    yield from (token.id for _, token in path.tokens())
        at = at.parent
