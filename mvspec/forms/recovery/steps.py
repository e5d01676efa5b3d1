"""Repair of a summary: lines that are steps, lines that open and close, and text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mvspec.errors import Source
from mvspec.forms.recovery.edits import Code, Edit
from mvspec.forms.recovery.lines import Line, Lines, completed_reason, source_lines
from mvspec.forms.summary import SUMMARY, split_reason

__all__ = ["repair_summary"]

_OPEN = re.compile(r"[ \t]*<parallel>(.*)", re.IGNORECASE | re.DOTALL)
_CLOSE = re.compile(r"[ \t]*</parallel>\s*", re.IGNORECASE)
_DIGITS = 9
"""Digits of a label that counting goes on from; Python refuses to read thousands."""

_PARTIAL = re.compile(r"(\t?)S([0-9]*\.?[0-9]*):?|\t")
_STEP = re.compile(r"[ \t]*S([0-9]+(?:\.[0-9]+)?)[ \t]*(:[ \t]?|[ \t])(.*)", re.DOTALL)


@dataclass
class _Block:
    """An open block: the level of its steps, and their labels so far."""

    level: int
    labels: set[str] = field(default_factory=set)
    after: dict[tuple[str, int], int] = field(default_factory=dict)  # a taken label, a later number

    def fresh(self, label: str) -> str:
        """Return a label that the block does not have, the given one if that is so."""
        if label not in self.labels:
            return label
        head, dot, tail = label.rpartition(".")
        number = int(tail[-_DIGITS:])
        passed = []
        while (fresh := f"{head}{dot}{number}") in self.labels:
            passed.append(number)
            number = self.after.get((head, number), number + 1)
        # Whoever comes here again goes on from there, so that equal labels are counted once.
        self.after |= {(head, each): number for each in passed}
        return fresh

    def longer(self, label: str) -> str:
        """Return a label that the block does not have and that begins with the given one."""
        if label in ("1", "1.1"):
            return self.fresh(label)
        while label in self.labels:
            label += "0"
        return label


def repair_summary(source: Source) -> list[Edit]:
    """Return the edits, in order, that make any text a canonical summary."""
    return _Repair(source).run()


class _Repair:
    def __init__(self, source: Source) -> None:
        self.out = Lines(source, SUMMARY)
        # Tags are left out first: what remains of a line may be a step.
        self.lines = [
            line if self.is_tag(line.text) else line._replace(text=self.out.without_tags(line.text))
            for line in source_lines(source)
        ]
        self.open: list[_Block] = []
        self.text: list[Line] = []  # the run of text before the line at hand
        self.strays: dict[int, str] = {}  # lines of it that are left out, by place, and why
        self.partial = self.begun_step()
        self.levels = self.next_levels()
        self.last_full = max((line.start for line in self.lines if line.text.strip()), default=0)

    @staticmethod
    def is_tag(text: str) -> bool:
        """Whether a line is an opening or a closing."""
        return bool(_OPEN.fullmatch(text) or _CLOSE.fullmatch(text))

    def begun_step(self) -> Line | None:
        """Return the last line as the step that it begins, where the text ends in it."""
        if not self.lines or self.lines[-1].whole:
            return None
        line = self.lines[-1]
        match = _PARTIAL.fullmatch(line.text)
        opened = len(self.lines) > 1 and _OPEN.fullmatch(self.lines[-2].text)
        if not match or (line.text == "\t" and not opened):
            return None
        label = match.group(2) or ""
        tab = line.text[:1] if line.text.startswith("\t") else ""
        label = label or ("1.1" if tab else "1")
        if tab and "." not in label:
            label += "."
        label += "1" * label.endswith(".")
        return line._replace(text=f"{tab}S{label}: ")

    def next_levels(self) -> list[int | None]:
        """Return for every line the level of the step that comes first in a block opened there."""
        out: list[int | None] = []
        level: int | None = None
        last = [self.partial] if self.partial else self.lines[-1:]
        for line in reversed([*self.lines[:-1], *last]):
            out.append(level)
            if self.is_tag(line.text):
                level = None
            elif step := _STEP.fullmatch(line.text):
                level = step.group(1).count(".")
        return out[::-1]

    def run(self) -> list[Edit]:
        for line, level in zip(self.lines, self.levels, strict=True):
            if self.partial and self.open and line.end == self.partial.end:
                line = self.partial
            opening = _OPEN.fullmatch(line.text)
            step = _STEP.fullmatch(line.text) if self.open else None
            if opening:
                self.opening(line, opening.group(1), level)
            elif _CLOSE.fullmatch(line.text):
                self.closing(line)
            elif step:
                self.step(line, step)
            else:
                self.text.append(line)
        end = len(self.out.source.text)
        self.flush(last=not self.open)
        while self.open:
            self.close(end, "the text ends")
        return self.out.edits

    def opening(self, line: Line, rest: str, level: int | None) -> None:
        reason = completed_reason(rest, whole=line.whole)
        ends = self.last_full <= line.start
        if level is None and ends and reason is not None:
            level = int(line.text.startswith("\t"))
            allowed, invented = self.may_open(level), True
        else:
            allowed, invented = level is not None and self.may_open(level), False
        if not allowed or level is None:
            said = self.out.without_tags(rest).strip()
            step = _STEP.fullmatch(said) if self.open else None
            if step:
                self.step(line._replace(text=said), step)
                return
            if said:
                self.text.append(line._replace(text=said))
                return
            self.strays[line.start] = "no steps follow that this <parallel> could hold: left out"
            self.text.append(line)
            return
        more = "" if reason is not None else self.out.without_tags(rest).strip()
        before = [each for each in self.text if each.start not in self.strays][-1:]
        if not reason and before:
            head, written = split_reason(before[0].text)
            if head is None:
                reason = written
                self.strays[before[0].start] = "the reason stands behind the tag: moved"
        self.flush(reason=bool(reason))
        tab = "\t" * level
        said = self.out.without_tags(reason or "")
        block = _Block(level)
        text = f"{tab}<parallel>{said}\n"
        if more or invented:
            label = "1.1" if level else "1"
            step = _STEP.fullmatch(more)
            if step and step.group(1).count(".") == level:
                label, more = step.group(1), step.group(3)
            block.labels.add(label)
            text += f"{tab}S{label}: {more}\n"
        message = "expected <parallel>, its reason if there is one, and a newline"
        self.out.put(line, text, "separator", message)
        self.open.append(block)

    def may_open(self, level: int) -> bool:
        """Whether a block of this level may stand here."""
        if not self.open:
            return True
        return (
            level == 1
            and len(self.open) == 1
            and self.open[0].level == 0
            and bool(self.open[0].labels)
        )

    def closing(self, line: Line) -> None:
        if not self.open:
            self.strays[line.start] = "</parallel> closes nothing: left out"
            self.text.append(line)
            return
        self.flush()
        block = self.open.pop()
        tab = "\t" * block.level
        message = f"expected {tab + '</parallel>'!r}"
        self.out.put(line, f"{tab}</parallel>\n", "separator", message)

    def step(self, line: Line, step: re.Match[str]) -> None:
        label, said = step.group(1), step.group(3)
        level = label.count(".")
        if level > self.open[-1].level:
            self.text.append(line)
            return
        self.flush()
        while self.open and self.open[-1].level > level:
            self.close(line.start, f"step {label} stands a level higher")
        if not self.open:
            self.text.append(line)
            return
        block = self.open[-1]
        fresh = block.longer(label) if line is self.partial else block.fresh(label)
        block.labels.add(fresh)
        text = "\t" * level + f"S{fresh}: {said}\n"
        if fresh != label:
            self.out.put(line, text, "wrong-label", f"step {label} comes twice: expected {fresh}")
        elif said not in self.out.source.text[line.start : line.end]:
            self.out.put(line, text, "tag-as-word", "a tag stands in the text of a step: left out")
        else:
            self.out.put(line, text, "separator", f"expected {text[:20]!r}")

    def close(self, at: int, why: str) -> None:
        block = self.open.pop()
        text = "\t" * block.level + "</parallel>\n"
        self.out.add(at, text, "missing-closing", f"{why}: expected </parallel>")

    def flush(self, *, reason: bool = False, last: bool = False) -> None:
        """Write the run of text so far.

        Args:
            reason: whether a reason follows it, so that it may be an empty line.
            last: whether it ends the summary, where text is as it is.
        """
        run, self.text = self.text, []
        texts = [line for line in run if line.start not in self.strays]
        if self.open and not self.open[-1].labels:
            for line in run:
                message = "text stands before the first step of a block: left out"
                self.out.put(line, "", "text-outside", message)
            return
        for line in run:
            end = "\n" if line.whole or not last else ""
            if line.start in self.strays:
                self.out.put(line, "", "stray-tag", self.strays[line.start])
            elif len(texts) == 1 and not line.text and not reason and not last:
                self.out.put(line, "", "separator", "an empty line stands alone: left out")
            else:
                self.out.put(line, line.text + end, *self.why(line))

    def why(self, line: Line) -> tuple[Code, str]:
        """Say why a line of text is written otherwise."""
        raw = self.out.source.text[line.start : line.end]
        if self.is_tag(raw.removesuffix("\n")):
            return "stray-tag", "no steps follow that this <parallel> could hold: left out"
        if "<" in raw and raw.removesuffix("\n") != line.text:
            return "tag-as-word", "a tag stands in the text: left out"
        return "missing-newline", "expected a newline after the text"
