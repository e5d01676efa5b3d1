"""The requests of one scheduler that fork and join, step by step."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from mvspec.compiler.plan import Extend
from mvspec.errors import MvspecError
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.sampling import Draw
from mvspec.runtime.serving.adapter import Adapter
from mvspec.runtime.serving.answer import Answer
from mvspec.runtime.serving.counters import Counters
from mvspec.runtime.serving.exposition import request_line
from mvspec.runtime.serving.family import Family
from mvspec.runtime.serving.order import Order
from mvspec.runtime.serving.run import Columns, Run
from mvspec.runtime.serving.strand import Strand

__all__ = ["Families"]

log = logging.getLogger("mvspec")

_PATIENCE = 10
"""Seconds without a forward after which something is wrong."""


class Families:
    """What the hooks of one scheduler drive.

    Args:
        adapter: of the scheduler.
        lexicon: of its tokenizer.
        grammar: makes what marks a request of the server as a strand's.
    """

    def __init__(
        self, adapter: Adapter, lexicon: Lexicon, grammar: Callable[[Strand], Any]
    ) -> None:
        self.adapter = adapter
        self.lexicon = lexicon
        self.counters = Counters()
        self._grammar = grammar
        self._families: dict[str, Family] = {}
        self._answers: dict[str, Answer] = {}
        self._waiting: list[Strand] = []
        self._made = 0
        self._moved = time.monotonic()
        self.starving = False
        """Whether strands wait for memory, so that nobody else may take it."""
        self.holding = False
        """Whether families wait for memory to come back, likewise."""

    def __bool__(self) -> bool:
        return bool(self._families)

    # Arrival and end

    def admit(self, face: Any, order: Order, *, seeded: bool = True) -> Any:
        """Begin a request; return what the server prefills in its place.

        Args:
            face: the client's request.
            order: how it forks and joins.
            seeded: whether its tokens are drawn from the random streams of its seed; else SGLang
                draws them, as those of any request.

        Raises:
            MvspecError: it cannot be run; the message says why.
        """
        adapter = self.adapter
        plan = order.plan(face.origin_input_ids, self.lexicon.vocabulary)
        given = [op.tokens for op in plan.ops if isinstance(op, Extend) and op.author == "prompt"]
        if len(given) > 1:  # what SGLang was sent is only the beginning
            face.origin_input_ids = array("q", chain.from_iterable(given))
        most = adapter.longest(face)
        options = order.options_within(most)
        run = Run(order.name, plan, options, self.lexicon, Columns(), context=adapter.context)
        run.quiet = not order.live
        face.sampling_params.max_new_tokens = min(most, order.bound(plan, options))
        family = Family(adapter, face, run, self._made, self._grammar)
        family.seeded = seeded
        req = family.start()
        if len(req.origin_input_ids) > adapter.longest_prompt:
            raise MvspecError(
                f"the plan begins with {len(req.origin_input_ids)} tokens and the server takes "
                f"at most {adapter.longest_prompt}: shorten the text before the first block"
            )
        face.sampling_params.skip_special_tokens = False
        self._made += 1
        self._families[face.rid] = family
        self._moved = time.monotonic()
        self._answers[face.rid] = Answer(family, order, self.counters)
        self.counters.requests += 1
        return req

    def abort(self, matches: Callable[[str], bool], message: str) -> None:
        """End all requests whose name matches, at their next step."""
        for rid, family in self._families.items():
            if matches(rid):
                family.aborted = message

    def forget(self, family: Family) -> None:
        """Drop a request that was answered and that holds nothing."""
        if self.adapter.is_first:
            log.info("mvspec %s", request_line(family))
        del self._families[family.face.rid], self._answers[family.face.rid]

    def queued(self, queue: Sequence[Any]) -> list[Family]:
        """Return the families whose root waits in the server's queue."""
        ids = {id(req) for req in queue}
        return [f for f in self._families.values() if id(f.root.req) in ids]

    # Before a step

    def step(self, batches: Sequence[Any]) -> None:
        """Let strands go out, fork and join, and take them out of the server's batches."""
        self._waiting = []
        gone: set[int] = set()
        queue = self.adapter.queue
        for family in list(self._families.values()):
            family.gone = gone
            try:
                self._step(family, queue)
            except Exception as error:
                self._broken(family, error)
        self._come_back()
        self.adapter.drop(batches, gone)

    def _step(self, family: Family, queue: list[Any]) -> None:
        answer = self._answers[family.face.rid]
        over = answer.over or bool(family.aborted)
        if over and family.waits_for_prefill and not self._unqueue(family, queue):
            return  # in a forward; it can go once that has ended
        if family.aborted and not answer.over:
            answer.abort(family.aborted, asked=True)
        if answer.over:
            self._end(family)
            return
        self._waiting += family.advance()

    def _unqueue(self, family: Family, queue: list[Any]) -> bool:
        """Take a root out of the server's queue; False where it is not there any more."""
        for index, req in enumerate(queue):
            if req is family.root.req:
                del queue[index]
                family.root.req = None
                return True
        return False

    def _end(self, family: Family) -> None:
        if self._answers[family.face.rid].grow():
            self.adapter.send([family.face])
        family.release()
        self.forget(family)

    def _broken(self, family: Family, error: Exception) -> None:
        """A fault of ours ends one request, not the server."""
        log.error("request %s ended by a fault of mvspec", family.face.rid, exc_info=error)
        self.counters.faults += 1
        answer = self._answers[family.face.rid]
        if not answer.over:
            answer.abort(f"a fault of mvspec: {type(error).__name__}: {error}")

    def _come_back(self) -> None:
        """Let a family that was swapped out start again once there is room for all of it.

        The oldest comes first, ahead of the server's queue; until then nobody new comes in.
        """
        swapped = [family for family in self._families.values() if family.swapped]
        self.holding = bool(swapped)
        if not swapped:
            return
        family = swapped[0]
        here = any(not f.swapped and not f.waits_for_prefill for f in self._families.values())
        needed = sum(1 for _ in family.run.root.tokens()) + 64
        if (here or self.adapter.busy()) and self.adapter.room() < needed:
            return
        self.adapter.queue.insert(0, family.start())
        self.counters.rebuilt += 1
        self.holding = False

    def state(self) -> dict[str, Any]:
        """Return the sums, and what each request waits for."""
        return {
            "counters": self.counters.as_dict(),
            "requests": [str(family) for family in self._families.values()],
        }

    def watch(self, running: Any) -> None:
        """Log what everybody waits for, where nothing has run for long: that is a fault."""
        now = time.monotonic()
        if running.reqs or self.adapter.busy() or not self._families:
            self._moved = now
        elif now - self._moved > _PATIENCE:
            self._moved = now
            log.error(
                "nothing has run for %d s: room %d, rows %d, queue %d, starving %s; %s",
                _PATIENCE,
                self.adapter.room(),
                self.adapter.free_rows(),
                len(self.adapter.queue),
                self.starving,
                "; ".join(str(family) for family in self._families.values()),
            )

    def extend(self, running: Any) -> Any:
        """Return the batch that lets strands come in; None where none waits or fits."""
        adapter = self.adapter
        self.watch(running)
        self.starving = False
        while True:
            entries = list(self._fitting(len(running.reqs)))
            if entries or not self._waiting:
                break
            self.starving = True
            if running.reqs or adapter.busy() or not self._make_room():
                return None
        if not entries:
            return None
        chosen = {id(strand) for strand in entries}
        self._waiting = [strand for strand in self._waiting if id(strand) not in chosen]
        return adapter.extend([strand.enter() for strand in entries])

    def _fitting(self, running: int) -> Iterator[Strand]:
        """Yield the waiting strands that there are rows, slots and a step's tokens for."""
        adapter = self.adapter
        rows, tokens = adapter.free_rows(), adapter.step_tokens
        room = adapter.room() - running
        for strand in self._waiting:
            most = min(tokens, room - 2)
            if rows < 1 or most < 1:
                return
            count = max(len(strand.feeding), 1)
            if count > most:
                strand.feeding = strand.feeding[:most]
                count = most
            rows, tokens, room = rows - 1, tokens - count, room - count - 1
            yield strand

    def _make_room(self) -> bool:
        """Give up the youngest family's memory; abort the last one, which nothing can help."""
        held = [f for f in self._families.values() if not f.swapped and not f.waits_for_prefill]
        if not held:
            return False
        self._give_up(max(held, key=lambda family: family.number))
        return True

    def _give_up(self, victim: Family) -> set[int]:
        """Take a family out of memory; return the requests of the server that have to leave.

        Where it is the only one, nothing would help it: then it ends.
        """
        victim.gone = set()
        self._waiting = [strand for strand in self._waiting if strand.family is not victim]
        if len(self._families) == 1:
            self._abort_for_memory(victim)
        else:
            log.info("request %s gives up its keys and values for others", victim.face.rid)
            victim.swap_out()
            self.counters.swapped += 1
        return victim.gone

    def _abort_for_memory(self, family: Family) -> None:
        answer = self._answers[family.face.rid]
        answer.abort(
            "the server's KV cache is too small for this request alone: it needs more than "
            f"{self.adapter.capacity} tokens; start the server with more memory or shorten it"
        )
        self.counters.refused += 1
        self._end(family)

    def retract(self, batch: Any, arguments: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Make room for the next decode step: plain requests go first, then young families.

        Returns:
            The plain requests that the server runs again later, and those that it must abort.
        """
        reqs = batch.reqs
        keep = list(range(len(reqs)))
        ours = {index for index in keep if self.strand(reqs[index]) is not None}
        plain = sorted(
            set(keep) - ours,
            key=lambda i: (len(reqs[i].output_ids), -len(reqs[i].origin_input_ids)),
        )
        retracted: list[Any] = []
        while keep and not batch.check_decode_mem(selected_indices=keep):
            if plain:
                index = plain.pop(0)
                keep.remove(index)
                retracted.append(self.adapter.retract(batch, index, len(keep), arguments))
                continue
            families = {id(s.family): s.family for i in keep if (s := self.strand(reqs[i]))}
            gone = self._give_up(max(families.values(), key=lambda family: family.number))
            keep = [i for i in keep if id(reqs[i]) not in gone]
        batch.filter_batch(keep_indices=keep)
        return retracted, []

    # During a step

    def strand(self, req: Any) -> Strand | None:
        """Return the strand of a request of the server that is in; None for others."""
        strand = getattr(req.grammar, "strand", None)
        return strand if strand is not None and strand.req is req else None

    def land(self, strands: Sequence[Strand]) -> None:
        """Take what one forward has read, and settle which of its draws count."""
        by_family: dict[int, list[Strand]] = {}
        for strand in strands:
            by_family.setdefault(id(strand.family), []).append(strand)
        for each in by_family.values():
            family = each[0].family
            answer = self._answers.get(family.face.rid)
            if answer is None or answer.over or family.aborted:
                for strand in each:
                    strand.landed()
                continue
            try:
                family.take_cached()
                landed = [(strand, strand.landed()) for strand in each]
                read = [(s.live, *found) for s, found in landed if found is not None]
                if read:
                    family.run.was_read(read)
                for strand, found in landed:
                    strand.drawing = bool(found and strand.whole and family.run.wants(strand.live))
                answer.check()
            except Exception as error:
                self._broken(family, error)

    def given(self, strand: Strand, id: int, logprob: float | None, top: Any) -> None:
        """Take the token that was sampled for a strand, and its logprob under the model."""
        family = strand.family
        answer = self._answers.get(family.face.rid)
        if not strand.drawing or answer is None or answer.over or family.aborted:
            return
        strand.drawing = False
        try:
            strand.take(Draw(id, logprob, top))
        except MvspecError as error:
            answer.abort(str(error))
        except Exception as error:
            self._broken(family, error)

    def stuck(self, strand: Strand) -> None:
        """Nothing may come next in a thread: its run would have closed it, so this is a fault."""
        strand.drawing = False
        state = strand.live.machine.expect(strand.live.id)
        self._broken(strand.family, RuntimeError(f"nothing may come next: {state}"))

    def tell(self) -> None:
        """Go on as far as the tokens of a step allow, and send what is new to the clients."""
        for answer in list(self._answers.values()):
            family = answer.family
            if answer.over or family.aborted:
                continue
            try:
                family.run.pump()
                answer.check()
            except MvspecError as error:
                answer.abort(str(error))
            except Exception as error:
                self._broken(family, error)
        self.adapter.send(
            [answer.family.face for answer in self._answers.values() if answer.grow()]
        )

    @property
    def live_threads(self) -> int:
        """How many threads have not ended."""
        return sum(len(family.run.active) for family in self._families.values())

    @property
    def uncounted(self) -> int:
        """How many slots families hold that the server does not find in its requests."""
        return sum(family.uncounted for family in self._families.values())
