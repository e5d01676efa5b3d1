"""The protocol between our client and the plugin, beside SGLang's own fields of a request.

A `PlanPayload` travels as JSON text in `sampling_params.custom_params["mvspec"]`; the prompt
travels as SGLang's own `input_ids`. Events come back beside the tokens that they belong to, in
`meta_info["mvspec"]`, and the result as JSON text in `meta_info["finish_reason"]["mvspec"]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mvspec.compiler.plan import Adaptive, ExecutionPlan, Extend, Fork, Generate, Op
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import Diagnostic, LimitExceeded, MvspecError, Unsupported, VerifyError
from mvspec.events import Event, Forked, HoleFilled, Joined, PathEnded, TakenBack, Written
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.untagged import UNTAGGED
from mvspec.runtime.options import Options
from mvspec.runtime.protocol import Capabilities, check_ids
from mvspec.runtime.request import PlanRequest
from mvspec.runtime.result import result_of
from mvspec.runtime.serving.adapter import SchedulerAdapter
from mvspec.runtime.thread_state import ThreadState, ThreadToken
from mvspec.trace import Result, Trace
from mvspec.tree.ir import Document, Outline
from mvspec.tree.node import verify_error

KEY = "mvspec"
"""Of `custom_params`, and of what comes back."""

PROTOCOL = 2
"""The version of all this; client and server refuse another one's by name."""

_MOST_BYTES = 4 << 20
_MOST_PATHS = 4096
_LONGEST_LABEL = 200


