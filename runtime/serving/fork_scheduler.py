"""The scheduler of requests that fork: admits, schedules, evicts and answers them.

It stands beside SGLang's own scheduler, whose hooks drive it: before a step threads leave their
rows, fork and join (`schedule`); those with tokens to read are prefilled as rows and KV slots
last (`prefill`); after a forward its reads count (`complete`), then its draws (`take`); then the
clients are answered (`respond`).
"""

from __future__ import annotations

import logging
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from mvspec.compiler.plan import Extend
from mvspec.errors import MvspecError, Unsupported
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.request import PlanRequest
from mvspec.runtime.sampling import DrawnToken
from mvspec.runtime.serving.adapter import SchedulerAdapter
from mvspec.runtime.serving.forked_request import ForkedRequest, SlotCounter, ThreadKV
from mvspec.runtime.serving.prometheus import COUNTED
from mvspec.runtime.serving.protocol import ClientResponse, PlanPayload, served_capabilities
from mvspec.runtime.serving.sglang_req import is_thread, thread_of

log = logging.getLogger("mvspec")

_TOGETHER = 16
"""How many answers that have ended are sent at a time."""

_PATIENCE = 10
"""Seconds without a forward after which something is wrong."""


class KVBudget:
    """The rows and KV slots that are left, and the threads that wait for them.

    Args:
        adapter: of the scheduler.

    Attributes:
        waiting: threads that have tokens to read and no row.
        starving: whether they wait for memory, so that nobody else may take it.
    """

    def __init__(self, adapter: SchedulerAdapter) -> None:
        self.adapter = adapter
        self.kv = adapter.kv
        self.waiting: list[ThreadKV] = []
        self.starving = False

    def __str__(self) -> str:
        return (
            f"{self.kv.available()} slots, {self.kv.free_rows()} rows, queue "
            f"{len(self.adapter.queue)}, starving {self.starving}"
        )

    def lacks(self, slots: int) -> bool:
        """Whether there are fewer slots than that, with those that the prefix cache would evict."""
        return self.kv.available() < slots

    def lacks_for_chunk(self, running: int) -> bool:
        """Whether the next chunk of a long prompt has fewer slots than it takes."""
        need = self.adapter.next_chunk
        return need > 0 and self.lacks(need + running)

    def take_fitting(self, running: int) -> list[ThreadKV]:
        """Take the waiting threads that there are rows, slots and a step's tokens for.

        Args:
            running: requests that decode, which take a slot each.
        """
        rows, tokens = self.kv.free_rows(), self.adapter.prefill_tokens
        slots = self.kv.available() - running
        found: list[ThreadKV] = []
        for thread in self.waiting:
            most = min(tokens, slots - 2)
            if rows < 1 or most < 1:
                break
            thread.prefill_tokens = thread.prefill_tokens[:most]
            count = max(len(thread.prefill_tokens), 1)
            rows, tokens, slots = rows - 1, tokens - count, slots - count - 1
            found.append(thread)
        del self.waiting[: len(found)]
        return found

    def forget(self, request: ForkedRequest) -> None:
        """Let no thread of a request wait any more."""
        self.waiting = [thread for thread in self.waiting if thread.request is not request]


