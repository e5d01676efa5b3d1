"""The plugin of SGLang: the entry point, and what each hook does.

SGLang loads it in every one of its processes (entry-point group `sglang.srt.plugins`).
"""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Callable
from typing import Any

from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import MvspecError, Unsupported
from mvspec.law.limits import Limits
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.serving import hooks, marks
from mvspec.runtime.serving.adapter import Adapter
from mvspec.runtime.serving.exposition import Exposition
from mvspec.runtime.serving.families import Families
from mvspec.runtime.serving.forwards import Forwards
from mvspec.runtime.serving.front import Front
from mvspec.runtime.serving.masks import Masks
from mvspec.runtime.serving.native import native_limits, native_options, native_order
from mvspec.runtime.serving.order import KEY, Order

__all__ = ["register"]

log = logging.getLogger("mvspec")


def register() -> None:
    """Hook into SGLang; its plugin loader calls this."""
    if os.environ.get("MVSPEC") == "off":
        return
    try:
        native = native_limits() is not None
        version = hooks.verify(hooks.HOOKS | hooks.FRONT_HOOKS if native else hooks.HOOKS)
    except MvspecError as error:
        _refuse(error)
        return
    plugin = Plugin()
    if native:
        front = Front()
        hooks.hook("chat", front.chat, "around")
        hooks.hook("prompt", front.prompt, "before")
    for name, kind in (
        ("begin", "before"),
        ("admit", "around"),
        ("schedule", "before"),
        ("prefill", "around"),
        ("launch", "before"),
        ("processed", "after"),
        ("abort", "around"),
        ("idle", "after"),
        ("state", "after"),
        ("pause", "before"),
        ("retract", "around"),
        ("place", "after"),
        ("sample", "around"),
        ("stream", "before"),
        ("count", "after"),
    ):
        hooks.hook(name, getattr(plugin, name), kind)
    log.info("mvspec: fork and join for sglang %s", version)


def _refuse(error: MvspecError) -> None:
    """A server that was started to fork does not start without; another one just cannot."""
    if os.environ.get("MVSPEC") == "require":
        raise SystemExit(f"mvspec: {error}")
    log.warning("mvspec: plans are refused on this server: %s", error)