class PlanPayload(BaseModel):
    """The plan and options of a request, as the client sends them.

    Args:
        ops: of its plan, behind the prompt; empty where the model decides from there on.
        form: the surface form of the assistant's turn.
        document: what was planned, for titles and for filling.
        options: as for the in-process engine.
        name: of the run; random streams depend on it.
        live: whether tokens are sent as they are written, each with what it is; without, they
            come in the order of the surface form.
        unasked: whether no client asked for it: the server lets its model fork by itself.
        version: of the protocol that the client speaks.

    Raises:
        Unsupported: the client speaks another version.

    >>> PlanPayload.from_json('{"ops": [], "live": true}').live
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ops: tuple[Op, ...] = ()
    form: str = "multiverse"
    document: Document | None = None
    options: Options = Options()
    name: str = Field(default="0", max_length=200)
    live: bool = False
    unasked: bool = False
    version: int = PROTOCOL

    @model_validator(mode="before")
    @classmethod
    def _check_version(cls, told: Any) -> Any:
        if isinstance(told, dict):
            found = told.get("version", 1 if "native" in told else PROTOCOL)  # 1 did not tell
            if found != PROTOCOL:
                raise Unsupported(
                    f"the client speaks version {found} of mvspec's protocol and the server "
                    f"{PROTOCOL}: install the same mvspec on both"
                )
        return told

    @classmethod
    def from_json(cls, text: Any) -> PlanPayload:
        """Read what a client sent.

        Raises:
            VerifyError: it is malformed; the address says where.
            LimitExceeded: it is too large.
        """
        if not isinstance(text, str):
            raise Unsupported(f"custom_params[{KEY!r}] is JSON text, not {type(text).__name__}")
        if len(text) > _MOST_BYTES:
            raise LimitExceeded(
                f"custom_params[{KEY!r}] has {len(text):,} characters; at most {_MOST_BYTES:,}"
            )
        try:
            payload = cls.model_validate_json(text)
        except ValidationError as error:
            raise verify_error(error) from None
        paths = sum(len(op.paths) for op in payload.ops if isinstance(op, Fork))
        if paths > _MOST_PATHS:
            raise LimitExceeded(f"the plan has {paths:,} paths; at most {_MOST_PATHS:,}")
        for outline in payload.document.walk(Outline) if payload.document else ():
            if len(outline.label) > _LONGEST_LABEL:
                raise LimitExceeded(
                    f"label {outline.label[:20]}… has {len(outline.label):,} characters; at most "
                    f"{_LONGEST_LABEL}"
                )
        return payload

    @classmethod
    def of(
        cls, plan: ExecutionPlan, options: Options, *, live: bool, name: str = "0"
    ) -> tuple[list[int], PlanPayload]:
        """Split a plan into the prompt that SGLang is given and what the plugin is."""
        ids: list[int] = []
        ops = list(plan.ops)
        while ops and isinstance(ops[0], Extend) and ops[0].author == "prompt":
            ids += ops.pop(0).tokens  # type: ignore[union-attr]
        if not ids:
            raise Unsupported("the plan begins without a prompt: begin the document with user(...)")
        return ids, cls(
            ops=tuple(ops), form=plan.form, document=plan.document,
            options=options, name=name, live=live,
        )  # fmt: skip

    def plan(self, prompt: Sequence[int], vocabulary: Vocabulary) -> ExecutionPlan:
        """Return the whole plan.

        Args:
            prompt: ids of what stands before its ops.
            vocabulary: of the server.

        Raises:
            VerifyError: its ops do not fit together.
            Unsupported: the vocabulary lacks an id of the prompt.
        """
        check_ids(prompt, vocabulary.size, "input_ids")
        first = Extend(thread=0, tokens=tuple(prompt), author="prompt")
        ops = self.ops or (Adaptive(thread=0),)
        return ExecutionPlan(ops=(first, *ops), form=self.form, document=self.document).verify()

    @staticmethod
    def bound(plan: ExecutionPlan, options: Options) -> int:
        """Return how many tokens a plan writes at most, its prompts left out."""
        most = options.limits.max_tokens or 0
        total = 0
        for op in plan.ops[1:]:
            if isinstance(op, Extend):
                total += len(op.tokens) if op.author != "prompt" else 0
            elif isinstance(op, Generate):
                total += op.hole.max_tokens + bool(op.lead)
            elif isinstance(op, Adaptive):
                asked = op.limits.max_tokens
                total += most if asked is None else min(most, asked)
        return total

    def options_within(self, most: int) -> Options:
        """Return the options, with no more tokens than the server has room for."""
        asked = self.options.limits.max_tokens
        limits = self.options.limits.model_copy(
            update={"max_tokens": most if asked is None else min(asked, most)}
        )
        return replace(self.options, limits=limits)


def served_capabilities(vocabulary: Vocabulary, model: str, context: int | None) -> Capabilities:
    """Return what an engine on SGLang can run; client and server check it both.

    Args:
        vocabulary: of the server's tokenizer.
        model: what the server calls it.
        context: how many positions it has; None where that is not known.
    """
    forms = {UNTAGGED.name} | ({MULTIVERSE.name} if vocabulary.tagged else set())
    options = frozenset({"structure", "decode"})
    return Capabilities(
        "SGLang", model, vocabulary.size, context, frozenset(forms), options=options, plain=True
    )


# What comes back

_EVENTS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Written, TakenBack, Forked, PathEnded, Joined, HoleFilled)
}

# JSON as they are: pydantic's dump would copy every number.
_COLUMNS = {
    "ids", "token_texts", "thread_ids", "position_ids", "authors", "logprobs", "forward_ids",
    "forward_seconds", "forward_tokens",
}  # fmt: skip


def encode_event(event: Event) -> dict[str, Any]:
    """Return an event as JSON, with its kind.

    >>> encode_event(PathEnded("0", 2, 7))
    {'kind': 'PathEnded', 'request': '0', 'thread': 2, 'forward': 7}
    """
    kind = type(event)
    # `asdict` would copy every value, and take ten times as long.
    return {"kind": kind.__name__} | {name: getattr(event, name) for name in kind.__match_args__}


def decode_event(told: Mapping[str, Any], plan: ExecutionPlan) -> Event:
    """Return the event that `encode_event` wrote.

    Args:
        plan: of the run; its holes know the Pydantic classes of their schemas.

    >>> plan = ExecutionPlan(ops=())
    >>> decode_event(encode_event(Joined("0", 0, (1, 2), 7)), plan)
    Joined(request='0', thread=0, paths=(1, 2), forward=7)
    """
    fields = {
        name: tuple(value) if isinstance(value, list) and name != "value" else value
        for name, value in told.items()
        if name != "kind"
    }
    event: Event = _EVENTS[told["kind"]](**fields)
    if isinstance(event, HoleFilled) and not event.cut:
        values, _ = _values(plan, {event.name: event.text}, {})
        return replace(event, value=values.get(event.name))
    return event


def encode_result(result: Result, events: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return a result as JSON text; its values are made again from the texts.

    As text, since it passes through two more processes of the server.

    Args:
        events: JSON of those that belong to no token.
    """
    trace = result.trace.model_dump(mode="json", exclude_none=True, exclude=_COLUMNS)
    told = {
        "version": PROTOCOL,
        "trace": trace | {name: getattr(result.trace, name) for name in _COLUMNS},
        "texts": dict(result.texts),
        "errors": dict(result.errors),
        "diagnostics": [asdict(each) for each in result.diagnostics],
        "top_logprobs": result.top_logprobs,
        "events": events,
    }
    from orjson import dumps  # SGLang has it

    try:
        return bytes(dumps(told)).decode()
    except TypeError:  # a hole's value is a number of more than 64 bits
        return json.dumps(told)


