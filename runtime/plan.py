"""A document as operations of threads: what to write, what to fill, where to fork."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mvspec.compiler.segments import Segment, segments
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import VerifyError
from mvspec.ir import Document, Gen
from mvspec.syntax import UNTAGGED, Tag

__all__ = ["Extend", "Fill", "Fork", "Mark", "Op", "fills", "plan_untagged", "span"]


@dataclass(frozen=True, slots=True)
class Extend:
    """Write fixed text: its token ids, and the author as in `Segment`."""

    text: str
    ids: tuple[int, ...]
    author: str = "model"


@dataclass(frozen=True, slots=True)
class Fill:
    """Let the model fill a hole; `after` is the fixed text that follows it."""

    hole: Gen
    after: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Tell the structural machine of a tag that is not written."""

    tag: Tag


@dataclass(frozen=True, slots=True)
class Fork:
    """End the goal, run these paths at once, and go on where the longest ends."""

    paths: tuple[tuple[Op, ...], ...]


Op = Extend | Fill | Mark | Fork


def plan_untagged(document: Document, tokenizer: Any) -> tuple[Op, ...]:
    """Return the root thread's operations for a document that is written without tags.

    Args:
        document: a conversation that ends with an assistant's turn.
        tokenizer: a transformers fast tokenizer; its chat template is used if it has one.

    Raises:
        VerifyError: there is nothing for the model to do, or a hole is the very first token.
        Unsupported: the tokenizer or its chat template cannot hold the document.
    """
    last = len(document.messages) - 1
    if last < 0 or document.messages[last].role != "assistant":
        raise VerifyError(
            f"messages[{last}]" if last >= 0 else "messages",
            "a document that runs ends with an assistant's turn: add assistant(gen('answer'))",
        )
    vocabulary = Vocabulary.of(tokenizer, tagged=False)
    template = bool(getattr(tokenizer, "chat_template", None)) or None
    cut = segments(document, tokenizer, syntax=UNTAGGED, template=template)
    ops = tuple(_thread(_encoded(cut, vocabulary)))
    if isinstance(ops[0] if ops else None, Fill):
        raise VerifyError(
            "", "a hole is the first token and nothing predicts it: write a text before it"
        )
    return ops


def _encoded(cut: list[Segment], vocabulary: Vocabulary) -> Iterator[Op]:
    """Yield one operation for each segment; a fork is still its mark."""
    specials = frozenset(
        token.content
        for token in vocabulary.backend.get_added_tokens_decoder().values()
        if token.special
    )
    for index, segment in enumerate(cut):
        following = cut[index + 1] if index + 1 < len(cut) else None
        if segment.hole is not None:
            yield Fill(segment.hole, following.text if following else "")
        elif segment.tag is not None:
            yield Mark(segment.tag)
        else:
            # Control tokens are live in the template's own text, the end of a turn included.
            ends_turn = segment.text in specials and (
                following is None or following.author == "template"
            )
            live = segment.author == "template" or ends_turn
            encode = vocabulary.encode if live else vocabulary.encode_outside
            yield Extend(segment.text, tuple(encode(segment.text)), segment.author)


def _thread(ops: Iterator[Op]) -> Iterator[Op]:
    """Yield one thread's operations, up to its `</Path>` or the end."""
    outlines = 0
    for op in ops:
        tag = op.tag if isinstance(op, Mark) else None
        if tag is Tag.END_GOAL:
            yield Fork(tuple(tuple(_thread(ops)) for _ in range(outlines)))
            outlines = 0
        elif tag not in (Tag.THINK, Tag.END_THINK):  # spans of text, not of threads
            outlines += tag is Tag.OUTLINE
            yield op
        if tag is Tag.END_PATH:
            return


def span(ops: Iterable[Op]) -> int:
    """Return how many positions these operations take at most, over the longest paths.

    >>> span([Extend("a b", (5, 6)), Fill(Gen(name="x", max_tokens=8))])
    10
    """
    total = 0
    for op in ops:
        if isinstance(op, Extend):
            total += len(op.ids)
        elif isinstance(op, Fill):
            total += op.hole.max_tokens
        elif isinstance(op, Fork):
            total += max(span(path) for path in op.paths)
    return total


def fills(ops: Iterable[Op]) -> Iterator[Fill]:
    """Yield every hole of these operations, in surface order."""
    for op in ops:
        if isinstance(op, Fill):
            yield op
        elif isinstance(op, Fork):
            for path in op.paths:
                yield from fills(path)
