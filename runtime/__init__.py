"""Plans to traces: the engines that run documents."""

from mvspec.runtime.default_model import ModelError, default_model
from mvspec.runtime.engine import TorchEngine
from mvspec.runtime.hole import Sampling
from mvspec.runtime.program import load_document, run, run_program
from mvspec.runtime.trace import Result, TokenRecord

__all__ = [
    "ModelError",
    "Result",
    "Sampling",
    "TokenRecord",
    "TorchEngine",
    "default_model",
    "load_document",
    "run",
    "run_program",
]
