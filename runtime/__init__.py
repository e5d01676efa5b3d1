"""Plans to traces: the engines that run documents."""

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
    "Sampling",
    "TakenBack",
    "TorchEngine",
    "Trace",
    "Written",
    "default_model",
    "load_program",
    "run",
]