def decode_result(
    text: Any, plan: ExecutionPlan, model: str
) -> tuple[Result, list[Mapping[str, Any]]]:
    """Return the result and the events that `encode_result` wrote.

    Args:
        plan: as for `decode_event`.
        model: what the trace calls the engine's model.

    Raises:
        MvspecError: the server has another version of mvspec, whose trace cannot be read.
    """
    try:
        told = json.loads(text)
        if told["version"] != PROTOCOL:
            raise ValueError(f"it speaks version {told['version']} of the protocol")
        trace = Trace.model_validate({**told["trace"], "model": model})
        diagnostics = tuple(Diagnostic(**each) for each in told["diagnostics"])
        events: list[Mapping[str, Any]] = told["events"]
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise MvspecError(f"the server runs another version of mvspec: {reason}") from None
    texts = dict(told["texts"])
    values, errors = _values(plan, texts, told["errors"])
    result = Result(
        document=trace.document,
        values=values,
        texts=texts,
        trace=trace,
        diagnostics=diagnostics,
        top_logprobs=[tuple((id, lp) for id, lp in each) for each in told["top_logprobs"]],
        errors=errors,
    )
    return result, events


def _values(
    plan: ExecutionPlan, texts: Mapping[str, str], known: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what the holes' texts say, and why some say nothing."""
    values: dict[str, Any] = {}
    errors = dict(known)
    for hole in plan.holes:
        if hole.name not in texts or hole.name in errors:
            continue
        try:
            values[hole.name] = hole.read(texts[hole.name])
        except VerifyError as error:
            errors[hole.name] = str(error).removeprefix(f"{error.address}: ")
    return values, errors


class ClientResponse:
    """The response to one client's request: tokens in order, and how it ended.

    Args:
        adapter: of the scheduler that runs it.
        client_req: the client's request of SGLang's, which the response is written into.
        run: of its plan.
        payload: whether tokens come as they are written or in the order of the surface form.
        counters: the server's.

    Attributes:
        over: whether it was told how the request ended.
        client_logprobs: by the token's slot, what a plain client gets where that is not the model's
            own logprob: the one after temperature, as from any server of SGLang.
    """

    def __init__(
        self,
        adapter: SchedulerAdapter,
        client_req: Any,
        run: PlanRequest,
        payload: PlanPayload,
        counters: MutableMapping[str, int],
    ) -> None:
        self.adapter = adapter
        self.client_req = client_req
        self.run = run
        self.payload = payload
        self.over = False
        self.client_logprobs: dict[int, float] = {}
        self._stack: list[tuple[ThreadState, int]] = [(run.root, 0)]
        self._events: list[dict[str, Any]] = []
        self._sent = False
        self._counters = counters
        asked = client_req.sampling_params
        self._stops = tuple(filter(None, asked.stop_strs or ())) if payload.unasked else ()
        self._stop_ids = frozenset(asked.stop_token_ids or ()) if payload.unasked else frozenset()
        self._longest_stop = max((len(stop.encode()) for stop in self._stops), default=0)

    def begin(self) -> None:
        """Prepare the client's request for what is told of this one."""
        if not self.payload.unasked:  # empty or not, it says that this server knows of plans
            self.client_req.customized_info = {KEY: []}
        elif self.tempered:
            self.client_req.customized_info = {f"{KEY}_logprobs": []}
        if self.client_req.return_logprob:
            for name in ("token_logprobs", "top_logprobs", "token_ids_logprobs"):
                setattr(self.client_req.logprob, f"input_{name}_val", [])
                setattr(self.client_req.logprob, f"input_{name}_idx", [])

    @property
    def tempered(self) -> bool:
        """Whether a plain client gets logprobs after temperature, and the model's beside them."""
        asked = self.client_req.sampling_params
        plain = self.payload.unasked and self.client_req.return_logprob
        # The likeliest token is taken at no temperature, whatever the request says.
        return bool(plain and asked.temperature != 1.0 and asked.top_k != 1)

    def grow(self) -> bool:
        """Add what is new to the client's request; say whether there is something to send."""
        if self._sent:
            return False
        before = len(self.client_req.output_ids)
        events = self.run.events
        if events:
            self._counters["forks"] += sum(isinstance(event, Forked) for event in events)
            self._counters["joins"] += sum(isinstance(event, Joined) for event in events)
        if self.payload.live:
            self._tell_events()
        else:
            events.clear()
            stops = bool(self._stops or self._stop_ids)
            if self.client_req.stream or stops or self.run.finish:
                for tokens in self._settled():
                    self._add(tokens)
                    if stops and self._stop(len(tokens)):
                        break
        self._sent = self.over
        return self.over or len(self.client_req.output_ids) > before

    def _add(self, tokens: Sequence[ThreadToken | Written]) -> None:
        ids = [token.id for token in tokens]
        self.client_req.output_ids.extend(ids)
        if not self.client_req.return_logprob:
            return
        held = self.client_req.logprob
        # What was written by force is certain.
        values = [token.logprob or 0.0 for token in tokens]
        if self.tempered:
            self.client_req.customized_info[f"{KEY}_logprobs"] += values
            shown = self.client_logprobs
            values = [
                shown.pop(token.slot, value) if isinstance(token, ThreadToken) else value
                for token, value in zip(tokens, values, strict=True)
            ]
        held.output_token_logprobs_val += values
        held.output_token_logprobs_idx += ids
        if held.top_logprobs_num > 0:
            tops = [getattr(token, "top", ()) for token in tokens]
            held.output_top_logprobs_val += [[value for _, value in top] or [0.0] for top in tops]
            held.output_top_logprobs_idx += [
                [other for other, _ in top] or [id] for top, id in zip(tops, ids, strict=True)
            ]

    def _stop(self, new: int) -> bool:
        """End a plain client's answer where a stop first stands in it, in a block or not.

        Args:
            new: how many of its last tokens were not looked at yet.
        """
        ids, decode = self.client_req.output_ids, self.run.lexicon.vocabulary.decode
        first = max(len(ids) - new - self._longest_stop, 0)
        recent = decode(ids[first:]) if self._stops else ""
        if self._stop_ids.isdisjoint(ids[-new:] if new else ()) and not any(
            stop in recent for stop in self._stops
        ):
            return False
        matched: int | str | None = None
        end = len(ids) - new
        while matched is None and end < len(ids):
            end += 1
            text = decode(ids[first:end]) if self._stops else ""
            found = [stop for stop in self._stops if stop in text]
            if ids[end - 1] in self._stop_ids:
                matched = ids[end - 1]
            elif found:
                matched = min(found, key=text.find)
        self._keep(end)
        self.run.finish = "end"
        self.adapter.finish(self.client_req, "stop", matched=matched)
        self.over = True
        return True

    def _keep(self, count: int) -> None:
        """Take back what stands behind so many tokens of the answer."""
        held, info = self.client_req.logprob, self.client_req.customized_info or {}
        columns = [self.client_req.output_ids, *info.values()]
        if self.client_req.return_logprob:
            columns += [held.output_token_logprobs_val, held.output_token_logprobs_idx]
            if held.top_logprobs_num > 0:
                columns += [held.output_top_logprobs_val, held.output_top_logprobs_idx]
        for column in columns:
            del column[count:]

    def _settled(self) -> Iterator[list[ThreadToken]]:
        """Yield new tokens in surface order, as far as they cannot be taken back."""
        while True:
            state, at = self._stack[-1]
            over = state.ended or bool(self.run.finish)
            tokens, paths = state.stretch(at)
            if paths is None and not over:
                tokens = tokens[: max(len(tokens) - state.driver.revocable, 0)]
            at += len(tokens)
            self._stack[-1] = (state, at + (paths is not None))
            yield [token for token in tokens if token.author != "prompt"]
            if paths is not None:
                self._stack += [(path, 0) for path in reversed(paths)]
            elif over and len(self._stack) > 1:
                self._stack.pop()
            else:
                return

    def _tell_events(self) -> None:
        events = self.run.events
        while events:
            event = events.popleft()
            self._events.append(encode_event(event))
            if isinstance(event, Written):
                self._add([event])
                self.client_req.customized_info[KEY].append(self._events)
                self._events = []

    # The end

    def check(self) -> None:
        """Say how the run ended, once it has."""
        run = self.run
        if self.over or not run.finish:
            return
        if run.error is not None:
            self.abort(str(run.error))
            return
        self.grow()  # which may end it at a stop string
        if self._sent:
            return
        self._counters["forced"] += run.finish != "end"
        extra = None if self.payload.unasked else encode_result(result_of(run, ""), self._events)
        reason = "stop" if run.finish == "end" else "length"
        self.adapter.finish(self.client_req, reason, matched=self._matched(), extra=extra)
        self.over = True

    def _matched(self) -> int | str | None:
        """Return the token or the string that ended the turn, as far as SGLang may know it."""
        run, ids = self.run, self.client_req.output_ids
        if run.stopped:
            # SGLang would cut the text where the string first stands, which may be in a block.
            return run.stopped if run.stopped not in run.lexicon.vocabulary.decode(ids) else None
        return ids[-1] if ids and ids[-1] in run.lexicon.ends else None

    def abort(self, message: str, *, asked: bool = False) -> None:
        """Say that it did not come to an end.

        Args:
            asked: whether its client wanted that: then it gets what was done so far.
        """
        run = self.run
        extra = None
        if asked and not (run.finish or self.payload.unasked):
            extra = encode_result(result_of(run, ""))
        run.finish = run.finish or "interrupted"
        self.adapter.finish(self.client_req, "abort", matched=message, extra=extra)
        self.over = True
