"""Ctrl-C in the middle of a run: what was done is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mvspec.trace import Trace


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a run.

    Args:
        traces: what each document's request had done, in the order of the documents; `finish`
            is "interrupted" for those that had not ended. At least one.
    """

    def __init__(self, traces: Sequence[Trace]) -> None:
        super().__init__()
        self.traces = tuple(traces)

    @property
    def trace(self) -> Trace:
        """The trace of a single run; of several, the first that had not ended."""
        cut = (trace for trace in self.traces if trace.finish == "interrupted")
        return next(cut, self.traces[-1])


@contextmanager
def deferred() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block, so that what it changes is whole.

    Other threads than the main one get no signals, and where Python does not handle SIGINT
    there is nothing to wait for.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    caught: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if caught:
            signal.raise_signal(signal.SIGINT)
