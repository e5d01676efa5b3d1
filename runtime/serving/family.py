"""One request on a server: its run, its threads' memory, and what its client is told."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import torch

from mvspec.runtime.serving.adapter import Adapter
from mvspec.runtime.serving.run import Run
from mvspec.runtime.serving.strand import Strand

__all__ = ["Family"]


class Family:
    """All threads of one request.

    Args:
        adapter: of the scheduler that runs it.
        face: the client's request of SGLang's: it never runs, but is answered.
        run: of its plan.
        number: in the order of arrival.

    Attributes:
        anchor: the first request of the root, which holds the lock on the prefix in the cache.
        gone: ids of the server's requests that have to leave its batches.
    """

    def __init__(self, adapter: Adapter, face: Any, run: Run, number: int) -> None:
        self.adapter = adapter
        self.face = face
        self.run = run
        self.number = number
        self.no_slots = torch.empty(0, dtype=torch.int64, device=adapter.pool.device)
        self.anchor: Any = None
        self.gone: set[int] = set()
        self.aborted = ""
        """Why it has to end, once somebody wants it to."""
        self.seeded = True
        """Whether its tokens are drawn from the random streams of its seed, and not by SGLang."""
        self.swapped = False
        """Whether its keys and values were given up for others."""
        self._entries = 0
        self._seen: set[int] = set()
        self.root = Strand(self, run.root, None)

    def __str__(self) -> str:
        state = "swapped out" if self.swapped else "queued" if self.waits_for_prefill else "here"
        return f"{self.face.rid} ({state}, {self.run.waiting} unread, {self.root})"

    def start(self) -> Any:
        """Return the request that the server itself prefills: the root up to its first block."""
        self.swapped = False
        self.root = Strand(self, self.run.root, None)
        self.root.feeding = self.root.pending()
        req, _ = self.root.enter()
        req.time_stats = self.face.time_stats
        return req

    def request(self, strand: Strand, tokens: array[int]) -> Any:
        """Return a request of SGLang's for one stay of a strand in the table."""
        # What SGLang prefills itself has the client's name, so that it can answer an abort.
        first = strand is self.root and self.anchor is None
        rid = self.face.rid if first else f"{self.face.rid}/{self._entries}"
        self._entries += 1
        # What the server's own admission of others counts on: the family's budget, shared by the
        # threads that are live, a little above what comes and below what its pool has.
        written = self.run.size - len(self.face.origin_input_ids)
        left = self.face.sampling_params.max_new_tokens - written
        budget = max(left, 0) // max(len(self.run.active), 1) + 8
        budget = max(min(budget, self.adapter.capacity - len(tokens) - 16), 1)
        return self.adapter.request(self.face, rid, tokens, strand, budget)

    def advance(self) -> Iterator[Strand]:
        """Yield the strands that have tokens to read and no row."""
        if not self.swapped:
            yield from self.root.advance()

    def count_new(self, column: int) -> int:
        """Return 1 for a token that is read for the first time: a rebuilt family reads again."""
        if column in self._seen:
            return 0
        self._seen.add(column)
        return 1

    def take_cached(self) -> None:
        """Tell the client how much of its prompt was found in the cache."""
        if self.waits_for_prefill and not self.run.ends:
            for name in ("cached_tokens", "cached_tokens_device", "cached_tokens_host"):
                setattr(self.face, name, getattr(self.root.req, name))

    @property
    def waits_for_prefill(self) -> bool:
        """Whether the server's own prefill of its root has not ended."""
        return self.anchor is None and self.root.req is not None and self.root.entering

    @property
    def uncounted(self) -> int:
        """How many slots it holds that the server does not find in its requests."""
        return self.root.uncounted

    def release(self) -> None:
        """Give back all memory."""
        root = self.root
        if self.anchor is None and root.req is not None and not root.paths:
            # It never forked: its whole text is a prefix for others, as any answer is.
            self.gone.add(id(root.req))
            self.adapter.release(root.req)
            root.req = None
            return
        root.release()
        if self.anchor is not None:
            self.adapter.unlock(self.anchor)
            self.anchor = None

    def swap_out(self) -> None:
        """Give up all keys and values; `start` rebuilds them from the tokens."""
        self.release()
        self.swapped = True
