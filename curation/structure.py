"""Step iii: steps and groups as a parallel structure.

It is computed and not asked of a model, as what `filling.py` does with it: the structure cannot
be ungrammatical, and no sentence can be lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mvspec.curation.answers import Groups, StepLine, Steps

__all__ = ["Block", "Body", "PathPlan", "Problem", "Run", "Step", "blocks_of",
           "read_groups", "read_steps", "runs_of"]  # fmt: skip

DEEPEST = 8
"""Levels of steps that are read at all."""


class Problem(Exception):
    """An answer that will not do; the text says why, to the model that gave it."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a chain: sentences `first` to `last`, from 1; its substeps cover the same."""

    label: str
    title: str
    first: int
    last: int
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """Sentences that follow each other in one thread."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class PathPlan:
    """One branch of a block: the titles of its steps, and what it holds."""

    titles: tuple[str, ...]
    body: Body


@dataclass(frozen=True, slots=True)
class Block:
    """Paths side by side; blocks are numbered in the order of the text, outer ones first."""

    number: int
    paths: tuple[PathPlan, ...]


Body = tuple[Run | Block, ...]


def read_steps(answer: Steps, sentences: int) -> tuple[Step, ...]:
    """Return the steps that an answer names.

    Raises:
        Problem: levels jump, or the steps without substeps do not cover the sentences 1 to
            `sentences` in order, each once.

    >>> lines = [{"depth": 1, "title": "All", "first": 1, "last": 2}]
    >>> read_steps(Steps.model_validate({"steps": lines}), 2)[0].label
    '1'
    """
    lines = answer.steps
    if not lines:
        raise Problem("there are no steps")
    depth = 0
    for index, line in enumerate(lines):
        where = f"step {index + 1} of the list ({line.title!r})"
        if not 1 <= line.depth <= min(depth + 1, DEEPEST):
            raise Problem(f"{where} has depth {line.depth} below one of depth {depth}")
        if not line.title.strip() or "\n" in line.title.strip():
            raise Problem(f"{where}: a title is one line that is not empty")
        depth = line.depth
    leaves = [
        line
        for line, below in zip(lines, (*lines[1:], None), strict=True)
        if below is None or below.depth <= line.depth
    ]
    at = 1
    for line in leaves:
        if line.first != at or line.last < line.first:
            raise Problem(
                f"the step {line.title!r} covers sentences {line.first} to {line.last}: the next "
                f"sentence that no step before it covers is {at}, and steps follow each other "
                "without gaps or overlaps"
            )
        at = line.last + 1
    if at != sentences + 1:
        raise Problem(f"the steps end at sentence {at - 1}, the text at sentence {sentences}")
    steps, _ = _children(lines, 0, 1, "")
    return steps


def _children(
    lines: Sequence[StepLine], at: int, depth: int, prefix: str
) -> tuple[tuple[Step, ...], int]:
    steps: list[Step] = []
    while at < len(lines):
        line = lines[at]
        if line.depth < depth:
            break
        label = f"{prefix}{len(steps) + 1}"
        below, at = _children(lines, at + 1, depth + 1, f"{label}.")
        first = below[0].first if below else line.first
        last = below[-1].last if below else line.last
        steps.append(Step(label, line.title.strip(), first, last, below))
    return tuple(steps), at


def steps_of(steps: Sequence[Step]) -> Iterator[Step]:
    """Yield the steps and all substeps, in the order of the text."""
    for step in steps:
        yield step
        yield from steps_of(step.steps)


def read_groups(answer: Groups, steps: Sequence[Step], *, max_depth: int, max_paths: int) -> Body:
    """Return the chain as a parallel structure.

    Raises:
        Problem: a group names no neighbours of one level, overlaps another, has fewer than two
            paths, or passes a limit.
    """
    places = _places(steps)
    groups: dict[str, dict[int, list[int]]] = {}
    for group in answer.groups:
        labels = [label.strip() for path in group.paths for label in path]
        named = "the group " + " | ".join("+".join(path) for path in group.paths)
        unknown = [label for label in labels if label not in places]
        if unknown:
            raise Problem(f"{named}: there is no step {unknown[0]!r}")
        sizes = [len(path) for path in group.paths]
        if len(sizes) < 2 or not all(sizes):
            raise Problem(f"{named}: a group has two paths or more, and a path one step or more")
        if len(sizes) > max_paths:
            raise Problem(f"{named}: {len(sizes)} paths, and {max_paths} are allowed")
        parents = {places[label][0] for label in labels}
        indices = [places[label][1] for label in labels]
        if len(parents) > 1 or indices != list(range(indices[0], indices[0] + len(indices))):
            raise Problem(
                f"{named}: its steps are not neighbours of one level in the order of the text"
            )
        siblings = groups.setdefault(parents.pop(), {})
        taken = {i for start, others in siblings.items() for i in range(start, start + sum(others))}
        if taken & set(indices):
            raise Problem(f"{named}: one of its steps is in another group too")
        siblings[indices[0]] = sizes
    numbers = iter(range(1, len(answer.groups) + 1))
    body = _body(steps, "", groups, numbers)
    depth = _depth(body)
    if depth > max_depth:
        raise Problem(f"groups nest {depth} deep, and {max_depth} is allowed: keep the outer ones")
    return body


def _places(steps: Sequence[Step], parent: str = "") -> dict[str, tuple[str, int]]:
    places: dict[str, tuple[str, int]] = {}
    for index, step in enumerate(steps):
        places[step.label] = parent, index
        places |= _places(step.steps, step.label)
    return places


def _body(
    steps: Sequence[Step],
    parent: str,
    groups: Mapping[str, Mapping[int, Sequence[int]]],
    numbers: Iterator[int],
) -> Body:
    here = groups.get(parent, {})
    items: list[Run | Block] = []
    at = 0
    while at < len(steps):
        sizes = here.get(at)
        if sizes is None:
            items += _step_body(steps[at], groups, numbers)
            at += 1
            continue
        number = next(numbers)
        paths: list[PathPlan] = []
        for size in sizes:
            own = steps[at : at + size]
            inside = [item for step in own for item in _step_body(step, groups, numbers)]
            paths.append(PathPlan(tuple(step.title for step in own), _joined(inside)))
            at += size
        items.append(Block(number, tuple(paths)))
    return _joined(items)


def _step_body(
    step: Step, groups: Mapping[str, Mapping[int, Sequence[int]]], numbers: Iterator[int]
) -> Body:
    if step.steps:
        return _body(step.steps, step.label, groups, numbers)
    return (Run(step.first, step.last),)


def _joined(items: Sequence[Run | Block]) -> Body:
    out: list[Run | Block] = []
    for item in items:
        before = out[-1] if out else None
        if isinstance(item, Run) and isinstance(before, Run):
            out[-1] = Run(before.first, item.last)
        else:
            out.append(item)
    return tuple(out)


def _depth(body: Body) -> int:
    inner = (
        1 + max(_depth(path.body) for path in item.paths)
        for item in body
        if isinstance(item, Block)
    )
    return max(inner, default=0)


def blocks_of(body: Body) -> Iterator[Block]:
    """Yield every block, nested ones too, in the order of their numbers."""
    for item in body:
        if isinstance(item, Block):
            yield item
            for path in item.paths:
                yield from blocks_of(path.body)


def runs_of(body: Body) -> Iterator[Run]:
    """Yield every run of sentences, those inside of blocks too, in the order of the text."""
    for item in body:
        if isinstance(item, Run):
            yield item
        else:
            for path in item.paths:
                yield from runs_of(path.body)
