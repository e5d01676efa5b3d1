"""Events and results as JSON, between the plugin and our own client."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from operator import attrgetter
from typing import Any

from mvspec.compiler.plan import ExecutionPlan
from mvspec.errors import Diagnostic, MvspecError, VerifyError
from mvspec.events import (
    Event,
    Forked,
    HoleFilled,
    Joined,
    PathEnded,
    TakenBack,
    Written,
)
from mvspec.runtime.constraint import value_of
from mvspec.trace import Result, Trace

__all__ = ["decode_event", "decode_result", "encode_event", "encode_result"]

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Written, TakenBack, Forked, PathEnded, Joined, HoleFilled)
}

# JSON as they are: pydantic's dump would copy every number.
_COLUMNS = {
    "ids", "token_texts", "thread_ids", "position_ids", "authors", "logprobs", "forward_ids",
    "forward_seconds", "forward_tokens",
}  # fmt: skip


# `asdict` would copy every value, and take ten times as long.
_FIELDS = {
    kind: (names := [field.name for field in fields(kind)], attrgetter(*names))
    for kind in _KINDS.values()
}


def encode_event(event: Event) -> dict[str, Any]:
    """Return an event as JSON, with its kind.

    >>> encode_event(PathEnded("0", 2, 7))
    {'kind': 'PathEnded', 'request': '0', 'thread': 2, 'forward': 7}
    """
    names, values = _FIELDS[type(event)]
    return {"kind": type(event).__name__, **dict(zip(names, values(event), strict=True))}


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
    event: Event = _KINDS[told["kind"]](**fields)
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
            values[hole.name] = value_of(hole, texts[hole.name], hole.type)
        except VerifyError as error:
            errors[hole.name] = str(error).removeprefix(f"{error.address}: ")
    return values, errors
