"""Steps iii and iv: a chain's parallel structure, and the source's sentences put back into it.

Both are computed and not asked of a model: the structure cannot be ungrammatical, and no sentence
can be lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mvspec.curation.answers import FrameReply, GroupsReply, StepReply, StepsReply
from mvspec.curation.chain import ReasoningChain
from mvspec.tree.builder import assistant, branch, document, parallel, think, user
from mvspec.tree.ir import Document, Message, Parallel

DEEPEST = 8
"""Levels of steps that are read at all."""


class UnusableAnswer(Exception):
    """An answer that will not do; the text says why, to the model that gave it."""


@dataclass(frozen=True, slots=True)
class ChainStep:
    """A step of a chain: sentences `first` to `last`, from 1; its substeps cover the same."""

    label: str
    title: str
    first: int
    last: int
    steps: tuple[ChainStep, ...] = ()


@dataclass(frozen=True, slots=True)
class SentenceRun:
    """Sentences that follow each other in one thread."""

    first: int
    last: int

    @property
    def numbers(self) -> range:
        """Numbers of the sentences."""
        return range(self.first, self.last + 1)


@dataclass(frozen=True, slots=True)
class PathPlan:
    """One branch of a block: the titles of its steps, and what it holds."""

    titles: tuple[str, ...]
    body: PlanBody


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """Paths side by side; blocks are numbered in the order of the text, outer ones first."""

    number: int
    paths: tuple[PathPlan, ...]


PlanBody = tuple[SentenceRun | BlockPlan, ...]


def read_steps(answer: StepsReply, sentences: int) -> tuple[ChainStep, ...]:
    """Return the steps that an answer names.

    Raises:
        UnusableAnswer: levels jump, or the steps without substeps do not cover the sentences 1 to
            `sentences` in order, each once.

    >>> lines = [{"depth": 1, "title": "All", "first": 1, "last": 2}]
    >>> read_steps(StepsReply.model_validate({"steps": lines}), 2)[0].label
    '1'
    """
    lines = answer.steps
    if not lines:
        raise UnusableAnswer("there are no steps")
    depth = 0
    for index, line in enumerate(lines):
        where = f"step {index + 1} of the list ({line.title!r})"
        if not 1 <= line.depth <= min(depth + 1, DEEPEST):
            raise UnusableAnswer(f"{where} has depth {line.depth} below one of depth {depth}")
        if not line.title.strip() or "\n" in line.title.strip():
            raise UnusableAnswer(f"{where}: a title is one line that is not empty")
        depth = line.depth
    at = 1
    for line, below in itertools.zip_longest(lines, lines[1:]):
        if below is not None and below.depth > line.depth:
            continue
        if line.first != at or line.last < line.first:
            raise UnusableAnswer(
                f"the step {line.title!r} covers sentences {line.first} to {line.last}: the next "
                f"sentence that no step before it covers is {at}, and steps follow each other "
                "without gaps or overlaps"
            )
        at = line.last + 1
    if at != sentences + 1:
        raise UnusableAnswer(
            f"the steps end at sentence {at - 1}, the text at sentence {sentences}"
        )
    steps, _ = _children(lines, 0, 1, "")
    return steps


def _children(
    lines: Sequence[StepReply], at: int, depth: int, prefix: str
) -> tuple[tuple[ChainStep, ...], int]:
    steps: list[ChainStep] = []
    while at < len(lines) and lines[at].depth >= depth:
        line = lines[at]
        label = f"{prefix}{len(steps) + 1}"
        below, at = _children(lines, at + 1, depth + 1, f"{label}.")
        first = below[0].first if below else line.first
        last = below[-1].last if below else line.last
        steps.append(ChainStep(label, line.title.strip(), first, last, below))
    return tuple(steps), at


def read_groups(
    answer: GroupsReply, steps: Sequence[ChainStep], *, max_depth: int, max_paths: int
) -> PlanBody:
    """Return the chain as a parallel structure.

    Raises:
        UnusableAnswer: a group names no neighbours of one level, overlaps another, has fewer than
            two paths, or passes a limit.
    """
    known = set(_labels(steps))
    sizes_at: dict[str, list[int]] = {}
    taken: set[str] = set()
    for group in answer.groups:
        labels = [label.strip() for path in group.paths for label in path]
        named = "the group " + " | ".join("+".join(path) for path in group.paths)
        unknown = [label for label in labels if label not in known]
        if unknown:
            raise UnusableAnswer(f"{named}: there is no step {unknown[0]!r}")
        sizes = [len(path) for path in group.paths]
        if len(sizes) < 2 or not all(sizes):
            raise UnusableAnswer(
                f"{named}: a group has two paths or more, and a path one step or more"
            )
        if len(sizes) > max_paths:
            raise UnusableAnswer(f"{named}: {len(sizes)} paths, and {max_paths} are allowed")
        parent, dot, number = labels[0].rpartition(".")
        if labels != [f"{parent}{dot}{int(number) + place}" for place in range(len(labels))]:
            raise UnusableAnswer(
                f"{named}: its steps are not neighbours of one level in the order of the text"
            )
        if not taken.isdisjoint(labels):
            raise UnusableAnswer(f"{named}: one of its steps is in another group too")
        taken.update(labels)
        sizes_at[labels[0]] = sizes
    body = _body(steps, sizes_at, itertools.count(1))
    depth = _depth(body)
    if depth > max_depth:
        raise UnusableAnswer(
            f"groups nest {depth} deep, and {max_depth} is allowed: keep the outer ones"
        )
    return body


def _labels(steps: Sequence[ChainStep]) -> Iterator[str]:
    for step in steps:
        yield step.label
        yield from _labels(step.steps)


def _body(
    steps: Sequence[ChainStep], sizes_at: Mapping[str, Sequence[int]], numbers: Iterator[int]
) -> PlanBody:
    """Return steps of one level as runs and blocks.

    Args:
        sizes_at: for the first step of each group, how many steps its paths have.
        numbers: of the blocks.
    """

    def inside(some: Sequence[ChainStep]) -> PlanBody:
        items: list[SentenceRun | BlockPlan] = []
        for step in some:
            leaf = (SentenceRun(step.first, step.last),)
            items += _body(step.steps, sizes_at, numbers) if step.steps else leaf
        return _joined(items)

    items: list[SentenceRun | BlockPlan] = []
    at = 0
    while at < len(steps):
        sizes = sizes_at.get(steps[at].label)
        if sizes is None:
            items += inside(steps[at : at + 1])
            at += 1
            continue
        number = next(numbers)
        paths: list[PathPlan] = []
        for size in sizes:
            own = steps[at : at + size]
            paths.append(PathPlan(tuple(step.title for step in own), inside(own)))
            at += size
        items.append(BlockPlan(number, tuple(paths)))
    return _joined(items)


def _joined(items: Sequence[SentenceRun | BlockPlan]) -> PlanBody:
    out: list[SentenceRun | BlockPlan] = []
    for item in items:
        before = out[-1] if out else None
        if isinstance(item, SentenceRun) and isinstance(before, SentenceRun):
            out[-1] = SentenceRun(before.first, item.last)
        else:
            out.append(item)
    return tuple(out)


def _depth(body: PlanBody) -> int:
    blocks = [item for item in body if isinstance(item, BlockPlan)]
    return max((1 + _depth(path.body) for block in blocks for path in block.paths), default=0)


def blocks_of(body: PlanBody) -> Iterator[BlockPlan]:
    """Yield every block, nested ones too, in the order of their numbers."""
    for item in body:
        if isinstance(item, BlockPlan):
            yield item
            for path in item.paths:
                yield from blocks_of(path.body)


def runs_of(body: PlanBody) -> Iterator[SentenceRun]:
    """Yield every run of sentences, those inside of blocks too, in the order of the text."""
    for item in body:
        if isinstance(item, SentenceRun):
            yield item
        else:
            for path in item.paths:
                yield from runs_of(path.body)


def own_sentences(body: PlanBody) -> list[int]:
    """Return the numbers of the sentences that stand in a thread itself, not in blocks of it."""
    return [number for item in body if isinstance(item, SentenceRun) for number in item.numbers]


def fill(
    chain: ReasoningChain,
    body: PlanBody,
    frames: Mapping[int, FrameReply],
    edits: Mapping[int, str],
    *,
    trigger: str = "",
    prefix: str = "",
) -> Document:
    """Return the document: sentences of the source, but for those that are edited.

    White space before a tag becomes the newline that the surface form has there.

    Args:
        chain: the source.
        body: its structure, without gaps.
        frames: goals and conclusion of each block, by number.
        edits: new text of sentences, by number.
        trigger: a line that ends the text before every block, unless it ends so already.
        prefix: how the answer begins, unless it does already.

    Raises:
        VerifyError: a goal, a conclusion or an edit holds a tag.
    """

    def filled(body: PlanBody) -> list[str | Parallel]:
        out: list[str | Parallel] = []
        for item in body:
            if isinstance(item, SentenceRun):
                out.append(run_text(chain, item, edits).strip())
                continue
            before = out[-1] if out else None
            if not isinstance(before, str):
                out += [trigger] if trigger else []
            elif trigger and not before.endswith(trigger):
                out[-1] = f"{before}\n{trigger}"
            frame = frames[item.number]
            branches = [
                branch(goal.strip(), *filled(path.body))
                for goal, path in zip(frame.goals, item.paths, strict=True)
            ]
            out.append(parallel(*branches, conclusion=frame.conclusion.strip()))
        return out

    answer = chain.answer.strip()
    if answer and not answer.startswith(prefix.strip()):
        answer = f"{prefix}{answer}"
    messages: list[Message] = [user(chain.question)] if chain.question else []
    return document(*messages, assistant(think(*filled(body)), answer))


def run_text(chain: ReasoningChain, run: SentenceRun, edits: Mapping[int, str]) -> str:
    """Return the text of a run, edited; the white space around sentences is the source's."""
    sources = ((number, chain.sentences[number - 1]) for number in run.numbers)
    return "".join(
        source.replace(source.strip(), edits[number].strip(), 1) if number in edits else source
        for number, source in sources
    )
