"""Curves as PNG and SVG: accuracy against a cap, speed against batch and degree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvspec.data.records import InputError
from mvspec.data.resume import check_file
from mvspec.disk import naming
from mvspec.runtime.evaluation.results import EvaluationRun
from mvspec.runtime.evaluation.summary import problems_of, summarise

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class PlotCurve:
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
class PlotPanel:
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
    curves: Sequence[PlotCurve]
    ticks: Mapping[float, str] = field(default_factory=dict)
    log: bool = False


def check_plot(path: Path) -> None:
    """Refuse a file that `write_plot` could not write, before there is something to draw.

    Raises:
        InputError: it is neither .png nor .svg, or its folder is not there.
    """
    check_file(path, "--plot", (".png", ".svg"))


def write_plot(path: Path, panels: Sequence[PlotPanel], note: str = "") -> None:
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
        with naming(path):
            figure.savefig(path, dpi=160, metadata=metadata)


def _draw(axes: Any, panel: PlotPanel) -> None:
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


def plot_caps(path: Path, runs: Sequence[EvaluationRun]) -> None:
    """Draw accuracy against the caps, and # parallel beside it, a curve for each run.

    Args:
        path: a .png or an .svg file.
        runs: with samples under caps.

    Raises:
        InputError: none of them has a cap.
    """
    right: list[PlotCurve] = []
    parallel: list[PlotCurve] = []
    caps_of_all: set[int] = set()
    for run in runs:
        caps = sorted({each.cap for each in run.samples.values() if each.cap is not None})
        summaries = [
            summarise([each for each in run.samples.values() if each.cap == cap], cap=cap)
            for cap in caps
        ]
        marks = [(each, each.accuracy) for each in summaries if each.accuracy is not None]
        if not marks:
            continue
        caps_of_all |= set(caps)
        right.append(
            PlotCurve(
                run.name,
                [each.cap or 0 for each, _ in marks],
                [100 * found.mean for _, found in marks],
                [100 * (found.mean if found.low is None else found.low) for _, found in marks],
                [100 * (found.mean if found.high is None else found.high) for _, found in marks],
            )
        )
        shown = [(each.cap or 0, each.corpus.to_dict()["parallelism"]) for each in summaries]
        known = [(cap, value) for cap, value in shown if value is not None]
        if known:
            parallel.append(
                PlotCurve(run.name, [cap for cap, _ in known], [float(value) for _, value in known])
            )
    if not right:
        names = ", ".join(str(run.path) for run in runs)
        raise InputError(f"--plot: no caps in {names}: run with --cap, as --cap 512,1024,2048")
    ticks = {float(cap): f"{cap:,}" for cap in sorted(caps_of_all)}
    x = "cap on the critical path, tokens"
    panels = [PlotPanel("Accuracy", x, "pass@1, %", right, ticks, log=True)]
    if parallel:
        panels.append(
            PlotPanel("Parallelism, well-formed", x, "# parallel", parallel, ticks, log=True)
        )
    problems = {len(problems_of(run.samples.values())) for run in runs}
    count = " and ".join(f"{number:,}" for number in sorted(problems))
    write_plot(path, panels, f"{count} problems; bands are 95 % intervals over problems")
