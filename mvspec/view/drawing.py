"""Drawings of boxes, lines, texts and images: one list of shapes, as SVG and as PNG."""

from __future__ import annotations

import base64
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mvspec.data.records import InputError
from mvspec.disk import naming
from mvspec.errors import Unsupported

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COLOURS = {
    "text": ("#0f172a", "#e2e8f0", 1.0),
    "dim": ("#475569", "#94a3b8", 1.0),
    "page": ("#ffffff", "#0f172a", 1.0),
    "band": ("#475569", "#94a3b8", 0.07),
    "grid": ("#475569", "#94a3b8", 0.25),
    "cut": ("#ffffff", "#0f172a", 0.55),
    "over": ("#ffffff", "#0f172a", 0.0),
    "model": ("#3b82f6", "#60a5fa", 1.0),
    "engine": ("#f97316", "#fb923c", 1.0),
    "prompt": ("#94a3b8", "#64748b", 1.0),
    "wait": ("#64748b", "#94a3b8", 1.0),
    "idle": ("#94a3b8", "#64748b", 1.0),
}
"""Looks that have a name: the colour on a light and on a dark page, and how opaque it is."""


class DrawnBox(NamedTuple):
    """A filled rectangle; `title` is what the pointer shows.

    The look of a shape is a name in `COLOURS`, or a colour such as #336699.
    """

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
    thick: float = 1
    dashed: bool = False


class DrawnText(NamedTuple):
    """A line of text on (x, y), cut after `room` pixels where that is not 0.

    Args:
        anchor: what of the text is at x: its start, middle or end.
        upright: whether it is read from below.
    """

    look: str
    x: float
    y: float
    text: str
    room: float = 0
    anchor: str = "start"
    bold: bool = False
    upright: bool = False


class DrawnImage(NamedTuple):
    """Pixels, uint8 [rows, columns, 3], each as a box of its own."""

    pixels: NDArray[np.uint8]
    x: float
    y: float
    width: float
    height: float


DrawnShape = DrawnBox | DrawnLine | DrawnText | DrawnImage


def frame(look: str, x: float, y: float, width: float, height: float) -> list[DrawnLine]:
    """Return the four sides of a rectangle."""
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    return [DrawnLine(look, *corners[n - 1], *corners[n]) for n in range(4)]


@dataclass(frozen=True, slots=True)
class Drawing:
    """Shapes in pixels, the undermost first.

    Args:
        label: what a reader is told who does not see it.
        ground: the look of what it stands on; a named one follows light and dark.
    """

    width: int
    height: int
    shapes: Sequence[DrawnShape]
    label: str = ""
    ground: str = "page"

    def svg(self) -> str:
        """Return one SVG that needs nothing else."""
        rules = ""
        if self.ground in COLOURS:
            rules = f"{_css(0)}@media(prefers-color-scheme:dark){{{_css(1)}}}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="mvspec-drawing" width="{self.width}" '
            f'height="{self.height}" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(self.label)}" font-size="12" '
            "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">"
            f"<style>{rules}</style>"
            f'<rect {_looks(self.ground, "fill")} width="{self.width}" height="{self.height}" '
            f'rx="10"/>{"".join(map(_element, self.shapes))}</svg>\n'
        )

    def write_png(self, file: Path) -> None:
        """Draw it into a PNG file, as on a light page, with two pixels for one."""
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from matplotlib.patches import Rectangle

        ground, _ = _painted(self.ground)
        figure = Figure(figsize=(self.width / 100, self.height / 100), facecolor=ground)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(self.height, 0))
        axes.set_axis_off()
        for order, shape in enumerate(self.shapes):
            if isinstance(shape, DrawnImage):
                place = (shape.x, shape.x + shape.width, shape.y + shape.height, shape.y)
                axes.imshow(
                    shape.pixels, extent=place, interpolation="nearest", aspect="auto", zorder=order
                )
                continue
            colour, opaque = _painted(shape.look)
            style: dict[str, Any] = {"color": colour, "alpha": opaque, "zorder": order}
            match shape:
                case DrawnBox(_, x, y, w, h):
                    axes.add_patch(Rectangle((x, y), w, h, linewidth=0, **style))
                case DrawnLine(_, x, y, to_x, to_y, thick, dashed):
                    style["linestyle"] = (0, (1, 2)) if dashed else "-"
                    line = Line2D((x, to_x), (y, to_y), linewidth=0.7 * thick, **style)
                    axes.add_line(line)
                case DrawnText(_, x, y, text):
                    style["ha"] = {"start": "left", "middle": "center"}.get(shape.anchor, "right")
                    style |= {"weight": 700 if shape.bold else 400, "rotation": 90 * shape.upright}
                    axes.text(x, y, text, size=7.9, parse_math=False, **style)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
            with naming(file):
                figure.savefig(file, format="png", dpi=200)


