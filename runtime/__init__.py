"""Plans to traces: the engines that run documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mvspec.runtime.default_model import ModelError, default_model
from mvspec.runtime.engine import Engine, TorchEngine
from mvspec.runtime.events import (
    Event,
    Finished,
    Forked,
    HoleFilled,
    Joined,
    PathEnded,
    TakenBack,
    Written,
)
from mvspec.runtime.interrupt import Interrupted
from mvspec.runtime.options import Options
from mvspec.runtime.program import load_program, run
from mvspec.runtime.result import Result
from mvspec.runtime.sampling import Sampling
from mvspec.runtime.trace import Trace

if TYPE_CHECKING:
    from mvspec.runtime.serving.engine import SGLangEngine

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


def __getattr__(name: str) -> Any:
    # The client needs httpx, which the other engine does not.
    if name == "SGLangEngine":
        from mvspec.runtime.serving.engine import SGLangEngine

        return SGLangEngine
    raise AttributeError(f"module 'mvspec.runtime' has no attribute {name!r}")
