"""The structural law: threads fork, run and join.

It knows no tag, no text and no tokenizer, but three events: so many tokens of a thread, a fork of
a thread into so many paths, and the end of a path, which joins its block when it is the last to
end. From them come positions, parents, visibility, critical paths and costs, for whoever asks.
compiler/layout.py spreads the law's runs over tokens; the definition over all pairs of tokens is
tests/laws/definition.py.

The law (DESIGN: "The structural law"; paper, section 4.2):

1. A path owns the separator before its `<Path>` up to its `</Path>`; the join starts with the
   separator before `<Conclusion>`.
2. Every path starts at the position after its fork; the join starts after the longest path.
3. q sees k iff k does not come after q and no block has them in different paths.
4. A token is predicted by the previous token of its thread; a path's first by the fork's last,
   and the join's first by none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from mvspec.errors import VerifyError
from mvspec.law.metrics import Metrics

Chain = tuple[tuple[int, int], ...]
"""(block, path) of every path that a token stands in, outermost first."""


def sees(q: Chain, k: Chain) -> bool:
    """Whether a token with chain `q` may see an earlier token with chain `k`.

    >>> sees(((0, 1),), ((0, 0),)), sees((), ((0, 0),))
    (False, True)
    """
    for (q_block, q_path), (k_block, k_path) in zip(q, k, strict=False):
        if q_block != k_block:
            return True  # one block after the other: the earlier one has joined
        if q_path != k_path:
            return False
    return True


@dataclass(slots=True, eq=False)
class LawThread:
    """The root thread, or one path of a block.

    Args:
        position: position id of its next token.
        parent: the thread that forked it; None at the root.
        block: number of its block; -1 at the root.
        path: its place among its siblings, from 0.
        chain: what decides whom its tokens see, with `sees`.
        last: index of the token that predicts its next one; -1 where there is none.
        own: the assistant's tokens on the longest chain to its end.
        paths: of its open block, for which it waits; empty where it can take tokens.
        running: how many of them have not ended.
        ended: whether it was a path and has ended.
        start, stop: in surface order, its tokens with those of the blocks inside it; `stop` is
            -1 before its end.
        fork: index of the last token before its block; -1 for none.
        hidden: in surface order, (lo, hi) at each level: it sees none of the tokens [lo, hi);
            (0, 0) for a block's first path.
        rank: in surface order, its place among all threads; the root has 0.
    """

    position: int = 0
    parent: LawThread | None = None
    block: int = -1
    path: int = 0
    chain: Chain = ()
    last: int = -1
    own: int = 0
    paths: Sequence[LawThread] = ()
    running: int = 0
    ended: bool = False
    start: int = 0
    stop: int = -1
    fork: int = -1
    hidden: tuple[tuple[int, int], ...] = ()
    rank: int = 0


class StructuralLaw:
    """The law, thread by thread: each may take its events at any time (engines, costs of plans).

    Args:
        position: position id of the first token.

    Attributes:
        root: the thread that all others were forked from.
        count: tokens of all threads.
        own: the assistant's of them.

    >>> law = StructuralLaw()
    >>> law.tokens(law.root, 3)
    0
    >>> one, two = law.fork(law.root, 2)
    >>> law.tokens(two, 5), law.tokens(one, 2), law.tokens(one, 1)
    (3, 3, 5)
    >>> law.end(two)
    >>> law.end(one) is law.root, law.root.position
    (True, 8)
    >>> law.metrics.tokens, law.metrics.critical_path
    (11, 8)
    """

    def __init__(self, position: int = 0) -> None:
        self.root = LawThread(position)
        self.count = 0
        self.own = self._in_paths = self._blocks = self._paths = self._depth = 0
        self._imbalance = 0.0

    def tokens(self, thread: LawThread, count: int, own: int | None = None) -> int:
        """Take so many tokens of a thread; return the position id of the first.

        Args:
            count: below 0 to take back the thread's last ones, which stand side by side.
            own: how many of them are the assistant's; by default all.
        """
        position = thread.position
        thread.position = position + count
        self.count += count
        if count > 0:
            thread.last = self.count - 1
        elif count:
            thread.last += count
        if own is None:
            own = count
        thread.own += own
        self.own += own
        if thread.parent is not None:
            self._in_paths += own
        return position

    def fork(self, thread: LawThread, paths: int) -> Sequence[LawThread]:
        """Split a thread into so many paths, at least one; return them in order."""
        block, position, last, own = self._blocks, thread.position, thread.last, thread.own
        thread.paths = [
            LawThread(
                position, thread, block, path, (*thread.chain, (block, path)), last, own, fork=last
            )
            for path in range(paths)
        ]
        thread.running = paths
        self._blocks += 1
        self._paths += paths
        self._depth = max(self._depth, len(thread.chain) + 1)
        return thread.paths

    def end(self, thread: LawThread) -> LawThread | None:
        """End a path; return the thread that goes on where it was the last of its block."""
        thread.ended = True
        parent = thread.parent
        if parent is None:
            raise VerifyError("thread 0", "the root thread is no path: it cannot end as one")
        parent.running -= 1
        if parent.running:
            return None
        paths = parent.paths
        lengths = [path.own for path in paths]
        longest, whole = max(lengths) - parent.own, sum(lengths) - parent.own * len(paths)
        self._imbalance += longest * len(paths) / whole if whole else 1.0
        parent.position = max([path.position for path in paths])
        parent.own += longest
        parent.last = -1
        parent.paths = ()
        return parent

    @property
    def metrics(self) -> Metrics:
        """The counts of the assistant's tokens so far."""
        critical = 0
        threads = [self.root]
        for thread in threads:
            critical = max(critical, thread.own)
            threads += thread.paths
        return Metrics(
            self.own, critical, self._in_paths, self._blocks, self._paths, self._depth,
            self._imbalance,
        )  # fmt: skip


