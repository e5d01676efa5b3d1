"""Pictures of a layout: a page that answers to the pointer, and a PNG, from one drawing."""

from __future__ import annotations

import hashlib
import json
import os
import textwrap
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mvspec.disk import naming
from mvspec.errors import Unsupported
from mvspec.shown import visible
from mvspec.view.drawing import (
    Drawing,
    DrawnBox,
    DrawnImage,
    DrawnLine,
    DrawnShape,
    DrawnText,
    check_picture,
    frame,
)
from mvspec.view.mask_image import HIDDEN, MaskArrays, MaskImage, document_starts, draw

TEXTS = 20_000
"""Tokens up to which a page carries the text of each."""

WIDTH = 560
"""Pixels of the mask's side, about."""

CURVE = 150
"""Pixels of the height of the curve of positions."""

LINES = 4_000
"""Stretches up to which the curve of positions has a line for each."""

LEGEND = 250
"""Pixels of the width of the legend."""

INK = "#444444"


def layout_drawing(layout: MaskArrays, picture: MaskImage, title: str = "") -> Drawing:
    """Return the mask, the position of each token and the loss of a layout."""
    shapes: list[DrawnShape] = []
    heads = [line for line in (*visible(title).split("\n"), caption(layout)) if line]
    for number, line in enumerate(heads, 1):
        shapes.append(DrawnText("#222222", 14, 20 * number, line, bold=True))
    # Whole pixels for each cell, so that all cells look alike.
    cells = len(picture.edges) - 1
    side, track, n = cells * max(1, round(WIDTH / cells)), 7, len(layout)
    x0, top = 56, 20 * len(heads) + 44
    y0 = top + track + 3
    curve, key = y0 + side + 26, x0 + side + 18
    last = int(layout.position_ids.max(initial=0))
    shapes += [
        DrawnImage(picture.pixels, x0, y0, side, side),
        DrawnImage(picture.tracks[None], x0, top, side, track),
        DrawnImage(picture.tracks[:, None], x0 - track - 3, y0, track, side),
        DrawnImage(picture.loss[None], x0, curve + CURVE + 6, side, track),
        *frame("#bbbbbb", x0, y0, side, side),
        *frame("#bbbbbb", x0, curve, side, CURVE),
        DrawnText(INK, x0, top - 18, "keys: the tokens that may be seen"),
        DrawnText(INK, x0, top - 4, "0"),
        DrawnText(INK, x0, curve - 6, "position of each token"),
        DrawnText(INK, 18, y0 + side / 2, "queries: the tokens that see", 0, "middle", False, True),
    ]
    for x, y, text in (
        (x0 + side, top - 4, f"{max(0, n - 1):,}"),
        (x0 - 14, y0 + 10, "0"),
        (x0 - 14, y0 + side, f"{max(0, n - 1):,}"),
        (x0 - 4, curve + 10, f"{last:,}"),
        (x0 - 4, curve + CURVE, "0"),
        (x0 - 4, curve + CURVE + 14, "loss"),
    ):
        shapes.append(DrawnText(INK, x, y, text, anchor="end"))
    x_unit, y_unit = side / max(1, n), CURVE / (last + 1)
    bottom = curve + CURVE
    plain = min(n, last + 1)  # positions of plain causal text
    curves = [(0, plain, 0, plain, "#cccccc"), *_curve(layout, picture)]
    for number, (a, b, p, q, colour) in enumerate(curves):
        start, end = (x0 + a * x_unit, bottom - p * y_unit), (x0 + b * x_unit, bottom - q * y_unit)
        shapes.append(DrawnLine(colour, *start, *end, 2 if number else 1, not number))
    y = y0
    for colour, text in _legend(layout, picture):
        for number, line in enumerate(textwrap.wrap(text, 40)):
            if colour and not number:
                shapes += [DrawnBox(colour, key, y, 11, 11), *frame("#999999", key, y, 11, 11)]
            shapes.append(DrawnText("#222222", key + 18, y + 10, line))
            y += 19
    height = curve + CURVE + 34
    return Drawing(key + LEGEND, height, shapes, caption(layout), "#ffffff")


