"""The structural law over a token sequence: its runs between forks, path starts and joins.

Time and memory grow with the tags, not with the tokens. compiler/layout.py spreads runs over
their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvspec.errors import VerifyError
from mvspec.law.tags import Tag

__all__ = ["Runs", "Span", "structural_runs"]


@dataclass(frozen=True)
class Runs:
    """Stretches of tokens between forks, path starts and joins.

    Args:
        starts: index of the first token of each run.
        positions: its position id.
        parents: its parent.
        hide: (lo, hi) at each depth, for all tokens of the run.
        paths: for all tokens of the run, the innermost path that they stand in; -1 for none.
        spans: all paths, in surface order.
    """

    starts: list[int]
    positions: list[int]
    parents: list[int]
    hide: list[tuple[tuple[int, int], ...]]
    paths: list[int]
    spans: list[Span]


@dataclass(slots=True)
class Span:
    """One path: tokens [start, end), `number` among its siblings of `block`, inside `outer`.

    `tag` is the index of its `<Path>`; `fork` that of the token before the first sibling.
    """

    block: int
    number: int
    outer: int
    fork: int
    start: int
    tag: int = -1
    end: int = -1


def structural_runs(
    tags: NDArray[np.int8], ends: NDArray[np.int64], order: Sequence[Tag] = tuple(Tag)
) -> Runs:
    """Cut a token sequence into runs by its structural tags.

    Args:
        tags: numbers of the tags in `order`, in the order of the surface form.
        ends: for each, the index of the token after it.

    Raises:
        VerifyError: the tags do not nest as the grammar has it; the address is the token index.
    """
    runs = Runs([0], [0], [-1], [()], [-1], [])
    stack: list[_Open] = []
    shift = blocks = 0  # shift: index minus position, in the run at hand

    def run(block: _Open, start: int, position: int, parent: int, path: int) -> None:
        siblings = ((block.first, start) if start > block.first else (0, 0),)
        runs.starts.append(start)
        runs.positions.append(position)
        runs.parents.append(parent)
        runs.hide.append(block.outside if path == block.outer else (*block.outside, *siblings))
        runs.paths.append(path)

    def open_path(block: _Open, start: int) -> None:
        runs.spans.append(Span(block.number, block.paths, block.outer, block.fork, start))
        run(block, start, block.position, block.fork, len(runs.spans) - 1)

    for number, end in zip(tags.tolist(), ends.tolist(), strict=True):
        tag = order[number]
        top = stack[-1] if stack else None
        state = top.state if top else _BODY
        following = _NEXT.get((state, tag))
        if following is None:
            raise VerifyError(f"token {end - 1}", f"{tag} may not come here ({_WHERE[state]})")
        if tag is Tag.PARALLEL:
            stack.append(_Open(blocks, runs.hide[-1], runs.paths[-1]))
            blocks += 1
        elif top is not None:
            top.state = following
            if tag is Tag.OUTLINE:
                top.outlines += 1
            elif tag is Tag.END_GOAL:
                if not top.outlines:
                    raise VerifyError(f"token {end - 1}", "</Goal> without an outline")
                top.first, top.position, top.fork = end, end - shift, end - 1
                open_path(top, end)
            elif tag is Tag.PATH:
                runs.spans[runs.paths[-1]].tag = end - 1
            elif tag is Tag.END_PATH:
                runs.spans[runs.paths[-1]].end = end
                top.paths += 1
                top.longest = max(top.longest, end - shift)
                if top.paths < top.outlines:
                    open_path(top, end)
                else:
                    top.state = _JOIN
                    run(top, end, top.longest, -1, top.outer)
                shift = end - runs.positions[-1]
            elif tag is Tag.END_PARALLEL:
                stack.pop()
    return runs


class _Open:
    """A block while its tags go by."""

    __slots__ = (
        "first", "fork", "longest", "number", "outer", "outlines", "outside", "paths",
        "position", "state",
    )  # fmt: skip

    def __init__(self, number: int, outside: tuple[tuple[int, int], ...], outer: int) -> None:
        self.number = number
        self.state = _OPENED
        self.outside = outside
        self.outer = outer
        self.outlines = self.paths = self.first = self.position = self.longest = 0
        self.fork = -1


_BODY, _OPENED, _GOAL, _OUTLINE, _BETWEEN, _PATH, _JOIN, _CONCLUSION, _DONE = range(9)
_WHERE = (
    "in text", "after <Parallel>", "in <Goal>", "in <Outline>", "between paths", "in <Path>",
    "after the last path", "in <Conclusion>", "after </Conclusion>",
)  # fmt: skip
_NEXT = {
    (_BODY, Tag.THINK): _BODY,
    (_BODY, Tag.END_THINK): _BODY,
    (_BODY, Tag.PARALLEL): _BODY,
    (_OPENED, Tag.GOAL): _GOAL,
    (_GOAL, Tag.OUTLINE): _OUTLINE,
    (_OUTLINE, Tag.END_OUTLINE): _GOAL,
    (_GOAL, Tag.END_GOAL): _BETWEEN,
    (_BETWEEN, Tag.PATH): _PATH,
    (_PATH, Tag.PARALLEL): _PATH,
    (_PATH, Tag.END_PATH): _BETWEEN,
    (_JOIN, Tag.CONCLUSION): _CONCLUSION,
    (_CONCLUSION, Tag.END_CONCLUSION): _DONE,
    (_DONE, Tag.END_PARALLEL): _BODY,
}
