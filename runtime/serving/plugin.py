"""The plugin of SGLang: its entry point, and the hooks of a step.

SGLang loads it in every one of its processes (entry-point group `sglang.srt.plugins`).
"""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvspec.compiler.vocabulary import Vocabulary, has_tags
from mvspec.errors import MvspecError, Unsupported
from mvspec.law.limits import Limits
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.protocol import check_ids
from mvspec.runtime.serving import delta_stream, hooks
from mvspec.runtime.serving.adapter import SchedulerAdapter
from mvspec.runtime.serving.adaptive_requests import (
    adaptive_limits,
    adaptive_options,
    adaptive_payload,
)
from mvspec.runtime.serving.fork_scheduler import ForkScheduler
from mvspec.runtime.serving.logits_processor import LogitsProcessor, upload
from mvspec.runtime.serving.logprobs import put_logprobs, sampled
from mvspec.runtime.serving.openai_frontend import OpenAIFrontend
from mvspec.runtime.serving.prometheus import PrometheusMetrics
from mvspec.runtime.serving.protocol import KEY, PlanPayload
from mvspec.runtime.serving.sglang_req import is_thread, thread_rows, without_threads

log = logging.getLogger("mvspec")


def register() -> None:
    """Hook into SGLang; its plugin loader calls this."""
    if os.environ.get("MVSPEC") == "off":
        return
    try:
        adaptive = adaptive_limits() is not None
        version = hooks.verify(hooks.HOOKS | (hooks.FRONTEND_HOOKS if adaptive else {}))
    except MvspecError as error:
        _refuse(error)
        return
    hooks.apply(SGLangPlugin(), hooks.HOOKS)
    if adaptive:
        hooks.apply(OpenAIFrontend(), hooks.FRONTEND_HOOKS)
    log.info("mvspec: fork and join for sglang %s", version)


def _refuse(error: MvspecError) -> None:
    """A server that was started to fork does not start without; another one just cannot."""
    if os.environ.get("MVSPEC") == "require":
        raise SystemExit(f"mvspec: {error}")
    log.warning("mvspec: plans are refused on this server: %s", error)


