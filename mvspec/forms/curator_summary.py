"""The summary of curation's first step: a line for each step, `<parallel>` around those that fork.

    S1: Read the question.
    <parallel>[parallel reason: the two sums need nothing of each other]
    S2: The first sum.
    \tS2.1: Tens.
    \tS2.2: Ones.
    S3: The second sum.
    </parallel>
    S4: Compare.

A step inside of `<parallel>` is an outline, what stands below it is the body of its path, and
all other lines are text. The reason is the last line of the text before its block. Steps with a
dot (2.1) are indented by a tab, and so is their `<parallel>`. A model writes all of it, and it is
read strictly only. (Multiverse's curation, step 1, fifth prompt.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mvspec.forms.can_hold import refusal
from mvspec.forms.form import NO_CONCLUSION, Mismatch, StrictForm, document_of, text_of
from mvspec.forms.syntax import Syntax, tag_texts
from mvspec.law.tags import Tag
from mvspec.tree.ir import Conclusion, Document, Goal, Message, Outline, Parallel, Path, Text, Think
from mvspec.tree.node import Node

CURATOR_SUMMARY = Syntax(
    "curator-summary",
    tags=tag_texts({Tag.PARALLEL: "<parallel>", Tag.END_PARALLEL: "</parallel>"}, ""),
    max_depth=2,
    ordered=False,
)

REASON = r"\[parallel reason: [^\n]*\]"
"""Reason why steps may run in parallel, as curation writes it right behind the tag."""

STEP = ("S[0-9]+: ", r"\tS[0-9]+\.[0-9]+: ")
"""Beginnings of a step of each level, which is also the count of tabs before a line."""

_REASON_LINE = re.compile(rf"(?:(.*)\n)?({REASON})", re.DOTALL)
_LINE = CURATOR_SUMMARY.line_pattern
_LINES = re.compile(rf"(?:{_LINE}\n)*+")
_LINES_OF_STEP = re.compile(rf"(?:(?!{STEP[0]}){_LINE}\n)*+")
_OPENING = re.compile(rf"(\t?)<parallel>((?:\[parallel reason: {_LINE}(?<=\]))?)\n")
_STEPS = [
    re.compile(rf"(?={step}){tab}S([0-9.]+): ({_LINE})\n((?:(?!{step}){_LINE}\n)*+)")
    for tab, step in zip(("", r"\t"), STEP, strict=True)
]
_CLOSINGS = [re.compile(rf"{tab}</parallel>\n") for tab in ("", r"\t")]


def read_summary(text: str) -> Document:
    """Return the document of a canonical summary.

    Raises:
        Mismatch: it is not canonical.
    """
    return document_of(_SummaryReader(text).turn())


class _SummaryReader:
    """Reads a summary from the start on; `at` is how far it has come."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match

    def turn(self) -> tuple[Node, ...]:
        items: list[Node] = []
        while True:
            start = self.at
            self.take(_LINES)
            opening = self.take(_OPENING)
            if not opening:
                break
            items += self.block(self.text[start : opening.start()], opening)
        found = CURATOR_SUMMARY.marker.search(self.text, start)
        if found:
            raise Mismatch(f"{found.group()} may not stand here", found.start())
        return (*items, *([text_of(self.text[start:])] if start < len(self.text) else []))

    def block(self, lines: str, opening: re.Match[str]) -> list[Node]:
        """Read a block behind its opening, and return it with the lines before it."""
        tab, reason = opening.groups()
        if reason:
            lines += reason + "\n"
        elif split_reason(lines[:-1])[1]:
            raise Mismatch("the reason before it stands behind <parallel>", opening.start())
        outlines: list[Outline] = []
        paths: list[Path] = []
        while step := self.take(_STEPS[len(tab)]):
            label, said, below = step.groups()
            outlines.append(Outline.trusted(label=label, text=said))
            body: list[Node] = []
            while not tab and self.text.startswith("\t<parallel>", self.at):
                inner = self.take(_OPENING)
                if not inner:
                    break
                body += self.block(below, inner)
                start = self.at
                self.take(_LINES_OF_STEP)
                below = self.text[start : self.at]
            paths.append(Path.trusted(label=label, body=(*body, *self.lines(below))))
        if not outlines or not self.take(_CLOSINGS[len(tab)]):
            raise Mismatch("expected a step or </parallel>", self.at)
        if len({outline.label for outline in outlines}) < len(outlines):
            raise Mismatch("a label comes twice in this block", opening.start())
        goal = Goal.trusted(outlines=tuple(outlines))
        block = Parallel.trusted(goal=goal, paths=tuple(paths), conclusion=NO_CONCLUSION)
        return [*self.lines(lines), block]

    def lines(self, lines: str) -> list[Node]:
        """Return lines as a text, whose last newline belongs to the form."""
        if lines == "\n":
            raise Mismatch("an empty line does not stand alone", self.at)
        return [text_of(lines[:-1])] if lines else []


