"""The timeline of a run in a terminal: a row for each thread, over the forwards of the model."""

from __future__ import annotations

import textwrap
from itertools import groupby

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from mvspec.trace import Trace
from mvspec.view.gantt import LOOKS, Grid, captions, cells_of, clock, fitted, shown, ticks

__all__ = ["timeline_text"]

ROWS = 40
"""Threads that are shown; the outermost come first."""


def timeline_text(trace: Trace, width: int = 80) -> Text:
    """Return the timeline for a terminal, readable without colour.

    Args:
        width: columns, at least 24; where there are more forwards, one stands for several.

    >>> from mvspec.trace import TracedThread
    >>> trace = Trace(
    ...     threads=(TracedThread(id=0), TracedThread(id=1, label="1", parent=0, block=0)),
    ...     ids=(0,) * 8, token_texts=("a",) * 8, thread_ids=(0, 0, 1, 1, 1, 1, 0, 0),
    ...     position_ids=tuple(range(8)), authors=("prompt", *["model"] * 7),
    ...     logprobs=(None,) * 8, forward_ids=tuple(range(-1, 7)), forward_tokens=(1,) * 7,
    ...     forward_seconds=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1))
    >>> print(timeline_text(trace, 60).plain)
    root     ░█████├──────────────────────┤████████████
      1            ████████████████████████
    forwards 0           2           4           6
    seconds  0.00        0.60        0.80        1.00
    █ model  ░ prompt  ├─┤ waits for paths
    7 tokens (0 forced) on a critical path of 7: parallelism
    1.00; 7 forwards in 1.1 s, 6 tokens/s
    """
    width = max(width, 24)
    rows, note = shown(trace, ROWS)
    indents = [min(2 * row.depth, width // 6) for row in rows]
    names = [
        " " * indent + row.name(width // 3 - indent)
        for row, indent in zip(rows, indents, strict=True)
    ]
    left = max(map(cell_len, ["forwards", *names]))
    grid = Grid.of(len(trace.forward_seconds), width - left - 1)
    out = Text(no_wrap=True, overflow="crop")
    kinds: set[str] = set()
    for row, name in zip(rows, names, strict=True):
        out.append(set_cell_size(name, left + 1), "" if row.depth else "bold")
        for kind, run in groupby(cells_of(row, grid)):
            out.append(LOOKS[kind].glyph * len(list(run)), LOOKS[kind].style)
            kinds.add("wait" if kind == "fork" else kind)
        out.rstrip()
        out.append("\n")
    if note:
        out.append(fitted(note, width) + "\n", "dim")
    for unit in ("forwards", "seconds"):
        line = unit.ljust(left)
        for tick in ticks(len(trace.forward_seconds), max(2, grid.columns // 8)):
            label = str(tick) if unit == "forwards" else clock(trace, tick)
            at = min(left + 1 + tick * grid.columns // grid.forwards, width - len(label))
            if at > len(line):
                line = line.ljust(at) + label
        out.append(line + "\n", "dim")
    used = 0
    for kind, look in LOOKS.items():
        if look.meaning and kind in kinds:
            entry = f"{'├─┤' if kind == 'wait' else look.glyph} {look.meaning}"
            gap = "" if not used else "  " if used + 2 + len(entry) <= width else "\n"
            used = len(entry) + (used + 2 if gap == "  " else 0)
            out.append(gap).append(entry, look.style)
    return out.append("\n" * bool(used) + textwrap.fill("; ".join(captions(trace)), width))
