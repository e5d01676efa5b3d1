"""Tasks of `mvspec curate`: documents, and the analyses of implicit and of prompted parallelism."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mvspec.compiler.lowerings import flatten
from mvspec.curation.answers import BranchesReply
from mvspec.curation.chain import ReasoningChain
from mvspec.curation.curate import curate_chain
from mvspec.curation.output import write_documents, write_lines, write_quarantine
from mvspec.curation.questions import (
    Ask,
    ChainQuarantined,
    ChainQuestions,
    CurationOptions,
    instructions,
    parse_prompt,
)
from mvspec.curation.report import SAMPLE, write_report
from mvspec.curation.store import CurationStore
from mvspec.curation.structure import UnusableAnswer
from mvspec.data.check import check_record
from mvspec.data.measure import count_words, measure
from mvspec.data.records import Fields, InputError, Record
from mvspec.data.resume import write_json
from mvspec.data.sources import open_records
from mvspec.forms import parse

PROMPT_FORM = "multiverse-prompt"
BRANCHES = "branches.jsonl"
PROMPTING = "prompting.jsonl"
COUNTS = "counts.json"


@dataclass(frozen=True)
class CurationTask:
    """Chains to documents.

    Args:
        options: of the curation.
        sample: records that report.html shows.
    """

    options: CurationOptions
    sample: int = SAMPLE
    reasoning = True

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The options and the prompts."""
        prompts = _digest("parse", "group", "frame", "rewrite", "judge")
        return {"task": "documents", **asdict(self.options), "prompts": prompts}

    async def work(self, chain: ReasoningChain, ask: Ask) -> dict[str, Any]:
        """Return the document with its sequential twin, or why there is none."""
        made = await curate_chain(chain, self.options, ask)
        outcome: dict[str, Any] = {
            "code": made.code,
            "reason": made.reason,
            "history": made.history,
            "sentences": list(chain.sentences),
        }
        if made.document is not None:
            outcome["document"] = made.document.model_dump(mode="json")
            outcome["autoregressive"] = flatten(made.document).model_dump(mode="json")
            outcome["provenance"] = made.provenance | {
                "place": chain.place,
                "sha256": hashlib.sha256(chain.reasoning.encode()).hexdigest(),
            }
        return outcome

    def write(self, folder: Path, store: CurationStore) -> None:
        """Write the documents, the quarantine and the report."""
        write_documents(folder, store)
        write_quarantine(folder, store)
        write_report(folder, store, self.sample)


@dataclass(frozen=True)
class BranchTask:
    """The implicit parallelism of chains: where they branch, and of which kind each branch is.

    Source: Multiverse (arXiv 2506.09991), section 3.
    """

    options: CurationOptions
    reasoning = True

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The options and the prompt."""
        return _fingerprint("branches", self.options)

    async def work(self, chain: ReasoningChain, ask: Ask) -> dict[str, Any]:
        """Return the places where a chain branches."""
        questions = ChainQuestions(chain, self.options, ask)
        outcome: dict[str, Any] = {"code": "", "reason": ""}
        try:
            found = await questions.open("branches").answer(
                BranchesReply, parse_prompt(chain), lambda reply: _in_bounds(reply, chain)
            )
        except ChainQuarantined as error:
            outcome |= {"code": error.code, "reason": str(error)}
        else:
            outcome["sentences"] = len(chain.sentences)
            outcome["branchings"] = [
                each.model_dump(mode="json")
                | {"texts": [chain.text(b.first, b.last).strip()[:400] for b in each.branches]}
                for each in found.branchings
            ]
        return outcome | {"history": questions.history()}

    def write(self, folder: Path, store: CurationStore) -> None:
        """Write a line for each branch, keeping what a person has confirmed, and the counts.

        Raises:
            InputError: the file was edited into something that is not JSON lines.
        """
        path = folder / BRANCHES
        confirmed = {_branch_key(row): row["confirmed"] for row in _confirmed(path)}
        rows = (row for outcome in store.outcomes() for row in _branch_rows(outcome))
        write_lines(path, (row | {"confirmed": confirmed.get(_branch_key(row))} for row in rows))
        write_quarantine(folder, store)
        write_json(folder / COUNTS, branch_counts(store.outcomes(), _confirmed(path)))


@dataclass(frozen=True)
class PromptingTask:
    """The test of explicit parallelism: can a model be told to write blocks?

    The answer is free text, read in the form `multiverse-prompt`.
    Source: the rebuttal of Multiverse.
    """

    options: CurationOptions
    reasoning = False

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The options and the prompt."""
        return _fingerprint("prompting", self.options)

    async def work(self, chain: ReasoningChain, ask: Ask) -> dict[str, Any]:
        """Return the model's text and the verdict on it; no verdict is a failure of the task."""
        questions = ChainQuestions(chain, self.options, ask)
        answer = await questions.open("prompting").text(chain.question)
        outcome = {"history": questions.history(), "text": answer.text}
        if answer.finish == "blocked":
            return outcome | {"code": "blocked", "reason": answer.reason}
        verdict = prompting_verdict(answer.text, cut=answer.finish == "length")
        return outcome | {"code": "", "reason": "", "verdict": verdict}

    def write(self, folder: Path, store: CurationStore) -> None:
        """Write the models' texts with their verdicts, and the counts."""
        write_lines(
            folder / PROMPTING,
            (
                {"id": outcome["record"], "text": outcome["text"]} | outcome["verdict"]
                for outcome in store.outcomes()
                if not outcome["code"]
            ),
        )
        write_quarantine(folder, store)
        write_json(folder / COUNTS, prompting_counts(store.outcomes()))


