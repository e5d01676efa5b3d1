"""Two runs side by side, over the problems and caps that both have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from mvspec.data.records import InputError
from mvspec.runtime.evaluation.results import Run
from mvspec.runtime.evaluation.sample import Sample
from mvspec.runtime.evaluation.statistics import Paired, paired
from mvspec.runtime.evaluation.summary import ALL

__all__ = ["Comparison", "compare_runs"]

FIGURES: dict[str, Callable[[Sample], float | None]] = {
    "pass@1": lambda sample: sample.score,
    "# parallel, well-formed": lambda sample: (
        sample.metrics.parallelism if sample.form == "ok" and sample.metrics else None
    ),
    "well-formed": lambda sample: float(sample.form == "ok") if sample.form else None,
    "tokens": lambda sample: sample.tokens,
    "critical path": lambda sample: sample.critical_path,
    "seconds": lambda sample: sample.seconds,
}
"""What is compared, by name; None where a sample has none."""


@dataclass(frozen=True)
class Comparison:
    """Two runs under one cap, in one group.

    Args:
        group: `all` for all of them.
        cap: on the critical path.
        figures: by name; one that no problem has in both runs is missing.
    """

    group: str
    cap: int | None
    figures: dict[str, Paired]

    def record(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        figures = {name: asdict(found) for name, found in self.figures.items()}
        return {"group": self.group, "cap": self.cap, "figures": figures}


def compare_runs(first: Run, second: Run) -> list[Comparison]:
    """Compare two runs: all groups together, then each of several.

    Raises:
        InputError: they are of other tasks, or no problem was graded in both.
    """
    tasks = [run.settings.get("task") for run in (first, second)]
    if tasks[0] != tasks[1]:
        raise InputError(f"{first.path} is of the task {tasks[0]}, {second.path} of {tasks[1]}")
    found = []
    caps = [_caps(run.samples.values()) for run in (first, second)]
    for cap in [cap for cap in caps[0] if cap in caps[1]]:
        one, other = (
            [sample for sample in run.samples.values() if sample.cap == cap]
            for run in (first, second)
        )
        groups = list(dict.fromkeys(sample.group for sample in one))
        found.append(_comparison(one, other, ALL, cap))
        for group in groups if len(groups) > 1 else ():
            mine, theirs = ([s for s in some if s.group == group] for some in (one, other))
            found.append(_comparison(mine, theirs, group or "-", cap))
    if not any("pass@1" in each.figures for each in found):
        raise InputError(f"{first.path} and {second.path} have no graded problem in common")
    return found


def _caps(samples: Iterable[Sample]) -> list[int | None]:
    found = {sample.cap for sample in samples}
    return sorted(found, key=lambda cap: float("inf") if cap is None else cap)


def _comparison(
    first: Iterable[Sample], second: Iterable[Sample], group: str, cap: int | None
) -> Comparison:
    first, second = list(first), list(second)
    figures = {}
    for name, figure in FIGURES.items():
        one, other = _by_problem(first, figure), _by_problem(second, figure)
        both = [problem for problem in one if problem in other]
        if both:
            figures[name] = paired([one[each] for each in both], [other[each] for each in both])
    return Comparison(group, cap, figures)


def _by_problem(
    samples: Iterable[Sample], figure: Callable[[Sample], float | None]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for sample in samples:
        value = figure(sample)
        if value is not None:
            found.setdefault(sample.id, []).append(value)
    return found