class Plugin(Forwards):
    """What the hooks do, in one process of SGLang."""

    def __init__(self) -> None:
        super().__init__()
        self.exposition: Exposition | None = None
        self.reason = ""
        """Why this server refuses plans."""
        self._scheduler: Any = None
        self._native = native_limits()
        self._tags: frozenset[int] = frozenset()

    def _ready(self, scheduler: Any) -> Families | None:
        """Return the scheduler's families; None where it cannot fork."""
        if self._scheduler is scheduler:
            return self.families
        self._scheduler = scheduler
        try:
            if missing := hooks.missing_hooks():
                raise Unsupported(f"SGLang did not apply the hooks of {', '.join(missing)}")
            hooks.check_server(scheduler, native=self._native is not None)
            adapter = Adapter(scheduler)
            tokenizer = scheduler.tokenizer
            vocabulary = Vocabulary.of(tokenizer, tagged=marks.has_tags(tokenizer))
            ends = set(scheduler.model_config.hf_eos_token_id or ()) | {tokenizer.eos_token_id}
            lexicon = Lexicon(vocabulary, scheduler.model_config.vocab_size, ends - {None})
            self.families = Families(adapter, lexicon)
            self.masks = Masks(lexicon, scheduler.model_config.vocab_size)
            self._tags = frozenset(vocabulary.tag_ids.values())
            if labels := adapter.labels:
                self.exposition = Exposition(self.families.counters, labels)
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
        return self.families

    def begin(self, scheduler: Any, *args: Any, **kw: Any) -> None:
        """Refuse a server that cannot fork before it answers anybody."""
        self._ready(scheduler)

    # Arrival

    def admit(
        self, original: Callable[..., Any], scheduler: Any, recv: Any, *args: Any, **kw: Any
    ) -> Any:
        """Begin a request that forks where the server would begin a plain one."""
        self._ready(scheduler)
        asked = self._asked(recv)
        if asked is None:
            return original(scheduler, recv, *args, **kw)
        if isinstance(asked, MvspecError):
            hooks.make_plain(recv)
        before = len(scheduler.waiting_queue)
        out = original(scheduler, recv, *args, **kw)
        queue = scheduler.waiting_queue
        if len(queue) == before or queue[-1].rid != recv.rid or queue[-1].to_finish is not None:
            return out  # SGLang has refused it by itself
        face = queue[-1]
        try:
            if isinstance(asked, MvspecError):
                raise asked
            assert self.families is not None
            seeded = not asked.native or recv.sampling_params.sampling_seed is not None
            queue[-1] = self.families.admit(face, asked, seeded=seeded)
        except MvspecError as error:
            queue.pop()
            self._decline(scheduler, face, str(error), 400, type(error).__name__)
        except Exception as error:
            log.error("request %s ended by a fault of mvspec", face.rid, exc_info=error)
            queue.pop()
            fault = f"a fault of mvspec: {type(error).__name__}: {error}"
            self._decline(scheduler, face, fault, 500, "MvspecError")
        return out

    def _asked(self, recv: Any) -> Order | MvspecError | None:
        """Return how a request forks, or why it cannot; None where it is a plain one."""
        custom = getattr(recv.sampling_params, "custom_params", None)
        families, limits = self.families, self._native
        try:
            if not isinstance(custom, dict) or KEY not in custom:
                if families is None or limits is None or not families.lexicon.vocabulary.tagged:
                    return None
                return native_order(recv, limits, self._tags)
            text = custom.pop(KEY)
            if families is None:
                raise Unsupported(self.reason)
            order = Order.from_json(text)
            hooks.check_request(recv, native=order.native)
            if order.native:
                options = native_options(recv, limits or Limits())
                order = order.model_copy(update={"options": options})
            return order
        except MvspecError as error:
            return error
        except Exception as error:
            log.error("request %s ended by a fault of mvspec", recv.rid, exc_info=error)
            return MvspecError(f"a fault of mvspec: {type(error).__name__}: {error}")

    def _decline(self, scheduler: Any, face: Any, message: str, status: int, kind: str) -> None:
        families = self.families
        if families is not None:
            families.counters.refused += status == 400
            families.counters.faults += status != 400
        adapter = Adapter(scheduler) if families is None else families.adapter
        if adapter.is_first:
            told = {"rid": face.rid, "finish": "refused", "reason": message[:200]}
            log.info("mvspec %s", json.dumps(told))
        adapter.refuse(face, message[:2000], status, kind)

    def abort(self, original: Callable[..., Any], scheduler: Any, recv: Any) -> Any:
        """End requests that a client gives up."""
        families = self.families
        if not families:
            return original(scheduler, recv)
        queued = families.queued(scheduler.waiting_queue)
        out = original(scheduler, recv)
        still = {id(family) for family in families.queued(scheduler.waiting_queue)}
        for family in queued:
            if id(family) not in still:
                families.forget(family)  # SGLang has answered it
        families.adapter.keep_chunked(families.strand)
        families.abort(
            lambda rid: (
                recv.abort_all or rid.startswith(recv.rid) or recv.rid.startswith(f"{rid}/")
            ),
            recv.abort_message or "Aborted",
        )
        return out

    # Before a step

    def schedule(self, scheduler: Any, running_batch: Any, last_batch: Any) -> None:
        """Let threads fork and join."""
        if self.families:
            self.families.step([running_batch, last_batch])

    def prefill(self, original: Callable[..., Any], scheduler: Any, running_batch: Any) -> Any:
        """Let threads come in before new requests do."""
        families = self.families
        if families:
            batch = families.extend(running_batch)
            if batch is not None or families.starving or families.holding:
                return families.adapter.plan(batch, running_batch)
            if families.holds_chunk(running_batch):
                return families.adapter.plan(None, running_batch)
            running_batch.batch_is_full = False  # families give memory back at any time
        return original(scheduler, running_batch)

    def retract(self, original: Callable[..., Any], batch: Any, *args: Any, **kw: Any) -> Any:
        """Make room for a decode step."""
        families = self.families
        if not families:  # those that are out hold memory too
            return original(batch, *args, **kw)
        retracted, aborted = families.retract(batch, [*args, *kw.values()])
        return retracted, families.adapter.ratio, aborted

    def pause(self, reqs: list[Any], **kw: Any) -> None:
        """Take threads from those that a pause gives up: the server cannot run them again."""
        if self.families:
            self.families.pause(reqs)

    # A step

    def launch(self, scheduler: Any, batch: Any, *args: Any, **kw: Any) -> None:
        """Note which requests read their last chunk."""
        if self.families:
            self.families.adapter.note_chunks(batch)

    def processed(self, result: Any, scheduler: Any, batch: Any, *args: Any, **kw: Any) -> None:
        """Take what was drawn, and tell the clients what is new."""
        if self.families:
            self.families.take(marks.drawn(batch.reqs))
            self.families.tell()
        if self.exposition is not None and self.families is not None:
            self.exposition.update(self.families.live_threads)

    def stream(self, streamer: Any, reqs: Any, *args: Any, **kw: Any) -> Any:
        """Keep threads from the clients: their families answer for them."""
        if self.families is None or not self.families.counters.requests:
            return None  # results of threads come even after their family has gone
        shown = [req for req in reqs if not marks.is_strand(req)]
        return (streamer, shown, *args), kw

    # Checks

    def idle(self, result: bool, scheduler: Any, *args: Any, **kw: Any) -> bool | None:
        """A server with waiting threads is not idle; one that is paused may be, without memory."""
        if not self.families or (scheduler._engine_paused and not self.families.held):
            return None
        return False

    def state(self, result: Any, scheduler: Any, *args: Any, **kw: Any) -> None:
        """Add what the plugin does to what the server says of itself."""
        if self.families is not None:
            result.internal_state["mvspec"] = self.families.state()

    def count(self, result: Any, checker: Any) -> Any:
        """Threads without a row hold slots as well."""
        if not self.families:
            return None
        full, sliding = result
        return full + self.families.uncounted, sliding
