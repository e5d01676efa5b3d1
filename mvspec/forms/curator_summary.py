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
from functools import cache
from typing import Any

from lark import Token, Transformer

from mvspec.forms.can_hold import refusal
from mvspec.forms.form import StrictForm
from mvspec.forms.grammar import (
    NO_CONCLUSION,
    Grammar,
    Mismatch,
    document_of,
    line_pattern,
    run_pattern,
    text_of,
)
from mvspec.forms.syntax import Syntax, tag_texts
from mvspec.law.tags import Tag
from mvspec.tree.ir import Conclusion, Document, Goal, Message, Outline, Parallel, Path, Text, Think
from mvspec.tree.node import Node

__all__ = ["CURATOR_SUMMARY", "FORM", "REASON"]

CURATOR_SUMMARY = Syntax(
    "curator-summary",
    tags=tag_texts({Tag.PARALLEL: "<parallel>", Tag.END_PARALLEL: "</parallel>"}, ""),
    max_depth=2,
    ordered=False,
)

REASON = r"\[parallel reason: [^\n]*\]"
"""Why steps may run in parallel, as curation writes it right behind the tag."""

STEP = ("S[0-9]+: ", r"\tS[0-9]+\.[0-9]+: ")
"""How a step of each level begins."""

RULES = """
// Steps of two levels, 0 and 1, which is also the count of tabs before a line. A block inside of a
// step has a rule of its own, so that the lexer knows what may follow it: lines that are steps end
// the text there, and only there.
start: (TEXT | block | block_1)* TAIL?
block: OPEN_0 branch+ _CLOSE_0
block_1: OPEN_1 branch_1+ _CLOSE_1
inner: OPEN_1 branch_1+ _CLOSE_1
branch: STEP_0 (inner TEXT_0?)*
branch_1: STEP_1
"""

_REASON_LINE = re.compile(rf"(?:(.*)\n)?({REASON})", re.DOTALL)


def read_summary(text: str) -> Document:
    """Return the document of a canonical summary.

    Raises:
        Mismatch: it is not canonical.
    """
    document: Document = _grammar().parse(text)
    return document


@cache
def _grammar() -> Grammar:
    line = line_pattern(CURATOR_SUMMARY)
    tag = r"\t?</?parallel>"
    reason = rf"(?:\[parallel reason: {line}(?<=\]))?"
    terminals = {
        "TEXT": rf"(?:{line}\n)++(?=\t?<parallel>)",
        "TAIL": rf"(?:{run_pattern(CURATOR_SUMMARY)})\Z",
    }
    terminals["TEXT_0"] = rf"(?:(?!{STEP[0]}){line}\n)++(?={STEP[0]}|{tag})"
    for level, step in enumerate(STEP):
        tab = r"\t" * level
        terminals |= {
            f"OPEN_{level}": rf"{tab}<parallel>{reason}\n",
            f"_CLOSE_{level}": rf"{tab}</parallel>\n",
            f"STEP_{level}": rf"{step}{line}\n(?:(?!{step}){line}\n)*+",
        }
    return Grammar(RULES, terminals, _SummaryBuilder(visit_tokens=False))


class _SummaryBuilder(Transformer[Token, Document]):
    """Makes nodes as rules are reduced."""

    def start(self, items: list[Any]) -> Document:
        return document_of(body(items))

    def block(self, items: list[Any]) -> tuple[Token, Parallel]:
        opening, *branches = items
        outlines = tuple(outline for outline, _ in branches)
        if len({outline.label for outline in outlines}) < len(outlines):
            raise Mismatch("a label comes twice in this block", opening.start_pos)
        block = Parallel.trusted(
            goal=Goal.trusted(outlines=outlines),
            paths=tuple(path for _, path in branches),
            conclusion=NO_CONCLUSION,
        )
        return opening, block

    block_1 = inner = block

    def branch(self, items: list[Any]) -> tuple[Outline, Path]:
        # A step is one token with the text below it: a token costs as much as twenty characters.
        step, *below = items
        line, _, text = step.partition("\n")
        label, _, said = line.lstrip("\t").partition(": ")
        label = label[1:]
        path = Path.trusted(label=label, body=body(below, text[:-1] if text else None))
        return Outline.trusted(label=label, text=said), path

    branch_1 = branch


def body(items: list[Any], text: str | None = None) -> tuple[Any, ...]:
    """Return a text, tokens of text, and blocks with their reasons as the items of a body."""
    out: list[Any] = []
    at = 0
    for item in items:
        if isinstance(item, Token):
            text, at = str(item) if item.type == "TAIL" else item[:-1], item.start_pos or 0
            continue
        opening, block = item
        reason = opening[opening.index(">") + 1 : -1]
        if reason:
            text = reason if text is None else f"{text}\n{reason}"
        elif text is not None and split_reason(text)[1]:
            raise Mismatch("the reason before it stands behind <parallel>", opening.start_pos)
        out += [*_texts(text, at), block]
        text = None
    return (*out, *_texts(text, at))


def _texts(text: str | None, at: int) -> list[Text]:
    if text == "":
        raise Mismatch("an empty line does not stand alone", at)
    return [] if text is None else [text_of(text)]


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
