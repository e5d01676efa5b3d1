"""What can be done with chains: curate them, list their branches, or put the question anew."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mvspec.compiler.sequential import flatten
from mvspec.curation.answers import Branches, Branching
from mvspec.curation.chain import Chain
from mvspec.curation.curate import curate_chain
from mvspec.curation.options import Curation
from mvspec.curation.site import Ask, Quarantined, Questions
from mvspec.curation.steps import instructions, parse_prompt
from mvspec.curation.structure import Problem
from mvspec.data.check import check_record
from mvspec.data.records import Record
from mvspec.forms import parse
from mvspec.law.metrics import count_words, measure

__all__ = ["BranchTask", "CurationTask", "PromptingTask", "prompting_verdict"]

PROMPT_FORM = "multiverse-prompt"


@dataclass(frozen=True)
class CurationTask:
    """Chains to documents."""

    options: Curation
    reasoning: bool = True

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The options and the prompts."""
        steps = ("parse", "group", "frame", "rewrite", "judge")
        return {"task": "documents", **asdict(self.options), "prompts": prompts_digest(steps)}

    async def work(self, chain: Chain, ask: Ask) -> dict[str, Any]:
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


@dataclass(frozen=True)
class BranchTask:
    """The implicit parallelism of chains: where they branch, and of which kind each branch is.

    Source: Multiverse (arXiv 2506.09991), section 3.
    """

    options: Curation
    reasoning: bool = True

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The options and the prompt."""
        return {
            "task": "branches",
            **_asking(self.options),
            "prompts": prompts_digest(["branches"]),
        }

    async def work(self, chain: Chain, ask: Ask) -> dict[str, Any]:
        """Return the places where a chain branches."""
        questions = Questions(chain, self.options, ask)
        try:
            found = await questions.site("branches").answer(
                Branches, parse_prompt(chain), lambda answer: _in_bounds(answer, chain)
            )
        except Quarantined as error:
            history = questions.history()
            return {"code": error.code, "reason": str(error), "history": history}
        return {
            "code": "",
            "reason": "",
            "history": questions.history(),
            "sentences": len(chain.sentences),
            "branchings": [
                each.model_dump(mode="json")
                | {"texts": [chain.text(b.first, b.last).strip()[:400] for b in each.branches]}
                for each in found.branchings
            ],
        }


@dataclass(frozen=True)
class PromptingTask:
    """The test of explicit parallelism: can a model be told to write blocks?

    The answer is free text, read in the form `multiverse-prompt`.
    Source: the rebuttal of Multiverse.
    """

    options: Curation
    reasoning: bool = False

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The options and the prompt."""
        prompts = prompts_digest(["prompting"])
        return {"task": "prompting", **_asking(self.options), "prompts": prompts}

    async def work(self, chain: Chain, ask: Ask) -> dict[str, Any]:
        """Return the model's text and the verdict on it; no verdict is a failure of the task."""
        questions = Questions(chain, self.options, ask)
        answer = await questions.site("prompting").text(chain.question)
        outcome: dict[str, Any] = {
            "code": "blocked" if answer.finish == "blocked" else "",
            "reason": answer.reason if answer.finish == "blocked" else "",
            "history": questions.history(),
            "text": answer.text,
        }
        if outcome["code"]:
            return outcome
        outcome["verdict"] = prompting_verdict(answer.text, cut=answer.finish == "length")
        return outcome


def prompting_verdict(text: str, *, cut: bool = False) -> dict[str, Any]:
    """Return how well-formed a text of the prompting test is, and how parallel.

    Args:
        cut: whether a limit ended it.

    >>> prompting_verdict("No block.")["ok"], prompting_verdict("<Parallel>")["violation"]
    (True, 'cut')
    """
    verdict = check_record(Record("text", "text", text), PROMPT_FORM)
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


def prompts_digest(steps: Sequence[str]) -> str:
    """Return what tells one set of instructions from another."""
    return hashlib.sha256("\0".join(map(instructions, steps)).encode()).hexdigest()


def _asking(options: Curation) -> dict[str, Any]:
    names = ("model", "attempts", "temperature", "thinking", "max_tokens")
    return {name: getattr(options, name) for name in names}


def _in_bounds(found: Branches, chain: Chain) -> Branches:
    for index, each in enumerate(found.branchings, 1):
        _check_branching(each, f"place {index}", len(chain.sentences))
    return found


def _check_branching(each: Branching, where: str, sentences: int) -> None:
    if len(each.branches) < 2:
        raise Problem(f"{where} has fewer than two branches: leave it out")
    at = 0
    for branch in each.branches:
        if not at < branch.first <= branch.last <= sentences:
            raise Problem(
                f"{where}: the branch {branch.title!r} covers sentences {branch.first} to "
                f"{branch.last}; branches follow each other, within 1 to {sentences}"
            )
        at = branch.last
