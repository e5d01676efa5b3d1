"""Errors that end a training run before its time."""

from __future__ import annotations

from collections.abc import Sequence

from mvspec.errors import MvspecError

_SHOWN = 8


class NotFinite(MvspecError):
    """A step whose loss or gradient is no number; the weights are those before it.

    Args:
        step: number of the optimizer's step that was not taken.
        what: "loss" or "gradient".
        names: of the documents that the step read.
    """

    def __init__(self, step: int, what: str, names: Sequence[str]) -> None:
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        super().__init__(
            f"step {step}: the {what} is not finite, the step was not taken; it read {len(names)} "
            f"documents: {shown}. Look at them, lower the learning rate, or train in float32"
        )
        self.step = step
        self.names = tuple(names)


class CheckpointError(MvspecError):
    """A checkpoint could not be written or read; those before it are untouched."""

    @classmethod
    def unread(cls, path: object, error: BaseException) -> CheckpointError:
        """Return what to say of one whose reading raised an error of torch's or pickle's."""
        # What torch says first is about security; the fault is what it found before.
        cause = error.__context__ or error
        reason = str(cause).strip().partition("\n")[0].rstrip(".")
        return cls(
            f"{path}: not a checkpoint, or a damaged one ({reason}): remove it, and the same "
            "command takes the one before it"
        )
