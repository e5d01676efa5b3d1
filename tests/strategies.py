"""Hypothesis strategies: documents, turns, tag soup, and canonical traces gone wrong."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import strategies as st

import mvspec
from mvspec.law.tags import TAG, Tag
from mvspec.tree.ir import (
    Conclusion,
    Document,
    Gen,
    Goal,
    Message,
    Outline,
    Parallel,
    Path,
    Role,
    Text,
    Think,
)
from mvspec.tree.node import Node

__all__ = ["canonical_texts", "documents", "holes", "mutated", "soup", "texts", "turns"]

_SNIPPETS = (
    "The sum is 5.",
    "Let's think in parallel.",
    r"\(x < y\) and \[a \& b\]",
    r"\frac{1}{n^2} & \\",
    "a < b > c & d &lt; &amp;",
    "<",
    "&",
    "\n",
    "\n\n",
    " ",
    "\t",
    "\r\n",
    "\0",
    "1: ",
    "2.1: ",
    "<Pathx>",
    "<Path",
    "</ Path>",
    "<path>",
    "</Conclusion",
    "</",
    "< Think>",
    "<Outlines>",
    "答案是五。",
    "é👍🏽",
    "\u2028",
    "```\ncode\n```",
)

_characters = st.characters(exclude_categories=["Cs"])


def _untagged(text: str) -> str:
    return TAG.sub(lambda match: match.group().replace("<", "< "), text)


def texts() -> st.SearchStrategy[str]:
    """Text that is not empty and holds no tag, but much that looks like one."""
    piece = st.one_of(st.sampled_from(_SNIPPETS), st.text(_characters, min_size=1, max_size=8))
    return st.lists(piece, min_size=1, max_size=4).map("".join).map(_untagged)


def _lines() -> st.SearchStrategy[str]:
    return st.one_of(st.just(""), texts().map(lambda text: text.replace("\n", " ")))


def _labels(count: int, prefix: str, *, canonical: bool) -> st.SearchStrategy[list[str]]:
    usual = [f"{prefix}{index}" for index in range(1, count + 1)]
    if canonical:
        return st.just(usual)
    number = st.integers(0, 120).map(str)
    odd = st.one_of(number, st.sampled_from(["007", "1.1", "1.10", "0", "2.3.4", "10.0.1"]))
    return st.one_of(st.just(usual), st.lists(odd, min_size=count, max_size=count, unique=True))


def _joined(items: list[Node]) -> tuple[Node, ...]:
    """Texts never touch: of two that would, the first is kept."""
    out: list[Node] = []
    for item in items:
        if not (isinstance(item, Text) and out and isinstance(out[-1], Text)):
            out.append(item)
    return tuple(out)


def holes() -> st.SearchStrategy[Gen]:
    """A hole; its name is made unique by `documents`."""
    constraint: st.SearchStrategy[dict[str, Any]] = st.one_of(
        st.just({}),
        st.sampled_from([r"[0-9]+", "a|b", ""]).map(lambda regex: {"regex": regex}),
        st.lists(texts(), min_size=1, max_size=3).map(lambda each: {"choices": tuple(each)}),
        st.sampled_from(
            [json.dumps({"type": "object", "a": [1, 2.5, None]}), "true", '{"z": 1, "a": "é"}']
        ).map(lambda schema: {"json_schema": schema}),
    )
    return st.builds(
        lambda name, size, stop, more: Gen.build(name=name, max_tokens=size, stop=stop, **more),
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True),
        st.integers(1, 10_000),
        st.lists(texts(), max_size=2).map(tuple),
        constraint,
    )


@st.composite
def _blocks(draw: st.DrawFn, depth: int, prefix: str, *, canonical: bool, gen: bool) -> Parallel:
    count = draw(st.one_of(st.integers(1, 3), st.integers(1, 8 if depth < 3 else 2)))
    labels = draw(_labels(count, prefix, canonical=canonical))
    # Each level below is narrower, so that a document of depth 4 stays small.
    paths = [
        Path(label=label, body=draw(_bodies(depth - 1, f"{label}.", canonical=canonical, gen=gen)))
        for label in labels
    ]
    outlines = [Outline(label=label, text=draw(_lines())) for label in labels]
    ending = draw(_bodies(0, "", canonical=canonical, gen=gen))
    return Parallel(
        goal=Goal(outlines=tuple(outlines)),
        paths=tuple(paths),
        conclusion=Conclusion.build(body=ending),
    )


def _bodies(
    depth: int, prefix: str, *, canonical: bool, gen: bool
) -> st.SearchStrategy[tuple[Node, ...]]:
    kinds: list[st.SearchStrategy[Node]] = [texts().map(lambda text: Text(text=text))]
    if gen:
        kinds.append(holes())
    few = st.lists(st.one_of(kinds), max_size=2)
    if not depth:
        return few.map(_joined)
    inner = _blocks(depth, prefix, canonical=canonical, gen=gen)
    return st.one_of(few, st.lists(st.one_of(*kinds, inner), max_size=3)).map(_joined)


@st.composite
def turns(
    draw: st.DrawFn, *, canonical: bool = False, gen: bool = False, max_depth: int = 4
) -> Message:
    """An assistant's turn: blocks in its reasoning and in its answer, either may be absent.

    Args:
        canonical: blocks are numbered 1, 2, and those in path 2 are 2.1, 2.2.
        gen: holes too.
        max_depth: the most levels of blocks.
    """
    depth = draw(st.integers(0, max_depth))
    body = draw(_bodies(depth, "", canonical=canonical, gen=gen))
    if draw(st.booleans()):
        inside = draw(_bodies(draw(st.integers(0, depth)), "", canonical=canonical, gen=gen))
        body = (Think(body=inside), *body)
    return Message.build(role="assistant", body=body)


@st.composite
def documents(draw: st.DrawFn, *, gen: bool = True) -> Document:
    """A conversation, for JSON: every role, several turns, holes."""
    messages: list[Message] = []
    for _ in range(draw(st.integers(0, 3))):
        role: Role = draw(st.sampled_from(["system", "user", "tool", "assistant"]))
        if role == "assistant":
            messages.append(draw(turns(gen=gen, max_depth=2)))
        else:
            said = draw(st.lists(st.one_of(texts(), st.sampled_from(list(Tag))), max_size=3))
            messages.append(mvspec.message(role, "".join(said)))
    names = iter(range(10_000))
    numbered = [
        message.map(
            lambda node: (
                node.model_copy(update={"name": f"{node.name}_{next(names)}"})
                if isinstance(node, Gen)
                else node
            )
        )
        for message in messages
    ]
    return Document.build(messages=tuple(numbered))


def canonical_texts(*, canonical: bool = False) -> st.SearchStrategy[str]:
    """The canonical form of a turn."""
    return turns(canonical=canonical, max_depth=2).map(mvspec.render)


_BITS = (
    *(tag.value for tag in Tag),
    *(tag.value + "\n" for tag in Tag),
    *("\n", "\n\n", "\r\n", " ", "x", "text\n", "1: ", "1: a\n", "2: b\n", "1.1: c\n", "1"),
    *("<", "</", "<Path", "</Pa", "</ Path>", "<Pathx>", "\0", "\ud800", "\udc00\ud800"),
)


def soup() -> st.SearchStrategy[str]:
    """Tags, labels and scraps in any order."""
    bit = st.one_of(st.sampled_from(_BITS), st.text(max_size=3))
    return st.lists(bit, max_size=40).map("".join)


_PIECE = re.compile(rf"{TAG.pattern}\n?|[^<\n]*\n|[^<\n]+|<")


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A canonical text with tags or lines deleted, doubled, swapped, inserted, or cut."""
    pieces = _PIECE.findall(draw(canonical_texts()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(pieces)))
        action = draw(st.sampled_from(["delete", "double", "swap", "insert", "cut", "crlf"]))
        if action == "insert":
            pieces.insert(at, draw(st.sampled_from(_BITS)))
        elif action == "cut":
            cut = "".join(pieces)
            pieces = _PIECE.findall(cut[: draw(st.integers(0, len(cut)))])
        elif action == "crlf":
            pieces = [piece.replace("\n", "\r\n") for piece in pieces]
        elif at < len(pieces):
            if action == "delete":
                del pieces[at]
            elif action == "double":
                pieces.insert(at, pieces[at])
            else:
                other = draw(st.integers(0, len(pieces) - 1))
                pieces[at], pieces[other] = pieces[other], pieces[at]
    return "".join(pieces)
