"""Repair of a plan: the second list says what runs in parallel, the first is made to agree."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mvspec.errors import Source
from mvspec.forms.groups import GROUPS, HEAD, PLAN, UNIT, group_line
from mvspec.forms.recovery.edits import Edit
from mvspec.forms.recovery.lines import Line, Lines, completed_reason, source_lines

__all__ = ["repair_groups"]

_HEAD = re.compile(r"\s*parallel groups\s*:?\s*", re.IGNORECASE)
_PLAN = re.compile(r"\s*parallel execution plan\s*:?\s*", re.IGNORECASE)
_GROUP = re.compile(r"\s*P[0-9]+\s*:\s*\[([^\]]*)\]?\s*")
_TITLE = re.compile(r"\s*P[0-9]+[ \t]*(\[.*?)?\s*:?\s*", re.DOTALL)
_STEP = re.compile(rf"\s*({UNIT})[ \t]*(?::[ \t]?|[ \t])(.*)", re.DOTALL)
_UNIT = re.compile(UNIT)


@dataclass
class _Group:
    """A group: its units with their text, and the lines that they come from."""

    title: Line | None = None
    reason: str = ""
    units: list[tuple[str, str, Line | None]] = field(default_factory=list)
    line: Line | None = None


def repair_groups(source: Source) -> list[Edit]:
    """Return the edits, in order, that make any text a canonical plan."""
    out = Lines(source, GROUPS)
    # Tags are left out first: what remains of a line may be a unit.
    lines = list(source_lines(source))
    if "<" in source.text:
        lines = [each._replace(text=out.without_tags(each.text)) for each in lines]
    last = lines[-1] if lines and not lines[-1].whole else None
    plan = next((k for k, line in enumerate(lines) if _PLAN.fullmatch(line.text)), None)
    if plan is None:
        partial = last is not None and last.text and PLAN.startswith(last.text)
        starts = partial and len(lines) > 1
        plan = (
            len(lines) - 1
            if starts
            else next(
                (k for k, line in enumerate(lines) if line.whole and _TITLE.fullmatch(line.text)),
                len(lines),
            )
        )
    head = next((line for line in lines[:plan] if is_head(line)), None)
    named = [found for line in lines[:plan] if (found := first_list(line, lines))]
    groups = second_list(lines[plan:], named, last)
    heading = lines[plan] if plan < len(lines) and not _TITLE.fullmatch(lines[plan].text) else None
    wanted: list[tuple[Line | None, str]] = [(head, HEAD)]
    merged = merge(groups, named)
    for number, group in enumerate(merged, 1):
        names = [f"{unit}: " for unit, _, _ in group.units]
        wanted.append((group.line, group_line(number, names)))
    wanted.append((heading, PLAN))
    for number, group in enumerate(merged, 1):
        wanted.append((group.title, f"P{number}{group.reason}:\n"))
        wanted += ((line, f"  {unit}: {text}\n") for unit, text, line in group.units)
    return written(out, lines, wanted)


def is_head(line: Line) -> bool:
    """Whether a line heads the first list, or begins to where the text ends."""
    return bool(_HEAD.fullmatch(line.text)) or (
        not line.whole and line.start == 0 and HEAD.startswith(line.text)
    )


def first_list(line: Line, lines: list[Line]) -> tuple[Line, list[str]] | None:
    """Return the units of a line of the first list, completed where the text ends in it."""
    match = _GROUP.fullmatch(line.text)
    if not match:
        if line.whole or line.start == 0:
            return None
        started = sum(_GROUP.fullmatch(each.text) is not None for each in lines)
        if not f"P{started + 1}: [".startswith(line.text):
            return None
        return line, ["S1"]
    units = [unit.strip() for unit in match.group(1).split(",")]
    if not line.whole and "]" not in line.text:
        more = next(
            m for m in ("", "1", "S1", "1S1") if m == "1S1" or _UNIT.fullmatch(units[-1] + m)
        )
        units[-1] += more
    return line, [unit for unit in units if _UNIT.fullmatch(unit)]


def second_list(
    lines: list[Line], named: list[tuple[Line, list[str]]], last: Line | None
) -> list[_Group]:
    """Return the groups of the second list, as its lines have them."""
    groups: list[_Group] = []
    for line in lines:
        title = _TITLE.fullmatch(line.text)
        step = _STEP.fullmatch(line.text)
        expected = names_left(groups, named) if line is last else None
        if title:
            said = title.group(1) or ""
            if said and not line.whole:  # all that stands there may be the beginning of a reason
                said = line.text[line.text.index("[") :]
                said = said.removesuffix(":") if said.endswith("]:") else said
            reason = completed_reason(said, whole=line.whole)
            groups.append(_Group(line, reason or ""))
        elif step:
            if not groups:
                groups.append(_Group())
            groups[-1].units.append((step.group(1), step.group(2), line))
        elif expected and f"  {expected}: ".startswith(line.text):
            groups[-1].units.append((expected, "", line))
        elif line is last and line.text and f"P{len(groups) + 1}:".startswith(line.text):
            groups.append(_Group(line))
    return groups


def names_left(groups: list[_Group], named: list[tuple[Line, list[str]]]) -> str | None:
    """Return the unit that the first list names next for the group at hand."""
    if not groups or len(groups) > len(named):
        return None
    units = named[len(groups) - 1][1]
    have = len(groups[-1].units)
    return units[have] if have < len(units) else None


def merge(groups: list[_Group], named: list[tuple[Line, list[str]]]) -> list[_Group]:
    """Return the groups with what only the first list names, and without those that are empty."""
    out = []
    for index in range(max(len(groups), len(named))):
        group = groups[index] if index < len(groups) else _Group()
        if index < len(named):
            group.line, units = named[index]
            have = [unit for unit, _, _ in group.units]
            if have == units[: len(have)]:
                group.units += ((unit, "", None) for unit in units[len(have) :])
        if group.units:
            out.append(group)
    return out


def written(out: Lines, lines: list[Line], wanted: list[tuple[Line | None, str]]) -> list[Edit]:
    """Return the edits from lines to those wanted, each with the line that it comes from."""
    at = 0
    places = {line.start: index for index, line in enumerate(lines)}
    end = len(out.source.text)
    for line, text in wanted:
        index = places[line.start] if line else -1
        if line is None or index < at:
            start = lines[at].start if at < len(lines) else end
            out.add(start, text, "missing-outline", f"the plan lacks the line {text[:-1]!r}")
            continue
        for skipped in lines[at:index]:
            out.put(skipped, "", "text-outside", "this line has no place in a plan: left out")
        out.put(line, text, "separator", f"expected {text[:-1]!r}")
        at = index + 1
    for skipped in lines[at:]:
        out.put(skipped, "", "text-outside", "this line has no place in a plan: left out")
    return out.edits
