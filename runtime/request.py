"""One request on its way through an engine: its threads are written, read and drawn for."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mvspec.compiler.plan import ExecutionPlan
from mvspec.errors import MvspecError, RequestFailed
from mvspec.events import Event, Forked, HoleFilled, Joined, PathEnded, TakenBack, Written
from mvspec.law.threads import StructuralLaw
from mvspec.runtime.kv_store import KVStore
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.options import Options
from mvspec.runtime.plan_driver import PlanDriver, PlanScript
from mvspec.runtime.rounds import SharedRounds
from mvspec.runtime.sampling import DrawnToken, DrawRequest, Sampling
from mvspec.runtime.thread_state import (
    Action,
    AllowedTokens,
    AwaitRound,
    CloseByForce,
    EndPath,
    EndRun,
    FillHole,
    ForkThread,
    HandOver,
    KeepToken,
    ReadAgain,
    TakeBack,
    ThreadState,
    ThreadToken,
    WriteTokens,
)

_ELSEWHERE = torch.empty(0)
"""Stands for logits that a server keeps."""


class PlanRequest:
    """A run of a plan: it applies what the drivers of its threads say to law and KV store.

    Writing a token takes its slot and its position at once; the model reads it later, in the order
    of writing. What a token sees was written before it, so any cut of that queue into forwards
    gives the same logits.

    Args:
        name: of the run; random streams depend on it.
        plan: verified.
        options: how it is run.
        lexicon: of the engine's tokenizer.
        kv: an empty store.
        context: how many positions the model has; None where it does not say.
        quiet: whether nobody is told of single tokens: events of them are then not made.
        clock: seconds by which its deadline is told; a server of several ranks has one for all.

    Attributes:
        root: the thread that all others were forked from.
        active: those that have not ended and wait for no paths.
        queue: tokens that the model has not read, in the order of writing.
        events: what has happened since somebody took them.
        finish: how the run ended, as in `Trace.finish`; "" while it goes on.
        error: why the run ended before its end.
        forward_seconds: [forwards]: from the start of the run to the end of each forward.
        forward_tokens: [forwards]: how many tokens each read.
        size: how many tokens were written, those of the prompt included.

    Raises:
        MvspecError: the plan cannot be run.
    """

    def __init__(
        self,
        name: str,
        plan: ExecutionPlan,
        options: Options,
        lexicon: Lexicon,
        kv: KVStore,
        context: int | None = None,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        self.plan = plan
        self.options = options
        self.lexicon = lexicon
        self.kv = kv
        self.quiet = quiet
        self.script = PlanScript(plan, options, lexicon, context)
        self.law = StructuralLaw()
        driver = PlanDriver(self.script, 0)
        self.root = ThreadState(0, self.law.root, kv.fork(None), driver, f"{name}/")
        self.active = [self.root]
        self.queue: deque[tuple[ThreadState, ThreadToken]] = deque()
        self.events: deque[Event] = deque()
        self.finish = ""
        self.error: MvspecError | None = None
        self.started = time.perf_counter()
        self._clock = clock
        self._began = clock()
        self.forward_seconds: list[float] = []
        self.forward_tokens: list[int] = []
        self.size = 0
        self._threads = 1
        self._ready = deque([self.root])
        self._rounds: SharedRounds | None = None
        self._cut = ""
        """"time" once all that is open has to close."""
        self._ending = "end"
        """How the run will have ended: "end" until something was closed by force."""
        self._done = False
        self.pump()

    @property
    def step(self) -> int:
        """The newest forward, from 0; -1 before the first."""
        return len(self.forward_seconds) - 1

    @property
    def stopped(self) -> str:
        """The stop string that ended the model's turn; "" for none."""
        return self.script.turn.stopped if self.script.turn else ""

    def forget(self) -> None:
        """Let go of all tokens: threads refer to each other, and would wait for a collection."""
        for thread in list(self.root.threads()):
            thread.items.clear()
            thread.forks.clear()

    # Reading

    def schedule(self, budget: int) -> tuple[list[tuple[ThreadState, ThreadToken]], list[int]]:
        """Take at most `budget` tokens to read, in the order of writing.

        Returns:
            The tokens, and the numbers of those whose logits are wanted.
        """
        queue = self.queue
        if budget >= len(queue):
            taken = list(queue)
            queue.clear()
        else:
            taken = [queue.popleft() for _ in range(budget)]
        every = self.options.logits
        keep: list[int] = []
        for index, (thread, _) in enumerate(taken):
            thread.unread -= 1
            if every or not thread.unread:
                keep.append(index)
        return taken, keep

    def read(
        self,
        kept: Sequence[tuple[ThreadState, ThreadToken]],
        logits: Tensor,
        first: int,
        count: int,
    ) -> None:
        """Take the logits of a forward, and go on as far as they allow.

        Args:
            kept: tokens whose logits were wanted.
            logits: [all, vocabulary] of the forward.
            first: row of the first of them; the others follow it.
            count: how many tokens of the request were read.
        """
        every = self.options.logits
        for row, (thread, token) in enumerate(kept, first):
            if every:
                token.logits = logits[row]
            if not thread.unread:
                thread.logits = logits, row
                if thread.ended:
                    self._release(thread)
        self._after_forward(count)

    def was_read(self, threads: Sequence[tuple[ThreadState, int]]) -> None:
        """Say what a forward of a server has read, which keeps its logits, and go on.

        Args:
            threads: with how many tokens of each were read for the first time.
        """
        total = 0
        for thread, count in threads:
            thread.unread -= count
            total += count
            if not thread.unread:
                thread.logits = _ELSEWHERE, 0
        for _ in range(total):
            self.queue.popleft()
        self._after_forward(total)

    def _after_forward(self, count: int) -> None:
        seconds = time.perf_counter() - self.started
        self.forward_seconds.append(seconds)
        self.forward_tokens.append(count)
        most = self.options.limits.max_seconds
        if most is not None and self._clock() - self._began >= most:
            self._cut = "time"
        self.pump()
        self._finish()

    # Drawing

    def waiting(self) -> list[ThreadState]:
        """Return the threads that wait for a draw."""
        found = [thread for thread in self.active if self.draws(thread)]
        if self.options.threads:
            found = sorted(found, key=lambda thread: thread.place)[: self.options.threads]
        return found

    def draws(self, thread: ThreadState) -> bool:
        """Whether a thread waits for a draw."""
        if thread.unread or not thread.driver.draws or thread.paths or thread.ended:
            return False
        if thread.todo is not None or (self._rounds and self._room(thread) <= 0):
            return False
        return thread.predicting is not None

    def allowed(self, thread: ThreadState) -> AllowedTokens:
        """Return the tokens that may be drawn for a thread."""
        allowed = thread.driver.allowed(thread)
        if not thread.refused or allowed.mask is None:
            return allowed
        mask = allowed.mask.clone()
        mask[thread.refused] = False
        return AllowedTokens(mask)

    def sampling(self, thread: ThreadState) -> Sampling:
        """Return how the next token of a thread is drawn."""
        return thread.driver.sampling or self.options.sampling

    def draw_request(self, thread: ThreadState, *, masked: bool = True) -> DrawRequest:
        """Return the draw that a thread waits for.

        Args:
            masked: whether its logits do not yet hold what may come and what is penalised.
        """
        sampling, given = self.sampling(thread), thread.driver.given
        # Another number for each token that was refused: the same one would fall beside it.
        stream = thread.stream + "'" * len(thread.refused)
        if given is not None or not masked:
            return DrawRequest(sampling, stream, thread.count, given=given)
        seen = () if sampling.repetition_penalty == 1.0 else list(thread.seen())
        allowed = self.allowed(thread).mask
        return DrawRequest(sampling, stream, thread.count, allowed, seen)

    def take(self, thread: ThreadState, drawn: DrawnToken) -> bool:
        """Take a drawn token; False where it may not stand, and another has to be drawn."""
        actions = thread.driver.take(thread, drawn)
        if actions is None:
            thread.refused.append(drawn.id)
            return False
        if isinstance(actions, KeepToken):
            self._append(thread, drawn, actions.hole)
        else:
            self._apply(thread, iter(actions), drawn)
        return True

    # Going on

    def pump(self) -> None:
        """Do all that can be done without the model."""
        while not self.finish:
            if self._ready:
                thread = self._ready.popleft()
                if thread.todo is None:
                    self._apply(thread, iter(thread.driver.advance(thread)))
                elif self._room(thread) > 0 and self._write(thread, thread.rest):
                    self._apply(thread, thread.todo)
            elif not (self._close() or (self._rounds and self._rounds.turn() and self._wake())):
                return

    def _wake(self) -> bool:
        # Written runs stop at the end of a round.
        self._ready.extend(thread for thread in self.active if thread.todo is not None)
        return True

    def _close(self) -> bool:
        """Close what the limits end; say whether anything was."""
        if not (self._cut or self.script.bounded):
            return False
        for thread in self.active:
            if thread.todo is not None or (thread.unread and not self._cut):
                continue
            actions = thread.driver.close(thread, self._cut)
            if actions is not None:
                self._apply(thread, iter(actions))
                return True
        return False

    def _apply(
        self, thread: ThreadState, actions: Iterator[Action], drawn: DrawnToken | None = None
    ) -> None:
        """Carry out the actions of a thread's driver, as far as its round goes."""
        thread.todo = None
        for action in actions:
            match action:
                case KeepToken(hole):
                    assert drawn is not None
                    self._append(thread, drawn, hole)
                case WriteTokens():
                    if not self._write(thread, action):
                        thread.todo = actions
                        return
                case AwaitRound():
                    if self._room(thread) <= 0:
                        thread.todo = actions
                        return
                case TakeBack(count):
                    self._take_back(thread, count)
                case ReadAgain():
                    self._read_again(thread)
                case ForkThread():
                    self._fork(thread, action)
                case EndPath():
                    self._end_path(thread)
                case HandOver(driver):
                    thread.driver = driver
                    thread.refused.clear()
                    self._ready.append(thread)
                case FillHole(name, text, value, cut):
                    told = HoleFilled(self.name, thread.number, name, text, value, cut, self.step)
                    self.events.append(told)
                case CloseByForce():
                    self._ending = self._cut or "limit"
                case EndRun(finish):
                    self._done = True
                    self.end(finish) if finish else self._finish()
            if self.finish:
                return

    def _finish(self) -> None:
        """Finish a plan whose ops are done; a replay once the model has read all of it."""
        reads = bool(self.queue) and (self.script.replay or self.options.logits)
        if self._done and not self.finish and not reads:
            self.end(self._ending)

    def end(self, finish: str) -> None:
        """Finish the run.

        Args:
            finish: as in `Trace.finish`.
        """
        for thread in self.active:
            self._settle(thread)
        self.finish = finish

    def fail(self, error: Exception) -> None:
        """End the run with an error, such as a full cache, which is this request's alone."""
        if not isinstance(error, MvspecError):
            error = RequestFailed.of(self.name, error)
        self.error = error
        self.finish = "limit"

    # Tokens

    def _append(self, thread: ThreadState, drawn: DrawnToken, hole: str) -> None:
        """Write a drawn token; the model reads it later."""
        id, logprob, top = drawn
        slot = self.kv.allocate(thread.row, 1)
        position = self.law.tokens(thread.law, 1, 1)
        text = self._text(thread, id)
        step = len(self.forward_seconds) - 1
        token = ThreadToken(id, position, "model", slot, step, hole, text, logprob, top)
        self.size += 1
        thread.append(token, control=id in self.lexicon.control)
        self.queue.append((thread, token))
        if not self.quiet:
            self._tell(thread, token)

    def _write(self, thread: ThreadState, action: WriteTokens) -> bool:
        """Write tokens as far as the thread's round goes; say whether all are written."""
        ids, author, hole = action
        room = max(self._room(thread), 0)
        now, thread.rest = ids[:room], WriteTokens(ids[room:], author, hole)
        if now:
            prompt = author == "prompt"
            step = -1 if prompt else self.step
            slots = itertools.count(self.kv.allocate(thread.row, len(now)))
            own = 0 if prompt else len(now)
            positions = itertools.count(self.law.tokens(thread.law, len(now), own))
            tokens = [
                ThreadToken(id, next(positions), author, next(slots), step, hole, text)
                for id, text in zip(now, [self._text(thread, id) for id in now], strict=True)
            ]
            self.size += len(now)
            thread.extend(tokens, self.lexicon.control)
            self.queue.extend([(thread, token) for token in tokens])
            if not (prompt or self.quiet):
                for token in tokens:
                    self._tell(thread, token)
        return len(ids) <= room

    def _text(self, thread: ThreadState, id: int) -> str:
        """Return what a token adds to its thread's text; "" where it ends inside a character."""
        if thread.partial:
            thread.partial.append(id)
            text: str = self.lexicon.backend.decode(thread.partial, skip_special_tokens=False)
        else:
            text = self.lexicon.texts[id]
            if text[-1:] != "\ufffd":
                return text
            thread.partial = [id]
        if text[-1:] == "\ufffd":
            return ""
        thread.partial = []
        return text

    def _tell(self, thread: ThreadState, token: ThreadToken) -> None:
        self.events.append(
            Written(
                self.name, thread.number, token.position, token.id, token.text, token.author,
                token.logprob, token.hole, token.step,
            )
        )  # fmt: skip

    def _take_back(self, thread: ThreadState, count: int) -> None:
        """Take back a thread's last tokens, which the model has read; nobody sees them now."""
        if not count:
            return
        taken = thread.take_back(count)
        self.law.tokens(thread.law, -count)
        self.kv.hide(thread.row, [token.slot for token in taken])
        thread.partial.clear()
        for token in thread.since_control(self.lexicon.control):
            self._text(thread, token.id)
        self.events.append(TakenBack(self.name, thread.number, count, self.step))

    def _read_again(self, thread: ThreadState) -> None:
        """Let the model read a thread's last token once more: what came after it is gone."""
        tail = thread.tail
        (token,) = thread.take_back(1)
        self.kv.hide(thread.row, [token.slot])
        token.slot = self.kv.allocate(thread.row, 1)
        thread.append(token, control=False)
        thread.tail = tail
        self.queue.append((thread, token))

    def _settle(self, thread: ThreadState) -> None:
        """Give its last token, where it ends inside a character, its text: nothing follows it."""
        if not thread.partial:
            return
        last = thread.items[-1]
        assert isinstance(last, ThreadToken)
        last.text = self.lexicon.vocabulary.decode(thread.partial)
        thread.partial.clear()
        if last.author != "prompt":
            self.events.append(TakenBack(self.name, thread.number, 1, self.step))
            if not self.quiet:
                self._tell(thread, last)

    # Forks and joins

    def _fork(self, thread: ThreadState, fork: ForkThread) -> None:
        """Split a thread."""
        self._settle(thread)
        if self.options.share and not thread.place:
            self._rounds = SharedRounds(self.options.share, thread.position, self.kv)
        block = len(thread.forks)
        for index, law in enumerate(self.law.fork(thread.law, len(fork.paths))):
            made = fork.paths[index]
            place = (*thread.place, (block, index))
            stream = f"{thread.stream}{'/' if thread.place else ''}{block}.{index}"
            path = ThreadState(
                self._threads, law, self.kv.fork(thread.row), made.driver, stream, thread, place,
                made.label, made.title, thread.predicted, self._rounds is not None,
            )  # fmt: skip
            self._threads += 1
            thread.paths.append(path)
        paths = thread.paths
        thread.forks.append(len(thread.items))
        thread.items.append(list(paths))
        if self._rounds:
            self._rounds.threads += paths
        self.active.remove(thread)
        self.active += paths
        self._ready += paths
        numbers = tuple(path.number for path in paths)
        labels, titles = zip(*((path.label, path.title) for path in paths), strict=True)
        self.events.append(Forked(self.name, thread.number, numbers, labels, titles, self.step))

    def _end_path(self, thread: ThreadState) -> None:
        """End a path; where it is the last of its block its parent goes on."""
        self._settle(thread)
        thread.ended = True
        self.active.remove(thread)
        self.events.append(PathEnded(self.name, thread.number, self.step))
        parent = thread.parent
        if self.law.end(thread.law) is None or parent is None:
            return
        ended = parent.paths
        self.kv.merge(parent.row, [path.row for path in ended])
        parent.go_on_after_join()
        released = ended
        if self._rounds and not parent.place:
            released, self._rounds = self._rounds.threads, None
        self.active.append(parent)
        self._ready.append(parent)
        for path in released:
            self._release(path)
        numbers = tuple(path.number for path in ended)
        self.events.append(Joined(self.name, parent.number, numbers, self.step))

    def _release(self, thread: ThreadState) -> None:
        """Give a path's row back once its block has joined and the model has read all of it."""
        siblings = thread.parent.paths if thread.parent else ()
        joined = not siblings or siblings[0].law.block != thread.law.block
        if (
            thread.ended
            and joined
            and not thread.unread
            and self._rounds is None
            and thread.row >= 0
        ):
            self.kv.release(thread.row)
            thread.row = -1

    def _room(self, thread: ThreadState) -> int:
        """How many tokens a thread may write now."""
        return self._rounds.room(thread) if self._rounds and thread.place else 1 << 62
