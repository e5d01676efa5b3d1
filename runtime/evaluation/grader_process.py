"""Graders in processes of their own: one that hangs or dies costs its answer and nothing else.

A limit of time that works by a signal needs a process's main thread, and what runs inside sympy
or a user's checker may not let itself be interrupted. So every answer is graded in a worker,
which is killed when it takes too long, and replaced.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from mvspec.data.parallel_map import settle


@dataclass(frozen=True, slots=True)
class GraderVerdict:
    """The verdict of a grader on an answer.

    Args:
        score: 1 for right, 0 for wrong, in between where a task has parts; None: not graded.
        extracted: what was taken for the answer.
        note: why it was not graded, or was not right.
        details: more that a task's grader found; JSON.
    """

    score: float | None
    extracted: str = ""
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


_START = 120.0
"""Seconds that a worker has to start: its imports do not count as grading."""


class _Worker:
    """One process that grades an answer at a time; it starts with the first."""

    def __init__(self) -> None:
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def grade(
        self, grader: str, payload: Mapping[str, Any], text: str, seconds: float
    ) -> GraderVerdict:
        try:
            pipe = self._started(grader)
            pipe.send((grader, dict(payload), text))
            if pipe.poll(seconds):
                found: GraderVerdict = pipe.recv()
                return found
        except (EOFError, OSError):
            process = self._process
            self.close()
            code = None if process is None else process.exitcode
            return GraderVerdict(None, note=f"the grader died (exit status {code})")
        self.close()
        return GraderVerdict(None, note=f"the grader took more than {seconds:g} s")

    def _started(self, grader: str) -> Connection:
        if self._pipe is None or self._process is None or not self._process.is_alive():
            context = get_context("spawn")
            self._pipe, other = context.Pipe()
            self._process = context.Process(target=_work, args=(other, grader), daemon=True)
            self._process.start()
            other.close()
            if not self._pipe.poll(_START):
                raise EOFError
            self._pipe.recv()
        return self._pipe

    def close(self) -> None:
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None  # first: two threads may close it at once
        if process is not None:
            process.terminate()  # it ends the programs that it runs, and waits for them
            process.join(1.0)
            process.kill()
            process.join()
        if pipe is not None:
            pipe.close()


def _work(pipe: Connection, first: str) -> None:
    settle()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with suppress(Exception):  # told with the first answer
        _load(first)  # its imports belong to the start
    pipe.send(None)
    while True:
        try:
            grader, payload, text = pipe.recv()
        except EOFError:
            return
        try:
            verdict = _load(grader)(payload, text)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error}".strip()
            verdict = GraderVerdict(
                None, note=f"the grader failed: {reason} ({where.name}, line {where.lineno})"
            )
        pipe.send(verdict)


def _load(grader: str) -> Any:
    module, _, name = grader.partition(":")
    return getattr(import_module(module), name)


class Graders:
    """Workers that grade answers; any thread may ask.

    Args:
        workers: processes.
        seconds: how long an answer may take.
    """

    def __init__(self, workers: int = 1, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._all = [_Worker() for _ in range(workers)]
        for worker in self._all:
            self._idle.put(worker)
        self._lock = threading.Lock()

    def grade(self, grader: str, payload: Mapping[str, Any], text: str) -> GraderVerdict:
        """Return a verdict on an answer; waits for a worker, and never raises on the answer.

        Args:
            grader: `module:function`, which takes payload and text and gives a `GraderVerdict`.
            payload: the problem's.
            text: what is graded.
        """
        worker = self._idle.get()
        try:
            return worker.grade(grader, payload, text, self.seconds)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            for worker in self._all:
                worker.close()


@contextmanager
def graders(workers: int, seconds: float) -> Iterator[Graders]:
    """Give graders that end with the block."""
    made = Graders(workers, seconds)
    try:
        yield made
    finally:
        made.close()
