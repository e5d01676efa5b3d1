"""One scheduler of SGLang, as the plugin uses it, for every supported version.

What differs between versions is answered once, by looking at what is there.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mvspec.syntax import Tag

if TYPE_CHECKING:
    from mvspec.runtime.serving.strand import Strand

__all__ = [
    "Adapter",
    "grammar_of",
    "has_tags",
    "is_strand",
    "put_logprobs",
    "strand_rows",
    "without_strands",
]


def has_tags(tokenizer: Any) -> bool:
    """Whether a tokenizer of transformers has all twelve tags."""
    held = tokenizer.get_vocab()
    return all(tag.value in held for tag in Tag)


def grammar_of(strand: Strand, given: Callable[[Strand, int, float | None, Any], None]) -> Any:
    """Return what SGLang takes for the grammar of a strand's next request.

    A request with a grammar is sampled after the results of the step before are known, and its
    grammar is told of every token that was sampled for it: all that the plugin needs.
    """
    from sglang.srt.constrained.base_grammar_backend import BaseGrammarObject

    class StrandGrammar(BaseGrammarObject):  # type: ignore[misc]
        req: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.strand = strand

        def accept_token(self, token: int) -> None:
            req = self.req
            if self.strand.req is not req:
                return  # it was sampled for a request that has left since
            logprob: float | None = None
            top: Any = ()
            if req.return_logprob:
                held = req.logprob
                logprob = held.output_token_logprobs_val[-1]
                if held.top_logprobs_num > 0:
                    top = tuple(
                        zip(
                            held.output_top_logprobs_idx[-1],
                            held.output_top_logprobs_val[-1],
                            strict=True,
                        )
                    )
            given(self.strand, int(token), logprob, top)

        def is_terminated(self) -> bool:
            return False

        def copy(self) -> Any:
            return self

    return StrandGrammar()


def is_strand(req: Any) -> bool:
    """Whether a request of SGLang is, or was, a strand's."""
    return hasattr(req.grammar, "strand")


def strand_rows(grammars: Any) -> list[tuple[int, Strand]]:
    """Return the rows of a batch that are strands' which are still in."""
    return [
        (row, grammar.strand)
        for row, grammar in enumerate(grammars or ())
        if hasattr(grammar, "strand") and grammar.strand.req is grammar.req
    ]


@contextmanager
def without_strands(info: Any) -> Iterator[None]:
    """Let SGLang mask only the requests whose grammar is its own."""
    before = info.grammars
    own = [None if hasattr(grammar, "strand") else grammar for grammar in before]
    info.grammars = own if any(grammar is not None for grammar in own) else None
    try:
        yield
    finally:
        info.grammars = before


def put_logprobs(logits: Any, rows: Sequence[int], index: Tensor, raw: Tensor, ids: Tensor) -> None:
    """Replace the logprobs of rows by those under the model itself.

    Args:
        logits: what SGLang answers with.
        index: the same rows, on the device.
        raw: float [rows, vocabulary]: the model's own logits.
        ids: what was sampled for the whole batch.
    """
    if logits.next_token_logprobs is None:
        return
    logprobs = torch.log_softmax(raw, dim=-1)
    chosen = logprobs.gather(1, ids[index].to(torch.int64)[:, None])[:, 0]
    logits.next_token_logprobs[index] = chosen.to(logits.next_token_logprobs.dtype)
    values = logits.next_token_top_logprobs_val
    for at, row in enumerate(rows):
        count = len(values[row]) if values else 0
        if count:
            top = logprobs[at].topk(count)
            values[row] = top.values
            logits.next_token_top_logprobs_idx[row] = top.indices


