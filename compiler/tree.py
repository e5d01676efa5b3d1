"""The layout of an engine that re-reads the joined paths: a tree of sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mvspec.compiler.layout import Layout
from mvspec.compiler.tokens import Tokens

__all__ = ["tree"]


def tree(tokens: Tokens) -> Layout:
    """Lay out what a stock engine sees that re-reads all paths as plain text at the join.

    The surviving chain comes first: the whole text, plain causal. A path after the first was
    generated from the prefix alone, so it follows as a branch of its own off that prefix, and
    carries its loss there; its copy in the chain carries none. Parents follow the tree.

    Source: ThreadWeaver's prefix trie; here no token carries loss twice.
    """
    n = len(tokens.ids)
    # A path's home is the sequence that generates it: its own branch, or, for the first of its
    # siblings, the one that it continues.
    home_of = [0]
    home = np.zeros(n, dtype=np.int32)
    branches = [_Branch(0, n, 0, 0, 0, ())]
    for path in tokens.law.threads[1:]:
        end = n if path.stop < 0 else path.stop
        outer = home_of[path.parent.rank] if path.parent else 0
        if path.path == 0:
            home_of.append(outer)
            continue
        host = branches[outer]
        fork = host.place + path.fork + 1 - host.start
        place = branches[-1].place + branches[-1].end - branches[-1].start
        hidden = (*host.hidden, (fork, place))
        position = host.position + path.fork + 1 - host.start
        home_of.append(len(branches))
        home[path.start : end] = len(branches)
        branches.append(_Branch(path.start, end, place, fork, position, hidden))
    source = np.concatenate([np.arange(b.start, b.end, dtype=np.int32) for b in branches])
    index = np.arange(len(source), dtype=np.int32)
    parent = index - 1
    position_ids = np.empty_like(index)
    loss = np.zeros(len(source), dtype=np.bool_)
    hide = np.zeros((2, max(len(b.hidden) for b in branches), len(source)), dtype=np.int32)
    for number, b in enumerate(branches):
        rows = slice(b.place, b.place + b.end - b.start)
        position_ids[rows] = b.position + np.arange(b.end - b.start, dtype=np.int32)
        parent[b.place : b.place + 1] = b.fork - 1
        loss[rows] = tokens.free[b.start : b.end] & (home[b.start : b.end] == number)
        for level, interval in enumerate(b.hidden):
            hide[:, level, rows] = np.array(interval, dtype=np.int32)[:, None]
    loss &= parent >= 0
    zeros = np.zeros(len(source), dtype=np.int32)
    return Layout(tokens.ids[source], position_ids, parent, loss, zeros, hide[0], hide[1])


@dataclass(frozen=True)
class _Branch:
    """Tokens [start, end), laid out from `place` on; it sees what comes before `fork` of its
    host, and of itself; `hidden` says so."""

    start: int
    end: int
    place: int
    fork: int
    position: int
    hidden: tuple[tuple[int, int], ...]
