"""The counts of the two analyses: branches by kind, and what models write when told to fork."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mvspec.curation.output import BRANCHES, read_confirmed, replaced
from mvspec.curation.store import Store

__all__ = ["branch_counts", "prompting_counts", "write_branch_counts", "write_prompting_counts"]

COUNTS = "counts.json"


def branch_counts(
    outcomes: Iterable[dict[str, Any]], confirmed: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """Return the counts of the paper's section 3.

    Args:
        outcomes: of the task `branches`.
        confirmed: the rows of branches.jsonl as people have left them: `confirmed` is true, false,
            or the kind that it really is.
    """
    chains = branching = covered = sentences = places = 0
    kinds: Counter[str] = Counter()
    for outcome in outcomes:
        if outcome["code"]:
            continue
        chains += 1
        branching += bool(outcome["branchings"])
        sentences += outcome["sentences"]
        inside: set[int] = set()
        for each in outcome["branchings"]:
            places += 1
            kinds[each["kind"]] += len(each["branches"])
            for branch in each["branches"]:
                inside |= set(range(branch["first"], branch["last"] + 1))
        covered += len(inside)
    people: Counter[str] = Counter()
    for row in confirmed:
        said = row["confirmed"]
        if said is None:
            people["not looked at"] += 1
        elif said is True or said == row["proposed"]:
            people["confirmed"] += 1
        elif said in ("collective", "selective"):
            people["of the other kind"] += 1
        else:
            people["refused"] += 1
    return {
        "chains": chains,
        "chains_that_branch": branching,
        "share_that_branch": branching / chains if chains else None,
        "branchings": places,
        "branches": {"collective": kinds["collective"], "selective": kinds["selective"]},
        "share_of_sentences_in_branches": covered / sentences if sentences else None,
        "people": dict(sorted(people.items())),
    }


def prompting_counts(outcomes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return how often a model that was told to write blocks wrote them, and how well."""
    counts: Counter[str] = Counter()
    violations: Counter[str] = Counter()
    parallelism = 0.0
    for outcome in outcomes:
        counts["responses"] += 1
        if outcome["code"]:
            counts["blocked"] += 1
            continue
        verdict = outcome["verdict"]
        counts["well_formed"] += verdict["ok"]
        counts["cut"] += verdict["cut"]
        if verdict["blocks"]:
            counts["with_a_block"] += 1
            counts["well_formed_with_a_block"] += verdict["ok"]
            counts["blocks"] += verdict["blocks"]
            counts["paths"] += verdict["paths"]
            counts["nested"] += verdict["depth"] > 1
            parallelism += verdict["parallelism"]
        if verdict["violation"] and not verdict["cut"]:
            violations[verdict["violation"]] += 1
    names = ("responses", "blocked", "cut", "with_a_block", "well_formed",
             "well_formed_with_a_block", "nested", "blocks", "paths")  # fmt: skip
    some = counts["with_a_block"]
    return {
        **{name: counts[name] for name in names},
        "paths_per_block": counts["paths"] / counts["blocks"] if counts["blocks"] else None,
        "parallelism_with_blocks": parallelism / some if some else None,
        "violations": dict(sorted(violations.items())),
    }


def write_branch_counts(folder: Path, store: Store) -> None:
    """Write counts.json of the task `branches`."""
    _write(folder, branch_counts(store.outcomes(), read_confirmed(folder / BRANCHES)))


def write_prompting_counts(folder: Path, store: Store) -> None:
    """Write counts.json of the task `prompting`."""
    _write(folder, prompting_counts(store.outcomes()))


def _write(folder: Path, counts: dict[str, Any]) -> None:
    with replaced(folder / COUNTS) as file:
        file.write(json.dumps(counts, indent=2) + "\n")
