"""The KV cache of one SGLang scheduler: rows of its table, KV slots, its prefix cache.

What differs between versions is answered once, by looking at what is there. Together with
adapter.py, sglang_req.py, logprobs.py and hooks.py this is all contact with SGLang's scheduler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor


class KVPool:
    """Rows and KV slots of one scheduler: allocated by an extend, evicted, freed.

    Args:
        scheduler: whose hooks call the plugin.

    Attributes:
        rows: SGLang's table of rows, a request each: which KV slots it sees.
        allocator: of KV slots.
        tree: the prefix cache (radix tree).
        capacity: how many KV slots the pool has.
        rows_on_kv: whether the fields of a row are on `Req.kv` (0.5.20 and later) or on `Req`.
        ends_alone: whether a prefix is a length and read off the row (0.5.22 and later), or slots.
    """

    def __init__(self, scheduler: Any) -> None:
        from sglang.srt.managers.schedule_batch import Req, ReqKvInfo

        self.scheduler = scheduler
        self.rows: Any = scheduler.req_to_token_pool
        self.allocator: Any = scheduler.token_to_kv_pool_allocator
        self.tree: Any = scheduler.tree_cache
        self.capacity: int = scheduler.max_total_num_tokens
        self.rows_on_kv = "kv_committed_len" in {field.name for field in fields(ReqKvInfo)}
        self.ends_alone = hasattr(Req, "refresh_fill_ids")
        self._freed: list[Tensor] | None = None

    @property
    def new_token_ratio(self) -> float:
        """SGLang's estimate of how much of their budgets requests use."""
        found: float = self.scheduler.new_token_ratio_tracker.current
        return found

    def row(self, req: Any) -> Any:
        """Return what carries a request's row: req_pool_idx, kv_committed_len and the like."""
        return req.kv if self.rows_on_kv else req

    # Rows and slots

    def committed(self, req: Any) -> int:
        """Return how many slots of a request's row are in use."""
        found: int = self.row(req).kv_committed_len
        return found

    def release_row(self, req: Any, keep: int) -> Tensor:
        """Free a request's row and return the slots that it held, int64 [keep].

        Those past `keep` are freed too.
        """
        req.skip_radix_cache_insert = True  # a result of it may still be on its way
        req.grammar = None  # which refers to it
        row = self.row(req)
        held: Tensor = self.rows.req_to_token[row.req_pool_idx, : self.committed(req)]
        slots = held.to(torch.int64)
        if len(slots) > keep:
            self.free(slots[keep:])
        self.rows.free(req)
        if self.rows_on_kv:
            req.kv.mark_kv_released()
        else:
            req.kv = None
        return slots[:keep]

    def publish(self, req: Any, length: int) -> int:
        """Insert a request's first tokens into the prefix cache; return how many that owns now."""
        if self.ends_alone:
            from sglang.srt.mem_cache.common import checkpoint_kv_cache

            if not self.tree.supports_prefix_sharing():
                return 0
            self._extend_range(req, 0, length)
            checkpoint_kv_cache(req, self.tree)
        else:
            if self.tree.is_chunk_cache() or self.tree.disable:
                return 0
            self._extend_range(req, 0, length)
            self.tree.cache_unfinished_req(req)
        owned: int = self.row(req).cache_protected_len
        return owned

    def unlock(self, req: Any) -> None:
        """Unlock the prefix of a request in the prefix cache, which may evict it then."""
        if self.ends_alone:
            self.tree.unlock(req.lock)
            req.lock = None
        elif hasattr(self.tree, "unpin"):
            self.tree.unpin(req)
        elif req.last_node is not None:
            self.tree.dec_lock_ref(req.last_node)

    def release(self, req: Any) -> None:
        """Free a request's row and slots; the prefix cache keeps its text for others."""
        from sglang.srt.mem_cache.common import release_kv_cache

        if self.ends_alone:
            release_kv_cache(req, self.tree, checkpoint=True)
        else:
            release_kv_cache(req, self.tree)
        req.skip_radix_cache_insert = True  # a result of it may still be on its way
        req.grammar = None  # which refers to it

    def free(self, slots: Tensor) -> None:
        """Free slots."""
        if len(slots):
            if self._freed is None:
                self.allocator.free(slots)
            else:
                self._freed.append(slots)

    @contextmanager
    def freeing(self) -> Iterator[None]:
        """Free slots at the end, all at once: the allocator copies all that are free."""
        freed: list[Tensor] = []
        self._freed = freed
        try:
            yield
        finally:
            self._freed = None
            if freed:
                self.allocator.free(torch.cat(freed))

    def available(self) -> int:
        """Return how many slots can be had, those that the prefix cache would evict included."""
        found: int = self.allocator.available_size() + self.tree.evictable_size()
        return found

    def free_rows(self) -> int:
        """Return how many rows can be had."""
        found: int = self.rows.available_size()
        return found

    # Prefill

    def extend(self, entries: Sequence[tuple[Any, Tensor]]) -> Any:
        """Return a prefill batch: new tokens of threads, each behind its prefix in the KV cache.

        Args:
            entries: a request each, and the slots of its prefix, int64.
        """
        from sglang.srt.managers.schedule_batch import ScheduleBatch
        from sglang.srt.managers.scheduler_components.metrics_reporter import PrefillStats
        from sglang.srt.observability.metrics_collector import QueueCount

        scheduler = self.scheduler
        reqs = [req for req, _ in entries]
        for req, prefix in entries:
            req.skip_radix_cache_insert = True
            row = self.row(req)
            row.kv_committed_len = 0
            self._extend_range(req, len(prefix), len(req.origin_input_ids))
            row.cache_protected_len = len(prefix)
            if not self.ends_alone:
                req.prefix_indices = prefix
            elif len(prefix):  # what is before it is read off its row
                (row.req_pool_idx,) = self.rows.alloc_rows(1)
                self.rows.write((row.req_pool_idx, slice(0, len(prefix))), prefix.to(torch.int32))
                row.kv_allocated_len = len(prefix)
        batch = ScheduleBatch.init_new(
            reqs,
            self.rows,
            self.allocator,
            self.tree,
            scheduler.model_config,
            scheduler.enable_overlap,
            scheduler.spec_algorithm,
        )
        batch.prepare_for_extend()
        batch.decoding_reqs = None
        batch.prefill_stats = PrefillStats(
            log_input_tokens=batch.extend_num_tokens,
            log_hit_tokens=0,
            new_token_ratio=self.new_token_ratio,
            num_running_reqs=QueueCount.from_reqs(
                scheduler.running_batch.reqs, scheduler.enable_priority_scheduling
            ),
            num_new_seqs=0,
        )
        return batch

    def _extend_range(self, req: Any, start: int, end: int) -> None:
        """Say which tokens a request's next extend reads."""
        if self.ends_alone:
            req.refresh_fill_ids()
            req.prefix_len, req.extend_end = start, end
        else:
            req._refresh_fill_ids()
            req.set_extend_range(start, end)