class SGLangPlugin:
    """The hooks of one process of SGLang, by the names of `HOOKS`.

    Attributes:
        forks: the scheduler of requests that fork; None where the server cannot.
        processor: of its threads' logits.
        metrics: where Prometheus is asked for.
        reason: why this server refuses plans.
    """

    def __init__(self) -> None:
        self.forks: ForkScheduler | None = None
        self.processor: LogitsProcessor | None = None
        self.metrics: PrometheusMetrics | None = None
        self.reason = ""
        self._scheduler: Any = None
        self._adaptive = adaptive_limits()
        self._tags: frozenset[int] = frozenset()

    def begin(self, scheduler: Any, *args: Any, **kw: Any) -> None:
        """Prepare for a scheduler; refuse a server that cannot fork before it answers anybody."""
        if self._scheduler is scheduler:
            return
        self._scheduler = scheduler
        try:
            if missing := hooks.missing_hooks():
                raise Unsupported(f"SGLang did not apply the hooks of {', '.join(missing)}")
            hooks.check_server(scheduler, adaptive=self._adaptive is not None)
            adapter = SchedulerAdapter(scheduler)
            tokenizer, config = scheduler.tokenizer, scheduler.model_config
            vocabulary = Vocabulary.of(tokenizer, tagged=has_tags(tokenizer))
            ends = set(config.hf_eos_token_id or ()) | {tokenizer.eos_token_id}
            lexicon = Lexicon.of_chat(vocabulary, config.vocab_size, ends - {None})
            self.forks = ForkScheduler(adapter, lexicon)
            self.processor = LogitsProcessor(config.vocab_size)
            self._tags = frozenset(vocabulary.tag_ids.values())
            if labels := adapter.labels:
                self.metrics = PrometheusMetrics(self.forks.counters, labels)
            # Threads are made of many small objects, and a full collection that they cause would
            # walk through all of the server's modules each time: half a second without a step.
            # What they make lives until its request ends, and then goes without a collection.
            gc.collect()
            gc.freeze()
            if not getattr(scheduler.server_args, "gc_threshold", None):
                gc.set_threshold(500_000, 4, 4)
        except MvspecError as error:
            self.reason = str(error)
            _refuse(error)

    # Arrival

    def admit(
        self, original: Callable[..., Any], scheduler: Any, recv: Any, *args: Any, **kw: Any
    ) -> Any:
        """Admit a request that forks where the server would queue a plain one."""
        self.begin(scheduler)
        asked = self._asked(recv)
        if isinstance(asked, str):
            out = original(scheduler, recv, *args, **kw)
            if asked:
                self._tell_plain(scheduler, recv.rid, asked)
            return out
        if isinstance(asked, MvspecError):
            hooks.make_plain(recv)
        before = len(scheduler.waiting_queue)
        out = original(scheduler, recv, *args, **kw)
        queue = scheduler.waiting_queue
        if len(queue) == before or queue[-1].rid != recv.rid or queue[-1].to_finish is not None:
            return out  # SGLang has refused it by itself
        client_req = queue[-1]
        try:
            if isinstance(asked, MvspecError):
                raise asked
            assert self.forks is not None
            seeded = not asked.unasked or recv.sampling_params.sampling_seed is not None
            queue[-1] = self.forks.admit(client_req, asked, seeded=seeded)
        except Exception as error:
            queue.pop()
            self._decline(scheduler, client_req, error)
        return out

    def _asked(self, recv: Any) -> PlanPayload | MvspecError | str:
        """Return how a request forks, an error where it cannot; text where it runs plain: why."""
        custom = getattr(recv.sampling_params, "custom_params", None)
        forks, limits = self.forks, self._adaptive
        try:
            if forks is not None and getattr(recv, "mm_inputs", None) is None:
                check_ids(recv.input_ids or (), forks.lexicon.size, "input_ids")
            if not isinstance(custom, dict) or KEY not in custom:
                if forks is None or limits is None or not forks.lexicon.vocabulary.tagged:
                    return ""
                return adaptive_payload(recv, limits, self._tags)
            text = custom[KEY]  # requests of one batch share the dictionary
            recv.sampling_params.custom_params = {
                name: value for name, value in custom.items() if name != KEY
            }
            if forks is None:
                raise Unsupported(self.reason)
            payload = PlanPayload.from_json(text)
            hooks.check_request(recv, unasked=payload.unasked)
            if payload.unasked:
                options = adaptive_options(recv, limits or Limits())
                payload = payload.model_copy(update={"options": options})
            return payload
        except MvspecError as error:
            return error
        except Exception as error:
            return _fault(recv.rid, error)

    def _tell_plain(self, scheduler: Any, rid: str, reason: str) -> None:
        """Say that a request cannot fork, though its server's model might: nobody would see it."""
        assert self.forks is not None
        self.forks.counters["plain"] += 1
        if self.forks.adapter.is_first:
            log.info("mvspec %s", json.dumps({"rid": rid, "finish": "plain", "reason": reason}))
        for req in self.forks.adapter.newest():
            if req.rid == rid:
                req.customized_info = {f"{KEY}_plain": [reason]}

    def _decline(self, scheduler: Any, client_req: Any, error: Exception) -> None:
        known = isinstance(error, MvspecError)
        status, kind = (400, type(error).__name__) if known else (500, "MvspecError")
        message = str(error if known else _fault(client_req.rid, error))
        if self.forks is not None:
            self.forks.counters["refused" if known else "faults"] += 1
        adapter = SchedulerAdapter(scheduler) if self.forks is None else self.forks.adapter
        if adapter.is_first:
            told = {"rid": client_req.rid, "finish": "refused", "reason": message[:200]}
            log.info("mvspec %s", json.dumps(told))
        adapter.refuse(client_req, message[:2000], status, kind)

    def abort(self, original: Callable[..., Any], scheduler: Any, recv: Any) -> Any:
        """Abort requests that a client gives up."""
        forks = self.forks
        if not forks:
            return original(scheduler, recv)
        queued = forks.queued()
        out = original(scheduler, recv)
        still = {id(request) for request in forks.queued()}
        for request in queued:
            if id(request) not in still:
                forks.forget(request)  # SGLang has answered it
        forks.adapter.keep_chunked()
        forks.abort(
            lambda rid: (
                recv.abort_all or rid.startswith(recv.rid) or recv.rid.startswith(f"{rid}/")
            ),
            recv.abort_message or "Aborted",
        )
        return out

    # Before a step

    def schedule(self, scheduler: Any, running_batch: Any, last_batch: Any) -> None:
        """Let threads fork and join."""
        if self.forks:
            self.forks.schedule([running_batch, last_batch])
        self._publish()  # before the loop may go to sleep

    def prefill(self, original: Callable[..., Any], scheduler: Any, running_batch: Any) -> Any:
        """Prefill threads before new requests."""
        batch = self.forks.prefill(running_batch) if self.forks else None
        return original(scheduler, running_batch) if batch is None else batch

    def retract(self, original: Callable[..., Any], batch: Any, *args: Any, **kw: Any) -> Any:
        """Make room for a decode step."""
        forks = self.forks
        if not forks:  # those that have no row hold memory too
            return original(batch, *args, **kw)
        retracted, aborted = forks.retract(batch, [*args, *kw.values()])
        return retracted, forks.adapter.kv.new_token_ratio, aborted

    def _publish(self) -> None:
        if self.metrics is not None and self.forks is not None:
            self.metrics.update(self.forks.live_threads)

    def pause(self, reqs: list[Any], **kw: Any) -> None:
        """Evict threads where a pause retracts all: the server cannot run them again."""
        if self.forks:
            self.forks.pause(reqs)

    # A forward

    def launch(self, scheduler: Any, batch: Any, *args: Any, **kw: Any) -> None:
        """Note which requests read their last chunk."""
        if self.forks:
            self.forks.adapter.note_chunks(batch)

    def place(self, forward: Any, cls: Any, batch: Any, *args: Any, **kw: Any) -> None:
        """Give tokens the positions of the law."""
        if not self.forks or forward.positions is None:
            return
        shifts = [getattr(req, "position_shift", 0) for req in batch.reqs]
        if not any(shifts):
            return
        moved = np.array(shifts, dtype=np.int64)
        if not forward.forward_mode.is_decode():
            moved = np.repeat(moved, batch.extend_lens)
        shift = torch.from_numpy(moved).to(forward.positions.device, non_blocking=True)
        forward.positions = forward.positions - shift.to(forward.positions.dtype)

    def sample(
        self,
        original: Callable[..., Any],
        runner: Any,
        logits: Any,
        forward: Any,
        *args: Any,
        **kw: Any,
    ) -> Any:
        """Hold threads to what may come, and measure what the model itself thinks of it."""
        forks, processor, info = self.forks, self.processor, forward.sampling_info
        rows = thread_rows(info.grammars) if forks else []
        if not rows or forks is None or processor is None:
            with without_threads(info):
                return original(runner, logits, forward, *args, **kw)
        ended = [(row, thread) for row, thread in rows if not forks.adapter.is_chunk(thread.req)]
        forks.complete([thread for _, thread in ended])
        sampling = [(row, thread) for row, thread in ended if thread.sampling]
        scores: Tensor = logits.next_token_logits
        raw = index = None
        if sampling and forward.return_logprob:
            index = upload([row for row, _ in sampling], scores.device)
            raw = scores[index].float()
        given, drawing = [], []
        for row, thread in sampling:
            if (id := thread.state.driver.given) is None:
                drawing.append((row, thread))
            else:
                given.append((row, id))
        for thread, error in processor.apply(scores, drawing):
            forks.stuck(thread, error)
        held = processor.hold(scores, drawing)
        with without_threads(info):
            ids = original(runner, logits, forward, *args, **kw)
        if held is not None:
            processor.draw(held, ids)
        if given:  # what it writes is known: nothing is to be drawn
            at, forced = upload(np.array(given).T, ids.device)
            ids.scatter_(0, at, forced.to(ids.dtype))
        if raw is not None and index is not None:
            put_logprobs(logits, sampling, index, raw, ids)
        return ids

    def processed(self, result: Any, scheduler: Any, batch: Any, *args: Any, **kw: Any) -> None:
        """Take what was sampled, and respond to the clients."""
        if self.forks:
            self.forks.take(sampled(batch.reqs))
            self.forks.respond()
        self._publish()

    def stream(self, streamer: Any, reqs: Any, *args: Any, **kw: Any) -> Any:
        """Keep threads from the clients: their requests are answered as a whole."""
        if self.forks is None or not self.forks.counters["requests"]:
            return None  # results of threads come even after their request has gone
        shown = [req for req in reqs if not is_thread(req)]
        return (streamer, shown, *args), kw

    # In the process that answers HTTP

    def wait(self, original: Callable[..., Any], manager: Any, obj: Any, *args: Any) -> Any:
        """Let the chunks of a stream hold what is new alone, where its client asks for that."""
        return delta_stream.wait(original, manager, obj, *args)

    # Checks

    def idle(self, result: bool, scheduler: Any, *args: Any, **kw: Any) -> bool | None:
        """A server with waiting threads is not idle; one that is paused may be, without memory."""
        if not self.forks or (scheduler._engine_paused and not self.forks.resident):
            return None
        return False

    def state(self, result: Any, scheduler: Any, *args: Any, **kw: Any) -> None:
        """Add what the plugin does to what the server says of itself."""
        if self.forks is not None:
            result.internal_state["mvspec"] = self.forks.state()

    def count(self, result: Any, checker: Any) -> Any:
        """Count the slots of threads without a row among those in use."""
        if not self.forks:
            return None
        full, sliding = result
        return full + self.forks.uncounted_slots, sliding


def _fault(rid: str, error: Exception) -> MvspecError:
    log.error("request %s ended by a fault of mvspec", rid, exc_info=error)
    return MvspecError(f"a fault of mvspec: {type(error).__name__}: {error}")
