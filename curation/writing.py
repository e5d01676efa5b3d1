"""Step v: goals, conclusions, and paths that stand alone; blocks inside of paths likewise."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from mvspec.curation.answers import Edits, Frame, Judgement
from mvspec.curation.checks import leaning_words, own_sentences, run_distance
from mvspec.curation.site import Quarantined, Questions
from mvspec.curation.steps import frame_prompt, judge_prompt, rewrite_prompt
from mvspec.curation.structure import Block, Problem, Run
from mvspec.law.tags import TAG

__all__ = ["WrittenBlock", "all_of", "collected"]

T = TypeVar("T")


class WrittenBlock:
    """A block whose goals, conclusion and paths are being written."""

    def __init__(self, work: Questions, block: Block) -> None:
        self.work = work
        self.block = block
        self.where = f"block {block.number}"
        self.framing = work.site("frame", self.where)
        self.frame = Frame(goals=(), conclusion="")
        self.paths = [WrittenPath(self, index) for index in range(len(block.paths))]
        self.judging = work.site("judge", self.where) if work.options.judge else None

    async def write(self) -> None:
        prompt = frame_prompt(self.work.chain, self.block)
        self.frame = await self.framing.answer(Frame, prompt, self.read_frame)
        await self.rewrite()

    def read_frame(self, found: Frame) -> Frame:
        if len(found.goals) != len(self.block.paths):
            raise Problem(f"{len(found.goals)} goals for {len(self.block.paths)} paths")
        for number, goal in enumerate(found.goals, 1):
            if not goal.strip() or "\n" in goal.strip():
                raise Problem(f"goal {number}: a goal is one line that is not empty")
        for text in (*found.goals, found.conclusion):
            refuse_tag(text)
        if not found.conclusion.strip():
            raise Problem("the conclusion is empty")
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
        texts = [path.text() for path in self.paths]
        prompt = judge_prompt(texts, self.frame.goals)
        found = await self.judging.answer(Judgement, prompt, self.read_judgement)
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

    def read_judgement(self, found: Judgement) -> Judgement:
        count = len(self.paths)
        for lean in found.leans:
            if not (1 <= lean.path <= count and 1 <= lean.on <= count) or lean.path == lean.on:
                raise Problem(f"paths {lean.path} and {lean.on}: there are paths 1 to {count}")
            if lean.remedy == "rewrite" and not self.paths[lean.path - 1].own:
                raise Problem(f"path {lean.path} has no sentence of its own: regroup instead")
        return found


class WrittenPath:
    """A path that is being written; inner blocks are written on their own."""

    def __init__(self, parent: WrittenBlock, index: int) -> None:
        self.parent = parent
        self.index = index
        self.body = parent.block.paths[index].body
        self.own = own_sentences(self.body)
        self.site = parent.work.site("rewrite", f"{parent.where}, path {index + 1}")
        self.edits: dict[int, str] = {}
        self.waits = bool(self.own)

    async def write(self) -> None:
        if not self.waits:
            return
        work = self.parent.work
        goals = self.parent.frame.goals
        prompt = rewrite_prompt(work.chain, self.parent.block, self.index, goals)
        self.edits = await self.site.answer(Edits, prompt, self.read)
        self.waits = False

    def refuse(self, check: str, reason: str) -> None:
        self.site.refuse(check, reason)
        self.waits = True

    def read(self, found: Edits) -> dict[int, str]:
        chain, options = self.parent.work.chain, self.parent.work.options
        edits: dict[int, str] = {}
        for edit in found.edits:
            if edit.sentence not in self.own:
                raise Problem(f"sentence {edit.sentence} is not one of this path's own sentences")
            if edit.sentence in edits:
                raise Problem(f"sentence {edit.sentence} is edited twice")
            if not edit.text.strip():
                raise Problem(f"sentence {edit.sentence}: no sentence may be left out")
            refuse_tag(edit.text)
            if edit.text.strip() != chain.sentences[edit.sentence - 1].strip():
                edits[edit.sentence] = edit.text.strip()
        distance = run_distance(chain, self.runs(), edits)
        if distance > options.max_path_distance:
            raise Problem(
                f"the path differs from its source by {distance:.2f}, and "
                f"{options.max_path_distance:g} is allowed: edit fewer sentences, change less"
            )
        path = self.parent.block.paths[self.index]
        leaning = None
        if options.independence and self.index:
            leaning = leaning_words(chain, path, edits, self.parent.frame.goals[self.index])
        if leaning is not None:
            sentence, words = leaning
            raise Problem(
                f"sentence {sentence} leans on another path with {words!r}: "
                "edit it, so that it can be read without the other paths"
            )
        return edits

    def runs(self) -> list[Run]:
        return [item for item in self.body if isinstance(item, Run)]

    def changed(self) -> float:
        return run_distance(self.parent.work.chain, self.runs(), self.edits) * len(self.own)

    def text(self) -> str:
        sentences = self.parent.work.chain.sentences
        return "\n".join(self.edits.get(n, sentences[n - 1].strip()) for n in self.own)


def collected(written: list[WrittenBlock]) -> tuple[dict[int, Frame], dict[int, str]]:
    """Return the frames of all blocks and the edits of all paths."""
    frames = {block.block.number: block.frame for block in written}
    edits = {n: new for block in written for path in block.paths for n, new in path.edits.items()}
    return frames, edits


def refuse_tag(text: str) -> None:
    """Raise Problem where a model has written a tag."""
    tag = TAG.search(text)
    if tag:
        raise Problem(f"the text holds the tag {tag.group()}: write it another way")


async def all_of(*works: Coroutine[Any, Any, T]) -> list[T]:
    """Run works at once and return what they do; raise the first failure when all have ended.

    A failure ends no sibling: which answers a record has seen must not depend on their speed. A
    record that could not be decided goes before one that failed a check, for the same reason.
    """
    results = await asyncio.gather(*works, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in sorted(failures, key=lambda error: isinstance(error, Quarantined)):
        raise failure
    return [result for result in results if not isinstance(result, BaseException)]