class LawRun(NamedTuple):
    """A stretch of tokens from a fork, a path's start or a join to the next, which may be empty.

    Args:
        start: index of its first token.
        position: position id of that one; the next ones rise by one.
        parent: index of the token that predicts it; -1 where there is none.
        thread: whose tokens they are.
    """

    start: int
    position: int
    parent: int
    thread: LawThread


class SurfaceLaw:
    """The law in the order of the surface form: all of path 1, then all of path 2, then the join.

    Attributes:
        here: the thread that the next token belongs to.
        runs: stretches of tokens, in order.
        threads: the root and the paths that have begun, in the order in which they began.

    >>> law = SurfaceLaw()
    >>> law.tokens(3), law.fork(2), law.tokens(2), law.end(), law.tokens(4), law.end()
    (0, None, 3, None, 3, None)
    >>> [(run.start, run.position, run.parent, run.thread.hidden) for run in law.runs]
    [(0, 0, -1, ()), (3, 3, 2, ((0, 0),)), (5, 3, 2, ((3, 5),)), (9, 7, -1, ())]
    """

    def __init__(self, position: int = 0) -> None:
        self.law = StructuralLaw(position)
        self.here = self.law.root
        self.threads = [self.here]
        self.runs = [LawRun(0, position, -1, self.here)]

    def tokens(self, count: int, own: int | None = None) -> int:
        """Take so many tokens, of which `own` are the assistant's; return the first's position."""
        return self.law.tokens(self.here, count, own)

    def fork(self, paths: int) -> None:
        """Split the thread at hand; its first path is next."""
        self._enter(self.law.fork(self.here, paths)[0], (*self.here.hidden, (0, 0)))

    def end(self) -> None:
        """End the path at hand; the next path, or the thread that forked them, is next."""
        path, count = self.here, self.law.count
        path.stop = count
        siblings = path.parent.paths if path.parent else ()
        joined = self.law.end(path)
        if joined is None:
            first = siblings[0].start
            interval = (first, count) if count > first else (0, 0)
            self._enter(siblings[path.path + 1], (*path.hidden[:-1], interval))
        else:
            self.here = joined
            self.runs.append(LawRun(count, joined.position, -1, joined))

    def _enter(self, path: LawThread, hidden: tuple[tuple[int, int], ...]) -> None:
        path.start = self.law.count
        path.rank = len(self.threads)
        path.hidden = hidden
        self.threads.append(path)
        self.runs.append(LawRun(path.start, path.position, path.last, path))
        self.here = path

    @property
    def count(self) -> int:
        """How many tokens it has taken."""
        return self.law.count

    @property
    def metrics(self) -> Metrics:
        """The counts of the assistant's tokens so far."""
        return self.law.metrics


