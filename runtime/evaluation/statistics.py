"""Accuracy with its interval, and two runs compared problem by problem.

The unit is the problem: samples of one problem are alike, so they are averaged first, and what is
resampled or swapped are problems.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["Estimate", "Paired", "accuracy", "paired"]

LEVEL = 0.95

_RESAMPLES = 9_999

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
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
class Paired:
    """What two runs differ by, over the problems that both have.

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


def accuracy(scores: Sequence[Sequence[float]]) -> Estimate:
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
        return Estimate(mean, float(found.low), float(found.high), "Wilson")
    low, high = _bootstrap(means)
    return Estimate(mean, low, high, "bootstrap over problems (BCa)")


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


def paired(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Paired:
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
    return Paired(
        len(differences), float(one.mean()), float(other.mean()), float(differences.mean()),
        low, high, p, mcnemar, better, worse,
    )  # fmt: skip
