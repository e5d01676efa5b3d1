"""Curation of a chain: the five steps, the checks, and the way back from a check to its step."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from mvspec.curation.answers import (
    EditsReply,
    FrameReply,
    GroupsReply,
    JudgementReply,
    StepsReply,
)
from mvspec.curation.chain import ReasoningChain
from mvspec.curation.checks import content_distance, coverage_gap, leaning_words, run_distance
from mvspec.curation.questions import (
    Ask,
    ChainQuarantined,
    ChainQuestions,
    CurationOptions,
    RetriedQuestion,
    frame_prompt,
    group_prompt,
    judge_prompt,
    parse_prompt,
    rewrite_prompt,
)
from mvspec.curation.structure import (
    BlockPlan,
    PlanBody,
    SentenceRun,
    UnusableAnswer,
    blocks_of,
    fill,
    own_sentences,
    read_groups,
    read_steps,
)
from mvspec.errors import VerifyError
from mvspec.law.tags import TAG
from mvspec.tree.ir import Document

T = TypeVar("T")


@dataclass(frozen=True)
class CurationOutcome:
    """Verdict on a record.

    Args:
        code: "" for a document; else the check that it did not pass.
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


async def curate_chain(
    chain: ReasoningChain, options: CurationOptions, ask: Ask
) -> CurationOutcome:
    """Return the verdict on a chain, whatever the model answers.

    Args:
        ask: how a model is asked: `ModelClient.ask`, or what a test has instead.

    Raises:
        CurationStopped, RequestUnanswered, RequestRefused: no answer could be had; the record is
            not decided.
    """
    questions = ChainQuestions(chain, options, ask)
    try:
        document, provenance = await _curated(questions)
    except ChainQuarantined as error:
        return CurationOutcome(error.code, str(error), None, questions.history(), {})
    return CurationOutcome("", "", document, questions.history(), provenance)


async def _curated(questions: ChainQuestions) -> tuple[Document, dict[str, Any]]:
    chain, options = questions.chain, questions.options
    steps = await questions.open("parse").answer(
        StepsReply, parse_prompt(chain), lambda found: read_steps(found, len(chain.sentences))
    )
    grouping = questions.open("group")
    depth, paths = options.max_depth, options.max_paths
    while True:
        body = await grouping.answer(
            GroupsReply,
            group_prompt(chain, steps, depth, paths),
            lambda found: read_groups(found, steps, max_depth=depth, max_paths=paths),
        )
        written = WrittenDocument(questions, body)
        if not written.blocks and not options.sequential:
            reason = "the model finds nothing in this chain that can run side by side"
            raise ChainQuarantined("sequential", reason)
        if await written.write(grouping):
            return written.document(options.trigger, options.prefix), {
                "model": options.model,
                "sentences": len(chain.sentences),
                "steps": len(steps),
                "blocks": len(written.blocks),
                "distance": round(written.distance, 6),
                "rewritten": [
                    {"sentence": n, "before": chain.sentences[n - 1].strip(), "after": new}
                    for n, new in sorted(written.edits.items())
                ],
            }


