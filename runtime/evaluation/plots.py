"""Curves as PNG and SVG: accuracy against a cap, speed against batch and degree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvspec.data.records import InputError

__all__ = ["Curve", "Panel", "check_plot", "write_plot"]

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Curve:
    """One line.

    Args:
        name: in the legend; "" leaves it out.
        x, y: its points.
        low, high: of the band around each point; empty for none.
        ideal: drawn dashed and grey, without marks.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    ideal: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        title, x, y: what stands at it.
        curves: in it.
        ticks: places on the x axis, and what they say.
        log: whether the x axis doubles at equal distances.
    """

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    ticks: Mapping[float, str] = field(default_factory=dict)
    log: bool = False


def check_plot(path: Path) -> None:
    """Refuse a file that `write_plot` could not write, before there is something to draw.

    Raises:
        InputError: it is neither .png nor .svg, or its folder is not there.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"--plot {path}: name a .png or an .svg file")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: there is no folder {path.parent}")


def write_plot(path: Path, panels: Sequence[Panel], note: str = "") -> None:
    """Draw panels side by side.

    Args:
        path: a .png or an .svg file.
        panels: at least one.
        note: a line below them.

    Raises:
        InputError: as `check_plot`.
    """
    check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "mvspec", "font.size": 9}):
        figure = Figure(figsize=(5.2 * len(panels), 3.9), layout="constrained")
        for number, panel in enumerate(panels):
            _draw(figure.add_subplot(1, len(panels), number + 1), panel)
        if note:
            figure.supxlabel(note, fontsize=7, color="#475569", parse_math=False)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, dpi=160, metadata=metadata)


def _draw(axes: Any, panel: Panel) -> None:
    number = 0
    for curve in panel.curves:
        if curve.ideal:
            axes.plot(
                curve.x, curve.y, "--", color="#94a3b8", linewidth=1.2, label=curve.name or None
            )
            continue
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        number += 1
        axes.plot(curve.x, curve.y, marker=marker, markersize=4.5, color=colour, label=curve.name)
        if curve.low:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.12, linewidth=0)
    axes.set_title(panel.title, fontsize=10, parse_math=False)
    axes.set_xlabel(panel.x, parse_math=False)
    axes.set_ylabel(panel.y, parse_math=False)
    if panel.log:
        axes.set_xscale("log", base=2)
    if panel.ticks:
        axes.set_xticks(list(panel.ticks), list(panel.ticks.values()))
        axes.minorticks_off()
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if any(curve.name for curve in panel.curves):
        legend = axes.legend(fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
