"""Who has memory: threads come in as it lasts, and the youngest give theirs up."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mvspec.runtime.serving.adapter import Adapter
from mvspec.runtime.serving.answer import Answer
from mvspec.runtime.serving.counters import Counters
from mvspec.runtime.serving.exposition import request_line
from mvspec.runtime.serving.family import Family
from mvspec.runtime.serving.marks import is_strand
from mvspec.runtime.serving.strand import Strand

__all__ = ["Space"]

log = logging.getLogger("mvspec")

_PATIENCE = 10
"""Seconds without a forward after which something is wrong."""


class Space:
    """The rows and slots of one scheduler, as its families share them.

    Args:
        adapter: of the scheduler.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.counters = Counters()
        self.starving = False
        """Whether strands wait for memory, so that nobody else may take it."""
        self.holding = False
        """Whether families wait for memory to come back, likewise."""
        self._families: dict[str, Family] = {}
        self._answers: dict[str, Answer] = {}
        self._waiting: list[Strand] = []
        self._moved = time.monotonic()

    def __bool__(self) -> bool:
        return bool(self._families)

    def strand(self, req: Any) -> Strand | None:
        """Return the strand of a request of the server that is in; None for others."""
        strand: Strand | None = getattr(req, "strand", None)
        return strand if strand is not None and strand.req is req else None

    @property
    def uncounted(self) -> int:
        """How many slots families hold that the server does not find in its requests."""
        return sum(family.uncounted for family in self._families.values())

    @property
    def held(self) -> list[Family]:
        """The families that hold memory which the server's own prefill does not."""
        return [f for f in self._families.values() if not (f.swapped or f.waits_for_prefill)]

    # Ends

    def forget(self, family: Family) -> None:
        """Drop a request that was answered and that holds nothing."""
        if log.isEnabledFor(logging.INFO) and self.adapter.is_first:
            log.info("mvspec %s", request_line(family))
        del self._families[family.face.rid], self._answers[family.face.rid]
        family.run.forget()

    def _end(self, family: Family) -> None:
        if self._answers[family.face.rid].grow():
            self.adapter.send([family.face])
        family.release()
        self.forget(family)

    # Coming in

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
        needed = sum(len(found) for _, found in family.run.root.stretches()) + 64
        if (here or self.adapter.busy()) and self.adapter.room() < needed:
            return
        self.adapter.queue.insert(0, family.start())
        self.counters.rebuilt += 1
        self.holding = False

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

    def holds_chunk(self, running: Any) -> bool:
        """Whether a long prompt has to wait for memory; makes some where nothing runs.

        SGLang reads its next piece whether there is room or not: threads may have taken what was
        free when the prompt was let in.
        """
        need = self.adapter.next_chunk
        while need and self.adapter.room() - len(running.reqs) < need:
            if running.reqs or self.adapter.busy():
                return True
            if not self._make_room():
                break
        return False

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
        held = [family for family in self.held if not family.run.finish]
        if not held:
            return False
        self._give_up(max(held, key=lambda family: family.number))
        return True

    def _give_up(self, victim: Family) -> set[int]:
        """Take a family out of memory; return the requests of the server that have to leave.

        Where nobody else holds memory, nothing would help it: then it ends.
        """
        victim.gone = set()
        self._waiting = [strand for strand in self._waiting if strand.family is not victim]
        if len(self._families) == 1 and not self.adapter.next_chunk:
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

    def pause(self, reqs: list[Any]) -> None:
        """Give up the memory of all families while the server is paused; they are rebuilt later.

        Args:
            reqs: what the server is to give up and to queue again; strands are taken out, but for
                roots whose prefill has not ended, which the server queues as any request.
        """
        self._waiting = []
        for family in self.held:
            family.gone = set()
            if self._answers[family.face.rid].over:
                self._end(family)
            else:
                family.swap_out()
                self.counters.swapped += 1
        # What has left its row has no strand any more.
        reqs[:] = [req for req in reqs if not is_strand(req) or self.strand(req) is not None]

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