class ListedThread(Protocol):
    """A thread as a trace or a view lists it: the thread that forked it, and its block.

    The root comes first and has no parent; paths of one block have one number and come in order.
    """

    @property
    def parent(self) -> int | None: ...
    @property
    def block(self) -> int: ...


class ThreadEvent(NamedTuple):
    """An event of a thread that a list numbers.

    Args:
        kind: "tokens" for the next of the stretches, "fork" or "end".
        thread: the thread's number in the list.
        paths: those that a fork makes, and those that join at the end of the last of them.
    """

    kind: Literal["tokens", "fork", "end"]
    thread: int
    paths: Sequence[int] = ()


def thread_events(threads: Sequence[ListedThread], owners: Iterable[int]) -> Iterator[ThreadEvent]:
    """Yield the forks, tokens and ends of listed threads, in the order of the surface form.

    Args:
        owners: the threads of stretches of tokens, in that order.

    Raises:
        VerifyError: the tokens are in another order.
    """
    blocks: dict[int, list[int]] = {}
    places: list[tuple[int, int]] = [(-1, 0)]  # of each thread: (block, which of its paths)
    for number, thread in enumerate(threads[1:], 1):
        siblings = blocks.setdefault(thread.block, [])
        places.append((thread.block, len(siblings)))
        siblings.append(number)
    above: dict[int, list[int]] = {0: [0]}
    for number, thread in enumerate(threads[1:], 1):
        above[number] = [*above[thread.parent or 0], number]
    forked: set[int] = set()
    stack = [0]

    def leave() -> ThreadEvent:
        here = stack.pop()
        block, index = places[here]
        if index + 1 == len(blocks[block]):
            return ThreadEvent("end", here, blocks[block])
        stack.append(blocks[block][index + 1])
        return ThreadEvent("end", here)

    for owner in owners:
        chain = above[owner]
        while stack[-1] != owner:
            here, level = stack[-1], len(stack) - 1
            if level < len(chain) and chain[level] == here:
                block = threads[chain[level + 1]].block
                if block in forked:
                    wrong = "its tokens do not stand in the order of the surface form"
                    raise VerifyError(f"thread {owner}", wrong)
                forked.add(block)
                yield ThreadEvent("fork", here, blocks[block])
                stack.append(blocks[block][0])
            else:
                yield leave()
        yield ThreadEvent("tokens", owner)
    while len(stack) > 1:
        yield leave()


def law_of_threads(
    threads: Sequence[ListedThread], runs: Iterable[tuple[int, int, bool]]
) -> tuple[SurfaceLaw, dict[int, LawThread]]:
    """Return the law of listed threads, and of each that has begun what the law knows of it.

    Args:
        runs: (thread, how many tokens, whether they are the assistant's), in surface order.

    Raises:
        VerifyError: they are in another order.
    """
    law = SurfaceLaw()
    known = {0: law.here}
    stretches = list(runs)
    following = iter(stretches)
    for event in thread_events(threads, [thread for thread, _, _ in stretches]):
        known.setdefault(event.thread, law.here)
        if event.kind == "tokens":
            _, count, own = next(following)
            law.tokens(count, count if own else 0)
        elif event.kind == "fork":
            law.fork(len(event.paths))
        else:
            law.end()
    return law, known
