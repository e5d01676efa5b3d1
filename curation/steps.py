"""The questions of each step: what the model is told, and what it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from mvspec.curation.chain import Chain
from mvspec.curation.sentences import numbered
from mvspec.curation.structure import Block, Body, PathPlan, Run, Step

__all__ = ["frame_prompt", "group_prompt", "instructions", "judge_prompt", "parse_prompt",
           "rewrite_prompt"]  # fmt: skip

BEFORE = 40
"""Sentences before a block that a path is shown with."""


@cache
def instructions(step: str) -> str:
    """Return the instructions of a step, as they stand in `prompts/`."""
    return files("mvspec.curation").joinpath("prompts", f"{step}.md").read_text("utf-8")


def parse_prompt(chain: Chain) -> str:
    """Show the whole chain, sentence by sentence."""
    return _sections(
        ("Question", chain.question),
        (f"Sentences 1 to {len(chain.sentences)}", numbered(chain.sentences)),
    )


def group_prompt(chain: Chain, steps: Sequence[Step], max_depth: int, max_paths: int) -> str:
    """Show the steps with their sentences."""
    return _sections(
        ("Question", chain.question),
        ("Steps", "\n".join(_step_lines(chain, steps))),
        ("Limits", f"Groups nest at most {max_depth} deep; a group has 2 to {max_paths} paths."),
    )


def _step_lines(chain: Chain, steps: Sequence[Step]) -> list[str]:
    lines: list[str] = []
    for step in steps:
        lines.append(f"## {step.label} {step.title}")
        if step.steps:
            lines += _step_lines(chain, step.steps)
        else:
            lines.append(numbered(chain.sentences[step.first - 1 : step.last], step.first))
    return lines


def frame_prompt(chain: Chain, block: Block) -> str:
    """Show the paths of a block, for their goals and the conclusion."""
    return _sections(
        ("Question", chain.question),
        ("Before the block", _before(chain, block)),
        *(
            (f"Path {index} ({' / '.join(path.titles)})", _path_text(chain, path.body))
            for index, path in enumerate(block.paths, 1)
        ),
    )


def rewrite_prompt(chain: Chain, block: Block, index: int, goals: Sequence[str]) -> str:
    """Show one path as a thread sees it: what comes before the block, the goals, no sibling.

    Args:
        index: of the path, from 0.
    """
    listed = "\n".join(f"{number}. {goal}" for number, goal in enumerate(goals, 1))
    body = block.paths[index].body
    return _sections(
        ("Question", chain.question),
        ("Before the block", _before(chain, block)),
        ("Goals of the block", listed),
        (f"Path {index + 1}", _own_text(chain, body)),
    )


def judge_prompt(texts: Sequence[str], goals: Sequence[str]) -> str:
    """Show the finished paths of a block side by side."""
    return _sections(
        *(
            (f"Path {index}: {goal}", text)
            for index, (goal, text) in enumerate(zip(goals, texts, strict=True), 1)
        )
    )


def _sections(*sections: tuple[str, str]) -> str:
    return "\n\n".join(f"# {title}\n{text.strip()}" for title, text in sections if text.strip())


def _before(chain: Chain, block: Block) -> str:
    first = _first(block.paths[0])
    return numbered(chain.sentences[max(0, first - 1 - BEFORE) : first - 1], max(1, first - BEFORE))


def _first(path: PathPlan) -> int:
    item = path.body[0]
    return item.first if isinstance(item, Run) else _first(item.paths[0])


def _path_text(chain: Chain, body: Body) -> str:
    lines: list[str] = []
    for item in body:
        if isinstance(item, Run):
            lines.append(numbered(chain.sentences[item.first - 1 : item.last], item.first))
        else:
            lines += (_path_text(chain, path.body) for path in item.paths)
    return "\n".join(lines)


def _own_text(chain: Chain, body: Body) -> str:
    lines: list[str] = []
    for item in body:
        if isinstance(item, Run):
            lines.append(numbered(chain.sentences[item.first - 1 : item.last], item.first))
        else:
            titles = "; ".join(title for path in item.paths for title in path.titles)
            lines.append(f"(here this path forks into: {titles})")
    return "\n".join(lines)
