"""One request that forks: its run, and the KV slots of each of its threads.

A thread is *resident* while it has a row of the server's table, and waits otherwise: for a row,
for its paths, for tokens that are forced on it. Waiting, it is a list of KV slots. It is
scheduled by a prefill (SGLang's extend) that reads new tokens behind them. So a fork is a prefill
that starts from the parent's slots, and a join concatenates slots: no keys or values are copied.
What is read follows `ThreadState.items`, so a request that was evicted is rebuilt in the same way.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mvspec.runtime.request import PlanRequest
from mvspec.runtime.sampling import DrawnToken
from mvspec.runtime.serving.adapter import SchedulerAdapter
from mvspec.runtime.serving.protocol import ClientResponse
from mvspec.runtime.thread_state import ThreadState, ThreadToken

_BLOCK = -1


class SlotCounter:
    """A KV store that only numbers a request's tokens: the server's rows say what a thread sees."""

    def __init__(self) -> None:
        self._used = 0

    def fork(self, row: int | None) -> int:
        """Return the row of a new thread; the server has the real ones."""
        return 0

    def allocate(self, row: int, count: int) -> int:
        """Return the first of `count` new numbers."""
        self._used += count
        return self._used - count

    def hide(self, *_: object) -> None:
        """See `KVStore`: nothing is held here."""

    merge = release = clear = hide


class ThreadKV:
    """The KV slots of one thread.

    Args:
        request: that it belongs to.
        state: of the thread.
        parent: what it was forked from; None at the root.

    Attributes:
        slots: int64 [n]: resident, what its row begins with; waiting, all that it sees, in row
            order.
        tokens: ids of all that it sees and has read.
        start: where its own slots begin; those before it are its parent's or the prefix cache's.
        req: SGLang's request while it is resident.
        prefill_tokens: what its next prefill reads.
        prefilling: whether its prefill has not been sampled yet.
        sampling: whether the token that is being sampled for it counts.
        model_logprob: of that token, where a plain client is told another one.
        paths: those of its block that have slots.
    """

    def __init__(self, request: ForkedRequest, state: ThreadState, parent: ThreadKV | None) -> None:
        self.request = request
        self.state = state
        self.parent = parent
        self.slots: Tensor = request.no_slots if parent is None else parent.slots
        self.tokens: array[int] = array("q") if parent is None else parent.tokens[:]
        self.start = len(self.slots)
        self.req: Any = None
        self.prefill_tokens: list[ThreadToken] = []
        self.prefilling = False
        self.sampling = False
        self.model_logprob: float | None = None
        self.paths: list[ThreadKV] = []
        self._read: list[int] = []
        """For each item of `state` that was read: a token's number, or that it is a block."""
        self._decoded: ThreadToken | None = None
        """The token that its next decode step reads."""
        self._repeats = False
        """Whether its first own slot holds its parent's last token once more."""

    def __str__(self) -> str:
        """What it waits for, for the log."""
        state = self.state
        doing = "prefilling" if self.prefilling else "sampling" if self.sampling else "waiting"
        paths = f" [{', '.join(map(str, self.paths))}]" if self.paths else ""
        return (
            f"%{state.number} {doing if self.req is not None else 'without a row'}, "
            f"{len(self._read)} of {len(state.items)} read, {len(self.slots)} slots"
            f"{', ended' * state.ended}{', draws' * self.request.run.draws(state)}{paths}"
        )

    # What it is to read

    def pending(self) -> list[ThreadToken]:
        """Return the tokens that come next, up to a block or the end."""
        self._forget()
        return self.state.stretch(len(self._read))[0]

    def _forget(self) -> None:
        """Drop what was read and then taken back."""
        items, read = self.state.items, self._read
        while read:
            at = len(read) - 1
            if at < len(items):
                item = items[at]
                if not isinstance(item, ThreadToken) or item.slot == read[at]:
                    return
            read.pop()
            self._cut()

    def _cut(self) -> None:
        """Forget its last token; while it is resident, `_leave_row` frees the slot."""
        self.tokens.pop()
        if self.req is None:
            self.request.kv.free(self.slots[-1:])
            self.slots = self.slots[:-1]

    # Its row

    def prefill(self) -> tuple[Any, Tensor]:
        """Return SGLang's request for the prefill of what comes next, and the slots before it."""
        # A path whose first token is drawn reads its parent's last one once more.
        tokens = self.prefill_tokens or [self._predecessor()]
        shift = len(self.slots) - tokens[0].position
        ids = self.tokens + array("q", [token.id for token in tokens])
        self.req = self.request.make_req(self, ids, shift)
        self.prefilling = True
        return self.req, self.slots

    def _predecessor(self) -> ThreadToken:
        """Return the token that predicts its first one."""
        at = self.state.parent
        while at is not None:
            found = [item for item in at.items[-2:] if isinstance(item, ThreadToken)]
            if found:
                return found[-1]
            at = at.parent
        raise AssertionError("a plan whose first token nothing predicts is refused before it runs")

    def _leave_row(self) -> None:
        """Free its row, keep its slots, and have its request taken out of SGLang's batches."""
        self.request.removed.add(id(self.req))
        self._forget()
        req, self.req = self.req, None
        kv = self.request.kv
        if self.parent is None and self.request.prefix_req is None:
            # Up to here its positions are those of a plain prompt: the only part that a prompt
            # of the same tokens may ever find in the prefix cache.
            self.request.prefix_req = req
            self.start = kv.publish(req, len(self.tokens))
        self.slots = kv.release_row(req, len(self.tokens))
        self.sampling = self.prefilling = False
        self._decoded = None
        self.prefill_tokens = []

    def _decodes(self) -> bool:
        """Whether it is in a forward, or goes on with its next decode step."""
        if self.prefilling or self.sampling:
            return True
        state = self.state
        if self._decoded is None or state.paths or state.ended:
            return False
        return len(self.pending()) == 1

    # Going on

    def advance(self) -> Iterator[ThreadKV]:
        """Leave its row, fork and join as its thread has; yield the threads that need a prefill."""
        if self.req is not None:
            if self._decodes():
                return
            self._leave_row()
        while not self.pending():
            if self.whole:
                if self._must_reread():
                    yield self
                return
            if not self.paths:
                block = self.state.items[len(self._read)]
                assert isinstance(block, list)
                self.paths = [ThreadKV(self.request, state, self) for state in block]
            for path in self.paths:
                yield from path.advance()
            # While a request is rebuilt this may be an earlier block than its thread's open one.
            is_open = bool(self.state.paths) and len(self._read) == len(self.state.items) - 1
            if is_open or not all(path.done for path in self.paths):
                return
            self._join()
        self.prefill_tokens = self.pending()
        yield self

    @property
    def whole(self) -> bool:
        """Whether all that its thread has so far was read: while it is rebuilt it is not."""
        return len(self._read) == len(self.state.items)

    @property
    def done(self) -> bool:
        """Whether it has ended and all of it is in its slots."""
        return self.state.ended and self.req is None and self.whole

    def _must_reread(self) -> bool:
        """Whether a draw has no logits: its last token is then read by a prefill once more."""
        state = self.state
        if state.ended or state.paths or not self.request.run.draws(state):
            return False
        if self._read:
            item = state.items[len(self._read) - 1]
            if not isinstance(item, ThreadToken):
                raise AssertionError("nothing predicts the first token after a join")
            self._read.pop()
            self._cut()
            self.prefill_tokens = [item]
        elif self._repeats:
            if len(self.slots) > self.start:  # else it has waited for a row since
                self._cut()
        else:
            self._repeats = True
            self.start -= 1
            self.tokens.pop()
            self.slots = self.slots[:-1]
        return True

    def _join(self) -> None:
        """Put the paths' slots behind its own."""
        paths, self.paths = self.paths, []
        parts = [self.slots]
        for path in paths:
            first = path.start
            if path._repeats:
                self.request.kv.free(path.slots[first : first + 1])
                first += 1
            parts.append(path.slots[first:])
            self.tokens.extend(path.tokens[first:])
        self.slots = torch.cat(parts)
        self._read.append(_BLOCK)

    # Forwards

    def complete(self) -> int | None:
        """Take what a forward has read of it.

        Returns:
            How many tokens were read for the first time; None where nothing was read.
        """
        decoded, self._decoded = self._decoded, None
        if self.prefilling:
            self.prefilling = False
            tokens, self.prefill_tokens = self.prefill_tokens, []
            if not tokens:
                self.tokens.append(self._predecessor().id)
                return 0
        elif decoded is None:  # it was launched before a refused token was known
            return None
        else:
            tokens = [decoded]
        numbers = [token.slot for token in tokens]
        self.tokens.extend([token.id for token in tokens])
        self._read += numbers
        return self.request.count_new(numbers)

    def take(self, draw: DrawnToken) -> None:
        """Let its thread take the token that was sampled for it."""
        self.sampling = False
        at, items = len(self._read), self.state.items
        told, own, self.model_logprob = draw.logprob, self.model_logprob, None
        self.request.run.take(self.state, draw if own is None else draw._replace(logprob=own))
        self._forget()
        item = items[at] if at < len(items) and len(self._read) == at else None
        if own is not None and told is not None and isinstance(item, ThreadToken):
            self.request.response.client_logprobs[item.slot] = told
        # Refused, or an end that leaves no token: then what the server reads next is nothing.
        self._decoded = item if isinstance(item, ThreadToken) and item.id == draw.id else None

    # Memory

    @property
    def uncounted_slots(self) -> int:
        """How many slots it holds that the server does not find in its requests."""
        own = len(self.slots) - self.start
        if self.req is not None and self.parent is None and self.request.prefix_req is None:
            own = 0  # the server's own prefill holds them
        return own + sum(path.uncounted_slots for path in self.paths)

    def free(self) -> None:
        """Free the rows and slots that it and its paths hold."""
        for path in self.paths:
            path.free()
        self.paths = []
        if self.req is not None:
            self._leave_row()
        self.request.kv.free(self.slots[self.start :])
        self.slots, self.start = self.request.no_slots, 0


