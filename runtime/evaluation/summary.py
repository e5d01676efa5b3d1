"""Figures of a run with their intervals, and of two runs compared problem by problem.

The unit is the problem: samples of one problem are alike, so they are averaged first, and what is
resampled or swapped are problems.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mvspec.data.records import InputError
from mvspec.law.metrics import Corpus
from mvspec.runtime.evaluation.results import EvaluationRun, EvaluationSample

LEVEL = 0.95

_RESAMPLES = 9_999

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AccuracyEstimate:
    """A mean with its 95 % interval.

    Args:
        mean: over problems of the mean over their samples.
        low, high: of the interval; None where one problem says too little.
        method: how the interval was made.
    """

    mean: float
    low: float | None
    high: float | None
    method: str


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The difference of two runs over the problems that both have.

    Args:
        problems: that are compared.
        first, second: the means.
        difference: second minus first; `low` and `high` are its interval (paired bootstrap over
            problems, BCa); None where all differences are equal, or there is one.
        p: of the two-sided permutation test that swaps the runs problem by problem: exact for
            few problems, else of 9,999 random swaps; 1 for a single problem.
        mcnemar: of McNemar's exact test, where every problem has one sample that is right or
            wrong; else None.
        better, worse: problems where the second run has more, and less.
    """

    problems: int
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p: float
    mcnemar: float | None
    better: int
    worse: int


def accuracy(scores: Sequence[Sequence[float]]) -> AccuracyEstimate:
    """Return pass@1 over problems with its interval.

    With one sample a problem, each right or wrong, it is Wilson's interval; else the bootstrap
    over problems (BCa, 9,999 resamples, a fixed seed), and Wilson's over the number of problems
    where all problems have the same mean.

    Args:
        scores: of each problem's samples, 0 to 1.

    >>> accuracy([[1.0], [0.0], [1.0], [1.0]]).mean
    0.75
    """
    means = np.array([np.mean(each) for each in scores], dtype=np.float64)
    mean = float(means.mean())
    binary = all(len(each) == 1 and each[0] in (0.0, 1.0) for each in scores)
    if binary or np.ptp(means) == 0:
        right = round(float(means.sum()))
        found = stats.binomtest(right, len(means)).proportion_ci(LEVEL, method="wilson")
        return AccuracyEstimate(mean, float(found.low), float(found.high), "Wilson")
    low, high = _bootstrap(means)
    return AccuracyEstimate(mean, low, high, "bootstrap over problems (BCa)")


def _bootstrap(values: Floats) -> tuple[float | None, float | None]:
    """Return the interval of a mean; none where nothing varies."""
    if len(values) < 2 or np.ptp(values) == 0:
        return None, None
    for method in ("BCa", "percentile"):  # BCa has none where all but one value are equal
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                (values,),
                np.mean,
                confidence_level=LEVEL,
                n_resamples=_RESAMPLES,
                method=method,
                rng=np.random.default_rng(0),
                batch=500,
            ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            break
    return float(found.low), float(found.high)


