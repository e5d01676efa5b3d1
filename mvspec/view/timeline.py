"""The timeline of a run: what each thread did, over the forwards of the model.

A token of the model covers the forward that it came out of. Forced tokens come out of none: they
are a mark where they were written, at the end of a forward. A thread that is there and writes
nothing is idle: the model reads what was forced, it is not the thread's turn, or it has ended and
its siblings have not.

The rows are what every drawing of it reads: `timeline_text` for a terminal, `timeline_svg` and
`write_timeline` for pictures.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from mvspec.disk import naming
from mvspec.shown import visible
from mvspec.trace import Trace, TracedThread
from mvspec.view.drawing import (
    COLOURS,
    Drawing,
    DrawnBox,
    DrawnLine,
    DrawnShape,
    DrawnText,
    check_picture,
)
from mvspec.view.record_view import FINISHES
from mvspec.view.terminal import one_line

FINEST = 6
"""Columns of one forward, at most."""

EXCERPT = 160
"""Characters of a thread's text that the pointer shows."""


class TimelineLook(NamedTuple):
    """The looks of a cell in a terminal, and what it means; see `COLOURS` for pictures."""

    glyph: str
    style: str
    meaning: str


LOOKS = {
    "model": TimelineLook("█", "blue", "model"),
    "engine": TimelineLook("▒", "yellow", "forced"),
    "both": TimelineLook("▓", "cyan", "model and forced"),
    "prompt": TimelineLook("░", "", "prompt"),
    "wait": TimelineLook("─", "dim", "waits for paths"),
    "fork": TimelineLook("├", "dim", ""),
    "join": TimelineLook("┤", "dim", ""),
    "idle": TimelineLook("·", "dim", "writes nothing"),
    "": TimelineLook(" ", "", ""),
}


@dataclass(slots=True)
class TimelineBar:
    """A stretch of one thread's work, from one boundary of forwards to another.

    Args:
        kind: an author, "wait" (for paths), or "open" (for paths that never joined).
        start, stop: boundary b is the beginning of forward b; equal for a mark.
        first, last: its tokens are first up to last, which is not one of them.
    """

    kind: str
    start: int
    stop: int
    first: int = 0
    last: int = 0