class ForkedRequest:
    """All threads of one client's request.

    Args:
        adapter: of the scheduler that runs it.
        client_req: the client's request of SGLang's: it never runs, but is answered.
        run: of its plan.
        response: to its client.
        number: in the order of arrival.
        seeded: whether its tokens are drawn from the random streams of its seed, and not by SGLang.

    Attributes:
        prefix_req: the first request of the root, which locks the prefix in the prefix cache.
        removed: ids of SGLang's requests that have to leave its batches.
        aborted: why it has to end, once somebody wants it to.
        evicted: whether its KV slots were freed for others.
    """

    def __init__(
        self,
        adapter: SchedulerAdapter,
        client_req: Any,
        run: PlanRequest,
        response: ClientResponse,
        number: int,
        *,
        seeded: bool,
    ) -> None:
        self.adapter = adapter
        self.kv = adapter.kv
        self.client_req = client_req
        self.rid: str = client_req.rid
        self.run = run
        self.response = response
        self.number = number
        self.seeded = seeded
        self.no_slots = torch.empty(0, dtype=torch.int64, device=self.kv.rows.device)
        self.prefix_req: Any = None
        self.removed: set[int] = set()
        self.aborted = ""
        self.evicted = False
        self._reqs = 0
        self._seen: set[int] = set()
        self.root = ThreadKV(self, run.root, None)

    def __str__(self) -> str:
        state = "evicted" if self.evicted else "queued" if self.waits_for_prefill else "resident"
        return f"{self.rid} ({state}, {len(self.run.queue)} unread, {self.root})"

    @property
    def is_over(self) -> bool:
        """Whether nothing of it counts any more."""
        return self.response.over or bool(self.aborted)

    def draws(self, state: ThreadState) -> bool:
        """Whether a thread's token is drawn from its random stream here, and not by SGLang."""
        both = self.run.options.sampling, self.run.sampling(state)
        return self.seeded and not all(sampling.greedy for sampling in both)

    # Its threads

    def start(self) -> Any:
        """Return the request that the server itself prefills: the root up to its first block."""
        self.evicted = False
        self.root = ThreadKV(self, self.run.root, None)
        self.root.prefill_tokens = self.root.pending()
        req, _ = self.root.prefill()
        req.time_stats = self.client_req.time_stats
        return req

    def make_req(self, thread: ThreadKV, tokens: array[int], shift: int) -> Any:
        """Return a request of SGLang's for one stay of a thread in the server's table."""
        # What SGLang prefills itself has the client's name, so that it can answer an abort.
        first = thread is self.root and self.prefix_req is None
        rid = self.rid if first else f"{self.rid}/{self._reqs}"
        self._reqs += 1
        # What the server's own admission of others counts on: the request's budget, shared by the
        # threads that are live, a little above what comes and below what its pool has.
        written = self.run.size - len(self.client_req.origin_input_ids)
        left = self.client_req.sampling_params.max_new_tokens - written
        budget = max(left, 0) // max(len(self.run.active), 1) + 8
        budget = max(min(budget, self.kv.capacity - len(tokens) - 16), 1)
        return self.adapter.req(self.client_req, rid, tokens, thread, shift, budget)

    def advance(self) -> Iterator[ThreadKV]:
        """Yield the threads that have tokens to read and no row."""
        if not self.evicted:
            yield from self.root.advance()

    def complete(self, threads: Sequence[ThreadKV]) -> None:
        """Take what a forward has read of threads, and settle which of its draws count."""
        if self.is_over:
            for thread in threads:
                thread.complete()
            return
        if self.waits_for_prefill and not self.run.forward_seconds:
            for name in ("cached_tokens", "cached_tokens_device", "cached_tokens_host"):
                setattr(self.client_req, name, getattr(self.root.req, name))
        completed = [(thread, thread.complete()) for thread in threads]
        read = [(thread.state, count) for thread, count in completed if count is not None]
        if read:
            self.run.was_read(read)
        for thread, count in completed:
            thread.sampling = (
                count is not None
                and not self.run.finish
                and thread.whole
                and self.run.draws(thread.state)
            )

    def count_new(self, numbers: Sequence[int]) -> int:
        """Return how many tokens are read for the first time: a rebuilt request reads again."""
        before = len(self._seen)
        self._seen.update(numbers)
        return len(self._seen) - before

    # Memory

    @property
    def waits_for_prefill(self) -> bool:
        """Whether the server's own prefill of its root has not ended."""
        return self.prefix_req is None and self.root.req is not None and self.root.prefilling

    @property
    def resident(self) -> bool:
        """Whether it holds KV slots that the server's own prefill does not."""
        return not (self.evicted or self.waits_for_prefill)

    def free(self) -> None:
        """Free all of its rows and slots."""
        root = self.root
        if self.prefix_req is None and root.req is not None and not root.paths:
            # It never forked: its whole text is a prefix for others, as any answer is.
            self.removed.add(id(root.req))
            self.kv.release(root.req)
            root.req = None
            return
        root.free()
        if self.prefix_req is not None:
            self.kv.unlock(self.prefix_req)
            self.prefix_req = None

    def evict(self) -> None:
        """Free its KV slots for others; `start` rebuilds them from the tokens."""
        self.free()
        self.evicted = True

    # The log

    def log_line(self) -> str:
        """Return how it ended, as one line of JSON."""
        run = self.run
        metrics, seconds = run.law.metrics, run.forward_seconds
        told = {
            "rid": self.rid,
            "tokens": metrics.tokens,
            "threads": sum(1 for _ in run.root.threads()),
            "critical_path": metrics.critical_path,
            "seconds": round(seconds[-1], 3) if seconds else 0.0,
            "finish": run.finish or "interrupted",
        }
        reason: Any = self.client_req.finished_reason
        if reason is not None and reason.to_json().get("type") == "abort":
            told |= {"finish": "abort", "reason": reason.to_json().get("message")}
        return json.dumps(told)