class ForkScheduler:
    """The requests of one scheduler of SGLang that fork and join.

    Args:
        adapter: of the scheduler.
        lexicon: of its tokenizer.

    Attributes:
        budget: of rows and KV slots.
        requests: those that have not ended, by name, the oldest first.
        counters: sums since the server's start, by the names of `COUNTED`.
    """

    def __init__(self, adapter: SchedulerAdapter, lexicon: Lexicon) -> None:
        self.adapter = adapter
        self.lexicon = lexicon
        known = served_capabilities(lexicon.vocabulary, "", adapter.context)
        self.capabilities = replace(known, vocabulary=min(known.vocabulary, lexicon.size))
        self.budget = KVBudget(adapter)
        self.requests: dict[str, ForkedRequest] = {}
        self.counters = dict.fromkeys(COUNTED, 0)
        self._admitted = 0
        self._holding = False
        """Whether an evicted request waits for memory, so that nobody else may take it."""
        self._moved = time.monotonic()

    def __bool__(self) -> bool:
        return bool(self.requests)

    @property
    def resident(self) -> list[ForkedRequest]:
        """The requests that hold KV slots which the server's own prefill does not."""
        return [request for request in self.requests.values() if request.resident]

    @property
    def uncounted_slots(self) -> int:
        """How many slots threads hold that the server does not find in its requests."""
        return sum(request.root.uncounted_slots for request in self.requests.values())

    @property
    def live_threads(self) -> int:
        """How many threads have not ended."""
        going_on = (each.run for each in self.requests.values() if not each.response.over)
        return sum(len(run.active) for run in going_on)

    def state(self) -> dict[str, Any]:
        """Return the sums, and what each request waits for."""
        return {"counters": self.counters, "requests": list(map(str, self.requests.values()))}

    # Arrival and end

    def admit(self, client_req: Any, asked: PlanPayload, *, seeded: bool = True) -> Any:
        """Begin a request; return what the server prefills in its place.

        Args:
            client_req: the client's request of SGLang's.
            asked: how it forks and joins.
            seeded: whether its tokens are drawn from the random streams of its seed; else SGLang
                draws them, as those of any request.

        Raises:
            MvspecError: it cannot be run; the message says why.
        """
        adapter, sampling = self.adapter, client_req.sampling_params
        size = self.lexicon.vocabulary.size
        if client_req.return_logprob and client_req.logprob.top_logprobs_num > size:
            raise Unsupported(
                f"{client_req.logprob.top_logprobs_num} likeliest tokens were asked for, and the "
                f"vocabulary has {size}: ask for fewer"
            )
        plan = asked.plan(client_req.origin_input_ids, self.lexicon.vocabulary)
        given = [op.tokens for op in plan.ops if isinstance(op, Extend) and op.author == "prompt"]
        if len(given) > 1:  # what SGLang was sent is only the beginning
            client_req.origin_input_ids = array("q", chain.from_iterable(given))
        most = adapter.most_new_tokens(client_req)
        options = asked.options_within(most)
        self.capabilities.check(plan, options)
        if options.limits.max_seconds is not None:
            adapter.read_clock()
        run = PlanRequest(
            asked.name, plan, options, self.lexicon, SlotCounter(), adapter.context,
            quiet=not asked.live, clock=adapter.clock,
        )  # fmt: skip
        sampling.max_new_tokens = min(most, asked.bound(plan, options))
        response = ClientResponse(adapter, client_req, run, asked, self.counters)
        request = ForkedRequest(adapter, client_req, run, response, self._admitted, seeded=seeded)
        req = request.start()
        if len(req.origin_input_ids) > adapter.longest_prompt:
            raise MvspecError(
                f"the plan begins with {len(req.origin_input_ids)} tokens and the server takes "
                f"at most {adapter.longest_prompt}: shorten the text before the first block"
            )
        sampling.skip_special_tokens = False
        self._admitted += 1
        self._moved = time.monotonic()
        response.begin()
        self.requests[request.rid] = request
        self.counters["requests"] += 1
        return req

    def abort(self, matches: Callable[[str], bool], message: str) -> None:
        """End all requests whose name matches, at their next step."""
        for rid, request in self.requests.items():
            if matches(rid):
                request.aborted = message

    def queued(self) -> list[ForkedRequest]:
        """Return the requests whose root waits in the server's queue."""
        ids = {id(req) for req in self.adapter.queue}
        return [request for request in self.requests.values() if id(request.root.req) in ids]

    def forget(self, request: ForkedRequest) -> None:
        """Drop a request that was answered and that holds nothing."""
        if log.isEnabledFor(logging.INFO) and self.adapter.is_first:
            log.info("mvspec %s", request.log_line())
        del self.requests[request.rid]
        request.run.forget()

    def _end(self, request: ForkedRequest) -> None:
        if request.response.grow():
            self.adapter.send([request.client_req])
        try:
            request.free()
        finally:  # what was half freed is never freed again
            self.forget(request)

    def _fail(self, request: ForkedRequest, error: Exception) -> None:
        """Let an error, or a fault of ours, end one request and not the server."""
        if not isinstance(error, MvspecError):
            self._broken(request, error)
        elif not request.response.over:
            request.response.abort(str(error))

    def _broken(self, request: ForkedRequest, error: Exception) -> None:
        log.error("request %s ended by a fault of mvspec", request.rid, exc_info=error)
        self.counters["faults"] += 1
        if not request.response.over:
            request.response.abort(f"a fault of mvspec: {type(error).__name__}: {error}")

    def stuck(self, thread: ThreadKV, error: Exception) -> None:
        """Let an error of a thread's mask end its request."""
        thread.sampling = False
        self._fail(thread.request, error)

    # Before a step

    def schedule(self, batches: Sequence[Any]) -> None:
        """Let threads leave their rows, fork and join, and take them out of SGLang's batches."""
        if any(each.run.options.limits.max_seconds is not None for each in self.requests.values()):
            self.adapter.read_clock()
        self.budget.waiting = []
        removed: set[int] = set()
        with self.adapter.kv.freeing():
            for request in list(self.requests.values()):
                request.removed = removed
                try:
                    self._advance(request)
                except Exception as error:
                    self._fail(request, error)
        self._rebuild()
        self.adapter.drop(batches, removed)

    def _advance(self, request: ForkedRequest) -> None:
        if request.is_over and request.waits_for_prefill and not self._unqueue(request):
            return  # in a forward; it can go once that has ended
        if request.aborted and not request.response.over:
            request.response.abort(request.aborted, asked=True)
        if request.response.over:
            self._end(request)
        elif request.run.finish:
            request.free()  # `respond` makes its answer
        else:
            self.budget.waiting += request.advance()

    def _unqueue(self, request: ForkedRequest) -> bool:
        """Take a root out of the server's queue; False where it is not there any more."""
        queue = self.adapter.queue
        for index, req in enumerate(queue):
            if req is request.root.req:
                del queue[index]
                request.root.req = None
                return True
        return False

    def _rebuild(self) -> None:
        """Let the oldest evicted request start again once there is room for all of it.

        It comes ahead of the server's queue; until then nobody new is prefilled.
        """
        request = next((each for each in self.requests.values() if each.evicted), None)
        self._holding = request is not None
        if request is None:
            return
        needed = sum(len(found) for _, found in request.run.root.stretches()) + 64
        if (self.resident or self.adapter.busy()) and self.budget.lacks(needed):
            return
        self.adapter.queue.insert(0, request.start())
        self.counters["rebuilt"] += 1
        self._holding = False

    def prefill(self, running: Any) -> Any:
        """Return SGLang's next step where threads are prefilled before new requests are.

        None where it prefills what it likes.
        """
        self._watch(running)
        entries = self._fitting(running)
        if entries:
            batch = self.adapter.kv.extend([thread.prefill() for thread in entries])
            return self.adapter.next_batch(batch, running)
        if self.budget.starving or self._holding or self._holds_chunk(running):
            return self.adapter.next_batch(None, running)
        running.batch_is_full = False  # threads free memory at any time
        return None

    def _fitting(self, running: Any) -> list[ThreadKV]:
        """Take the threads that are prefilled now; where none fits and nothing runs, evict."""
        budget = self.budget
        budget.starving = False
        while not (found := budget.take_fitting(len(running.reqs))) and budget.waiting:
            budget.starving = True
            if running.reqs or self.adapter.busy() or not self._evict_youngest():
                break
        return found

    def _holds_chunk(self, running: Any) -> bool:
        """Whether a long prompt has to wait for memory; evicts a request where nothing runs.

        SGLang reads its next piece whether there is room or not: threads may have taken what was
        free when the prompt was let in.
        """
        while self.budget.lacks_for_chunk(len(running.reqs)):
            if running.reqs or self.adapter.busy():
                return True
            if not self._evict_youngest():
                break
        return False

    def _watch(self, running: Any) -> None:
        """Log what everybody waits for, where nothing has run for long: that is a fault."""
        now = time.monotonic()
        if running.reqs or self.adapter.busy():
            self._moved = now
        elif now - self._moved > _PATIENCE:
            self._moved = now
            waiting = "; ".join(map(str, self.requests.values()))
            log.error("nothing has run for %d s: %s; %s", _PATIENCE, self.budget, waiting)

    # During a step

    def complete(self, threads: Sequence[ThreadKV]) -> None:
        """Take what one forward has read, and settle which of its draws count."""
        by_request: defaultdict[ForkedRequest, list[ThreadKV]] = defaultdict(list)
        for thread in threads:
            by_request[thread.request].append(thread)
        for request, each in by_request.items():
            try:
                request.complete(each)
            except Exception as error:
                self._fail(request, error)

    def take(self, draws: Iterable[tuple[ThreadKV, DrawnToken]]) -> None:
        """Take the tokens that were sampled for threads, with their logprobs under the model."""
        for thread, draw in draws:
            thread.sampling = False
            try:
                if not thread.request.is_over:
                    thread.take(draw)
            except Exception as error:
                self._fail(thread.request, error)

    def respond(self) -> None:
        """Go on as far as the tokens of a step allow, and send what is new to the clients.

        A forward is under way here, which answers do not delay.
        """
        told: list[Any] = []
        for request in list(self.requests.values()):
            response = request.response
            try:
                if not request.is_over:
                    request.run.pump()
                    response.check()
                grown = response.grow()
            except Exception as error:
                self._fail(request, error)
                grown = response.grow()
            if grown:
                told.append(request.client_req)
                # Whoever decodes them for the clients begins while others are made.
                if response.over and len(told) >= _TOGETHER:
                    self.adapter.send(told)
                    told = []
        self.adapter.send(told)

    # Eviction

    def _evict_youngest(self) -> bool:
        """Evict the youngest resident request; say whether there was one."""
        held = [request for request in self.resident if not request.run.finish]
        if held:
            self._evict(max(held, key=lambda request: request.number))
        return bool(held)

    def _evict(self, request: ForkedRequest) -> set[int]:
        """Free a request's KV slots; return the requests of SGLang that have to leave batches.

        Where it is the only one, nothing would help it: then it is aborted.
        """
        request.removed = set()
        self.budget.forget(request)
        if len(self.requests) == 1 and not self.adapter.next_chunk:
            request.response.abort(
                "the server's KV cache is too small for this request alone: it needs more than "
                f"{self.adapter.kv.capacity} tokens; start the server with more memory or shorten "
                "it"
            )
            self.counters["refused"] += 1
            self._end(request)
        else:
            log.info("request %s is evicted for others", request.rid)
            request.evict()
            self.counters["evicted"] += 1
        return request.removed

    def pause(self, reqs: list[Any]) -> None:
        """Evict all requests while the server is paused; they are rebuilt later.

        Args:
            reqs: what the server is to retract and to queue again; threads are taken out, but for
                roots whose prefill has not ended, which the server queues as any request.
        """
        self.budget.waiting = []
        for request in self.resident:
            request.removed = set()
            if request.response.over:
                self._end(request)
            else:
                request.evict()
                self.counters["evicted"] += 1
        # What has left its row has no thread any more.
        reqs[:] = [req for req in reqs if not is_thread(req) or thread_of(req) is not None]

    def retract(self, batch: Any, arguments: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Make room for the next decode step: plain requests are retracted, then requests evicted.

        The youngest that fork are evicted first, and plain requests go in SGLang's own order.

        Returns:
            The plain requests that the server runs again later, and those that it must abort.
        """
        reqs = batch.reqs
        keep = list(range(len(reqs)))
        plain = sorted(
            (index for index in keep if thread_of(reqs[index]) is None),
            key=lambda i: (len(reqs[i].output_ids), -len(reqs[i].origin_input_ids)),
        )
        retracted: list[Any] = []
        while keep and not batch.check_decode_mem(selected_indices=keep):
            if plain:
                index = plain.pop(0)
                keep.remove(index)
                retracted.append(self.adapter.retract(batch, index, len(keep), arguments))
                continue
            threads = [thread for index in keep if (thread := thread_of(reqs[index])) is not None]
            removed = self._evict(max((t.request for t in threads), key=lambda each: each.number))
            keep = [index for index in keep if id(reqs[index]) not in removed]
        batch.filter_batch(keep_indices=keep)
        return retracted, []
