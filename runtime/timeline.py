"""The timeline of a run: a row for each thread, over the forwards of the model.

A token of the model covers the forward that it came out of. Forced tokens come out of none: they
are a mark where they were written, at the end of a forward. A thread that is there and writes
nothing is dotted: the model reads what was forced, it is not the thread's turn, or it has ended and
its siblings have not.
"""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from mvspec.errors import Unsupported
from mvspec.records import InputError
from mvspec.runtime.trace import Trace, TracedThread
from mvspec.views import visible

__all__ = ["timeline_svg", "timeline_text", "write_timeline"]

ROWS = 40
"""Threads that a terminal shows; the outermost come first."""

ROWS_DRAWN = 400
"""Threads that a drawing shows."""

FINEST = 6
"""Columns of one forward, at most."""


class Look(NamedTuple):
    """How a cell looks in a terminal, on a light and on a dark page, and what it means."""

    glyph: str
    style: str
    light: str
    dark: str
    meaning: str


LOOKS = {
    "model": Look("█", "blue", "#3b82f6", "#60a5fa", "model"),
    "engine": Look("▒", "yellow", "#f97316", "#fb923c", "forced"),
    "both": Look("▓", "cyan", "", "", "model and forced"),
    "prompt": Look("░", "", "#94a3b8", "#64748b", "prompt"),
    "wait": Look("─", "dim", "#64748b", "#94a3b8", "waits for paths"),
    "fork": Look("├", "dim", "", "", ""),
    "join": Look("┤", "dim", "", "", ""),
    "idle": Look("·", "dim", "#94a3b8", "#64748b", "writes nothing"),
    "": Look(" ", "", "", "", ""),
}

FINISHES = {
    "end": "",
    "limit": "closed at a limit",
    "time": "closed when time was up",
    "interrupted": "interrupted",
}


@dataclass(slots=True)
class Bar:
    """What a thread did from one boundary of forwards to another.

    Args:
        kind: an author, "wait" (for paths), or "open" (for paths that never joined).
        start, stop: boundary b is the beginning of forward b; equal for a mark.
    """

    kind: str
    start: int
    stop: int
    tokens: int = 0
    text: str = ""


