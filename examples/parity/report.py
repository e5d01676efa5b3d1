"""What a comparison found: records, tables and a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mvspec.runtime.tasks.problem import STEPWISE

from arms import find_arm  # isort: skip
from settings import Settings  # isort: skip

__all__ = ["Records", "write_report"]

Row = dict[str, Any]

SHARES = ("right", "well_formed", "forked")
"""Measurements that tables show in percent."""


class Records:
    """Lines of JSON, each of which is whole or not there.

    Args:
        path: of the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if not path.exists():
            return
        whole = 0
        data = path.read_bytes()
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # of a run that was killed while it wrote
            self.rows.append(json.loads(line))
            whole += len(line)
        if whole < len(data):
            with path.open("r+b") as file:
                file.truncate(whole)

    def add(self, **row: Any) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def find(self, **key: Any) -> list[Row]:
        """Return the lines that say this."""
        return [row for row in self.rows if all(row.get(k) == v for k, v in key.items())]


def write_report(rows: Sequence[Row], settings: Settings, folder: Path, *, device: str) -> None:
    """Write results.md and, where there is something to draw, results.png and results.svg."""
    exams = [row for row in rows if row["kind"] == "exam"]
    own = {name: _of(exams, name, find_arm(name).prompt) for name in settings.arms}
    parts = [_main_table(own, settings, device)]
    zero = {name: _of(exams, name, STEPWISE) for name in settings.arms if find_arm(name).structured}
    if any(zero.values()):
        parts.append(_zero_table(zero))
    parts += _clock_tables(rows, device)
    (folder / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if any(own.values()):
        _draw(own, rows, folder)


def _of(exams: Sequence[Row], arm: str, prompt: str) -> list[Row]:
    return [row for row in exams if (row["arm"], row["prompt"]) == (arm, prompt)]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def _spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Return mean and standard deviation over seeds."""
    middle = f"{scale * mean(values):.{digits}f}"
    return middle if len(values) < 2 else f"{middle} ± {scale * stdev(values):.{digits}f}"


def _scores(found: list[Row]) -> list[str]:
    shares = [_spread([row[name] for row in found], 100) for name in SHARES]
    return [*shares, _spread([row["parallelism"] for row in found], digits=2)]


def _main_table(own: dict[str, list[Row]], settings: Settings, device: str) -> str:
    head = ["arm", "exact match, %", "well-formed, %", "forked, %", "# parallel", "tokens",
            "critical path", "seeds"]  # fmt: skip
    lines = [
        [
            name,
            *_scores(found),
            f"{mean(row['tokens'] for row in found):.0f}",
            f"{mean(row['critical_path'] for row in found):.0f}",
            str(len(found)),
        ]
        for name, found in own.items()
        if found
    ]
    return (
        f"Held-out problems: {settings.evaluation.problems} for each seed, nothing enforced; "
        f"mean ± standard deviation over seeds; {device}.\n\n" + _table(head, lines)
    )


def _zero_table(zero: dict[str, list[Row]]) -> str:
    head = ["arm, asked to think step by step only", "exact match, %", "well-formed, %",
            "forked, %", "# parallel"]  # fmt: skip
    lines = [
        [
            name,
            *_scores(found),
        ]
        for name, found in zero.items()
        if found
    ]
    return 'Multiverse-zero: the same models, asked without "in parallel".\n\n' + _table(
        head, lines
    )


def _clock_tables(rows: Sequence[Row], device: str) -> list[str]:
    found: list[str] = []
    alone = [row for row in rows if row["kind"] == "alone"]
    if alone:
        head = ["arm, one problem at a time", "seconds a problem", "tokens", "forwards", "ms a "
                "forward", "right"]  # fmt: skip
        lines = [
            [
                row["arm"],
                f"{row['seconds'] / row['problems']:.3f}",
                f"{row['tokens'] / row['problems']:.0f}",
                f"{row['forwards'] / row['problems']:.0f}",
                f"{1000 * row['seconds'] / row['forwards']:.1f}",
                f"{row['right']}/{row['problems']}",
            ]
            for row in alone
        ]
        found.append(f"Wall clock in the in-process engine, all arms in turns; {device}.\n\n"
                     + _table(head, lines))  # fmt: skip
    found += [
        f"The same tokens of the Multiverse arm: {row['seconds']:.2f} s in "
        f"{row['forwards']} forwards with paths at once, {row['seconds_alone']:.2f} s in "
        f"{row['forwards_alone']} one path after the other: "
        f"{row['seconds_alone'] / row['seconds']:.2f} times faster, "
        f"{row['forwards_alone'] / row['forwards']:.2f} times fewer forwards."
        for row in rows
        if row["kind"] == "replay"
    ]
    found += _served_table([row for row in rows if row["kind"] == "served"], device)
    fits = [row for row in rows if row["kind"] == "fit"]
    if fits:
        head = ["training", "seed", "problems", "tokens", "steps", "loss", "seconds", "of them CPU"]
        lines = [
            [row["arm"], str(row["seed"]), str(row["problems"]), str(row["tokens"]),
             str(row["steps"]), f"{row['loss']:.4f}", f"{row['seconds']:.0f}",
             f"{row['cpu_seconds']:.0f}"]
            for row in fits
        ]  # fmt: skip
        found.append(_table(head, lines))
    return found


def _served_table(served: Sequence[Row], device: str) -> list[str]:
    """Return the table of both engines, where servers were asked."""
    if not served:
        return []
    alone, together = served[-1]["alone_problems"], served[-1]["problems"]
    head = ["arm", "engine", "seconds a problem, alone", f"{together} at once, s",
            "exact match, %", "well-formed, %", "# parallel"]  # fmt: skip
    lines = [
        [
            row["arm"],
            {"torch": "in process", "sglang": "SGLang"}[row["engine"]],
            f"{row['seconds'] / row['alone_problems']:.3f}",
            f"{row['together_seconds']:.1f}",
            f"{100 * row['right']:.1f}",
            f"{100 * row['well_formed']:.1f}",
            f"{row['parallelism']:.2f}",
        ]
        for row in served
    ]
    return [
        f"Wall clock in both engines: {alone} problems one at a time, arms and engines in turns, "
        f"then {together} at once; {device}.\n\n" + _table(head, lines)
    ]


def _draw(own: dict[str, list[Row]], rows: Sequence[Row], folder: Path) -> None:
    try:
        import matplotlib
    except ImportError:  # the plot can be drawn elsewhere, from results.jsonl
        return

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name, found in own.items() if found]
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.4), sharey=True)
    places = range(len(names))
    scores = [[100 * row["right"] for row in own[name]] for name in names]
    left.barh(places, [mean(each) for each in scores],
              xerr=[stdev(each) if len(each) > 1 else 0.0 for each in scores])  # fmt: skip
    left.set_xlabel("exact match, %")
    left.set_yticks(places, names)
    left.invert_yaxis()
    middle.barh(places, [mean(row["tokens"] for row in own[name]) for name in names], alpha=0.4,
                label="tokens")  # fmt: skip
    middle.barh(places, [mean(row["critical_path"] for row in own[name]) for name in names],
                label="critical path")  # fmt: skip
    middle.set_xlabel("tokens of an answer")
    middle.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    alone = {row["arm"]: row["seconds"] / row["problems"] for row in rows if row["kind"] == "alone"}
    right.barh(places, [alone.get(name, 0.0) for name in names])
    right.set_xlabel("seconds a problem")
    figure.tight_layout()
    for ending in ("png", "svg"):
        figure.savefig(folder / f"results.{ending}", dpi=120)
    pyplot.close(figure)