def paired(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> PairedDifference:
    """Compare the same problems in two runs.

    Args:
        first, second: the scores, or another figure, of each problem's samples; in one order.

    >>> paired([[0.0]] * 8, [[1.0]] * 8).p
    0.0078125
    """
    one, other = (np.array([np.mean(each) for each in run]) for run in (first, second))
    differences = other - one
    low, high = _bootstrap(differences)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    p = 1.0
    if len(differences) > 1 and (better or worse):
        p = float(
            stats.permutation_test(
                (differences,),
                np.mean,
                permutation_type="samples",
                n_resamples=_RESAMPLES,
                rng=np.random.default_rng(0),
                batch=500,
            ).pvalue
        )
    binary = all(len(each) == 1 and each[0] in (0.0, 1.0) for each in (*first, *second))
    mcnemar = None
    if binary:
        mcnemar = 1.0
        if better or worse:
            mcnemar = float(stats.binomtest(better, better + worse).pvalue)
    return PairedDifference(
        len(differences), float(one.mean()), float(other.mean()), float(differences.mean()),
        low, high, p, mcnemar, better, worse,
    )  # fmt: skip


ALL = "all"


@dataclass(frozen=True)
class EvaluationSummary:
    """Accuracy, shape and cost of a set of samples.

    Args:
        group: what they have in common, `all` for no group.
        cap: on the critical path of each, in tokens.
        problems, samples: how many, those without a verdict included.
        accuracy: pass@1 with its interval, over the samples that were graded; None without any.
        ungraded: samples whose grader failed or took too long.
        refused: samples that the engine did not answer.
        forms: samples by well-formedness: ok, cut, malformed.
        forced: samples that a limit closed.
        corpus: how parallel the well-formed ones are.
        tokens, critical_path, seconds: means over the samples where they are known.
    """

    group: str
    cap: int | None
    problems: int
    samples: int
    accuracy: AccuracyEstimate | None
    ungraded: int
    refused: int
    forms: dict[str, int]
    forced: int
    corpus: Corpus
    tokens: float | None
    critical_path: float | None
    seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        corpus = self.corpus.to_dict()
        names = ("documents", "documents_with_blocks", "parallelism", "parallelism_with_blocks")
        well_formed = {f"well_formed_{name}": corpus[name] for name in names}
        given = {name: value for name, value in vars(self).items() if name != "corpus"}
        found = None if self.accuracy is None else asdict(self.accuracy)
        return {**given, "accuracy": found, **well_formed}


def problems_of(samples: Iterable[EvaluationSample]) -> dict[str, list[EvaluationSample]]:
    """Return samples by problem, in the order in which problems come."""
    found: dict[str, list[EvaluationSample]] = defaultdict(list)
    for sample in samples:
        found[sample.id].append(sample)
    return dict(found)


def summarise(
    samples: Sequence[EvaluationSample], group: str = ALL, cap: int | None = None
) -> EvaluationSummary:
    """Return what samples come to.

    >>> samples = [EvaluationSample("a", score=1.0), EvaluationSample("b", score=0.0)]
    >>> summarise(samples).accuracy.mean
    0.5
    """
    by_problem = problems_of(samples)
    scores = [
        [each.score for each in some if each.score is not None] for some in by_problem.values()
    ]
    scores = [each for each in scores if each]
    corpus = Corpus()
    for sample in samples:
        if sample.form == "ok" and sample.metrics is not None:
            corpus += sample.metrics
    forms = Counter(each.form for each in samples if each.form)
    return EvaluationSummary(
        group,
        cap,
        len(by_problem),
        len(samples),
        accuracy(scores) if scores else None,
        sum(each.score is None and not each.error for each in samples),
        sum(bool(each.error) for each in samples),
        {form: forms[form] for form in ("ok", "cut", "malformed")},
        sum(each.finish in ("limit", "time") for each in samples),
        corpus,
        _mean(each.tokens for each in samples),
        _mean(each.critical_path for each in samples),
        _mean(each.seconds for each in samples),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def summaries(samples: Iterable[EvaluationSample]) -> list[EvaluationSummary]:
    """Return a summary for each cap and group, and for each cap one of all groups."""
    by_cap: dict[int | None, list[EvaluationSample]] = defaultdict(list)
    for sample in samples:
        by_cap[sample.cap].append(sample)
    found = []
    for cap in sorted(by_cap, key=lambda cap: float("inf") if cap is None else cap):
        groups: dict[str, list[EvaluationSample]] = defaultdict(list)
        for sample in by_cap[cap]:
            groups[sample.group].append(sample)
        if len(groups) > 1:
            found += [summarise(some, name or "-", cap) for name, some in groups.items()]
            found.append(summarise(by_cap[cap], ALL, cap))
        else:
            (name,) = groups
            found.append(summarise(by_cap[cap], name or ALL, cap))
    return found


FIGURES: dict[str, Callable[[EvaluationSample], float | None]] = {
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
class RunComparison:
    """Two runs under one cap, in one group.

    Args:
        group: `all` for all of them.
        cap: on the critical path.
        figures: by name; one that no problem has in both runs is missing.
    """

    group: str
    cap: int | None
    figures: dict[str, PairedDifference]

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        figures = {name: asdict(found) for name, found in self.figures.items()}
        return {"group": self.group, "cap": self.cap, "figures": figures}


def compare_runs(first: EvaluationRun, second: EvaluationRun) -> list[RunComparison]:
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


def _caps(samples: Iterable[EvaluationSample]) -> list[int | None]:
    found = {sample.cap for sample in samples}
    return sorted(found, key=lambda cap: float("inf") if cap is None else cap)


def _comparison(
    first: Iterable[EvaluationSample],
    second: Iterable[EvaluationSample],
    group: str,
    cap: int | None,
) -> RunComparison:
    first, second = list(first), list(second)
    figures = {}
    for name, figure in FIGURES.items():
        one, other = _by_problem(first, figure), _by_problem(second, figure)
        both = [problem for problem in one if problem in other]
        if both:
            figures[name] = paired([one[each] for each in both], [other[each] for each in both])
    return RunComparison(group, cap, figures)


def _by_problem(
    samples: Iterable[EvaluationSample], figure: Callable[[EvaluationSample], float | None]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for sample in samples:
        value = figure(sample)
        if value is not None:
            found.setdefault(sample.id, []).append(value)
    return found
