"""One scheduler of SGLang as the plugin uses it: its waiting queue, its bounds, its answers.

With kv_pool.py, sglang_req.py, logprobs.py and hooks.py all contact with SGLang's scheduler.
"""

from __future__ import annotations

import copy
import time
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from mvspec.runtime.serving.kv_pool import KVPool
from mvspec.runtime.serving.sglang_req import is_thread, req_classes, thread_of


class SchedulerAdapter:
    """One scheduler of SGLang, as the plugin uses it.

    Attributes:
        kv: its rows and KV slots.
        context: how many positions the model has here.
        longest_prompt: how many tokens a first prefill may have.
        prefill_tokens: how many tokens one step of prefill may read.
        is_first: whether it speaks for all schedulers that run the same requests.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.kv = KVPool(scheduler)
        self.context: int = scheduler.model_config.context_len
        self.longest_prompt: int = scheduler.max_req_input_len
        self.prefill_tokens: int = scheduler.max_prefill_tokens
        if (chunk := scheduler.chunked_prefill_size) and chunk > 0:
            self.prefill_tokens = min(self.prefill_tokens, chunk)
        parts = getattr(scheduler, "ps", None)
        if parts is None:
            from sglang.srt.runtime_context import get_parallel

            parts = get_parallel()
        self.is_first: bool = parts.attn_tp_rank == 0
        several = scheduler.tp_group.world_size > 1
        self._ranks: Any = scheduler.tp_cpu_group if several else None
        self._now = 0.0
        self._chunks: set[int] = set()
        """Of the forward under way: ids of requests that do not read the end of their prompt."""

    @property
    def labels(self) -> dict[str, str] | None:
        """The labels of its series in Prometheus; None where nobody asks for them."""
        args = self.scheduler.server_args
        if not (args.enable_metrics and self.is_first):
            return None
        return {"model_name": str(args.served_model_name or args.model_path)}

    def clock(self) -> float:
        """Return the seconds by which deadlines are told, the same on every rank of a step."""
        return self._now if self._ranks is not None else time.perf_counter()

    def read_clock(self) -> None:
        """Take the time of the first rank, if there are several; all of them come here at once.

        Each by its own clock, they would pass a deadline in different steps, and wait for each
        other for ever.
        """
        if self._ranks is not None:
            told = torch.tensor([time.perf_counter()], dtype=torch.float64)
            torch.distributed.broadcast(told, group=self._ranks, group_src=0)
            self._now = float(told)

    @property
    def queue(self) -> list[Any]:
        """The requests that wait for their prefill; to be changed in place."""
        found: list[Any] = self.scheduler.waiting_queue
        return found

    def newest(self) -> list[Any]:
        """Return what was queued last: to be prefilled, and to wait for a grammar."""
        grammars = getattr(self.scheduler, "grammar_manager", self.scheduler)
        queues = (self.queue, getattr(grammars, "grammar_queue", ()))
        return [queue[-1] for queue in queues if queue]

    def most_new_tokens(self, client_req: Any) -> int:
        """Return how many tokens a request may write: one row holds all of them in the end."""
        room = self.kv.capacity - len(client_req.origin_input_ids) - 64
        asked: int = client_req.sampling_params.max_new_tokens
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

    def retract(self, batch: Any, index: int, left: int, arguments: Sequence[Any]) -> Any:
        """Retract a plain request, which the server runs again later."""
        req = batch.reqs[index]
        batch.release_req(index, left, *arguments)
        return req

    # Chunked prefill

    def note_chunks(self, batch: Any) -> None:
        """Note which requests of a batch do not read the end of their prompt yet."""
        self._chunks = set()
        if not batch.forward_mode.is_extend():
            return
        for req in batch.reqs:
            if is_thread(req):
                end = req.extend_end if self.kv.ends_alone else req.extend_range.end
                if end < len(req.full_untruncated_fill_ids):
                    self._chunks.add(id(req))

    def is_chunk(self, req: Any) -> bool:
        """Whether a request's forward under way does not read the end of its prompt."""
        return id(req) in self._chunks

    def keep_chunked(self) -> None:
        """Let a thread's long prompt be read to its end: its request is aborted after that."""
        pending = getattr(self.scheduler, "_pending_chunked_abort_req", None)
        if thread_of(pending) is not None:
            self.scheduler._pending_chunked_abort_req = None

    @property
    def next_chunk(self) -> int:
        """How many tokens of a long prompt the next forward reads; 0 where none is under way."""
        req = self.scheduler.chunked_req
        if req is None:
            return 0
        left = len(req.full_untruncated_fill_ids) - self.kv.committed(req)
        return max(min(left, self.prefill_tokens), 0)

    # Requests

    def req(
        self, client_req: Any, rid: str, tokens: array[int], thread: Any, shift: int, budget: int
    ) -> Any:
        """Return a new request of SGLang's for one thread.

        Args:
            client_req: the client's request.
            rid: its own name, which begins with the client's, so that aborts find it.
            tokens: all that it sees, and what it reads next.
            thread: the `ThreadKV` whose it is.
            shift: how much higher an index in its row is than the position of the token there.
            budget: how many tokens more it may take: what admission of others counts on.
        """
        made, grammar = req_classes()
        logprobs = client_req.return_logprob
        sampling = copy.copy(client_req.sampling_params)
        sampling.max_new_tokens = budget
        # What is masked is minus infinity, and that divided by infinity is not a number: a
        # temperature that float32 does not hold would end the server.
        sampling.temperature = min(sampling.temperature, 1e30)
        # Structure and penalties are the plugin's matter.
        sampling.stop_strs, sampling.stop_regex_strs = [], []
        sampling.repetition_penalty = 1.0
        sampling.custom_params = None  # SGLang would copy all of it once more
        req = made(
            rid=rid,
            origin_input_text="",
            origin_input_ids=tokens,
            sampling_params=sampling,
            return_logprob=logprobs,
            top_logprobs_num=client_req.logprob.top_logprobs_num if logprobs else 0,
            token_ids_logprob=None,
            stream=False,
            eos_token_ids=client_req.eos_token_ids,
            vocab_size=client_req.vocab_size,
            extra_key=client_req.extra_key,
            priority=client_req.priority,
            http_worker_ipc=client_req.http_worker_ipc,
        )
        req.tokenizer = client_req.tokenizer
        req.thread_kv, req.position_shift = thread, shift
        req.grammar = grammar(req)
        req.logprob_start_len = len(tokens) if logprobs else -1
        return req

    def next_batch(self, batch: Any, running: Any) -> Any:
        """Return what SGLang's scheduler takes as its next step; without a batch it decodes."""
        from sglang.srt.managers.scheduler import NextBatchPlan

        return NextBatchPlan(batch_to_run=batch, running_batch=running)

    # Answers

    def send(self, reqs: Iterable[Any]) -> None:
        """Send what is new of the clients' requests."""
        groups: dict[frozenset[str], list[Any]] = {}
        for req in reqs:  # what is sent together all gets the fields that one of it has
            groups.setdefault(frozenset(req.customized_info or ()), []).append(req)
        for group in groups.values():
            self.scheduler.output_streamer.stream_output(
                group, any(req.return_logprob for req in group)
            )

    def refuse(self, req: Any, message: str, status: int = 400, kind: str = "") -> None:
        """Answer a request with an error; `kind` tells our own client which."""
        from sglang.srt.disaggregation.utils import prepare_abort

        prepare_abort(req, message, status_code=status)
        req.finished_reason.err_type = kind or None
        self.send([req])

    def finish(
        self, client_req: Any, reason: str, *, matched: Any = None, extra: str | None = None
    ) -> None:
        """Say how a client's request ended: "stop", "length" or "abort".

        Args:
            matched: the token or the string that ended it; the message of an abort.
            extra: JSON text for our own client, put beside the reason.
        """
        from sglang.srt.managers import schedule_batch as made

        if reason == "abort":
            ended = made.FINISH_ABORT(matched)
        elif reason == "length":
            ended = made.FINISH_LENGTH(length=len(client_req.output_ids))
        elif isinstance(matched, str):
            ended = made.FINISH_MATCHED_STR(matched=matched)
        else:
            ended = made.FINISH_MATCHED_TOKEN(matched=matched)
        if extra is not None:
            told = ended.to_json() | {"mvspec": extra}
            ended.to_json = lambda: told
        client_req.finished_reason = ended
