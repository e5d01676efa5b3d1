"""Hypothesis strategies for every text form: turns it can hold, its tags as soup, texts gone wrong.

Every text here was written for these tests.
"""

from __future__ import annotations

import re
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st
from strategies import soup as canonical_soup
from strategies import texts, turns

import mvspec
from mvspec.forms import FORMS
from mvspec.forms.syntax import Syntax
from mvspec.law.tags import Tag
from mvspec.tree.ir import Conclusion, Goal, Message, Outline, Parallel, Path, Text, Think
from mvspec.tree.node import Node

__all__ = ["READABLE", "bits", "forms", "mutated", "soup", "texts_in", "turns_in"]

READABLE = tuple(name for name, form in FORMS.items() if form.syntax.tagged)
"""The text forms that can be read."""


def forms() -> st.SearchStrategy[str]:
    """The name of a form that can be read."""
    return st.sampled_from(READABLE)


def turns_in(form: str) -> st.SearchStrategy[Message]:
    """A turn that the form can hold, but for tags of the form in a text."""
    syntax = FORMS[form].syntax
    if form == "curator-plan":
        return _plans()
    every = turns(canonical=syntax.counted or form == "curator-summary", max_depth=2)
    if syntax.max_depth == 1:
        every = turns(canonical=True, max_depth=1)
    if form in ("apr", "curator-summary"):
        every = every.map(_without_think)
    if form == "curator-summary":
        every = every.map(lambda turn: turn.map(_bare))
    if form == "curator":
        every = every.map(_alone)
    return every


def _without_think(turn: Message) -> Message:
    first = turn.body[0] if turn.body else None
    return Message(role="assistant", body=first.body) if isinstance(first, Think) else turn


def _alone(turn: Message) -> Message:
    first = turn.body[0] if turn.body else None
    return Message(role="assistant", body=(first,)) if isinstance(first, Think) else turn


def _bare(node: Node) -> Node:
    return Conclusion() if isinstance(node, Conclusion) else node


@st.composite
def _plans(draw: st.DrawFn) -> Message:
    line = st.one_of(st.just(""), texts().map(lambda text: text.replace("\n", " ")))
    unit = st.sampled_from(["S1", "S2+S3", "S2.1", "S4+S4.1+S12", "S007"])
    body: list[Node] = []
    for _ in range(draw(st.integers(0, 3))):
        if draw(st.booleans()):
            body.append(Text(text=f"[parallel reason: {draw(line)}]"))
        units = draw(st.lists(st.tuples(unit, line), min_size=1, max_size=3))
        labels = [str(index) for index in range(1, len(units) + 1)]
        body.append(
            Parallel(
                goal=Goal(
                    outlines=tuple(
                        Outline(label=label, text=f"{name}: {said}")
                        for label, (name, said) in zip(labels, units, strict=True)
                    )
                ),
                paths=tuple(Path(label=label) for label in labels),
            )
        )
    return Message.build(role="assistant", body=tuple(body))


@st.composite
def texts_in(draw: st.DrawFn, form: str) -> str:
    """The canonical text of a turn in a form."""
    turn = draw(turns_in(form))
    try:
        return mvspec.render(turn, form)
    except mvspec.Unsupported:
        assume(False)
        raise


_LINES = {
    "curator": ("```\n", "```", "Path: a\n", "Path 2: b\n\n", "Path", "\n\n"),
    "curator-summary": (
        "S1: a\n", "S2: b\n", "\tS2.1: c\n", "S1", "\t", "[parallel reason: r]\n",
        "<parallel>[parallel reason: r]\n", "\t<parallel>\n", "\t</parallel>\n",
    ),
    "curator-plan": (
        "Parallel groups:\n", "Parallel execution plan:\n", "P1: [S1, S2]\n", "P2: [S3]\n",
        "P1[parallel reason: r]:\n", "P2:\n", "  S1: a\n", "  S2+S3: b\n", "P1: [S1", "P", "  S",
    ),
    "apr": (
        '{"main_calls": ["', '"], "sub_calls": [', ']}', '[]', '[[', '", "', "\\n", "null",
        '{"main_calls": ["a\\n"], "sub_calls": []}', "<Sub Searches>\\n",
        "<Start Sub Search 0 at level 1> x\\n",
    ),
}  # fmt: skip


def bits(syntax: Syntax) -> tuple[str, ...]:
    """Tags of a form, whole and begun, its lines, and scraps."""
    written = [syntax.written(tag, "1") for tag in Tag if syntax.written(tag)]
    numbered = [syntax.written(tag, "2.1") for tag in Tag if "{}" in syntax.written(tag, "{}")]
    scraps = (
        "\n",
        "\n\n",
        "\r\n",
        " ",
        "x",
        "text\n",
        "1: a\n",
        "2: b\n",
        "1",
        "<",
        "</",
        "\ud800",
    )
    tags = (*written, *numbered)
    begun = [tag[:-1] for tag in tags]
    return (*tags, *(tag + "\n" for tag in tags), *begun, *_LINES.get(syntax.name, ()), *scraps,
            "<Path>", "<Goal>\n")  # fmt: skip


def soup(form: str) -> st.SearchStrategy[str]:
    """Tags, labels and scraps of a form in any order."""
    bit = st.one_of(st.sampled_from(bits(FORMS[form].syntax)), st.text(max_size=3))
    return st.one_of(st.lists(bit, max_size=40).map("".join), canonical_soup())


@st.composite
def mutated(draw: st.DrawFn, form: str) -> str:
    """A canonical text of a form with tags or lines deleted, doubled, swapped, inserted, or cut."""
    syntax = FORMS[form].syntax
    piece = re.compile(rf"(?:{syntax.marker.pattern})\n?|[^<\n]*\n|[^<\n]+|<")
    pieces: list[Any] = piece.findall(draw(texts_in(form)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(pieces)))
        action = draw(st.sampled_from(["delete", "double", "swap", "insert", "cut", "crlf"]))
        if action == "insert":
            pieces.insert(at, draw(st.sampled_from(bits(syntax))))
        elif action == "cut":
            whole = "".join(pieces)
            pieces = piece.findall(whole[: draw(st.integers(0, len(whole)))])
        elif action == "crlf":
            pieces = [each.replace("\n", "\r\n") for each in pieces]
        elif at < len(pieces):
            other = draw(st.integers(0, len(pieces) - 1))
            if action == "delete":
                del pieces[at]
            elif action == "double":
                pieces.insert(at, pieces[at])
            else:
                pieces[at], pieces[other] = pieces[other], pieces[at]
    return "".join(pieces)
