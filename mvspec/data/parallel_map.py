"""A function over a stream in several processes: same results, same order, bounded memory."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
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
    mended: Callable[[A], A] | None = None,
) -> Iterator[B]:
    """Yield `function(item)` for every item, in order.

    A worker may die, of too little memory or of a fault in a library. What it was given is then
    worked on item by item, in a process of its own, and the one that ends this too is mended.

    Args:
        function: picklable where there are several workers.
        workers: processes; 1 works in this one.
        size: the cost of an item, in the unit of `batch`.
        batch: items are sent together until they cost this much.
        mended: returns an item that ends its process without what does so.

    >>> list(ordered_map(abs, [-1, 2]))
    [1, 2]
    """
    if workers == 1:
        yield from map(function, items)
        return
    # A fresh interpreter on every system: a forked one could inherit a lock held by the
    # progress bar's thread.
    pool = _pool(workers)
    others = set(active_children())
    pending: deque[tuple[list[A], Future[list[B]]]] = deque()

    def submit(group: list[A]) -> None:
        with _interrupts_held():
            try:
                future = pool.submit(_each, function, group)
            except BrokenProcessPool as error:
                future = Future()
                future.set_exception(error)
        pending.append((group, future))

    def oldest() -> list[B]:
        nonlocal pool
        group, future = pending.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            if mended is None:
                raise
        pool.shutdown(wait=False)
        pool = _pool(workers)
        rest, done = list(pending), singly(function, group, mended)
        pending.clear()
        for group, future in rest:
            if future.done() and future.exception() is None:
                pending.append((group, future))
            else:
                submit(group)
        return done

    try:
        for group in _batches(items, size, batch):
            submit(group)
            if len(pending) > 2 * workers:
                yield from oldest()
        while pending:
            yield from oldest()
    except BaseException:
        # An interrupt, or a reader that has gone: nobody waits for what is under way.
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    modules: dict[str, object] = dict(sys.modules)
    settled = partial(settle, *(name for name, module in modules.items() if module is None))
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=settled)


def singly(function: Callable[[A], B], items: Sequence[A], mended: Callable[[A], A]) -> list[B]:
    """Return `function(item)` of each item, one at a time in a process that may die of it.

    Args:
        mended: returns an item that ends its process without what does so.
    """
    done: list[B] = []
    while len(done) < len(items):
        with _pool(1) as pool:
            try:
                for item in items[len(done) :]:
                    with _interrupts_held():
                        future = pool.submit(function, item)
                    done.append(future.result())
            except BrokenProcessPool:
                done.append(function(mended(items[len(done)])))
    return done


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
