"""Accuracy against a cap on the critical path, as the paper's Figure 7 has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mvspec.data.records import InputError
from mvspec.runtime.evaluation.plots import Curve, Panel, write_plot
from mvspec.runtime.evaluation.results import Run
from mvspec.runtime.evaluation.summary import problems_of, summarise

__all__ = ["plot_caps"]


def plot_caps(path: Path, runs: Sequence[Run]) -> None:
    """Draw accuracy against the caps, and # parallel beside it, a curve for each run.

    Args:
        path: a .png or an .svg file.
        runs: with samples under caps.

    Raises:
        InputError: none of them has a cap.
    """
    right: list[Curve] = []
    parallel: list[Curve] = []
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
            Curve(
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
                Curve(run.name, [cap for cap, _ in known], [float(value) for _, value in known])
            )
    if not right:
        names = ", ".join(str(run.path) for run in runs)
        raise InputError(f"--plot: no caps in {names}: run with --cap, as --cap 512,1024,2048")
    ticks = {float(cap): f"{cap:,}" for cap in sorted(caps_of_all)}
    x = "cap on the critical path, tokens"
    panels = [Panel("Accuracy", x, "pass@1, %", right, ticks, log=True)]
    if parallel:
        panels.append(Panel("Parallelism, well-formed", x, "# parallel", parallel, ticks, log=True))
    problems = {len(problems_of(run.samples.values())) for run in runs}
    count = " and ".join(f"{number:,}" for number in sorted(problems))
    write_plot(path, panels, f"{count} problems; bands are 95 % intervals over problems")
