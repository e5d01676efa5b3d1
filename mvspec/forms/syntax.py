"""Surface forms as data: the tags, the fixed text around them, and the pieces of a rendering.

Parsing, rendering, recovery, generation and the compiler all read the same `Syntax`, so that they
cannot disagree about a newline.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from mvspec.law.automaton import FixedText
from mvspec.law.limits import MAX_DEPTH
from mvspec.law.tags import Tag
from mvspec.tree.ir import LABEL, Gen, Message, Parallel, Text, Think
from mvspec.tree.node import Node


class Piece(NamedTuple):
    """One run of a rendering.

    Args:
        text: the characters; "" for a tag that the form does not write, and for a hole.
        tag: the structural event that the piece is, if it is one.
        forced: whether a runtime writes it (fork and join headers) and not the model.
        hole: the hole that a runtime fills here.
        content: whether it is a text of the tree, and no part of the syntax.
    """

    text: str
    tag: Tag | None = None
    forced: bool = False
    hole: Gen | None = None
    content: bool = False


@dataclass(frozen=True)
class Syntax:
    """Description of a surface form; the defaults are those of the canonical form.

    Args:
        name: the form's, as `parse` and `render` call it.
        separator: the white space between two structural tags.
        after_think: the fixed text after `</Think>`.
        label_end: what stands between a label and its text.
        tagged: whether tags are written; if not, the plan alone knows the threads.
        tags: how each `Tag` is written, in their order: "" where it is not, "{}" for a label.
        labels: where a path's label is written: before its text, in its tag, or not at all.
        counted: whether labels can only be 1, 2, 3, and 2.1, 2.2 inside path 2.
        outline_gap: the white space between an outline's tags and its line.
        path_gap: the white space between two paths.
        optional_join: whether a conclusion that is empty is not written.
        outside: whether the conclusion stands behind `</Parallel>`, which then ends the paths.
        loose: whether any white space is read where the form has its own; it is written as here.
        max_depth: the most levels of blocks.
        ordered: whether a text is the tree in its order, so that its length can be counted.
        fence: what stands for both tags of the reasoning, which then is the whole text.
        positions: the lowering of the compiler that gives tokens the positions of the form's
            published engine; None where these are the structural law's.
    """

    name: str
    separator: str = "\n"
    after_think: str = "\n\n"
    label_end: str = ": "
    tagged: bool = True
    tags: tuple[str, ...] = tuple(tag.value for tag in Tag)
    labels: Literal["text", "tag", "none"] = "text"
    counted: bool = False
    outline_gap: str = "\n"
    path_gap: str = "\n"
    optional_join: bool = False
    outside: bool = False
    loose: bool = False
    max_depth: int = MAX_DEPTH
    ordered: bool = True
    fence: str = ""
    positions: str | None = None

    @cached_property
    def marker(self) -> re.Pattern[str]:
        """Tags of the form, and the canonical ones: no text of a tree may hold any."""
        written = (re.escape(tag) for tag in self.tags if tag.startswith("<"))
        own = (tag.replace(r"\{\}", LABEL.pattern) for tag in written)
        return re.compile("|".join(dict.fromkeys((*own, *(tag.value for tag in Tag)))))

    @cached_property
    def line_pattern(self) -> str:
        """Regular expression of what a line holds without a tag, its newline not among it."""
        return rf"[^<\n]*+(?:(?!{self.marker.pattern})<[^<\n]*+)*+"

    def written(self, tag: Tag, label: str = "") -> str:
        """Return the characters of `tag`; "" where the form does not write it."""
        if self.fence and tag in (Tag.THINK, Tag.END_THINK):
            return self.fence
        return self.tags[_PLACE[tag]].replace("{}", label)

    def after(self, tag: Tag) -> str:
        """Return the fixed text that follows `tag`, where no other tag decides it."""
        return self.outline_gap if tag is Tag.OUTLINE else self._texts.after(tag)

    @cached_property
    def _texts(self) -> FixedText:
        return FixedText(self.separator, self.after_think, self.label_end)

    def tag(self, tag: Tag, *, forced: bool = False, label: str = "") -> Piece:
        """Return `tag` as a piece."""
        bare = self._bare.get((tag, forced))
        return bare or Piece(self.written(tag, label), tag, forced)

    @cached_property
    def _bare(self) -> dict[tuple[Tag, bool], Piece]:
        """The tags that bear no label, each made once."""
        made = {tag: self.written(tag, "{}") if self.tagged else "" for tag in Tag}
        return {
            (tag, forced): Piece(text, tag, forced)
            for tag, text in made.items()
            if "{}" not in text
            for forced in (False, True)
        }

    def fork_header(self, label: str, outline: str, *, first: bool = True) -> Iterator[Piece]:
        """Yield what a runtime writes at the start of a path."""
        if self.tagged:
            yield Piece(self.separator if first else self.path_gap, None, True)
            yield self.tag(Tag.PATH, forced=True, label=label)
            yield _FORCED_LINE
            if self.labels == "text":
                yield Piece(label + self.label_end.rstrip(), None, True)
        else:
            yield self.tag(Tag.PATH, forced=True)
            yield Piece(f"\n{label}. {outline}\n" if outline else f"\n{label}. ", None, True)

    def join_header(self) -> Iterator[Piece]:
        """Yield what a runtime writes where the paths of a block meet."""
        if self.tagged:
            yield Piece(self.separator, None, True)
            if self.outside:
                yield Piece(self.written(Tag.END_PARALLEL) + self.separator, None, True)
            yield self.tag(Tag.CONCLUSION, forced=True)
            yield _FORCED_LINE
        else:
            yield self.tag(Tag.CONCLUSION, forced=True)
            yield Piece("\n", None, True)

    def pieces(self, message: Message) -> Iterator[Piece]:
        """Yield the rendering of an assistant's turn, piece by piece, in surface order."""
        for index, item in enumerate(message.body):
            if isinstance(item, Think):
                yield self.tag(Tag.THINK)
                if self.tagged:
                    yield _LINE
                yield from self._body(item.body)
                yield self.tag(Tag.END_THINK)
                yield Piece(self.after_think)
            else:
                before_tag = index + 1 < len(message.body) and self._tag_next(message.body, index)
                yield from self._item(item, before_tag=before_tag)

    def _tag_next(self, body: tuple[Node, ...], index: int) -> bool:
        return self.tagged and (index + 1 == len(body) or isinstance(body[index + 1], Parallel))

    def _body(self, body: tuple[Node, ...], *, inline: bool = False) -> Iterator[Piece]:
        # Where text stands in line with a label or a header, its newline is always written.
        if inline and self.tagged and (not body or isinstance(body[0], Parallel)):
            yield _LINE
        for index, item in enumerate(body):
            yield from self._item(item, before_tag=self._tag_next(body, index))

    def _item(self, item: Node, *, before_tag: bool) -> Iterator[Piece]:
        if isinstance(item, Parallel):
            yield from self._block(item)
            return
        if isinstance(item, Text):
            yield Piece(item.text, content=True)
        elif isinstance(item, Gen):
            yield Piece("", hole=item)
        if before_tag:
            yield _LINE

    def _block(self, block: Parallel) -> Iterator[Piece]:
        yield self.tag(Tag.PARALLEL)
        yield from self._apart(Tag.GOAL, first=not self.written(Tag.PARALLEL))
        for outline in block.goal.outlines:
            yield from self._apart(Tag.OUTLINE, outline.label)
            if self.tagged:
                label = outline.label + self.label_end if self.labels == "text" else ""
                gap = self.outline_gap if self.written(Tag.OUTLINE) else ""
                yield Piece(gap + label)
                yield Piece(outline.text, content=True)
                yield Piece(gap)
            yield self.tag(Tag.END_OUTLINE, label=outline.label)
        yield from self._apart(Tag.END_GOAL)
        first = True
        for outline, path in zip(block.goal.outlines, block.paths, strict=True):
            yield from self.fork_header(outline.label, outline.text, first=first)
            first = False
            inline = self.labels == "text"
            if self.tagged and inline:
                yield Piece(self.label_end[len(self.label_end.rstrip()) :])
            yield from self._body(path.body, inline=inline)
            yield self.tag(Tag.END_PATH, label=path.label)
        if self.optional_join and not block.conclusion.body:
            yield Piece("", Tag.CONCLUSION, True)
            yield Piece("", Tag.END_CONCLUSION)
        else:
            yield from self.join_header()
            yield from self._body(block.conclusion.body, inline=True)
            yield self.tag(Tag.END_CONCLUSION)
        if self.outside:
            yield Piece("", Tag.END_PARALLEL)
        else:
            yield from self._apart(Tag.END_PARALLEL)
        yield Piece(self.separator)

    def _apart(self, tag: Tag, label: str = "", *, first: bool = False) -> Iterator[Piece]:
        """Yield a tag after its separator; one that is not written, or comes first, has none."""
        if self.tagged and self.written(tag) and not first:
            yield Piece(self.separator)
        yield self.tag(tag, label=label)


_NEWLINE = "\n"
_LINE, _FORCED_LINE = Piece(_NEWLINE), Piece(_NEWLINE, None, True)
_PLACE = {tag: place for place, tag in enumerate(Tag)}


def tag_texts(written: Mapping[Tag, str], others: str | None = None) -> tuple[str, ...]:
    """Return how each tag is written; those not given as `others`, or else canonically."""
    return tuple(written.get(tag, tag.value if others is None else others) for tag in Tag)
