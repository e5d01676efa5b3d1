"""The requests of one scheduler that fork and join, step by step."""

from __future__ import annotations

import logging
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from mvspec.compiler.plan import Extend
from mvspec.errors import MvspecError, Unsupported
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.sampling import Draw
from mvspec.runtime.serving.adapter import Adapter
from mvspec.runtime.serving.answer import Answer
from mvspec.runtime.serving.family import Family
from mvspec.runtime.serving.order import Order
from mvspec.runtime.serving.run import Columns, Run
from mvspec.runtime.serving.space import Space
from mvspec.runtime.serving.strand import Strand

__all__ = ["Families"]

log = logging.getLogger("mvspec")

_TOGETHER = 16
"""How many answers that have ended are sent at a time."""


class Families(Space):
    """What the hooks of one scheduler drive.

    Args:
        adapter: of the scheduler.
        lexicon: of its tokenizer.
    """

    def __init__(self, adapter: Adapter, lexicon: Lexicon) -> None:
        super().__init__(adapter)
        self.lexicon = lexicon
        self._made = 0

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
        size = self.lexicon.vocabulary.size
        if face.return_logprob and face.logprob.top_logprobs_num > size:
            raise Unsupported(
                f"{face.logprob.top_logprobs_num} likeliest tokens were asked for, and the "
                f"vocabulary has {size}: ask for fewer"
            )
        plan = order.plan(face.origin_input_ids, self.lexicon.vocabulary)
        given = [op.tokens for op in plan.ops if isinstance(op, Extend) and op.author == "prompt"]
        if len(given) > 1:  # what SGLang was sent is only the beginning
            face.origin_input_ids = array("q", chain.from_iterable(given))
        most = adapter.longest(face)
        options = order.options_within(most)
        run = Run(order.name, plan, options, self.lexicon, Columns(), context=adapter.context)
        run.quiet = not order.live
        face.sampling_params.max_new_tokens = min(most, order.bound(plan, options))
        family = Family(adapter, face, run, self._made)
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
        with self.adapter.freeing():
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
        if family.run.finish:
            family.release()  # `tell` makes its answer
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

    def _broken(self, family: Family, error: Exception) -> None:
        """A fault of ours ends one request, not the server."""
        log.error("request %s ended by a fault of mvspec", family.face.rid, exc_info=error)
        self.counters.faults += 1
        answer = self._answers[family.face.rid]
        if not answer.over:
            answer.abort(f"a fault of mvspec: {type(error).__name__}: {error}")

    def state(self) -> dict[str, Any]:
        """Return the sums, and what each request waits for."""
        return {
            "counters": self.counters.as_dict(),
            "requests": [str(family) for family in self._families.values()],
        }

    # During a step

    def land(self, strands: Sequence[Strand]) -> None:
        """Take what one forward has read, and settle which of its draws count."""
        by_family: defaultdict[Family, list[Strand]] = defaultdict(list)
        for strand in strands:
            by_family[strand.family].append(strand)
        for family, each in by_family.items():
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
                run = family.run
                for strand, found in landed:
                    strand.drawing = bool(
                        found and not run.finish and strand.whole and run.wants(strand.live)
                    )
            except Exception as error:
                self._broken(family, error)

    def take(self, draws: Iterable[tuple[Strand, Draw]]) -> None:
        """Take the tokens that were sampled for strands, with their logprobs under the model."""
        family: Family | None = None
        for strand, draw in draws:
            strand.drawing = False
            if strand.family is not family:
                family = strand.family
                answer = self._answers.get(family.face.rid)
            if answer is None or answer.over or family.aborted:
                continue
            try:
                strand.take(draw)
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
        """Go on as far as the tokens of a step allow, and send what is new to the clients.

        A forward is under way here, which answers do not delay.
        """
        told: list[Any] = []
        for answer in list(self._answers.values()):
            family = answer.family
            if not (answer.over or family.aborted):
                try:
                    family.run.pump()
                    answer.check()
                except MvspecError as error:
                    answer.abort(str(error))
                except Exception as error:
                    self._broken(family, error)
            if answer.grow():
                told.append(family.face)
                # Whoever decodes them for the clients begins while others are made.
                if answer.over and len(told) >= _TOGETHER:
                    self.adapter.send(told)
                    told = []
        self.adapter.send(told)

    @property
    def live_threads(self) -> int:
        """How many threads have not ended."""
        return sum(len(family.run.active) for family in self._families.values())
