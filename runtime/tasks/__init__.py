"""The tasks by name."""

from __future__ import annotations

from typing import Any

from mvspec.runtime.tasks import arithmetic, countdown
from mvspec.runtime.tasks.problem import TaskDifficulty

__all__ = ["TASKS"]

TASKS: dict[str, TaskDifficulty[Any]] = {"arithmetic": arithmetic.TINY, "countdown": countdown.TINY}
"""Of each task a difficulty that a model of a million weights learns in minutes on a CPU."""
