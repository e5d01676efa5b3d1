"""The plugin of SGLang: the entry point, and what each hook does.

SGLang loads it in every one of its processes (entry-point group `sglang.srt.plugins`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import MvspecError, Unsupported
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.serving import adapter as sglang
from mvspec.runtime.serving import hooks
from mvspec.runtime.serving.families import Families
from mvspec.runtime.serving.masks import Masks
from mvspec.runtime.serving.order import KEY, Order
from mvspec.runtime.serving.strand import Strand

__all__ = ["register"]

log = logging.getLogger("mvspec")


def register() -> None:
    """Hook into SGLang; its plugin loader calls this."""
    if os.environ.get("MVSPEC") == "off":
        return
    try:
        version = hooks.verify()
    except MvspecError as error:
        _refuse(error)
        return
    plugin = Plugin()
    for name, kind in (
        ("admit", "around"),
        ("schedule", "before"),
        ("prefill", "around"),
        ("launch", "before"),
        ("processed", "after"),
        ("abort", "around"),
        ("idle", "after"),
        ("state", "after"),
        ("finish", "around"),
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


class Plugin:
    """What the hooks do, in one process of SGLang."""

    def __init__(self) -> None:
        self.families: Families | None = None
        self.masks: Masks | None = None
        self.reason = ""
        """Why this server refuses plans."""
        self._scheduler: Any = None

    def _ready(self, scheduler: Any) -> Families | None:
        """Return the scheduler's families; None where it cannot fork."""
        if self._scheduler is scheduler:
            return self.families
        self._scheduler = scheduler
        try:
            if missing := hooks.missing_hooks():
                raise Unsupported(f"SGLang did not apply the hooks of {', '.join(missing)}")
            hooks.check_server(scheduler)
            adapter = sglang.Adapter(scheduler)
            tokenizer = scheduler.tokenizer
            vocabulary = Vocabulary.of(tokenizer, tagged=sglang.has_tags(tokenizer))
            ends = set(scheduler.model_config.hf_eos_token_id or ()) | {tokenizer.eos_token_id}
            lexicon = Lexicon(vocabulary, scheduler.model_config.vocab_size, ends - {None})
            self.families = Families(adapter, lexicon, self._grammar)
            self.masks = Masks(lexicon, scheduler.model_config.vocab_size)
        except MvspecError as error:
            self.reason = str(error)
            _refuse(error)
        return self.families

    def _grammar(self, strand: Strand) -> Any:
        assert self.families is not None
        return sglang.grammar_of(strand, self.families.given)

    # Arrival

    def admit(
        self, original: Callable[..., Any], scheduler: Any, recv: Any, *args: Any, **kw: Any
    ) -> Any:
        """Begin a request that forks where the server would begin a plain one."""
        families = self._ready(scheduler)
        custom = getattr(recv.sampling_params, "custom_params", None) or {}
        if KEY not in custom:
            return original(scheduler, recv, *args, **kw)
        problem = self.reason
        try:
            hooks.check_request(recv)
        except MvspecError as error:
            problem = problem or str(error)
            hooks.make_plain(recv)
        text = custom.pop(KEY)
        before = len(scheduler.waiting_queue)
        out = original(scheduler, recv, *args, **kw)
        queue = scheduler.waiting_queue
        if len(queue) == before or queue[-1].rid != recv.rid or queue[-1].to_finish is not None:
            return out  # SGLang has refused it by itself
        face = queue[-1]
        try:
            if problem or families is None:
                raise Unsupported(problem)
            queue[-1] = families.admit(face, Order.from_json(text))
        except MvspecError as error:
            queue.pop()
            if families is not None:
                families.counters.refused += 1
                families.adapter.refuse(face, str(error)[:2000])
            else:
                sglang.Adapter(scheduler).refuse(face, str(error)[:2000])
        return out

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
            if batch is not None or families.starving:
                return families.adapter.plan(batch, running_batch)
            running_batch.batch_is_full = False  # families give memory back at any time
        return original(scheduler, running_batch)

    def retract(self, original: Callable[..., Any], batch: Any, *args: Any, **kw: Any) -> Any:
        """Make room for a decode step."""
        families = self.families
        if not families:  # those that are out hold memory too
            return original(batch, *args, **kw)
        retracted, aborted = families.retract(batch, [*args, *kw.values()])
        return retracted, families.adapter.ratio, aborted

    # A step

    def launch(self, scheduler: Any, batch: Any, *args: Any, **kw: Any) -> None:
        """Note which requests read their last chunk."""
        if self.families:
            self.families.adapter.note_chunks(batch)

    def place(self, forward: Any, cls: Any, batch: Any, *args: Any, **kw: Any) -> None:
        """Give tokens the positions of the law."""
        families = self.families
        if not families or forward.positions is None:
            return
        shifts = [s.shift if (s := families.strand(req)) else 0 for req in batch.reqs]
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
        families, info = self.families, forward.sampling_info
        rows = [] if not families else sglang.strand_rows(info.grammars)
        if not rows or families is None or self.masks is None:
            return original(runner, logits, forward, *args, **kw)
        landing = [strand for _, strand in rows if not strand.family.adapter.is_chunk(strand.req)]
        families.land(landing)
        drawing = [(row, strand) for row, strand in rows if strand.drawing and strand in landing]
        scores: Tensor = logits.next_token_logits
        index = [row for row, _ in drawing]
        measured = forward.return_logprob or any(self.masks.is_seeded(s) for _, s in drawing)
        raw = scores[index].float() if drawing and measured else None
        for strand in self.masks.apply(scores, drawing):
            families.stuck(strand)
        with sglang.without_strands(info):
            ids = original(runner, logits, forward, *args, **kw)
        self.masks.draw(raw, drawing, ids)
        if raw is not None and forward.return_logprob:
            sglang.put_logprobs(logits, index, raw, ids)
        return ids

    def processed(self, result: Any, scheduler: Any, *args: Any, **kw: Any) -> None:
        """Tell the clients what is new."""
        if self.families:
            self.families.tell()

    def stream(self, streamer: Any, reqs: Any, *args: Any, **kw: Any) -> Any:
        """Keep threads from the clients: their families answer for them."""
        if not self.families:
            return None
        shown = [req for req in reqs if not sglang.is_strand(req)]
        return (streamer, shown, *args), kw

    def finish(self, original: Callable[..., Any], req: Any, *args: Any, **kw: Any) -> Any:
        """A thread ends when its run says so."""
        if sglang.is_strand(req):
            return None
        return original(req, *args, **kw)

    # Checks

    def idle(self, result: bool, scheduler: Any, *args: Any, **kw: Any) -> bool | None:
        """A server with waiting threads is not idle."""
        return False if self.families else None

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