class Adapter:
    """One scheduler of SGLang, as the plugin uses it.

    Args:
        scheduler: whose hooks call the plugin.
    """

    def __init__(self, scheduler: Any) -> None:
        from sglang.srt.managers.schedule_batch import Req, ReqKvInfo

        self.scheduler = scheduler
        self.rows_on_kv = "kv_committed_len" in {field.name for field in fields(ReqKvInfo)}
        """Whether the fields of a row are on `Req.kv` (0.5.20 and later) or on `Req`."""
        self.ends_alone = hasattr(Req, "refresh_fill_ids")
        """Whether a prefix is a length and read off the row (0.5.22 and later), or slots."""

    @property
    def is_first(self) -> bool:
        """Whether it speaks for all schedulers that run the same requests."""
        parts = getattr(self.scheduler, "ps", None)
        if parts is None:
            from sglang.srt.runtime_context import get_parallel

            parts = get_parallel()
        first: bool = parts.attn_tp_rank == 0
        return first

    @property
    def labels(self) -> dict[str, str] | None:
        """The labels of its series in Prometheus; None where nobody asks for them."""
        args = self.scheduler.server_args
        if not (args.enable_metrics and self.is_first):
            return None
        return {"model_name": str(args.served_model_name or args.model_path)}

    @property
    def pool(self) -> Any:
        """The table of rows."""
        return self.scheduler.req_to_token_pool

    @property
    def allocator(self) -> Any:
        """The pool of keys and values."""
        return self.scheduler.token_to_kv_pool_allocator

    @property
    def tree(self) -> Any:
        """The cache of prefixes."""
        return self.scheduler.tree_cache

    @property
    def queue(self) -> list[Any]:
        """The requests that wait for their prefill; to be changed in place."""
        found: list[Any] = self.scheduler.waiting_queue
        return found

    @property
    def context(self) -> int:
        """How many positions the model has here."""
        found: int = self.scheduler.model_config.context_len
        return found

    @property
    def capacity(self) -> int:
        """How many tokens the pool of keys and values holds."""
        found: int = self.scheduler.max_total_num_tokens
        return found

    @property
    def longest_prompt(self) -> int:
        """How many tokens a first prefill may have."""
        found: int = self.scheduler.max_req_input_len
        return found

    @property
    def step_tokens(self) -> int:
        """How many tokens one step of prefill may read."""
        chunk = self.scheduler.chunked_prefill_size
        found: int = self.scheduler.max_prefill_tokens
        return min(chunk, found) if chunk and chunk > 0 else found

    @property
    def ratio(self) -> float:
        """SGLang's estimate of how much of their budgets requests use."""
        found: float = self.scheduler.new_token_ratio_tracker.current
        return found

    def longest(self, face: Any) -> int:
        """Return how many tokens a request may write: one row holds all of them in the end."""
        room = self.capacity - len(face.origin_input_ids) - 64
        asked: int = face.sampling_params.max_new_tokens
        return max(min(asked, room), 1)

    def busy(self) -> bool:
        """Whether a forward is under way whose end may give memory back."""
        last = self.scheduler.last_batch
        return last is not None and bool(last.reqs)

    def drop(self, batches: Iterable[Any], gone: set[int]) -> None:
        """Take requests out of batches."""
        if not gone:
            return
        seen: set[int] = set()
        for batch in batches:
            if batch is None or id(batch) in seen:
                continue
            seen.add(id(batch))
            keep = [index for index, req in enumerate(batch.reqs) if id(req) not in gone]
            if len(keep) < len(batch.reqs):
                batch.filter_batch(keep_indices=keep)
                batch.batch_is_full = False

    # Chunks of a long prompt

    def note_chunks(self, batch: Any) -> None:
        """Note which requests of a batch do not read the end of their prompt yet."""
        extend = batch.forward_mode.is_extend()
        for req in batch.reqs:
            if is_strand(req):
                end = req.extend_end if self.ends_alone else extend and req.extend_range.end
                req.mvspec_chunk = extend and end < len(req.full_untruncated_fill_ids)

    def is_chunk(self, req: Any) -> bool:
        """Whether a request's forward under way does not read the end of its prompt."""
        return bool(getattr(req, "mvspec_chunk", False))

    def keep_chunked(self, strand: Callable[[Any], Any]) -> None:
        """Let a long prompt be read to its end: its family goes after that."""
        pending = getattr(self.scheduler, "_pending_chunked_abort_req", None)
        if pending is not None and strand(pending) is not None:
            self.scheduler._pending_chunked_abort_req = None

    def row(self, req: Any) -> Any:
        """Return what carries a request's row: req_pool_idx, kv_committed_len and the like."""
        return req.kv if self.rows_on_kv else req

    # Requests

    def request(self, face: Any, rid: str, tokens: array[int], grammar: Any, budget: int) -> Any:
        """Return a new request of SGLang's for one thread.

        Args:
            face: the client's request.
            rid: its own name, which begins with the client's, so that aborts find it.
            tokens: all that it sees, and what it reads next.
            grammar: its `BaseGrammarObject`.
            budget: how many tokens more it may take: what admission of others counts on.
        """
        from sglang.srt.managers.schedule_batch import Req

        sampling = copy.copy(face.sampling_params)
        sampling.max_new_tokens = budget
        # Structure and penalties are the plugin's matter.
        sampling.stop_strs, sampling.stop_regex_strs = [], []
        sampling.repetition_penalty = 1.0
        req = Req(
            rid=rid,
            origin_input_text="",
            origin_input_ids=tokens,
            sampling_params=sampling,
            return_logprob=face.return_logprob,
            top_logprobs_num=face.logprob.top_logprobs_num if face.return_logprob else 0,
            token_ids_logprob=None,
            stream=False,
            eos_token_ids=face.eos_token_ids,
            vocab_size=face.vocab_size,
            extra_key=face.extra_key,
            priority=face.priority,
            http_worker_ipc=face.http_worker_ipc,
        )
        req.tokenizer = face.tokenizer
        req.grammar = grammar
        req.logprob_start_len = len(tokens) if face.return_logprob else -1
        grammar.req = req
        return req

    def extend(self, entries: Sequence[tuple[Any, Tensor]]) -> Any:
        """Return a batch that reads new tokens of threads behind their prefixes.

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
                (row.req_pool_idx,) = self.pool.alloc_rows(1)
                self.pool.write((row.req_pool_idx, slice(0, len(prefix))), prefix.to(torch.int32))
                row.kv_allocated_len = len(prefix)
        batch = ScheduleBatch.init_new(
            reqs,
            self.pool,
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
            new_token_ratio=self.ratio,
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

    def plan(self, batch: Any, running: Any) -> Any:
        """Return what SGLang's scheduler takes as its next step."""
        from sglang.srt.managers.scheduler import NextBatchPlan

        return NextBatchPlan(batch_to_run=batch, running_batch=running)

    # Rows and slots

    def committed(self, req: Any) -> int:
        """Return how many slots of a request's row are in use."""
        found: int = self.row(req).kv_committed_len
        return found

    def leave(self, req: Any, keep: int) -> Tensor:
        """Give a request's row back and return the slots that it held, int64 [keep].

        What it holds past `keep` is free again.
        """
        req.skip_radix_cache_insert = True  # a result of it may still be on its way
        row = self.row(req)
        held: Tensor = self.pool.req_to_token[row.req_pool_idx, : self.committed(req)]
        slots = held.to(torch.int64)
        if len(slots) > keep:
            self.allocator.free(slots[keep:])
        self.pool.free(req)
        if self.rows_on_kv:
            req.kv.mark_kv_released()
        else:
            req.kv = None
        return slots[:keep]

    def publish(self, req: Any, length: int) -> int:
        """Give the first tokens of a request to the prefix cache; return how many it owns now."""
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
        """Drop the lock that a request holds on its prefix in the cache."""
        if self.ends_alone:
            self.tree.unlock(req.lock)
            req.lock = None
        elif hasattr(self.tree, "unpin"):
            self.tree.unpin(req)
        elif req.last_node is not None:
            self.tree.dec_lock_ref(req.last_node)

    def release(self, req: Any) -> None:
        """Give a request's row and slots back; the cache keeps its text for others."""
        from sglang.srt.mem_cache.common import release_kv_cache

        if self.ends_alone:
            release_kv_cache(req, self.tree, checkpoint=True)
        else:
            release_kv_cache(req, self.tree)
        req.skip_radix_cache_insert = True  # a result of it may still be on its way

    def free(self, slots: Tensor) -> None:
        """Give slots back."""
        if len(slots):
            self.allocator.free(slots)

    def room(self) -> int:
        """Return how many slots can be had, what the prefix cache would give up included."""
        found: int = self.allocator.available_size() + self.tree.evictable_size()
        return found

    def free_rows(self) -> int:
        """Return how many rows can be had."""
        found: int = self.pool.available_size()
        return found

    # Answers

    def send(self, reqs: Iterable[Any]) -> None:
        """Send what is new of the clients' requests."""
        reqs = list(reqs)
        if reqs:
            self.scheduler.output_streamer.stream_output(
                reqs, any(req.return_logprob for req in reqs)
            )

    def refuse(self, req: Any, message: str, status: int = 400, kind: str = "") -> None:
        """Answer a request with an error; `kind` tells our own client which."""
        from sglang.srt.disaggregation.utils import prepare_abort

        prepare_abort(req, message, status_code=status)
        req.finished_reason.err_type = kind or None
        self.send([req])

    def retract(self, batch: Any, index: int, left: int, arguments: Sequence[Any]) -> Any:
        """Give up the keys and values of a plain request; the server runs it again later."""
        req = batch.reqs[index]
        batch.release_req(index, left, *arguments)
        return req

    def finish(self, face: Any, reason: str, *, matched: Any = None, extra: Any = None) -> None:
        """Say how a client's request ended: "stop", "length" or "abort".

        Args:
            matched: the token or the string that ended it; the message of an abort.
            extra: JSON for our own client, put beside the reason.
        """
        from sglang.srt.managers import schedule_batch as made

        if reason == "abort":
            ended = made.FINISH_ABORT(matched)
        elif reason == "length":
            ended = made.FINISH_LENGTH(length=len(face.output_ids))
        elif isinstance(matched, str):
            ended = made.FINISH_MATCHED_STR(matched=matched)
        else:
            ended = made.FINISH_MATCHED_TOKEN(matched=matched)
        if extra is not None:
            told = ended.to_json() | {"mvspec": extra}
            ended.to_json = lambda: told
        face.finished_reason = ended
