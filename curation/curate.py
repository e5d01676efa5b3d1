"""A chain to a document: the five steps, the checks, and the way back from a check to its step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mvspec.curation.answers import Groups, Steps
from mvspec.curation.chain import Chain
from mvspec.curation.checks import block_count, content_distance, coverage_gap
from mvspec.curation.filling import fill
from mvspec.curation.options import Curation
from mvspec.curation.site import Ask, Quarantined, Questions, Site
from mvspec.curation.steps import group_prompt, parse_prompt
from mvspec.curation.structure import Body, Step, blocks_of, read_groups, read_steps
from mvspec.curation.writing import WrittenBlock, all_of, collected
from mvspec.errors import VerifyError
from mvspec.tree.ir import Document

__all__ = ["Outcome", "curate_chain"]


@dataclass(frozen=True)
class Outcome:
    """What became of a record.

    Args:
        code: "" for a document; else what it did not pass.
        reason: why it has no document.
        document: the finished one.
        history: every answer, step by step, with what was wrong with it.
        provenance: how the document came about.
    """

    code: str
    reason: str
    document: Document | None
    history: list[dict[str, Any]]
    provenance: dict[str, Any]


async def curate_chain(chain: Chain, options: Curation, ask: Ask) -> Outcome:
    """Return what becomes of a chain; whatever the model answers, it is a verdict.

    Args:
        ask: how a model is asked: `Caller.ask`, or what a test has instead.

    Raises:
        Stopped, Unanswered, Refused: no answer could be had; the record is not decided.
    """
    questions = Questions(chain, options, ask)
    try:
        document, provenance = await _Work(questions).run()
    except Quarantined as error:
        return Outcome(error.code, str(error), None, questions.history(), {})
    return Outcome("", "", document, questions.history(), provenance)


class _Work:
    """One chain on its way."""

    def __init__(self, questions: Questions) -> None:
        self.questions = questions
        self.chain = questions.chain
        self.options = questions.options

    async def run(self) -> tuple[Document, dict[str, Any]]:
        steps = await self.steps()
        grouping = self.questions.site("group")
        while True:
            body = await self.groups(grouping, steps)
            written = [WrittenBlock(self.questions, block) for block in blocks_of(body)]
            if await self.written(body, written, grouping):
                return self.finished(steps, body, written)

    async def steps(self) -> tuple[Step, ...]:
        count = len(self.chain.sentences)
        prompt = parse_prompt(self.chain)
        return await self.questions.site("parse").answer(
            Steps, prompt, lambda found: read_steps(found, count)
        )

    async def groups(self, site: Site, steps: tuple[Step, ...]) -> Body:
        options = self.options
        depth, paths = options.max_depth, options.max_paths
        prompt = group_prompt(self.chain, steps, depth, paths)
        body = await site.answer(
            Groups,
            prompt,
            lambda found: read_groups(found, steps, max_depth=depth, max_paths=paths),
        )
        if not options.sequential and not any(True for _ in blocks_of(body)):
            reason = "the model finds nothing in this chain that can run side by side"
            raise Quarantined("sequential", reason)
        return body

    async def written(self, body: Body, written: list[WrittenBlock], grouping: Site) -> bool:
        """Write all blocks until the checks pass; False where the groups were sent back."""
        # One after the other in the order of the text would be as right, and slower.
        await all_of(*(block.write() for block in written))
        while True:
            if self.options.judge:
                verdicts = await all_of(*(block.judge() for block in written))
                regroup = [verdict for verdict in verdicts if isinstance(verdict, str)]
                if regroup:
                    grouping.refuse("judge", regroup[0])
                    return False
                if any(verdicts):
                    continue
            if self.check(body, written):
                return True
            await all_of(*(block.rewrite() for block in written))

    def check(self, body: Body, written: list[WrittenBlock]) -> bool:
        """Whether the whole document passes; what does not is sent back."""
        frames, edits = collected(written)
        try:
            document = fill(self.chain, body, frames, edits)
        except VerifyError as error:
            raise Quarantined("grammar", str(error)) from None
        gap = coverage_gap(document, self.chain, body, edits)
        if gap is not None:
            raise Quarantined("coverage", gap)
        distance = content_distance(document, self.chain, edits)
        if distance <= self.options.max_distance:
            return True
        paths = [(path.changed(), path) for block in written for path in block.paths]
        _, worst = max(paths, key=lambda pair: pair[0])
        worst.refuse(
            "content",
            f"the document differs from its source by {distance:.2f}, and "
            f"{self.options.max_distance:g} is allowed: edit fewer sentences, and change less",
        )
        return False

    def finished(
        self, steps: tuple[Step, ...], body: Body, written: list[WrittenBlock]
    ) -> tuple[Document, dict[str, Any]]:
        frames, edits = collected(written)
        options = self.options
        try:
            document = fill(
                self.chain, body, frames, edits, trigger=options.trigger, prefix=options.prefix
            )
        except VerifyError as error:
            raise Quarantined("grammar", str(error)) from None
        plain = fill(self.chain, body, frames, edits)
        sentences = self.chain.sentences
        return document, {
            "model": options.model,
            "sentences": len(sentences),
            "steps": len(steps),
            "blocks": block_count(document),
            "distance": round(content_distance(plain, self.chain, edits), 6),
            "rewritten": [
                {"sentence": number, "before": sentences[number - 1].strip(), "after": new}
                for number, new in sorted(edits.items())
            ],
        }
