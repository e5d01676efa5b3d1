"""Layouts to weights, with Lightning."""

from mvspec.training.batch import Batch, Row
from mvspec.training.checkpoint import Checkpoints
from mvspec.training.data import LayoutData
from mvspec.training.faults import CheckpointError, NotFinite
from mvspec.training.folder import export
from mvspec.training.generations import Generations
from mvspec.training.logs import MetricsLogger
from mvspec.training.module import LanguageModel
from mvspec.training.optimizer import Optimizer
from mvspec.training.schedule import Stage
from mvspec.training.throughput import Throughput
from mvspec.training.weights import Lora, save_model

__all__ = [
    "Batch",
    "CheckpointError",
    "Checkpoints",
    "Generations",
    "LanguageModel",
    "LayoutData",
    "Lora",
    "MetricsLogger",
    "NotFinite",
    "Optimizer",
    "Row",
    "Stage",
    "Throughput",
    "export",
    "save_model",
]