@dataclass(slots=True)
class Row:
    """All that a thread did; `block` is the bar of its parent that waits for it."""

    thread: TracedThread
    depth: int
    block: Bar | None = None
    bars: list[Bar] = field(default_factory=list)

    def name(self, cells: int = 1_000) -> str:
        """Return label and title in at most so many columns of a terminal."""
        label = _line(self.thread.label)
        if len(label) > max(9, cells // 2):  # the end of a label tells it from its siblings'
            label = "…" + label[-max(8, cells // 2 - 1) :]
        return _fit(f"{label} {_line(self.thread.title)}".strip(), cells) or (
            "path" if self.depth else "root"
        )

    @property
    def start(self) -> int:
        return self.bars[0].start if self.bars else self.block.start if self.block else 0

    @property
    def stop(self) -> int:
        return self.bars[-1].stop if self.bars else self.start


def _line(text: str) -> str:
    return visible(text).replace("\n", "␊")


def _fit(text: str, cells: int) -> str:
    """Return `text` in at most so many columns of a terminal, with … where it is cut."""
    return text if cell_len(text) <= cells else set_cell_size(text, cells - 1) + "…"


def _rows(trace: Trace) -> list[Row]:
    """Return a row for each thread, paths below their parent."""
    rows: list[Row] = []
    for thread in trace.threads:
        rows.append(Row(thread, 0 if thread.parent is None else rows[thread.parent].depth + 1))
    blocks: dict[int, Bar] = {}
    columns = zip(trace.owners, trace.authors, trace.steps, trace.texts, strict=True)
    for owner, run in groupby(columns, key=lambda token: token[0]):
        for number, path in trace.chain(owner):
            if number not in blocks:
                above = rows[trace.threads[path].parent or 0]
                blocks[number] = Bar("wait", above.stop, above.stop)
                above.bars.append(blocks[number])
            rows[path].block = blocks[number]
        bars = rows[owner].bars
        for _, author, step, text in run:
            start, stop = max(0, step + (author != "model")), step + 1
            if not bars or bars[-1].kind != author or start > bars[-1].stop:
                if bars and bars[-1].kind == "prompt":
                    bars[-1].stop = start  # it was read until here
                bars.append(Bar(author, start, stop))
            bars[-1].stop = max(bars[-1].stop, stop)
            bars[-1].tokens += 1
            if len(bars[-1].text) < EXCERPT:
                bars[-1].text += text
        for number, _ in trace.chain(owner):
            blocks[number].stop = max(blocks[number].stop, bars[-1].stop)
    below: dict[int | None, list[Row]] = {}
    for row in rows:
        below.setdefault(row.thread.parent, []).append(row)
        if trace.finish == "interrupted" and row.bars and row.bars[-1].kind == "wait":
            row.bars[-1].kind = "open"

    ordered: list[Row] = []
    stack = [rows[0]] if rows else []
    while stack:
        ordered.append(stack.pop())
        stack += reversed(below.get(ordered[-1].thread.id, []))
    return ordered


def _shown(trace: Trace, limit: int) -> tuple[list[Row], str]:
    """Return the rows that there is room for, outermost first, and what to say of the others."""
    rows = _rows(trace)
    order = sorted(range(len(rows)), key=lambda index: rows[index].depth)
    left = [rows[index] for index in order[limit:]]
    tokens = sum(bar.tokens for row in left for bar in row.bars)
    note = f"… {len(left):,} more thread{'s' * (len(left) > 1)} with {tokens:,} tokens"
    return [rows[index] for index in sorted(order[:limit])], note if left else ""


class Grid(NamedTuple):
    """Columns for forwards: some for each forward, or one for some."""

    forwards: int
    columns: int

    @classmethod
    def of(cls, forwards: int, room: int) -> Grid:
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


def _cells(row: Row, grid: Grid) -> list[str]:
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


def _gaps(row: Row) -> Iterator[tuple[int, int]]:
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


def _ticks(forwards: int, most: int) -> list[int]:
    steps = (base * 10**power for power in range(12) for base in (1, 2, 5))
    return list(range(0, forwards + 1, next(step for step in steps if forwards <= step * most)))


def _clock(trace: Trace, boundary: int) -> str:
    """Return the seconds at a boundary, with more digits for a short run."""
    total = trace.ends[-1] if trace.ends else 0.0
    digits = 3 if total < 1 else 2 if total < 10 else 1 if total < 100 else 0
    return f"{trace.ends[boundary - 1] if boundary else 0.0:.{digits}f}"


def _captions(trace: Trace) -> tuple[str, str]:
    """Return the totals of a run: its tokens, and its speed."""
    seconds = trace.seconds or (trace.ends[-1] if trace.ends else 0.0)
    speed = f"{len(trace.ends):,} forwards in {seconds:,.1f} s"
    if seconds:
        speed += f", {trace.answer / seconds:,.0f} tokens/s"
    parts = (speed, _line(trace.model), FINISHES[trace.finish])
    return (
        f"{trace.answer:,} tokens ({trace.authors.count('engine'):,} forced) on a critical path "
        f"of {trace.critical_path:,}: parallelism {trace.parallelism:.2f}",
        "; ".join(part for part in parts if part),
    )


def timeline_text(trace: Trace, width: int = 80) -> Text:
    """Return the timeline for a terminal, readable without colour.

    Args:
        width: columns, at least 24; where there are more forwards, one stands for several.

    >>> trace = Trace(
    ...     threads=(TracedThread(id=0), TracedThread(id=1, label="1", parent=0, block=0)),
    ...     ids=(0,) * 8, texts=("a",) * 8, owners=(0, 0, 1, 1, 1, 1, 0, 0),
    ...     position_ids=tuple(range(8)), authors=("prompt", *["model"] * 7),
    ...     logprobs=(None,) * 8, steps=tuple(range(-1, 7)), rows=(1,) * 7,
    ...     ends=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1))
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
    rows, note = _shown(trace, ROWS)
    indents = [min(2 * row.depth, width // 6) for row in rows]
    names = [
        " " * indent + row.name(width // 3 - indent)
        for row, indent in zip(rows, indents, strict=True)
    ]
    left = max(map(cell_len, ["forwards", *names]))
    grid = Grid.of(len(trace.ends), width - left - 1)
    out = Text(no_wrap=True, overflow="crop")
    kinds: set[str] = set()
    for row, name in zip(rows, names, strict=True):
        out.append(set_cell_size(name, left + 1), "" if row.depth else "bold")
        for kind, run in groupby(_cells(row, grid)):
            out.append(LOOKS[kind].glyph * len(list(run)), LOOKS[kind].style)
            kinds.add("wait" if kind == "fork" else kind)
        out.rstrip()
        out.append("\n")
    if note:
        out.append(_fit(note, width) + "\n", "dim")
    for unit in ("forwards", "seconds"):
        line = unit.ljust(left)
        for tick in _ticks(len(trace.ends), max(2, grid.columns // 8)):
            label = str(tick) if unit == "forwards" else _clock(trace, tick)
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
    return out.append("\n" * bool(used) + textwrap.fill("; ".join(_captions(trace)), width))


WIDTH = 720
"""Pixels of all forwards of a drawing, at most."""

TALL = 20
"""Pixels of a row."""

TOP = 88
"""Pixels above the rows."""

EXCERPT = 160
"""Characters of a thread's text that the pointer shows."""


class Box(NamedTuple):
    """A filled rectangle; `title` is what the pointer shows."""

    look: str
    x: float
    y: float
    width: float
    height: float
    title: str = ""


class Line(NamedTuple):
    look: str
    x: float
    y: float
    to_x: float
    to_y: float


class Label(NamedTuple):
    """A line of text on (x, y), cut after `room` pixels where that is not 0."""

    look: str
    x: float
    y: float
    text: str
    room: float = 0


def _drawing(trace: Trace) -> tuple[int, int, list[Box | Line | Label]]:
    """Return width, height and shapes of the timeline, in pixels, the undermost first."""
    rows, note = _shown(trace, ROWS_DRAWN)
    grid = Grid.of(len(trace.ends), WIDTH // 2)
    names = [row.name(34) for row in rows]
    indents = [min(14 * row.depth, 112) for row in rows]
    # A guess of 7 pixels a letter; what is wider still is cut at the edge of its column.
    sizes = [7 * cell_len(name) + n for name, n in zip(names, indents, strict=True)]
    left = 32 + min(max([66, *sizes]), 290)
    unit = min(4.0, WIDTH / grid.columns)  # pixels of a column
    scale = unit * grid.columns / grid.forwards  # and of a forward
    bottom = TOP + TALL * len(rows)
    width = max(left + round(unit * grid.columns) + 34, 640)
    shapes: list[Box | Line | Label] = []
    kinds: set[str] = set()
    for tick in _ticks(len(trace.ends), max(1, int(unit * grid.columns / 56))):
        x = left + tick * scale
        shapes.append(Line("grid", x, TOP, x, bottom + 4))
        shapes.append(Label("tick", x, bottom + 18, f"{tick:,}"))
        shapes.append(Label("tick", x, bottom + 34, _clock(trace, tick)))
    for index, (row, name, indent) in enumerate(zip(rows, names, indents, strict=True)):
        y, cells = TOP + TALL * index, _cells(row, grid)
        kinds |= {kind for kind, _, _ in _runs(cells)}
        if index % 2:
            shapes.append(Box("band", 12, y, width - 24, TALL))
        look = "text" if row.depth else "bold"
        shapes.append(Label(look, 20 + indent, y + 14, name, left - 26 - indent))
        shapes += _bars(cells, grid, left, y, unit)
    for boundary, above, below in _links(rows):
        x, centre = left + boundary * scale, TOP + TALL // 2
        shapes.append(Line("wait", x, centre + TALL * above, x, centre + TALL * below))
    for index, row in enumerate(rows):
        y = TOP + TALL * index
        shapes.append(Box("over", 12, y, width - 24, TALL, _summary(trace, row)))
    kinds |= {"model", "engine"} if "both" in kinds else set()
    at = 20
    for kind in (kind for kind in LOOKS if kind in kinds and LOOKS[kind].light):
        shapes += _bars([kind], Grid(1, 1), at, 57, 14)
        shapes.append(Label("dim", at + 20, 71, LOOKS[kind].meaning))
        at += 44 + 6 * len(LOOKS[kind].meaning)
    first, second = (_fit(line, 96) for line in _captions(trace))
    shapes += [Label("bold", 20, 26, first), Label("dim", 20, 45, second)]
    shapes += [Label("dim", 20, bottom + 18, "forwards"), Label("dim", 20, bottom + 34, "seconds")]
    shapes += [Label("dim", 20, bottom + 54, note)] * bool(note)
    return width, bottom + (68 if note else 48), shapes


def _runs(cells: list[str]) -> Iterator[tuple[str, int, int]]:
    """Yield what a row shows, as (kind, first column, the one after the last)."""
    start = 0
    for kind, run in groupby("wait" if cell in ("fork", "join") else cell for cell in cells):
        stop = start + len(list(run))
        if kind:
            yield kind, start, stop
        start = stop


def _bars(cells: list[str], grid: Grid, left: int, y: int, unit: float) -> Iterator[Box | Line]:
    each = grid.columns // grid.forwards
    for kind, start, stop in _runs(cells):
        x, end = left + start * unit, left + stop * unit
        if kind in ("wait", "idle"):
            yield Line(kind, x, y + TALL / 2, end, y + TALL / 2)
            continue
        yield Box("model" if kind == "both" else kind, x, y + 4, end - x, 12)
        if kind == "both" and stop - start == 1:
            yield Box("engine", x, y + 4, min(3, end - x + 1), 12)
        elif kind == "both":
            yield Box("engine", x, y + 11, end - x, 5)
        if kind == "model" and each * unit >= 6:  # wide enough to tell one token from the next
            for column in range(start + each - start % each, stop, each):
                yield Line("cut", left + column * unit, y + 4, left + column * unit, y + 16)


def _links(rows: list[Row]) -> Iterator[tuple[int, int, int]]:
    """Yield every fork and join as (boundary, row of the parent, row of the last path)."""
    lowest = {id(row.block): number for number, row in enumerate(rows) if row.block}
    for number, row in enumerate(rows):
        for bar in row.bars:
            if id(bar) in lowest:
                yield bar.start, number, lowest[id(bar)]
                if bar.kind == "wait":
                    yield bar.stop, number, lowest[id(bar)]


def _summary(trace: Trace, row: Row) -> str:
    own = [bar for bar in row.bars if bar.kind in ("engine", "model")]
    forced = sum(bar.tokens for bar in own if bar.kind == "engine")
    start, stop = _clock(trace, row.start), _clock(trace, row.stop)
    text = "".join(bar.text for bar in own)[:EXCERPT]
    return (
        f"{row.name()}\n{sum(bar.tokens for bar in own):,} tokens, {forced:,} forced\n"
        f"forwards {row.start:,} to {row.stop:,}, {start} to {stop} s\n{visible(text)}"
    ).strip()


PAGES = {
    "light": {"text": "#0f172a", "dim": "#475569", "page": "#ffffff"},
    "dark": {"text": "#e2e8f0", "dim": "#94a3b8", "page": "#0f172a"},
}


def _css(page: str) -> str:
    """Return the rules of a light or a dark page."""
    own, look = PAGES[page], {kind: getattr(look, page) for kind, look in LOOKS.items()}
    rules = {
        "text": f"fill:{own['text']};white-space:pre",
        ".dim,.tick": f"fill:{own['dim']}",
        ".tick": "text-anchor:middle",
        ".bold": "font-weight:600",
        ".page": f"fill:{own['page']}",
        ".band": f"fill:{own['dim']};fill-opacity:.07",
        ".over": "fill-opacity:0",
        ".grid": f"stroke:{own['dim']};stroke-opacity:.25",
        ".cut": f"stroke:{own['page']};stroke-opacity:.55",
        ".wait": f"stroke:{look['wait']};stroke-width:1.5",
        ".idle": f"stroke:{look['idle']};stroke-width:1.5;stroke-dasharray:1.5 3",
        **{f".{kind}": f"fill:{look[kind]}" for kind in ("model", "engine", "prompt")},
    }
    # Nested, so that the rules stay inside where the SVG is part of a page.
    return "".join(
        f"{','.join(f'.mvspec-timeline {part}' for part in name.split(','))}{{{rule}}}"
        for name, rule in rules.items()
    )


def timeline_svg(trace: Trace) -> str:
    """Return the timeline as one SVG that needs nothing else and follows light and dark.

    The pointer on a row shows its title, its numbers and the beginning of its text.

    >>> timeline_svg(Trace(model="<script>")).count("&lt;script&gt;")
    1
    """
    width, height, shapes = _drawing(trace)
    parts = []
    for shape in shapes:
        match shape:
            case Box(look, x, y, w, h, title):
                inside = f"><title>{escape(title)}</title></rect>" if title else "/>"
                parts.append(
                    f'<rect class="{look}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"{inside}'
                )
            case Line(look, x, y, to_x, to_y):
                parts.append(f'<path class="{look}" d="M{x:.1f} {y:g}L{to_x:.1f} {to_y:g}"/>')
            case Label(look, x, y, text, room):
                frame = f'<svg x="{x:g}" y="{y - 14:g}" width="{room:g}" height="{TALL}">'
                at = 'y="14"' if room else f'x="{x:g}" y="{y:g}"'
                part = f'<text class="{look}" {at}>{escape(text)}</text>'
                # A viewport of its own cuts what is too wide.
                parts.append(f"{frame}{part}</svg>" if room else part)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mvspec-timeline" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(_captions(trace)[0])}" font-size="12" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">"
        f"<style>{_css('light')}@media(prefers-color-scheme:dark){{{_css('dark')}}}</style>"
        f'<rect class="page" width="{width}" height="{height}" rx="10"/>{"".join(parts)}</svg>\n'
    )


def write_timeline(path: str | os.PathLike[str], trace: Trace) -> None:
    """Write the timeline to an .svg or a .png file.

    Raises:
        Unsupported: the file is neither, or it is a PNG and matplotlib is not installed.
        InputError: its folder is not there.
    """
    file = Path(path)
    if file.suffix.lower() not in (".svg", ".png"):
        raise Unsupported(f"{file}: write the timeline to an .svg or a .png file")
    if not file.parent.is_dir():
        raise InputError(f"{file}: there is no folder {file.parent}")
    if file.suffix.lower() == ".svg":
        file.write_text(timeline_svg(trace), "utf-8")
    else:
        _write_png(file, trace)


def _write_png(file: Path, trace: Trace) -> None:
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError:
        raise Unsupported(
            f"{file}: a PNG needs matplotlib: pip install 'mvspec[compile]', or write an .svg"
        ) from None
    width, height, shapes = _drawing(trace)
    own = PAGES["light"]
    colours = {**{kind: look.light for kind, look in LOOKS.items()}, **own, "bold": own["text"]}
    figure = Figure(figsize=(width / 100, height / 100), facecolor=own["page"])
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    for order, shape in enumerate(shapes):
        faint = {"band": 0.07, "over": 0.0, "grid": 0.25, "cut": 0.55}.get(shape.look, 1.0)
        colour = own["page"] if shape.look == "cut" else colours.get(shape.look, own["dim"])
        style: dict[str, Any] = {"color": colour, "alpha": faint, "zorder": order}
        match shape:
            case Box(_, x, y, w, h):
                axes.add_patch(Rectangle((x, y), w, h, linewidth=0, **style))
            case Line(look, x, y, to_x, to_y):
                dots = (0, (1, 2)) if look == "idle" else "-"
                axes.plot((x, to_x), (y, to_y), linewidth=0.9, linestyle=dots, **style)
            case Label(look, x, y, text):
                style["ha"] = "center" if look == "tick" else "left"
                style["weight"] = "bold" if look == "bold" else "normal"
                axes.text(x, y, text, size=7.9, parse_math=False, **style)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        figure.savefig(file, format="png", dpi=200)
