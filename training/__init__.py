"""Layouts to weights, with Lightning."""

from mvspec.training.batch import Batch, BatchRow
from mvspec.training.checkpoint import Checkpoints, export
from mvspec.training.collator import Collator
from mvspec.training.data import LayoutData, MixtureStage
from mvspec.training.errors import CheckpointError, NotFinite
from mvspec.training.logs import Generations, MetricsLogger, Throughput
from mvspec.training.module import LanguageModel
from mvspec.training.optimizer import Optimizer
from mvspec.training.weights import LoraAdapters, save_model

__all__ = [
    "Batch",
    "BatchRow",
    "CheckpointError",
    "Checkpoints",
    "Collator",
    "Generations",
    "LanguageModel",
    "LayoutData",
    "LoraAdapters",
    "MetricsLogger",
    "MixtureStage",
    "NotFinite",
    "Optimizer",
    "Throughput",
    "export",
    "save_model",
]