def _curve(layout: MaskArrays, picture: MaskImage) -> list[tuple[int, int, int, int, str]]:
    """Return lines from token a, at position p, to token b, at q, each in its path's colour."""
    stretches = picture.stretches
    starts = stretches.starts.tolist()
    if len(starts) <= LINES:
        position = layout.position_ids
        return [
            (a, b, int(position[a]), int(position[b - 1]) + 1, hexadecimal(colour))
            for (a, b), colour in zip(pairwise(starts), stretches.colours.tolist(), strict=True)
            if layout.document_ids[a] >= 0
        ]
    edges = picture.edges
    low = np.minimum.reduceat(layout.position_ids, edges[:-1]).tolist()
    high = (np.maximum.reduceat(layout.position_ids, edges[:-1]) + 1).tolist()
    colours = map(hexadecimal, (picture.tracks / 255).tolist())
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), low, high, colours, strict=True))


def hexadecimal(colour: Sequence[float]) -> str:
    """Return a colour of parts in 0 to 1 as CSS writes it."""
    return "#" + "".join(f"{round(part * 255):02x}" for part in colour)


def caption(layout: MaskArrays) -> str:
    """Return the totals of a layout in a line."""
    real = layout.document_ids >= 0
    documents = int(layout.document_ids.max(initial=-1)) + 1
    parts = [f"{int(real.sum()):,} tokens"]
    if documents > 1:
        parts.append(f"{documents:,} documents")
    parts.append(f"positions 0 to {int(layout.position_ids[real].max(initial=0)):,}")
    parts.append(f"{int(layout.loss_mask.sum()):,} tokens with loss")
    padding = len(layout) - int(real.sum())
    return ", ".join(parts + ([f"{padding:,} of padding"] if padding else []))