def split_reason(text: str) -> tuple[str | None, str]:
    """Return a text without the reason that is its last line, and the reason; else ""."""
    match = _REASON_LINE.fullmatch(text)
    return (match.group(1), match.group(2)) if match else (text, "")


def write_summary(message: Message) -> str:
    """Return a turn as a summary; `check_summary` has let it pass."""
    return "".join(_lines(message.body, last=True))


def _lines(items: tuple[Node, ...], *, last: bool = False) -> Iterator[str]:
    reason = ""
    for index, item in enumerate(items):
        if isinstance(item, Parallel):
            tab = "\t" * level(item)
            yield f"{tab}<parallel>{reason}\n"
            for outline, path in zip(item.goal.outlines, item.paths, strict=True):
                yield f"{tab}S{outline.label}: {outline.text}\n"
                yield from _lines(path.body)
            yield f"{tab}</parallel>\n"
            reason = ""
        elif isinstance(item, Text):
            text: str | None = item.text
            end = index + 1 == len(items)
            if not end:
                text, reason = split_reason(item.text)
            if text is not None:
                yield text if end and last else f"{text}\n"


def level(block: Parallel) -> int:
    """Return how deep steps of a block stand, which their labels say."""
    return block.paths[0].label.count(".")


def check_summary(message: Message, address: str = "") -> None:
    """Raise Unsupported for the first node that a summary cannot hold."""
    for where, node in message.addresses(address):
        if isinstance(node, Think):
            raise refusal(
                CURATOR_SUMMARY, where, "a summary has no reasoning span: take it out of Think"
            )
        if isinstance(node, Conclusion) and node.body:
            raise refusal(CURATOR_SUMMARY, where, "a summary has no conclusions: empty it")
        if isinstance(node, Parallel):
            labels = [path.label for path in node.paths]
            levels = {label.count(".") for label in labels}
            if len(levels) > 1 or max(levels) > 1:
                why = f"its labels are {', '.join(labels)}, and steps are 1, 2, 3 or 2.1, 2.2"
                raise refusal(CURATOR_SUMMARY, where, f"{why}: number the block so")
            for index, path in enumerate(node.paths):
                _refuse_path(path, level(node), f"{where}.paths[{index}]")


def _refuse_path(path: Path, depth: int, address: str) -> None:
    for index, item in enumerate(path.body):
        where = f"{address}.body[{index}]"
        if isinstance(item, Parallel) and (depth or not level(item)):
            raise refusal(CURATOR_SUMMARY, where, "a block in a step has labels such as 2.1, 2.2")
        if isinstance(item, Text):
            found = re.search(rf"^{STEP[depth]}", item.text, re.MULTILINE)
            if found:
                why = f"the line {found.group().strip()!r} of its text reads as a step"
                raise refusal(CURATOR_SUMMARY, where, f"{why}: indent it")


FORM = StrictForm(CURATOR_SUMMARY, read_summary, write_summary, check_summary)
