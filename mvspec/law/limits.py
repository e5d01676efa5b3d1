"""Limits of a generation, as data."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

MAX_DEPTH = 32
"""Blocks nest at most this deep. Published engines stop at 5; JSON readers at 200 brackets."""


class Limits(BaseModel):
    """Bounds of a generation; an opening that cannot be closed in time is not allowed.

    Args:
        max_depth: blocks inside blocks (the published engine: 5).
        max_paths: paths of one block.
        max_position: every position id is below this, in tokens; the published engine's
            budget (8,000) is of this kind, since it bounds the critical path.
        max_tokens: tokens of all threads together.
        max_seconds: wall-clock time, which only a runtime can measure.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_depth: int = Field(default=MAX_DEPTH, ge=0, le=MAX_DEPTH)
    max_paths: int | None = Field(default=None, ge=1)
    max_position: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=0)
    max_seconds: float | None = Field(default=None, ge=0)
