"""The parallel plan of curation's first step: groups of steps, and what each unit of them does.

    Parallel groups:
    P1: [S1+S2, S3]
    Parallel execution plan:
    P1[parallel reason: S3 needs nothing of S1]:
      S1+S2: Add, then check.
      S3: Multiply.

A group is a block, a unit (steps that follow each other are joined by +) an outline whose text
is its line; paths and conclusions are empty. The reason is a text before its block. A model writes
all of it, and it is read strictly only. (Multiverse's curation, step 1, third and
fourth prompt.)
"""

from __future__ import annotations

import re
from functools import lru_cache

from mvspec.forms.can_hold import refusal
from mvspec.forms.curator_summary import REASON
from mvspec.forms.form import NO_CONCLUSION, Mismatch, StrictForm, document_of, text_of
from mvspec.forms.syntax import Syntax, tag_texts
from mvspec.tree.ir import Document, Goal, Message, Outline, Parallel, Path, Text

CURATOR_PLAN = Syntax(
    "curator-plan", tags=tag_texts({}, ""), counted=True, max_depth=1, ordered=False
)

HEAD, PLAN = "Parallel groups:\n", "Parallel execution plan:\n"

_STEP = r"S[0-9]+(?:\.[0-9]+)*"
UNIT = rf"{_STEP}(?:\+{_STEP})*"
"""Steps that run one after the other, as one branch."""

_UNIT_LINE = re.compile(rf"({UNIT}): ")
_REASON = re.compile(REASON)
_LINE = CURATOR_PLAN.line_pattern
_GROUPS = re.compile(rf"{HEAD}(?:P[0-9]+: \[{UNIT}(?:, {UNIT})*+\]\n)*+{PLAN}")
_GROUP = re.compile(
    rf"P([0-9]+)(\[parallel reason: {_LINE}(?<=\]:)|:)\n((?:  {UNIT}: {_LINE}\n)++)"
)


def read_plan(text: str) -> Document:
    """Return the document of a canonical plan.

    Raises:
        Mismatch: it is not canonical.
    """
    groups = _GROUPS.match(text)
    if not groups:
        raise Mismatch("expected the list of groups, and the line above the plan")
    at = groups.end()
    body: list[Text | Parallel] = []
    heads = [HEAD]
    while at < len(text):
        item = _GROUP.match(text, at)
        if not item or item.group(1) != str(len(heads)):
            raise Mismatch(f"expected group P{len(heads)} and its units", at)
        _, reason, units = item.groups()
        if len(reason) > 1:
            body.append(text_of(reason[:-1]))
        lines = units[2:-1].split("\n  ")
        heads.append(group_line(len(heads), lines))
        body.append(group(lines))
        at = item.end()
    if "".join((*heads, PLAN)) != groups.group():
        raise Mismatch("the list of groups is not that of the plan below it")
    return document_of(tuple(body))


def group(lines: list[str]) -> Parallel:
    """Return the block of a group from the lines of its units."""
    paths = tuple([bare_path(index) for index in range(1, len(lines) + 1)])
    outlines = [
        Outline.trusted(label=path.label, text=line)
        for path, line in zip(paths, lines, strict=True)
    ]
    return Parallel.trusted(
        goal=Goal.trusted(outlines=tuple(outlines)), paths=paths, conclusion=NO_CONCLUSION
    )


@lru_cache(1024)
def bare_path(number: int) -> Path:
    """Return the path of a number, without text; a node never changes, so blocks may share it."""
    return Path.trusted(label=str(number), body=())


def group_line(number: int, lines: list[str]) -> str:
    """Return the line of the first list for a group of these units."""
    return f"P{number}: [{', '.join(line.split(': ', 1)[0] for line in lines)}]\n"


def write_plan(message: Message) -> str:
    """Return a turn as a plan; `check_plan` has let it pass."""
    heads, plans, reason = [HEAD], [PLAN], ""
    for item in message.body:
        if isinstance(item, Text):
            reason = item.text
        elif isinstance(item, Parallel):
            lines = [outline.text for outline in item.goal.outlines]
            heads.append(group_line(len(heads), lines))
            plans.append(f"P{len(heads) - 1}{reason}:\n")
            plans += (f"  {line}\n" for line in lines)
            reason = ""
    return "".join((*heads, *plans))


def check_plan(message: Message, address: str = "") -> None:
    """Raise Unsupported for the first node that a plan cannot hold."""
    items = message.body
    for index, item in enumerate(items):
        where = f"{address}.body[{index}]".lstrip(".")
        if isinstance(item, Text):
            last = index + 1 == len(items)
            if last or not _REASON.fullmatch(item.text):
                why = "a plan has no text but a line [parallel reason: ...] before a block"
                raise refusal(CURATOR_PLAN, where, f"{why}: take it out")
        elif isinstance(item, Parallel):
            _refuse_block(item, where)
        else:
            raise refusal(CURATOR_PLAN, where, "a plan has no reasoning span: take it out of Think")


def _refuse_block(block: Parallel, address: str) -> None:
    for index, outline in enumerate(block.goal.outlines):
        if not _UNIT_LINE.match(outline.text):
            why = "an outline of a plan names its steps, such as S1+S2: Add"
            raise refusal(CURATOR_PLAN, f"{address}.goal.outlines[{index}]", f"{why}: begin it so")
    for index, path in enumerate(block.paths):
        if path.body:
            raise refusal(
                CURATOR_PLAN, f"{address}.paths[{index}]", "a plan's paths are empty: empty it"
            )
    if block.conclusion.body:
        raise refusal(CURATOR_PLAN, f"{address}.conclusion", "a plan has no conclusions: empty it")


FORM = StrictForm(CURATOR_PLAN, read_plan, write_plan, check_plan)
