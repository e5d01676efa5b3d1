"""Processes of a run: one that people see and may kill, and a child that finishes paid requests.

A request that is on its way when its process dies is generated and billed all the same, and its
answer lost. So the command forks: the child works, and when the parent has gone it sends nothing
more, waits for the answers that are on their way, stores them and ends. The next run waits for it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from mvspec.data.records import InputError
from mvspec.data.resume import exclusive

PATIENCE = 5.0
"""Seconds in which the child of a killed run has noticed."""

ORPHANED = "the command was killed"

_DRAINING = ".draining"


def outlived(work: Callable[[int | None], int]) -> int:
    """Run `work` in a child that is not killed with this process; return its exit status.

    Args:
        work: gets a file descriptor that ends when this process has gone; None where there is
            no child, as on Windows.
    """
    if not hasattr(os, "fork"):
        return work(None)
    gone, held = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Ctrl-C in this moment waits until somebody handles it.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    child = os.fork()
    if child == 0:
        os.close(held)
        os.setsid()  # Ctrl-C and a kill of the process group are the parent's
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        return work(gone)
    os.close(gone)

    def forward(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGINT if number == signal.SIGHUP else number)

    before = {
        number: signal.signal(number, forward)
        for number in signals
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup leaves it
    }
    signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    try:
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(held)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        name = signal.Signals(-code).name
        print(f"mvspec: the worker ended by {name}: run the same command again", file=sys.stderr)
        return 128 - code
    return code


@contextmanager
def watched(gone: int | None, stop: Callable[[str], object], folder: Path) -> Iterator[None]:
    """Call `stop` when the parent has gone, and on the first Ctrl-C; the second ends at once.

    Args:
        gone: what `outlived` gives.
        stop: takes the reason.
        folder: of the run; the next one reads there that this one is only finishing.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    interrupts = 0

    def interrupted() -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts == 1:
            stop("interrupted")
        elif task is not None:
            task.cancel()

    def orphaned() -> None:
        if gone is not None:
            loop.remove_reader(gone)
        (folder / _DRAINING).touch()
        # Nobody reads any more; a pipe that stays open would keep its reader waiting.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        stop(ORPHANED)

    signals = (signal.SIGINT, signal.SIGTERM)
    if sys.platform != "win32":
        for number in signals:
            loop.add_signal_handler(number, interrupted)
        if gone is not None:
            loop.add_reader(gone, orphaned)
    try:
        yield
    finally:
        if sys.platform != "win32":
            for number in signals:
                loop.remove_signal_handler(number)
            if gone is not None:
                loop.remove_reader(gone)


@contextmanager
def locked(folder: Path, tell: Callable[[str], object]) -> Iterator[None]:
    """Hold a folder; what is left of a run that was killed is waited for.

    Args:
        tell: takes a line for people.

    Raises:
        InputError: another run is at work there.
    """
    start = time.monotonic()
    told = False
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(exclusive(folder))
                break
            except InputError:
                if (folder / _DRAINING).exists():
                    if not told:
                        tell("waiting for the last answers of a run that was killed")
                    told = True
                elif time.monotonic() - start > PATIENCE:
                    raise
                time.sleep(0.02)
        (folder / _DRAINING).unlink(missing_ok=True)
        yield
