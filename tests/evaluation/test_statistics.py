"""Intervals and comparisons, against hand counts and each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvspec.runtime.evaluation.results import EvaluationSample
from mvspec.runtime.evaluation.summary import accuracy, paired, summaries, summarise


def test_one_sample_a_problem_is_wilsons() -> None:
    found = accuracy([[1.0]] * 14 + [[0.0]] * 16)
    assert found.mean == pytest.approx(14 / 30)
    # Wilson's formula at z = 1.959964 by hand.
    assert found.low == pytest.approx(0.3023, abs=1e-4)
    assert found.high == pytest.approx(0.6386, abs=1e-4)
    assert found.method == "Wilson"


def test_samples_of_a_problem_are_one_unit() -> None:
    clustered = accuracy([[1.0] * 8, [0.0] * 8] * 10)
    apart = accuracy([[1.0], [0.0]] * 80)
    assert clustered.mean == apart.mean == 0.5
    assert clustered.low is not None
    assert apart.low is not None
    assert clustered.low < apart.low - 0.05
    assert clustered.method.startswith("bootstrap")


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=3), min_size=1, max_size=9)
)
def test_an_interval_holds_its_mean(scores: list[list[float]]) -> None:
    found = accuracy(scores)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= 1


def test_pairs() -> None:
    first = [[0.0]] * 6 + [[1.0]] * 10
    second = [[1.0]] * 6 + [[1.0]] * 9 + [[0.0]]
    found = paired(first, second)
    assert found.difference == pytest.approx(5 / 16)
    assert (found.better, found.worse) == (6, 1)
    # The sign test of 6 against 1: 2 * (1 + 7) / 2 ** 7; the permutation test says the same of
    # ones and zeros.
    assert found.mcnemar == pytest.approx(0.125)
    assert found.p == pytest.approx(0.125, abs=0.02)
    back = paired(second, first)
    assert back.difference == -found.difference
    assert back.mcnemar == found.mcnemar


def test_equal_runs_differ_by_nothing() -> None:
    found = paired([[1.0], [0.0]], [[1.0], [0.0]])
    assert (found.difference, found.p, found.low) == (0.0, 1.0, None)


def test_summaries_by_group_and_cap() -> None:
    samples = [
        EvaluationSample(
            "a", 0, 64, "x", score=1.0, form="ok", tokens=30, critical_path=20, blocks=1
        ),
        EvaluationSample(
            "a", 1, 64, "x", score=None, note="the grader took more than 3 s", form="cut"
        ),
        EvaluationSample("b", 0, 64, "y", score=0.0, form="ok", tokens=10, critical_path=10),
        EvaluationSample("b", 0, 32, "y", error="too long"),
    ]
    found = {(each.group, each.cap): each for each in summaries(samples)}
    assert list(found) == [("y", 32), ("x", 64), ("y", 64), ("all", 64)]
    both = found["all", 64]
    assert both.accuracy is not None
    assert (both.problems, both.samples, both.ungraded, both.accuracy.mean) == (2, 3, 1, 0.5)
    assert both.corpus.to_dict()["parallelism"] == 1.25
    assert both.corpus.to_dict()["parallelism_with_blocks"] == 1.5
    assert (found["y", 32].accuracy, found["y", 32].refused) == (None, 1)
    assert summarise(samples).to_dict()["well_formed_documents"] == 2
