"""The mask and the positions of a layout as one SVG, its images inside."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mvspec.view.mask_image import MaskArrays, MaskImage

__all__ = ["hexadecimal", "layout_svg", "png_uri", "side_of"]

WIDTH = 560
"""Pixels of the mask's side, about."""

CURVE = 150
"""Pixels of the height of the curve of positions."""

LINES = 4_000
"""Stretches up to which the curve of positions has a line for each."""


def side_of(cells: int) -> int:
    """Return the pixels of the side of a mask of so many cells."""
    # Whole pixels for each cell, so that all cells look alike.
    return cells * max(1, round(WIDTH / cells))


def layout_svg(layout: MaskArrays, picture: MaskImage) -> str:
    """Return mask, positions and loss; its `.mask` takes the pointer, its `.cross` shows it."""
    side = side_of(len(picture.edges) - 1)
    left, top, track, gap = 46, 34, 7, 3
    height = top + side + 34 + CURVE + 34
    x0, y0 = left + track + gap, top + track + gap
    curve = y0 + side + 26
    pixels = 'preserveAspectRatio="none" style="image-rendering:pixelated"'
    rows, columns = picture.tracks[:, None], picture.tracks[None]
    loss = np.add.reduceat(layout.loss_mask.astype(float), picture.edges[:-1])
    share = loss / np.diff(picture.edges)
    strip = np.rint(255 - share[:, None] * np.array([225.0, 225.0, 225.0])).astype(np.uint8)[None]
    n = len(layout)
    images = (
        f'<image x="{x0}" y="{top}" width="{side}" height="{track}" href="{png_uri(columns)}" '
        f"{pixels}/>"
        f'<image x="{left}" y="{y0}" width="{track}" height="{side}" href="{png_uri(rows)}" '
        f"{pixels}/>"
        f'<image x="{x0}" y="{y0}" width="{side}" height="{side}" href="{png_uri(picture.pixels)}" '
        f"{pixels}/>"
        f'<image x="{x0}" y="{curve + CURVE + 6}" width="{side}" height="{track}" '
        f'href="{png_uri(strip)}" {pixels}/>'
    )
    frame = 'fill="none" stroke="#bbb"'
    last = int(layout.position_ids.max())
    middle = y0 + side / 2
    return (
        f'<svg width="{x0 + side + 12}" height="{height}" style="display:block" '
        'font-family="system-ui,sans-serif" font-size="12" fill="#444">'
        f'<text x="{x0}" y="{top - 18}">keys: the tokens that may be seen</text>'
        f'<text x="{x0}" y="{top - 4}">0</text>'
        f'<text x="{x0 + side}" y="{top - 4}" text-anchor="end">{n - 1:,}</text>'
        f'<text x="12" y="{middle}" transform="rotate(-90 12 {middle})" text-anchor="middle">'
        "queries: the tokens that see</text>"
        f'<text x="{left - 4}" y="{y0 + 10}" text-anchor="end">0</text>'
        f'<text x="{left - 4}" y="{y0 + side}" text-anchor="end">{n - 1:,}</text>'
        f"{images}"
        f'<rect x="{x0}" y="{y0}" width="{side}" height="{side}" {frame}/>'
        f'<text x="{x0}" y="{curve - 6}">position of each token</text>'
        f'<rect x="{x0}" y="{curve}" width="{side}" height="{CURVE}" {frame}/>'
        f'<text x="{x0 - 4}" y="{curve + 10}" text-anchor="end">{last:,}</text>'
        f'<text x="{x0 - 4}" y="{curve + CURVE}" text-anchor="end">0</text>'
        f'<text x="{x0 - 4}" y="{curve + CURVE + 14}" text-anchor="end">loss</text>'
        f'<g transform="translate({x0} {curve})">{_curve(layout, picture, side)}</g>'
        '<g class="cross" stroke="#000" stroke-opacity=".55" fill="none" pointer-events="none">'
        "</g>"
        f'<rect class="mask" x="{x0}" y="{y0}" width="{side}" height="{side}" '
        'fill="#000" fill-opacity="0"/></svg>'
    )


def _curve(layout: MaskArrays, picture: MaskImage, side: int) -> str:
    """Draw positions over indices, each path in its colour, on the line of plain causal text."""
    n = len(layout)
    x, y = side / n, CURVE / max(1, int(layout.position_ids.max()) + 1)
    diagonal = min(n, int(layout.position_ids.max()) + 1)
    lines = [
        f'<line x1="0" y1="{CURVE}" x2="{diagonal * x:.1f}" y2="{CURVE - diagonal * y:.1f}" '
        'stroke="#ccc" stroke-dasharray="3 3"/>'
    ]
    stretches = picture.stretches
    starts = stretches.starts.tolist()
    if len(starts) <= LINES:
        spans = [
            (a, b, int(layout.position_ids[a]), int(layout.position_ids[b - 1]) + 1, colour)
            for (a, b), colour in zip(pairwise(starts), stretches.colours.tolist(), strict=True)
            if layout.document_ids[a] >= 0
        ]
    else:
        edges = picture.edges
        low = np.minimum.reduceat(layout.position_ids, edges[:-1]).tolist()
        high = np.maximum.reduceat(layout.position_ids, edges[:-1]).tolist()
        colours = (picture.tracks / 255).tolist()
        cells = zip(edges[:-1].tolist(), edges[1:].tolist(), low, high, colours, strict=True)
        spans = [(a, b, p, q + 1, colour) for a, b, p, q, colour in cells]
    for a, b, p, q, colour in spans:
        lines.append(
            f'<line x1="{a * x:.1f}" y1="{CURVE - p * y:.1f}" x2="{b * x:.1f}" '
            f'y2="{CURVE - q * y:.1f}" stroke="{hexadecimal(colour)}" stroke-width="2"/>'
        )
    return "".join(lines)


def hexadecimal(colour: Sequence[float]) -> str:
    """Return a colour of parts in 0 to 1 as CSS writes it."""
    return "#" + "".join(f"{round(part * 255):02x}" for part in colour)


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """Return an image [rows, columns, 3] as a data URI."""
    rows, columns = pixels.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    # Every row begins with the number of its filter: 0, none.
    raw = np.insert(pixels.reshape(rows, -1), 0, 0, axis=1).tobytes()
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(raw, 9))
        + chunk(b"IEND", b"")
    )
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