def _legend(layout: MaskArrays, picture: MaskImage) -> list[tuple[str, str]]:
    """Return colours and what they mean; "" for a line without a colour."""
    stretches = picture.stretches
    known = dict(zip(stretches.labels()[::-1], stretches.colours.tolist()[::-1], strict=True))
    shown = sorted(known, key=lambda label: [int(part) for part in label.split(".") if part])
    rows = [
        (hexadecimal(known[label]), f"sees path {label}" if label else "sees text outside of paths")
        for label in shown[:10]
    ]
    if len(shown) > 10:
        rows.append(("", f"and {len(shown) - 10} more paths"))
    document = " or document" if int(layout.document_ids.max(initial=0)) > 0 else ""
    rows.append((hexadecimal(HIDDEN), f"does not see: another path{document}"))
    rows.append(("#ffffff", "does not see: still to come"))
    size = -(-len(layout) // (len(picture.edges) - 1))
    if size > 1:
        rows.append(("", f"A cell is up to {size} × {size} tokens,"))
        rows.append(("", "mixed in proportion."))
    return rows


def layout_html(layout: MaskArrays, tokenizer: Any = None) -> str:
    """Return a layout as HTML that needs nothing else: who sees whom, positions, loss.

    The pointer shows the index, the position, the path and the text of the tokens under it.
    Without scripts the picture stays, and the pointer shows nothing.

    Args:
        tokenizer: for the text of the tokens; without it their ids are shown.

    >>> import numpy as np
    >>> from mvspec.compiler import Layout
    >>> zeros, none = np.zeros(3, np.int32), np.zeros((0, 3), np.int32)
    >>> layout = Layout(zeros, np.arange(3, dtype=np.int32), zeros, zeros > 0, zeros, none, none)
    >>> layout_html(layout).count("<svg")
    1
    """
    if not len(layout):
        return "<p>A layout without tokens.</p>"
    picture = draw(layout)
    drawing = layout_drawing(layout, picture)
    mask = next(shape for shape in drawing.shapes if isinstance(shape, DrawnImage))
    boxes = [shape for shape in drawing.shapes if isinstance(shape, DrawnText)]
    data = _data(layout, picture, tokenizer)
    data |= {"x": mask.x, "y": mask.y, "side": mask.width}
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    name = f"layout-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    script = files("mvspec.view").joinpath("layout_page.js").read_text("utf-8")
    here = (
        "position:absolute;overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere;"
        f"font:13px/1.45 system-ui,sans-serif;color:#222;width:{LEGEND - 14}px;"
        f"left:{drawing.width - LEGEND}px;top:{boxes[-1].y + 14:g}px;bottom:0"
    )
    svg = drawing.svg().replace(' xmlns="http://www.w3.org/2000/svg"', "")
    return (
        f'<div id="{name}" style="position:relative;display:inline-block">\n{svg}'
        f'<div class="here" style="{here}"></div>\n'
        f"<script>({script.strip()})({json.dumps(name)}, {text});</script>\n</div>\n"
    )


def _data(layout: MaskArrays, picture: MaskImage, tokenizer: Any) -> dict[str, Any]:
    stretches = picture.stretches
    at = stretches.starts[:-1]
    loss = np.flatnonzero(np.diff(layout.loss_mask.astype(np.int8), prepend=0))
    bounds = np.stack([layout.hide_lo[:, at], layout.hide_hi[:, at]], axis=-1)
    texts = None
    if len(layout) <= TEXTS and tokenizer is not None:
        # A transformers tokenizer, a compiler's vocabulary, or a `tokenizers.Tokenizer` itself.
        backend = getattr(tokenizer, "backend_tokenizer", getattr(tokenizer, "backend", tokenizer))
        ids = [[index] for index in layout.input_ids.tolist()]
        texts = [visible(text) for text in backend.decode_batch(ids, skip_special_tokens=False)]
    return {
        "n": len(layout),
        "cells": len(picture.edges) - 1,
        "starts": stretches.starts.tolist(),
        "positions": layout.position_ids[at].tolist(),
        "first": document_starts(layout)[at].tolist(),
        "padding": (layout.document_ids[at] < 0).astype(int).tolist(),
        "paths": stretches.labels(),
        "hides": [
            [edge for lo, hi in levels if lo < hi for edge in (lo, hi)]
            for levels in bounds.swapaxes(0, 1).tolist()
        ],
        "loss": loss.tolist(),
        "texts": texts,
        "ids": layout.input_ids.tolist() if texts is None and len(layout) <= TEXTS else None,
    }


def layout_png(layout: MaskArrays, path: str | os.PathLike[str], title: str = "") -> None:
    """Draw a layout into a PNG file.

    Raises:
        Unsupported: matplotlib is not installed.
    """
    layout_drawing(layout, draw(layout), title).write_png(check_picture(path, ".html"))


def write_pictures(
    path: Path, layouts: Sequence[tuple[str, MaskArrays]], tokenizer: Any = None
) -> None:
    """Write titled layouts to a page, or one layout to a PNG file.

    Raises:
        Unsupported: the file is neither, or several layouts shall go into one PNG.
        InputError: its folder is not there.
    """
    if check_picture(path, ".html", ".htm").suffix.lower() != ".png":
        body = "".join(
            f"<h2>{escape(visible(title))}</h2>\n{layout_html(layout, tokenizer)}"
            for title, layout in layouts
        )
        with naming(path):
            path.write_text(_PAGE.format(body), "utf-8")
    elif len(layouts) == 1:
        layout_png(layouts[0][1], path, layouts[0][0])
    else:
        raise Unsupported(f"{path}: a PNG holds one record, not {len(layouts)}: choose by --record")


_PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>mvspec</title>
{}"""