def _painted(look: str) -> tuple[str, float]:
    light, _, opaque = COLOURS.get(look, (look, "", 1.0))
    return light, opaque


def _css(page: int) -> str:
    """Return the rules of a light (0) or a dark page (1); they reach nothing but drawings."""
    inside = ".mvspec-drawing"
    rules = [f"{inside} rect,{inside} text{{stroke-width:0;white-space:pre}}"]
    for look, (*colours, opaque) in COLOURS.items():
        colour = colours[page]
        faint = f";opacity:{opaque:g}" if opaque < 1 else ""
        rules.append(f"{inside} .{look}{{fill:{colour};stroke:{colour}{faint}}}")
    return "".join(rules)


def _looks(look: str, attribute: str) -> str:
    return f'class="{look}"' if look in COLOURS else f'{attribute}="{look}"'


def _element(shape: DrawnShape) -> str:
    match shape:
        case DrawnBox(look, x, y, w, h, title):
            inside = f"><title>{escape(title)}</title></rect>" if title else "/>"
            place = f'x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"'
            return f"<rect {_looks(look, 'fill')} {place}{inside}"
        case DrawnLine(look, x, y, to_x, to_y, thick, dashed):
            more = f' stroke-width="{thick:g}"' if thick != 1 else ""
            more += ' stroke-dasharray="1.5 3"' if dashed else ""
            line = f"M{x:.1f} {y:.5g}L{to_x:.1f} {to_y:.5g}"
            return f'<path {_looks(look, "stroke")} d="{line}"{more}/>'
        case DrawnImage(pixels, x, y, w, h):
            return (
                f'<image x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" '
                f'href="{png_uri(pixels)}" preserveAspectRatio="none" '
                'style="image-rendering:pixelated"/>'
            )
    more = _looks(shape.look, "fill") + (' font-weight="600"' if shape.bold else "")
    more += f' text-anchor="{shape.anchor}"' if shape.anchor != "start" else ""
    more += f' transform="rotate(-90 {shape.x:g} {shape.y:g})"' if shape.upright else ""
    at = 'y="14"' if shape.room else f'x="{shape.x:g}" y="{shape.y:g}"'
    text = f"<text {more} {at}>{escape(shape.text)}</text>"
    if not shape.room:
        return text
    # A viewport of its own cuts what is too wide.
    place = f'x="{shape.x:g}" y="{shape.y - 14:g}" width="{shape.room:g}" height="20"'
    return f"<svg {place}>{text}</svg>"


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """Return an image, uint8 [rows, columns, 3], as a data URI."""
    rows, columns = pixels.shape[:2]
    # Every row begins with the number of its filter: 0, none.
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, inside in (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw, 9)),
        (b"IEND", b""),
    ):
        check = struct.pack(">I", zlib.crc32(kind + inside))
        data += struct.pack(">I", len(inside)) + kind + inside + check
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def check_picture(path: str | os.PathLike[str], *others: str) -> Path:
    """Refuse a file that no picture could be written to, before there is one to lose.

    Args:
        others: the endings beside .png that it may have.

    Raises:
        Unsupported: it has none of these endings, or matplotlib, which a PNG needs, is not
            installed.
        InputError: its folder is not there.
    """
    file = Path(path)
    if not file.parent.is_dir():
        raise InputError(f"{file}: there is no folder {file.parent}")
    if file.suffix.lower() not in (".png", *others):
        raise Unsupported(f"{file}: write to an {others[0]} or a .png file")
    if file.suffix.lower() == ".png" and find_spec("matplotlib") is None:
        raise Unsupported(
            f"{file}: a PNG needs matplotlib: pip install 'mvspec[compile]', or write an "
            f"{others[0]}"
        )
    return file
