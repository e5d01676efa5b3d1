"""One scheduler of SGLang, as the plugin uses it: its queue, its bounds, its answers.

With `memory.py`, `marks.py` and `hooks.py` all contact with SGLang's scheduler.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from mvspec.runtime.serving.marks import classes, is_strand
from mvspec.runtime.serving.memory import Memory

if TYPE_CHECKING:
    from mvspec.runtime.serving.strand import Strand

__all__ = ["Adapter"]


class Adapter(Memory):
    """One scheduler of SGLang, as the plugin uses it."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        self._chunks: set[int] = set()
        """Of the forward under way: ids of requests that do not read the end of their prompt."""

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
        self._chunks = set()
        if not batch.forward_mode.is_extend():
            return
        for req in batch.reqs:
            if is_strand(req):
                end = req.extend_end if self.ends_alone else req.extend_range.end
                if end < len(req.full_untruncated_fill_ids):
                    self._chunks.add(id(req))

    def is_chunk(self, req: Any) -> bool:
        """Whether a request's forward under way does not read the end of its prompt."""
        return id(req) in self._chunks

    def keep_chunked(self, strand: Callable[[Any], Any]) -> None:
        """Let a long prompt be read to its end: its family goes after that."""
        pending = getattr(self.scheduler, "_pending_chunked_abort_req", None)
        if pending is not None and strand(pending) is not None:
            self.scheduler._pending_chunked_abort_req = None

    @property
    def next_chunk(self) -> int:
        """How many tokens of a long prompt the next forward reads; 0 where none is under way."""
        req = self.scheduler.chunked_req
        if req is None:
            return 0
        left = len(req.full_untruncated_fill_ids) - self.committed(req)
        return max(min(left, self.step_tokens), 0)

    # Requests

    def request(self, face: Any, rid: str, tokens: array[int], strand: Strand, budget: int) -> Any:
        """Return a new request of SGLang's for one thread.

        Args:
            face: the client's request.
            rid: its own name, which begins with the client's, so that aborts find it.
            tokens: all that it sees, and what it reads next.
            strand: whose it is.
            budget: how many tokens more it may take: what admission of others counts on.
        """
        made, grammar = classes()
        sampling = copy.copy(face.sampling_params)
        sampling.max_new_tokens = budget
        # Structure and penalties are the plugin's matter.
        sampling.stop_strs, sampling.stop_regex_strs = [], []
        sampling.repetition_penalty = 1.0
        sampling.custom_params = None  # SGLang would copy all of it once more
        req = made(
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
        req.strand, req.shift = strand, strand.shift
        req.grammar = grammar(req)
        req.logprob_start_len = len(tokens) if face.return_logprob else -1
        return req

    def plan(self, batch: Any, running: Any) -> Any:
        """Return what SGLang's scheduler takes as its next step."""
        from sglang.srt.managers.scheduler import NextBatchPlan

        return NextBatchPlan(batch_to_run=batch, running_batch=running)

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

    def finish(
        self, face: Any, reason: str, *, matched: Any = None, extra: str | None = None
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
            ended = made.FINISH_LENGTH(length=len(face.output_ids))
        elif isinstance(matched, str):
            ended = made.FINISH_MATCHED_STR(matched=matched)
        else:
            ended = made.FINISH_MATCHED_TOKEN(matched=matched)
        if extra is not None:
            told = ended.to_json() | {"mvspec": extra}
            ended.to_json = lambda: told
        face.finished_reason = ended
