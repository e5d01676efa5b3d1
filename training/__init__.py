"""Layouts to weights, with Lightning."""

from mvspec.training.batch import Batch, Row
from mvspec.training.data import LayoutData
from mvspec.training.faults import CheckpointError, NotFinite
from mvspec.training.module import LanguageModel
from mvspec.training.optimizer import Optimizer
from mvspec.training.schedule import Stage
from mvspec.training.weights import Lora, save_model

__all__ = [
    "Batch",
    "CheckpointError",
    "LanguageModel",
    "LayoutData",
    "Lora",
    "NotFinite",
    "Optimizer",
    "Row",
    "Stage",
    "save_model",
]
