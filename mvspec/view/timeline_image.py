"""The timeline of a run as a drawing: SVG and PNG, from the same shapes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from html import escape
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from rich.cells import cell_len

from mvspec.data.records import InputError
from mvspec.errors import Unsupported
from mvspec.shown import visible
from mvspec.trace import Trace
from mvspec.view.timeline import (
    EXCERPT,
    LOOKS,
    ForwardGrid,
    TimelineRow,
    captions,
    cells_of,
    clock,
    fitted,
    shown,
    ticks,
)

__all__ = ["check_timeline", "timeline_svg", "write_timeline"]

ROWS = 400
"""Threads that are drawn; the outermost come first."""

WIDTH = 720
"""Pixels of all forwards of a drawing, at most."""

TALL = 20
"""Pixels of a row."""

TOP = 88
"""Pixels above the rows."""


class DrawnBox(NamedTuple):
    """A filled rectangle; `title` is what the pointer shows."""

    look: str
    x: float
    y: float
    width: float
    height: float
    title: str = ""


class DrawnLine(NamedTuple):
    """A straight line of a drawing, in its units."""

    look: str
    x: float
    y: float
    to_x: float
    to_y: float


class DrawnText(NamedTuple):
    """A line of text on (x, y), cut after `room` pixels where that is not 0."""

    look: str
    x: float
    y: float
    text: str
    room: float = 0


def _drawing(trace: Trace) -> tuple[int, int, list[DrawnBox | DrawnLine | DrawnText]]:
    """Return width, height and shapes of the timeline, in pixels, the undermost first."""
    rows, note = shown(trace, ROWS)
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
    shapes: list[DrawnBox | DrawnLine | DrawnText] = []
    kinds: set[str] = set()
    for tick in ticks(len(trace.forward_seconds), max(1, int(unit * grid.columns / 56))):
        x = left + tick * scale
        shapes.append(DrawnLine("grid", x, TOP, x, bottom + 4))
        shapes.append(DrawnText("tick", x, bottom + 18, f"{tick:,}"))
        shapes.append(DrawnText("tick", x, bottom + 34, clock(trace, tick)))
    for index, (row, name, indent) in enumerate(zip(rows, names, indents, strict=True)):
        y, cells = TOP + TALL * index, cells_of(row, grid)
        kinds |= {kind for kind, _, _ in _runs(cells)}
        if index % 2:
            shapes.append(DrawnBox("band", 12, y, width - 24, TALL))
        look = "text" if row.depth else "bold"
        shapes.append(DrawnText(look, 20 + indent, y + 14, name, left - 26 - indent))
        shapes += _bars(cells, grid, left, y, unit)
    for boundary, above, below in _links(rows):
        x, centre = left + boundary * scale, TOP + TALL // 2
        shapes.append(DrawnLine("wait", x, centre + TALL * above, x, centre + TALL * below))
    for index, row in enumerate(rows):
        y = TOP + TALL * index
        shapes.append(DrawnBox("over", 12, y, width - 24, TALL, _summary(trace, row)))
    kinds |= {"model", "engine"} if "both" in kinds else set()
    at = 20
    for kind in (kind for kind in LOOKS if kind in kinds and LOOKS[kind].light):
        shapes += _bars([kind], ForwardGrid(1, 1), at, 57, 14)
        shapes.append(DrawnText("dim", at + 20, 71, LOOKS[kind].meaning))
        at += 44 + 6 * len(LOOKS[kind].meaning)
    first, second = (fitted(line, 96) for line in captions(trace))
    shapes += [DrawnText("bold", 20, 26, first), DrawnText("dim", 20, 45, second)]
    shapes += [
        DrawnText("dim", 20, bottom + 18, "forwards"),
        DrawnText("dim", 20, bottom + 34, "seconds"),
    ]
    shapes += [DrawnText("dim", 20, bottom + 54, note)] * bool(note)
    return width, bottom + (68 if note else 48), shapes


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
            yield DrawnLine(kind, x, y + TALL / 2, end, y + TALL / 2)
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
    forced = sum(bar.tokens for bar in own if bar.kind == "engine")
    start, stop = clock(trace, row.start), clock(trace, row.stop)
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
            case DrawnBox(look, x, y, w, h, title):
                inside = f"><title>{escape(title)}</title></rect>" if title else "/>"
                parts.append(
                    f'<rect class="{look}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"{inside}'
                )
            case DrawnLine(look, x, y, to_x, to_y):
                parts.append(f'<path class="{look}" d="M{x:.1f} {y:g}L{to_x:.1f} {to_y:g}"/>')
            case DrawnText(look, x, y, text, room):
                frame = f'<svg x="{x:g}" y="{y - 14:g}" width="{room:g}" height="{TALL}">'
                at = 'y="14"' if room else f'x="{x:g}" y="{y:g}"'
                part = f'<text class="{look}" {at}>{escape(text)}</text>'
                # A viewport of its own cuts what is too wide.
                parts.append(f"{frame}{part}</svg>" if room else part)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mvspec-timeline" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(captions(trace)[0])}" font-size="12" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">"
        f"<style>{_css('light')}@media(prefers-color-scheme:dark){{{_css('dark')}}}</style>"
        f'<rect class="page" width="{width}" height="{height}" rx="10"/>{"".join(parts)}</svg>\n'
    )


def check_timeline(path: str | os.PathLike[str]) -> None:
    """Refuse a file that `write_timeline` could not write, before there is a run to draw.

    Raises:
        Unsupported: it is neither an .svg nor a .png file, or matplotlib, which a PNG needs, is
            not installed.
        InputError: its folder is not there.
    """
    file = Path(path)
    if file.suffix.lower() not in (".svg", ".png"):
        raise Unsupported(f"{file}: write the timeline to an .svg or a .png file")
    if not file.parent.is_dir():
        raise InputError(f"{file}: there is no folder {file.parent}")
    if file.suffix.lower() == ".png" and find_spec("matplotlib") is None:
        raise Unsupported(
            f"{file}: a PNG needs matplotlib: pip install 'mvspec[compile]', or write an .svg"
        )


def write_timeline(path: str | os.PathLike[str], trace: Trace) -> None:
    """Write the timeline to an .svg or a .png file; what `check_timeline` raises is raised too."""
    check_timeline(path)
    file = Path(path)
    if file.suffix.lower() == ".svg":
        file.write_text(timeline_svg(trace), "utf-8")
    else:
        _write_png(file, trace)


def _write_png(file: Path, trace: Trace) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

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
            case DrawnBox(_, x, y, w, h):
                axes.add_patch(Rectangle((x, y), w, h, linewidth=0, **style))
            case DrawnLine(look, x, y, to_x, to_y):
                dots = (0, (1, 2)) if look == "idle" else "-"
                axes.plot((x, to_x), (y, to_y), linewidth=0.9, linestyle=dots, **style)
            case DrawnText(look, x, y, text):
                style["ha"] = "center" if look == "tick" else "left"
                style["weight"] = "bold" if look == "bold" else "normal"
                axes.text(x, y, text, size=7.9, parse_math=False, **style)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        figure.savefig(file, format="png", dpi=200)