def prompting_verdict(text: str, *, cut: bool = False) -> dict[str, Any]:
    """Return how well-formed a text of the prompting test is, and how parallel.

    Args:
        cut: whether a limit ended it.

    >>> prompting_verdict("No block.")["ok"], prompting_verdict("<Parallel>")["violation"]
    (True, 'cut')
    """
    verdict = check_record(Record("text", text, fields=Fields(PROMPT_FORM)))
    document, _ = parse(text, PROMPT_FORM, recover=True)
    metrics = measure(document, count_words)
    return {
        "ok": verdict.ok,
        "cut": verdict.cut or cut,
        "violation": "" if verdict.ok else verdict.diagnostics[0].code,
        "numbering": bool(verdict.ok and verdict.diagnostics),
        "blocks": metrics.blocks,
        "paths": metrics.paths,
        "depth": metrics.depth,
        "parallelism": round(metrics.parallelism, 6),
    }


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
    people = Counter(map(_said_of, confirmed))
    return {
        "chains": chains,
        "chains_that_branch": branching,
        "share_that_branch": branching / chains if chains else None,
        "branchings": places,
        "branches": {"collective": kinds["collective"], "selective": kinds["selective"]},
        "share_of_sentences_in_branches": covered / sentences if sentences else None,
        "people": dict(sorted(people.items())),
    }


def _said_of(row: dict[str, Any]) -> str:
    said = row["confirmed"]
    if said is None:
        return "not looked at"
    if said is True or said == row["proposed"]:
        return "confirmed"
    return "of the other kind" if said in ("collective", "selective") else "refused"


def prompting_counts(outcomes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return how often a model that was told to write blocks wrote them, and how well."""
    names = ("responses", "blocked", "cut", "with_a_block", "well_formed",
             "well_formed_with_a_block", "nested", "blocks", "paths")  # fmt: skip
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
    some = counts["with_a_block"]
    return {
        **{name: counts[name] for name in names},
        "paths_per_block": counts["paths"] / counts["blocks"] if counts["blocks"] else None,
        "parallelism_with_blocks": parallelism / some if some else None,
        "violations": dict(sorted(violations.items())),
    }


def _fingerprint(task: str, options: CurationOptions) -> dict[str, Any]:
    names = ("model", "attempts", "temperature", "thinking", "max_tokens")
    asking = {name: getattr(options, name) for name in names}
    return {"task": task, **asking, "prompts": _digest(task)}


def _digest(*steps: str) -> str:
    """Return what tells one set of instructions from another."""
    return hashlib.sha256("\0".join(map(instructions, steps)).encode()).hexdigest()


def _in_bounds(found: BranchesReply, chain: ReasoningChain) -> BranchesReply:
    sentences = len(chain.sentences)
    for index, each in enumerate(found.branchings, 1):
        if len(each.branches) < 2:
            raise UnusableAnswer(f"place {index} has fewer than two branches: leave it out")
        at = 0
        for branch in each.branches:
            if not at < branch.first <= branch.last <= sentences:
                raise UnusableAnswer(
                    f"place {index}: the branch {branch.title!r} covers sentences {branch.first} "
                    f"to {branch.last}; branches follow each other, within 1 to {sentences}"
                )
            at = branch.last
    return found


def _branch_rows(outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for place, branching in enumerate(outcome.get("branchings", ()), 1):
        pairs = zip(branching["branches"], branching["texts"], strict=True)
        for number, (branch, text) in enumerate(pairs, 1):
            yield {
                "record": outcome["record"],
                "branching": place,
                "branch": number,
                **branch,
                "text": text,
                "proposed": branching["kind"],
                "reason": branching["reason"],
            }


def _branch_key(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("record", "branching", "branch", "first", "last", "proposed")
    return tuple(row.get(name) for name in names)


def _confirmed(path: Path) -> list[dict[str, Any]]:
    """Return the rows of branches.jsonl as a person has left them; none where it is not there."""
    if not path.exists():
        return []
    rows = []
    for record in open_records([str(path)]).read():
        if record.row is None or "confirmed" not in record.row:
            wanted = 'an object with "confirmed" is expected'
            raise InputError(f"{record.place}: {wanted}: mend the line, or delete it")
        rows.append(record.row)
    return rows
