"""What the samples of a run come to: by group and cap, and all together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mvspec.law.metrics import Corpus
from mvspec.runtime.evaluation.sample import Sample
from mvspec.runtime.evaluation.statistics import Estimate, accuracy

__all__ = ["Summary", "problems_of", "summaries", "summarise"]

ALL = "all"


@dataclass(frozen=True)
class Summary:
    """What samples come to.

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
    accuracy: Estimate | None
    ungraded: int
    refused: int
    forms: dict[str, int]
    forced: int
    corpus: Corpus
    tokens: float | None
    critical_path: float | None
    seconds: float | None

    def record(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        corpus = self.corpus.to_dict()
        names = ("documents", "documents_with_blocks", "parallelism", "parallelism_with_blocks")
        well_formed = {f"well_formed_{name}": corpus[name] for name in names}
        given = {name: value for name, value in vars(self).items() if name != "corpus"}
        found = None if self.accuracy is None else asdict(self.accuracy)
        return {**given, "accuracy": found, **well_formed}


def problems_of(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Return samples by problem, in the order in which problems come."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.id].append(sample)
    return dict(found)


def summarise(samples: Sequence[Sample], group: str = ALL, cap: int | None = None) -> Summary:
    """Return what samples come to.

    >>> summarise([Sample("a", score=1.0), Sample("b", score=0.0)]).accuracy.mean
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
    return Summary(
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


def summaries(samples: Iterable[Sample]) -> list[Summary]:
    """Return a summary for each cap and group, and for each cap one of all groups."""
    by_cap: dict[int | None, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_cap[sample.cap].append(sample)
    found = []
    for cap in sorted(by_cap, key=lambda cap: float("inf") if cap is None else cap):
        groups: dict[str, list[Sample]] = defaultdict(list)
        for sample in by_cap[cap]:
            groups[sample.group].append(sample)
        if len(groups) > 1:
            found += [summarise(some, name or "-", cap) for name, some in groups.items()]
            found.append(summarise(by_cap[cap], ALL, cap))
        else:
            (name,) = groups
            found.append(summarise(by_cap[cap], name or ALL, cap))
    return found
