"""The client's side of one request at a server of SGLang: what was sent, and what came back."""

from __future__ import annotations

import queue
import uuid
from collections import deque
from typing import Any

from mvspec.compiler.plan import ExecutionPlan
from mvspec.errors import LimitExceeded, MvspecError, Unsupported, VerifyError
from mvspec.events import Event
from mvspec.runtime.options import Options
from mvspec.runtime.serving.delta_stream import DELTAS
from mvspec.runtime.serving.protocol import (
    KEY,
    PlanPayload,
    decode_event,
    decode_result,
)
from mvspec.trace import Result, Trace

_SELDOM = 64
"""Tokens from message to message where only the last is wanted: the others say that it goes on."""


class ClientRequest:
    """A run of a plan at a server.

    Args:
        name: of the run; random streams depend on it.
        plan: verified.
        options: how it is run.
        server: what errors call the server.
        model: what the trace calls the server's model.
        live: whether its events come as they happen, which costs client and server a message for
            each token; else those of the end alone do.

    Attributes:
        events: what has come and was not taken yet.
        finish: how it ended, as in `Trace.finish`; "" while it goes on.
        error: why it ended before its end.
        dropped: whether nobody waits for it any more.

    Raises:
        Unsupported: the plan begins without a prompt.
    """

    def __init__(
        self,
        name: str,
        plan: ExecutionPlan,
        options: Options,
        server: str,
        model: str,
        *,
        live: bool = True,
    ) -> None:
        self.name = name
        self.plan = plan
        self.rid = f"mvspec-{uuid.uuid4().hex}"
        self.events: deque[Event] = deque()
        self.finish = ""
        self.error: MvspecError | None = None
        self.dropped = False
        self._server = server
        self._model = model
        self._result: Result | None = None
        self._seen = 0
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        ids, payload = PlanPayload.of(plan, options, live=live, name=name)
        sampling = options.sampling
        self.body: dict[str, Any] = {
            "rid": self.rid,
            "input_ids": ids,
            "stream": True,
            "return_logprob": True,
            "top_logprobs_num": sampling.logprobs,
            "sampling_params": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k or -1,
                "min_p": sampling.min_p,
                "max_new_tokens": None,
                # A stream in any case, since only a stream says what kind of error ended it.
                "stream_interval": 1 if live else _SELDOM,
                "custom_params": {KEY: payload.model_dump_json(), DELTAS: True},
            },
        }

    def put(self, found: dict[str, Any] | BaseException | None) -> None:
        """Hand over a chunk of the answer, what went wrong, or None for the end of all chunks."""
        self._inbox.put(found)

    def receive(self, timeout: float | None = None) -> None:
        """Wait for what `put` hands over, and take it.

        Raises:
            queue.Empty: nothing came within `timeout` seconds.
        """
        found = self._inbox.get(timeout=timeout)
        if isinstance(found, dict):
            self.take(found)
        else:
            self.fail(found)

    def take(self, chunk: dict[str, Any]) -> None:
        """Take a chunk of the answer."""
        try:
            self._take(chunk)
        except MvspecError as error:
            self.fail(error)

    def _take(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            message = chunk["error"].get("message", chunk["error"])
            raise MvspecError(f"{self._server} refuses the request: {message}")
        meta = chunk["meta_info"]
        finish = meta.get("finish_reason") or {}
        told = finish.get(KEY)
        aborted = finish.get("type") == "abort"
        if KEY not in meta and told is None and not aborted:
            raise Unsupported(
                f"{self._server} has not heard of plans: its SGLang runs without mvspec's "
                "plugin; start it with `mvspec serve MODEL`, where mvspec is installed"
            )
        # All tokens so far, or the new ones: that is up to the server's flags.
        total = meta.get("completion_tokens", self._seen)
        new = meta.get(KEY) or []
        for events in new[max(len(new) - (total - self._seen), 0) :]:
            self._tell(events or ())
        self._seen = max(total, self._seen)
        if told is not None:
            self._result, events = decode_result(told, self.plan, self._model)
            self._tell(events)
        if aborted and not self.dropped:
            message = f"{self._server}: {finish.get('message')}"
            kind = finish.get("err_type")
            if kind == "VerifyError":
                raise VerifyError("", message)
            known = {"LimitExceeded": LimitExceeded, "Unsupported": Unsupported}
            raise known.get(str(kind), MvspecError)(message)
        if aborted:
            self.finish = "interrupted"
        elif self._result is not None:
            self.finish = self._result.trace.finish

    def _tell(self, events: Any) -> None:
        self.events += [decode_event(each, self.plan) for each in events]

    def fail(self, error: BaseException | None = None) -> None:
        """Take what went wrong on the way: an error, or that nothing more comes."""
        if self.finish:
            return
        if error is None:
            error = MvspecError(f"{self._server} broke off its answer: look at the server's log")
        elif not isinstance(error, MvspecError):
            error = MvspecError(f"{self._server}: {type(error).__name__}: {error}")
        self.finish, self.error = "interrupted", error

    @property
    def result(self) -> Result:
        """What was done; nothing, where the server has told nothing."""
        if self._result is not None:
            return self._result
        trace = Trace(model=self._model, form=self.plan.form, finish="interrupted")
        return Result(document=None, values={}, texts={}, trace=trace)
