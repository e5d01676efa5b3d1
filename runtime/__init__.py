"""Plans to traces: the engines that run documents."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# At once: a module of the function's name would else stand in its place.
from mvspec.runtime.engine.default_model import ModelError, default_model

if TYPE_CHECKING:
    from mvspec.events import (
        Event,
        Finished,
        Forked,
        HoleFilled,
        Joined,
        PathEnded,
        TakenBack,
        Written,
    )
    from mvspec.runtime.engine.torch_engine import TorchEngine
    from mvspec.runtime.interrupt import Interrupted
    from mvspec.runtime.options import Options
    from mvspec.runtime.program import load_program, run
    from mvspec.runtime.protocol import Engine
    from mvspec.runtime.sampling import Sampling
    from mvspec.runtime.serving.engine import SGLangEngine
    from mvspec.trace import Result, Trace

__all__ = [
    "Engine",
    "Event",
    "Finished",
    "Forked",
    "HoleFilled",
    "Interrupted",
    "Joined",
    "ModelError",
    "Options",
    "PathEnded",
    "Result",
    "SGLangEngine",
    "Sampling",
    "TakenBack",
    "TorchEngine",
    "Trace",
    "Written",
    "default_model",
    "load_program",
    "run",
]

_EVENTS = (
    "Event",
    "Finished",
    "Forked",
    "HoleFilled",
    "Joined",
    "PathEnded",
    "TakenBack",
    "Written",
)
_PLACES = {
    "Engine": "mvspec.runtime.protocol",
    "Interrupted": "mvspec.runtime.interrupt",
    "Options": "mvspec.runtime.options",
    "Result": "mvspec.trace",
    "SGLangEngine": "mvspec.runtime.serving.engine",
    "Sampling": "mvspec.runtime.sampling",
    "TorchEngine": "mvspec.runtime.engine.torch_engine",
    "Trace": "mvspec.trace",
    "load_program": "mvspec.runtime.program",
    "run": "mvspec.runtime.program",
    **dict.fromkeys(_EVENTS, "mvspec.events"),
}


def __getattr__(name: str) -> Any:
    # An evaluation's graders work in processes of their own, which need no torch; and the client
    # needs httpx, which the other engine does not.
    if name not in _PLACES:
        raise AttributeError(f"module 'mvspec.runtime' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
