"""Pictures of a layout: a page that answers to the pointer, and a PNG."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from mvspec.data.records import InputError
from mvspec.errors import Unsupported
from mvspec.shown import visible
from mvspec.view.layout_svg import hexadecimal, layout_svg, side_of
from mvspec.view.mask_image import HIDDEN, MaskArrays, MaskImage, document_starts, draw

__all__ = ["layout_html", "layout_png", "write_pictures"]

TEXTS = 20_000
"""Tokens up to which a page carries the text of each."""


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
    data = json.dumps(_data(layout, picture, tokenizer), separators=(",", ":"))
    data = data.replace("</", "<\\/")
    name = f"layout-{hashlib.sha256(data.encode()).hexdigest()[:12]}"
    script = files("mvspec.view").joinpath("layout_page.js").read_text("utf-8")
    return (
        f'<div id="{name}" style="{_PANEL}">\n'
        f'<div style="margin-bottom:6px"><b>{escape(caption(layout))}</b></div>\n'
        f'<div style="display:flex;flex-wrap:wrap;gap:18px">{layout_svg(layout, picture)}\n'
        f'<div style="width:250px">{_legend(layout, picture)}'
        f'<div class="here" style="margin-top:14px;min-height:11em;white-space:pre-wrap;'
        f'overflow-wrap:anywhere"></div></div></div>\n'
        f"<script>({script.strip()})({json.dumps(name)}, {data});</script>\n</div>\n"
    )


_PANEL = (
    "font:13px/1.45 system-ui,sans-serif;color:#222;background:#fff;padding:12px 14px;"
    "display:inline-block;max-width:900px;border-radius:6px"
)


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


def scale_note(layout: MaskArrays, picture: MaskImage) -> str:
    """Return how many tokens a cell stands for; "" for one."""
    size = -(-len(layout) // (len(picture.edges) - 1))
    return f"A cell is up to {size} × {size} tokens, mixed in proportion." if size > 1 else ""


def _legend(layout: MaskArrays, picture: MaskImage) -> str:
    labels = picture.stretches.labels()
    known: dict[str, str] = {}
    for label, colour in zip(labels, picture.stretches.colours.tolist(), strict=True):
        known.setdefault(label, hexadecimal(colour))
    shown = sorted(known, key=lambda label: [int(part) for part in label.split(".") if part])
    more = len(shown) - 10
    rows = [(known[label], _seen(label)) for label in shown[:10]]
    if more > 0:
        rows.append(("none", f"and {more} more paths"))
    rows.append((hexadecimal(HIDDEN), "does not see: another path" + _documents(layout)))
    rows.append(("#fff", "does not see: still to come"))
    if note := scale_note(layout, picture):
        rows.append(("none", note))
    return "".join(
        f'<div style="display:flex;gap:7px;align-items:baseline">'
        f'<span style="flex:none;width:11px;height:11px;background:{colour};'
        f'border:1px solid {"transparent" if colour == "none" else "#999"}"></span>'
        f"<span>{escape(text)}</span></div>"
        for colour, text in rows
    )


def _seen(label: str) -> str:
    return f"sees path {label}" if label else "sees text outside of paths"


def _documents(layout: MaskArrays) -> str:
    return " or document" if int(layout.document_ids.max(initial=0)) > 0 else ""


def _data(layout: MaskArrays, picture: MaskImage, tokenizer: Any) -> dict[str, Any]:
    stretches = picture.stretches
    at = stretches.starts[:-1]
    loss = np.flatnonzero(np.diff(layout.loss_mask.astype(np.int8), prepend=0))
    hides = [
        [part for lo, hi in zip(lows, highs, strict=True) if lo < hi for part in (lo, hi)]
        for lows, highs in zip(
            layout.hide_lo[:, at].T.tolist(), layout.hide_hi[:, at].T.tolist(), strict=True
        )
    ]
    texts = None
    if len(layout) <= TEXTS and tokenizer is not None:
        # A transformers tokenizer, a compiler's vocabulary, or a `tokenizers.Tokenizer` itself.
        backend = getattr(tokenizer, "backend_tokenizer", getattr(tokenizer, "backend", tokenizer))
        ids = [[index] for index in layout.input_ids.tolist()]
        texts = [visible(text) for text in backend.decode_batch(ids, skip_special_tokens=False)]
    return {
        "n": len(layout),
        "cells": len(picture.edges) - 1,
        "side": side_of(len(picture.edges) - 1),
        "starts": stretches.starts.tolist(),
        "positions": layout.position_ids[at].tolist(),
        "first": document_starts(layout)[at].tolist(),
        "padding": (layout.document_ids[at] < 0).astype(int).tolist(),
        "paths": stretches.labels(),
        "hides": hides,
        "loss": loss.tolist(),
        "texts": texts,
        "ids": layout.input_ids.tolist() if texts is None and len(layout) <= TEXTS else None,
    }


def layout_png(layout: MaskArrays, path: str | os.PathLike[str], title: str = "") -> None:
    """Draw a layout into a PNG file: the mask, and the position of each token.

    Raises:
        Unsupported: matplotlib is not installed.
    """
    try:
        from matplotlib.collections import LineCollection
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        raise Unsupported(
            "a PNG needs matplotlib: pip install matplotlib, or write .html"
        ) from None
    picture = draw(layout)
    n = max(1, len(layout))
    figure = Figure(figsize=(8.2, 9.2), layout="constrained")
    mask, curve = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    extent = (-0.5, n - 0.5, n - 0.5, -0.5)
    mask.imshow(picture.pixels, extent=extent, interpolation="nearest", aspect="auto")
    mask.set_ylabel("queries: the tokens that see")
    mask.xaxis.set_label_position("top")
    mask.set_xlabel("keys: the tokens that may be seen")
    mask.set_title(visible(f"{title}\n{caption(layout)}" if title else caption(layout)), size=10)
    stretches = picture.stretches
    real = layout.document_ids[stretches.starts[:-1]] >= 0
    first, end = stretches.starts[:-1][real], stretches.starts[1:][real]
    position = layout.position_ids[first]
    ends = [(first, position), (end, position + end - first)]
    lines = np.stack([np.stack(each, axis=-1) for each in ends], axis=1)
    curve.add_collection(
        LineCollection(list(lines), colors=list(stretches.colours[real]), linewidths=2)
    )
    longest = int(layout.position_ids.max(initial=0))
    curve.plot([0, longest], [0, longest], color="#ccc", linestyle="--", linewidth=1, zorder=0)
    curve.set_xlim(-0.5, n - 0.5)
    curve.set_ylabel("position")
    curve.set_xlabel(f"token\n{scale_note(layout, picture)}".strip())
    known: dict[str, Any] = {}
    for label, colour in zip(stretches.labels(), stretches.colours, strict=True):
        known.setdefault(label, colour)
    names = sorted(known, key=lambda label: [int(part) for part in label.split(".") if part])
    handles = [Patch(color=known[name], label=_seen(name)) for name in names[:10]]
    handles.append(Patch(color=HIDDEN, label="does not see: another path" + _documents(layout)))
    handles.append(Patch(facecolor="white", edgecolor="#999", label="does not see: still to come"))
    mask.legend(handles=handles, loc="upper right", fontsize=9, framealpha=1)
    figure.savefig(Path(path), format="png", dpi=130)


def write_pictures(
    path: Path, layouts: Sequence[tuple[str, MaskArrays]], tokenizer: Any = None
) -> None:
    """Write titled layouts to a page, or one layout to a PNG file.

    Raises:
        Unsupported: the file is neither, or several layouts shall go into one PNG.
        InputError: its folder is not there.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if path.suffix.lower() in (".html", ".htm"):
        body = "".join(
            f"<h2>{escape(visible(title))}</h2>\n{layout_html(layout, tokenizer)}"
            for title, layout in layouts
        )
        path.write_text(_PAGE.format(body), "utf-8")
        return
    if path.suffix.lower() != ".png":
        raise Unsupported(f"{path}: write to a .png or an .html file")
    if len(layouts) != 1:
        raise Unsupported(f"{path}: a PNG holds one record, not {len(layouts)}: choose by --record")
    layout_png(layouts[0][1], path, layouts[0][0])


_PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>mvspec</title>
{}"""
