"""A function over a stream in several processes: same results, same order, bounded memory."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ordered_map(
    function: Callable[[A], B],
    items: Iterable[A],
    workers: int = 1,
    *,
    size: Callable[[A], int] = lambda item: 1,
    batch: int = 500_000,
) -> Iterator[B]:
    """Yield `function(item)` for every item, in order.

    Args:
        function: picklable where there are several workers.
        workers: processes; 1 works in this one.
        size: the cost of an item, in the unit of `batch`.
        batch: items are sent together until they cost this much.

    >>> list(ordered_map(abs, [-1, 2]))
    [1, 2]
    """
    if workers == 1:
        yield from map(function, items)
        return
    # A fresh interpreter on every system: a forked one could inherit a lock held by the
    # progress bar's thread.
    modules: dict[str, object] = dict(sys.modules)
    settled = partial(settle, *(name for name, module in modules.items() if module is None))
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=settled)
    others = set(active_children())
    pending: deque[Future[list[B]]] = deque()
    try:
        for group in _batches(items, size, batch):
            with _interrupts_held():
                pending.append(pool.submit(_each, function, group))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BaseException:
        # An interrupt, or a reader that has gone: nobody waits for what is under way.
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    # A worker is born in `submit` with the mask of this thread, so that Ctrl-C cannot meet it
    # among its imports, before `settle`; here it is held back for a moment. Windows has no mask.
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def settle(*absent: str) -> None:
    """Make a process that was just spawned a worker: it ends with its parent, and only then.

    Ctrl-C reaches every process of the terminal; the first one alone ends the others.

    Args:
        absent: modules that the parent does without, and the worker too.
    """
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Threads of every worker's tokenizer would be as many times too many for the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()  # one that is killed does not say so
    os._exit(1)


def _each(function: Callable[[A], B], items: Sequence[A]) -> list[B]:
    return [function(item) for item in items]


def _batches(items: Iterable[A], size: Callable[[A], int], limit: int) -> Iterator[list[A]]:
    group: list[A] = []
    cost = 0
    for item in items:
        group.append(item)
        cost += size(item) + 1
        if cost >= limit:
            yield group
            group, cost = [], 0
    if group:
        yield group