class WrittenDocument:
    """A document whose blocks are being written, until it passes the checks of the whole."""

    def __init__(self, questions: ChainQuestions, body: PlanBody) -> None:
        self.questions = questions
        self.body = body
        self.blocks = [WrittenBlock(questions, block) for block in blocks_of(body)]
        self.distance = 0.0

    @property
    def edits(self) -> dict[int, str]:
        """New text of the sentences that were written anew."""
        return {
            number: new
            for block in self.blocks
            for path in block.paths
            for number, new in path.edits.items()
        }

    async def write(self, grouping: RetriedQuestion) -> bool:
        """Write all blocks until the checks pass; False where the groups were sent back."""
        # One after the other in the order of the text would be as right, and slower.
        await all_of(*(block.write() for block in self.blocks))
        while True:
            if self.questions.options.judge:
                verdicts = await all_of(*(block.judge() for block in self.blocks))
                regroup = [verdict for verdict in verdicts if isinstance(verdict, str)]
                if regroup:
                    grouping.refuse("judge", regroup[0])
                    return False
                if any(verdicts):
                    continue
            if self.passes():
                return True
            await all_of(*(block.rewrite() for block in self.blocks))

    def passes(self) -> bool:
        """Check the whole document; send back the path that changed most where it does not pass."""
        chain, options = self.questions.chain, self.questions.options
        document, edits = self.document(), self.edits
        gap = coverage_gap(document, chain, self.body, edits)
        if gap is not None:
            raise ChainQuarantined("coverage", gap)
        self.distance = content_distance(document, chain, edits)
        if self.distance <= options.max_distance:
            return True
        paths = [path for block in self.blocks for path in block.paths]
        max(paths, key=WrittenPath.changed).refuse(
            "content",
            f"the document differs from its source by {self.distance:.2f}, and "
            f"{options.max_distance:g} is allowed: edit fewer sentences, and change less",
        )
        return False

    def document(self, trigger: str = "", prefix: str = "") -> Document:
        """Return the document as it is written so far."""
        frames = {block.plan.number: block.frame for block in self.blocks}
        chain = self.questions.chain
        try:
            return fill(chain, self.body, frames, self.edits, trigger=trigger, prefix=prefix)
        except VerifyError as error:
            raise ChainQuarantined("grammar", str(error)) from None


class WrittenBlock:
    """A block whose goals, conclusion and paths are being written."""

    def __init__(self, questions: ChainQuestions, plan: BlockPlan) -> None:
        where = f"block {plan.number}"
        self.chain = questions.chain
        self.plan = plan
        self.framing = questions.open("frame", where)
        self.frame = FrameReply(goals=(), conclusion="")
        self.paths = [
            WrittenPath(self, index, questions.open("rewrite", f"{where}, path {index + 1}"))
            for index in range(len(plan.paths))
        ]
        self.judging = questions.open("judge", where) if questions.options.judge else None
        self.options = questions.options

    async def write(self) -> None:
        """Ask for goals and conclusion, then for the paths."""
        prompt = frame_prompt(self.chain, self.plan)
        self.frame = await self.framing.answer(FrameReply, prompt, self.read_frame)
        await self.rewrite()

    def read_frame(self, found: FrameReply) -> FrameReply:
        """Check goals and conclusion."""
        if len(found.goals) != len(self.paths):
            raise UnusableAnswer(f"{len(found.goals)} goals for {len(self.paths)} paths")
        for number, goal in enumerate(found.goals, 1):
            if not goal.strip() or "\n" in goal.strip():
                raise UnusableAnswer(f"goal {number}: a goal is one line that is not empty")
        for text in (*found.goals, found.conclusion):
            refuse_tag(text)
        if not found.conclusion.strip():
            raise UnusableAnswer("the conclusion is empty")
        return found

    async def rewrite(self) -> None:
        """Write the paths that wait for it."""
        await all_of(*(path.write() for path in self.paths))

    async def judge(self) -> bool | str:
        """Ask whether a path leans on another.

        Returns:
            False where none does, True where some were worded anew, and where they need each
                other's results the reason why they cannot be a group.
        """
        if self.judging is None:
            return False
        prompt = judge_prompt([path.text() for path in self.paths], self.frame.goals)
        found = await self.judging.answer(JudgementReply, prompt, self.read_judgement)
        for lean in found.leans:
            if lean.remedy == "regroup":
                return (
                    f"in the group of {' | '.join(self.frame.goals)}, path {lean.path} needs the "
                    f"result of path {lean.on} ({lean.quote!r}): they cannot run side by side"
                )
        for lean in found.leans:
            self.paths[lean.path - 1].refuse(
                "judge", f"{lean.quote!r} leans on path {lean.on}: word it so that it stands alone"
            )
        await self.rewrite()
        return bool(found.leans)

    def read_judgement(self, found: JudgementReply) -> JudgementReply:
        """Check the paths that a judgement names."""
        count = len(self.paths)
        for lean in found.leans:
            if not (1 <= lean.path <= count and 1 <= lean.on <= count) or lean.path == lean.on:
                raise UnusableAnswer(
                    f"paths {lean.path} and {lean.on}: there are paths 1 to {count}"
                )
            if lean.remedy == "rewrite" and not self.paths[lean.path - 1].own:
                raise UnusableAnswer(
                    f"path {lean.path} has no sentence of its own: regroup instead"
                )
        return found