@dataclass(slots=True)
class TimelineRow:
    """All that a thread did; `block` is the bar of its parent that waits for it."""

    thread: TracedThread
    depth: int
    block: TimelineBar | None = None
    bars: list[TimelineBar] = field(default_factory=list)

    def name(self, cells: int = 1_000) -> str:
        """Return label and title in at most so many columns of a terminal."""
        label = one_line(self.thread.label)
        if len(label) > max(9, cells // 2):  # the end of a label tells it from its siblings'
            label = "…" + label[-max(8, cells // 2 - 1) :]
        return fitted(f"{label} {one_line(self.thread.title)}".strip(), cells) or (
            "path" if self.depth else "root"
        )

    @property
    def start(self) -> int:
        return self.bars[0].start if self.bars else self.block.start if self.block else 0

    @property
    def stop(self) -> int:
        return self.bars[-1].stop if self.bars else self.start


def fitted(text: str, cells: int) -> str:
    """Return `text` in at most so many columns of a terminal, with … where it is cut."""
    return text if cell_len(text) <= cells else set_cell_size(text, cells - 1) + "…"


def timeline_rows(trace: Trace) -> list[TimelineRow]:
    """Return a row for each thread, paths below their parent."""
    rows: list[TimelineRow] = []
    for thread in trace.threads:
        rows.append(
            TimelineRow(thread, 0 if thread.parent is None else rows[thread.parent].depth + 1)
        )
    blocks: dict[int, TimelineBar] = {}
    columns = zip(
        trace.thread_ids, trace.authors, trace.forward_ids, range(len(trace)), strict=True
    )
    for owner, run in groupby(columns, key=lambda token: token[0]):
        for number, path in trace.chain(owner):
            if number not in blocks:
                above = rows[trace.threads[path].parent or 0]
                blocks[number] = TimelineBar("wait", above.stop, above.stop)
                above.bars.append(blocks[number])
            rows[path].block = blocks[number]
        bars = rows[owner].bars
        for _, author, step, token in run:
            start, stop = max(0, step + (author != "model")), step + 1
            bar = bars[-1] if bars else None
            if bar and bar.kind == "prompt" != author:
                bar.stop = start  # it was read until here
            if not bar or (bar.kind, bar.last) != (author, token) or start > bar.stop:
                bar = TimelineBar(author, start, stop, token)
                bars.append(bar)
            bar.stop, bar.last = max(bar.stop, stop), token + 1
        for number, _ in trace.chain(owner):
            blocks[number].stop = max(blocks[number].stop, bars[-1].stop)
    below: dict[int | None, list[TimelineRow]] = {}
    for row in rows:
        below.setdefault(row.thread.parent, []).append(row)
        if trace.finish == "interrupted" and row.bars and row.bars[-1].kind == "wait":
            row.bars[-1].kind = "open"

    ordered: list[TimelineRow] = []
    stack = [rows[0]] if rows else []
    while stack:
        ordered.append(stack.pop())
        stack += reversed(below.get(ordered[-1].thread.id, []))
    return ordered


def shown(trace: Trace, limit: int) -> tuple[list[TimelineRow], str]:
    """Return the rows that there is room for, outermost first, and what to say of the others."""
    rows = timeline_rows(trace)
    order = sorted(range(len(rows)), key=lambda index: rows[index].depth)
    left = [rows[index] for index in order[limit:]]
    tokens = sum(bar.last - bar.first for row in left for bar in row.bars)
    note = f"… {len(left):,} more thread{'s' * (len(left) > 1)} with {tokens:,} tokens"
    return [rows[index] for index in sorted(order[:limit])], note if left else ""


class ForwardGrid(NamedTuple):
    """Columns for forwards: some for each forward, or one for some."""

    forwards: int
    columns: int

    @classmethod
    def of(cls, forwards: int, room: int) -> ForwardGrid:
        forwards = max(1, forwards)
        return cls(forwards, min(FINEST, room // forwards) * forwards or room)

    @property
    def fine(self) -> bool:
        return self.columns >= 2 * self.forwards

    def first(self, boundary: int) -> int:
        """The column that begins at a boundary."""
        return min(boundary * self.columns // self.forwards, self.columns - 1)

    def last(self, boundary: int) -> int:
        """The column that ends at a boundary."""
        wide = max(1, self.columns // self.forwards)
        return min(max(0, boundary - 1) * self.columns // self.forwards + wide, self.columns) - 1


def cells_of(row: TimelineRow, grid: ForwardGrid) -> list[str]:
    """Return the kind of each column of a row; "" where there is nothing."""
    found: list[set[str]] = [set() for _ in range(grid.columns)]
    free = 0  # the first column after the last mark
    for index, bar in enumerate(row.bars):
        first, last = grid.first(bar.start), grid.last(bar.stop)
        if bar.start == bar.stop:
            if bar.kind in ("wait", "open"):
                continue
            # At a thread's end it stands before the join, like all that the thread did.
            ends = index and index + 1 == len(row.bars)
            last = first = last if ends else min(max(first, free), grid.last(bar.start + 1))
            free = first + 1
        for column in range(first, max(first, last) + 1):
            found[column].add(bar.kind)
    for start, stop in _gaps(row):
        for column in range(grid.first(start), grid.last(stop) + 1):
            found[column].add("idle")
    cells = [_kind(each, grid.fine) for each in found]
    for bar in row.bars:
        if bar.kind in ("wait", "open") and bar.start < bar.stop:
            span = range(grid.first(bar.start), grid.last(bar.stop) + 1)
            waits = [column for column in span if cells[column] == "wait"]
            if len(waits) > 1 and bar.kind == "wait":
                cells[waits[-1]] = "join"
            if waits:
                cells[waits[0]] = "fork"
    return cells


def _gaps(row: TimelineRow) -> Iterator[tuple[int, int]]:
    """Yield the boundaries between which a thread is there and writes nothing."""
    edges = [(bar.start, bar.stop) for bar in row.bars]
    if row.block is not None:
        edges.insert(0, (row.block.start, row.block.start))
        if row.block.kind == "wait":
            edges.append((row.block.stop, row.block.stop))
    for (_, start), (stop, _) in pairwise(edges):
        if start < stop:
            yield start, stop


def _kind(found: set[str], fine: bool) -> str:
    if "model" in found and not fine:
        return "both" if "engine" in found else "model"
    ranked = ("engine", "prompt", "model", "wait", "open", "idle")
    kind = next((kind for kind in ranked if kind in found), "")
    return "wait" if kind == "open" else kind


def ticks(forwards: int, most: int) -> list[int]:
    """Return the boundaries that an axis names, at most about so many."""
    steps = (base * 10**power for power in range(12) for base in (1, 2, 5))
    return list(range(0, forwards + 1, next(step for step in steps if forwards <= step * most)))


def clock(trace: Trace, boundary: int) -> str:
    """Return the seconds at a boundary, with more digits for a short run."""
    total = trace.forward_seconds[-1] if trace.forward_seconds else 0.0
    digits = 3 if total < 1 else 2 if total < 10 else 1 if total < 100 else 0
    return f"{trace.forward_seconds[boundary - 1] if boundary else 0.0:.{digits}f}"


def captions(trace: Trace) -> tuple[str, str]:
    """Return the totals of a run: its tokens, and its speed."""
    seconds = trace.seconds or (trace.forward_seconds[-1] if trace.forward_seconds else 0.0)
    speed = f"{len(trace.forward_seconds):,} forwards in {seconds:,.1f} s"
    if seconds:
        speed += f", {trace.answer / seconds:,.0f} tokens/s"
    parts = (speed, one_line(trace.model), FINISHES[trace.finish])
    return (
        f"{trace.answer:,} tokens ({trace.authors.count('engine'):,} forced) on a critical path "
        f"of {trace.critical_path:,}: degree of parallelism {trace.parallelism:.3f}",
        "; ".join(part for part in parts if part),
    )


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
    7 tokens (0 forced) on a critical path of 7: degree of
    parallelism 1.000; 7 forwards in 1.1 s, 6 tokens/s
    """
    width = max(width, 24)
    rows, note = shown(trace, ROWS)
    indents = [min(2 * row.depth, width // 6) for row in rows]
    names = [
        " " * indent + row.name(width // 3 - indent)
        for row, indent in zip(rows, indents, strict=True)
    ]
    left = max(map(cell_len, ["forwards", *names]))
    grid = ForwardGrid.of(len(trace.forward_seconds), width - left - 1)
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


DRAWN = 400
"""Threads of a picture; the outermost come first."""

WIDTH = 720
"""Pixels of all forwards of a drawing, at most."""

TALL = 20
"""Pixels of a row."""

TOP = 88
"""Pixels above the rows."""


def timeline_drawing(trace: Trace) -> Drawing:
    """Return the timeline as shapes, for SVG and PNG."""
    rows, note = shown(trace, DRAWN)
    grid = ForwardGrid.of(len(trace.forward_seconds), WIDTH // 2)
    names = [row.name(34) for row in rows]
    indents = [min(14 * row.depth, 112) for row in rows]
    # A guess of 7 pixels a letter; what is wider still is cut at the edge of its column.
    sizes = [7 * cell_len(name) + n for name, n in zip(names, indents, strict=True)]
    left = 32 + min(max([66, *sizes]), 290)
    unit = min(4.0, WIDTH / grid.columns)  # pixels of a column
    scale = unit * grid.columns / grid.forwards  # and of a forward
    bottom = TOP + TALL * len(rows)
    width = max(left + round(unit * grid.columns) + 34, 640)
    shapes: list[DrawnShape] = []
    kinds: set[str] = set()
    for tick in ticks(len(trace.forward_seconds), max(1, int(unit * grid.columns / 56))):
        x = left + tick * scale
        shapes.append(DrawnLine("grid", x, TOP, x, bottom + 4))
        for below, label in ((18, f"{tick:,}"), (34, clock(trace, tick))):
            shapes.append(DrawnText("dim", x, bottom + below, label, anchor="middle"))
    for index, (row, name, indent) in enumerate(zip(rows, names, indents, strict=True)):
        y, cells = TOP + TALL * index, cells_of(row, grid)
        kinds |= {kind for kind, _, _ in _runs(cells)}
        if index % 2:
            shapes.append(DrawnBox("band", 12, y, width - 24, TALL))
        room = left - 26 - indent
        shapes.append(DrawnText("text", 20 + indent, y + 14, name, room, bold=not row.depth))
        shapes += _bars(cells, grid, left, y, unit)
    for boundary, above, below in _links(rows):
        x, centre = left + boundary * scale, TOP + TALL // 2
        shapes.append(DrawnLine("wait", x, centre + TALL * above, x, centre + TALL * below, 1.5))
    for index, row in enumerate(rows):
        y = TOP + TALL * index
        shapes.append(DrawnBox("over", 12, y, width - 24, TALL, _summary(trace, row)))
    kinds |= {"model", "engine"} if "both" in kinds else set()
    at = 20
    for kind in (kind for kind in LOOKS if kind in kinds and kind in COLOURS):
        shapes += _bars([kind], ForwardGrid(1, 1), at, 57, 14)
        shapes.append(DrawnText("dim", at + 20, 71, LOOKS[kind].meaning))
        at += 44 + 6 * len(LOOKS[kind].meaning)
    first, second = (fitted(line, 96) for line in captions(trace))
    shapes.append(DrawnText("text", 20, 26, first, bold=True))
    for y, line in ((45, second), (bottom + 18, "forwards"), (bottom + 34, "seconds")):
        shapes.append(DrawnText("dim", 20, y, line))
    shapes += [DrawnText("dim", 20, bottom + 54, note)] * bool(note)
    return Drawing(width, bottom + (68 if note else 48), shapes, captions(trace)[0])


def _runs(cells: list[str]) -> Iterator[tuple[str, int, int]]:
    """Yield what a row shows, as (kind, first column, the one after the last)."""
    start = 0
    for kind, run in groupby("wait" if cell in ("fork", "join") else cell for cell in cells):
        stop = start + len(list(run))
        if kind:
            yield kind, start, stop
        start = stop


def _bars(
    cells: list[str], grid: ForwardGrid, left: int, y: int, unit: float
) -> Iterator[DrawnBox | DrawnLine]:
    each = grid.columns // grid.forwards
    for kind, start, stop in _runs(cells):
        x, end = left + start * unit, left + stop * unit
        if kind in ("wait", "idle"):
            yield DrawnLine(kind, x, y + TALL / 2, end, y + TALL / 2, 1.5, kind == "idle")
            continue
        yield DrawnBox("model" if kind == "both" else kind, x, y + 4, end - x, 12)
        if kind == "both" and stop - start == 1:
            yield DrawnBox("engine", x, y + 4, min(3, end - x + 1), 12)
        elif kind == "both":
            yield DrawnBox("engine", x, y + 11, end - x, 5)
        if kind == "model" and each * unit >= 6:  # wide enough to tell one token from the next
            for column in range(start + each - start % each, stop, each):
                yield DrawnLine("cut", left + column * unit, y + 4, left + column * unit, y + 16)


def _links(rows: list[TimelineRow]) -> Iterator[tuple[int, int, int]]:
    """Yield every fork and join as (boundary, row of the parent, row of the last path)."""
    lowest = {id(row.block): number for number, row in enumerate(rows) if row.block}
    for number, row in enumerate(rows):
        for bar in row.bars:
            if id(bar) in lowest:
                yield bar.start, number, lowest[id(bar)]
                if bar.kind == "wait":
                    yield bar.stop, number, lowest[id(bar)]


def _summary(trace: Trace, row: TimelineRow) -> str:
    own = [bar for bar in row.bars if bar.kind in ("engine", "model")]
    forced = sum(bar.last - bar.first for bar in own if bar.kind == "engine")
    start, stop = clock(trace, row.start), clock(trace, row.stop)
    own_tokens = [token for bar in own for token in range(bar.first, bar.last)]
    text = "".join(trace.token_texts[token] for token in own_tokens[:EXCERPT])[:EXCERPT]
    return (
        f"{row.name()}\n{len(own_tokens):,} tokens, {forced:,} forced\n"
        f"forwards {row.start:,} to {row.stop:,}, {start} to {stop} s\n{visible(text)}"
    ).strip()


def timeline_svg(trace: Trace) -> str:
    """Return the timeline as one SVG that needs nothing else and follows light and dark.

    The pointer on a row shows its title, its numbers and the beginning of its text.

    >>> timeline_svg(Trace(model="<script>")).count("&lt;script&gt;")
    1
    """
    return timeline_drawing(trace).svg()


def check_timeline(path: str | os.PathLike[str] | None) -> None:
    """Refuse a file that `write_timeline` could not write, before there is a run to draw."""
    if path is not None:
        check_picture(path, ".svg")


def write_timeline(path: str | os.PathLike[str] | None, trace: Trace) -> None:
    """Write the timeline to an .svg or a .png file, if one is named; see `check_picture`."""
    if path is None:
        return
    file = check_picture(path, ".svg")
    if file.suffix.lower() == ".svg":
        with naming(file):
            file.write_text(timeline_svg(trace), "utf-8")
    else:
        timeline_drawing(trace).write_png(file)