class WrittenPath:
    """A path that is being written; inner blocks are written on their own."""

    def __init__(self, block: WrittenBlock, index: int, question: RetriedQuestion) -> None:
        self.block = block
        self.index = index
        self.plan = block.plan.paths[index]
        self.own = own_sentences(self.plan.body)
        self.question = question
        self.edits: dict[int, str] = {}
        self.waits = bool(self.own)

    async def write(self) -> None:
        """Ask for the edits, unless they stand."""
        if not self.waits:
            return
        prompt = rewrite_prompt(
            self.block.chain, self.block.plan, self.index, self.block.frame.goals
        )
        self.edits = await self.question.answer(EditsReply, prompt, self.read)
        self.waits = False

    def refuse(self, check: str, reason: str) -> None:
        """Send the edits back."""
        self.question.refuse(check, reason)
        self.waits = True

    def read(self, found: EditsReply) -> dict[int, str]:
        """Check edits; return the new text of each sentence that they change."""
        chain, options = self.block.chain, self.block.options
        edits: dict[int, str] = {}
        for edit in found.edits:
            if edit.sentence not in self.own:
                raise UnusableAnswer(
                    f"sentence {edit.sentence} is not one of this path's own sentences"
                )
            if edit.sentence in edits:
                raise UnusableAnswer(f"sentence {edit.sentence} is edited twice")
            if not edit.text.strip():
                raise UnusableAnswer(f"sentence {edit.sentence}: no sentence may be left out")
            refuse_tag(edit.text)
            if edit.text.strip() != chain.sentences[edit.sentence - 1].strip():
                edits[edit.sentence] = edit.text.strip()
        distance = self.distance(edits)
        if distance > options.max_path_distance:
            raise UnusableAnswer(
                f"the path differs from its source by {distance:.2f}, and "
                f"{options.max_path_distance:g} is allowed: edit fewer sentences, change less"
            )
        leaning = None
        if options.independence and self.index:
            leaning = leaning_words(chain, self.plan, edits, self.block.frame.goals[self.index])
        if leaning is not None:
            sentence, words = leaning
            raise UnusableAnswer(
                f"sentence {sentence} leans on another path with {words!r}: "
                "edit it, so that it can be read without the other paths"
            )
        return edits

    def distance(self, edits: dict[int, str]) -> float:
        """Return the edit distance of the path's own sentences to their source."""
        runs = [item for item in self.plan.body if isinstance(item, SentenceRun)]
        return run_distance(self.block.chain, runs, edits)

    def changed(self) -> float:
        """Return how much of the path is changed, about in sentences."""
        return self.distance(self.edits) * len(self.own)

    def text(self) -> str:
        """Return the path's own sentences, edited."""
        sentences = self.block.chain.sentences
        return "\n".join(self.edits.get(n, sentences[n - 1].strip()) for n in self.own)


def refuse_tag(text: str) -> None:
    """Raise UnusableAnswer where a model has written a tag."""
    tag = TAG.search(text)
    if tag:
        raise UnusableAnswer(f"the text holds the tag {tag.group()}: write it another way")


async def all_of(*works: Coroutine[Any, Any, T]) -> list[T]:
    """Run works at once and return what they do; raise the first failure when all have ended.

    A failure ends no sibling: which answers a record has seen must not depend on their speed. A
    record that could not be decided goes before one that failed a check, for the same reason.
    """
    results = await asyncio.gather(*works, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in sorted(failures, key=lambda error: isinstance(error, ChainQuarantined)):
        raise failure
    return [result for result in results if not isinstance(result, BaseException)]
