"""Surface forms as data: the tags, the fixed text around them, and the pieces of a rendering.

Parsing, rendering, recovery, the structural machine and the compiler all read the same
`Syntax`, so that they cannot disagree about a newline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from mvspec.ir import Gen, Message, Parallel, Text, Think
from mvspec.node import Node

__all__ = ["MULTIVERSE", "UNTAGGED", "Piece", "Syntax", "Tag"]


class Tag(StrEnum):
    """The twelve structural tags by their role, in the order of their published token ids."""

    THINK = "<Think>"
    END_THINK = "</Think>"
    PARALLEL = "<Parallel>"
    END_PARALLEL = "</Parallel>"
    GOAL = "<Goal>"
    END_GOAL = "</Goal>"
    OUTLINE = "<Outline>"
    END_OUTLINE = "</Outline>"
    PATH = "<Path>"
    END_PATH = "</Path>"
    CONCLUSION = "<Conclusion>"
    END_CONCLUSION = "</Conclusion>"

    @property
    def closes(self) -> bool:
        """Whether this is a closing tag."""
        return self.name.startswith("END_")

    @property
    def partner(self) -> Tag:
        """The opening of a closing tag, the closing of an opening one."""
        return Tag[self.name.removeprefix("END_") if self.closes else f"END_{self.name}"]


class Piece(NamedTuple):
    """One run of a rendering.

    Args:
        text: the characters; "" for a tag that the form does not write, and for a hole.
        tag: the structural event that the piece is, if it is one.
        forced: whether a runtime writes it (fork and join headers) and not the model.
        hole: the hole that a runtime fills here.
    """

    text: str
    tag: Tag | None = None
    forced: bool = False
    hole: Gen | None = None


@dataclass(frozen=True)
class Syntax:
    """One surface form.

    Args:
        name: what `parse` and `render` call it.
        separator: the white space between two structural tags.
        after_think: the fixed text after `</Think>`.
        label_end: what stands between a label and its text.
        tagged: whether tags are written; if not, the plan alone knows the threads.
    """

    name: str
    separator: str = "\n"
    after_think: str = "\n\n"
    label_end: str = ": "
    tagged: bool = True

    def after(self, tag: Tag) -> str:
        """Return the fixed text that follows `tag`."""
        return self.after_think if tag is Tag.END_THINK else self.separator

    def tag(self, tag: Tag, *, forced: bool = False) -> Piece:
        """Return `tag` as a piece."""
        return Piece(tag.value if self.tagged else "", tag, forced)

    def fork_header(self, label: str, outline: str) -> Iterator[Piece]:
        """Yield what a runtime writes at the start of a path."""
        if self.tagged:
            yield Piece(self.separator, None, True)
            yield self.tag(Tag.PATH, forced=True)
            yield Piece(self.separator, None, True)
            yield Piece(label + self.label_end.rstrip(), None, True)
        else:
            yield self.tag(Tag.PATH, forced=True)
            yield Piece(f"\n{label}. {outline}\n" if outline else f"\n{label}. ", None, True)

    def join_header(self) -> Iterator[Piece]:
        """Yield what a runtime writes where the paths of a block meet."""
        if self.tagged:
            yield Piece(self.separator, None, True)
            yield self.tag(Tag.CONCLUSION, forced=True)
            yield Piece(self.separator, None, True)
        else:
            yield self.tag(Tag.CONCLUSION, forced=True)
            yield Piece("\n", None, True)

    def pieces(self, message: Message) -> Iterator[Piece]:
        """Yield the rendering of an assistant's turn, piece by piece, in surface order."""
        for index, item in enumerate(message.body):
            if isinstance(item, Think):
                yield self.tag(Tag.THINK)
                if self.tagged:
                    yield Piece(self.separator)
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
            yield Piece(self.separator)
        for index, item in enumerate(body):
            yield from self._item(item, before_tag=self._tag_next(body, index))

    def _item(self, item: Node, *, before_tag: bool) -> Iterator[Piece]:
        if isinstance(item, Parallel):
            yield from self._block(item)
            return
        if isinstance(item, Text):
            yield Piece(item.text)
        elif isinstance(item, Gen):
            yield Piece("", hole=item)
        if before_tag:
            yield Piece(self.separator)

    def _block(self, block: Parallel) -> Iterator[Piece]:
        yield self.tag(Tag.PARALLEL)
        if self.tagged:
            yield Piece(self.separator)
        yield self.tag(Tag.GOAL)
        for outline in block.goal.outlines:
            if self.tagged:
                yield Piece(self.separator)
            yield self.tag(Tag.OUTLINE)
            if self.tagged:
                line = f"{outline.label}{self.label_end}{outline.text}"
                yield Piece(f"{self.separator}{line}{self.separator}")
            yield self.tag(Tag.END_OUTLINE)
        if self.tagged:
            yield Piece(self.separator)
        yield self.tag(Tag.END_GOAL)
        for outline, path in zip(block.goal.outlines, block.paths, strict=True):
            yield from self.fork_header(outline.label, outline.text)
            if self.tagged:
                yield Piece(self.label_end[len(self.label_end.rstrip()) :])
            yield from self._body(path.body, inline=True)
            yield self.tag(Tag.END_PATH)
        yield from self.join_header()
        yield from self._body(block.conclusion.body, inline=True)
        yield self.tag(Tag.END_CONCLUSION)
        if self.tagged:
            yield Piece(self.separator)
        yield self.tag(Tag.END_PARALLEL)
        yield Piece(self.separator)


MULTIVERSE = Syntax("multiverse")
"""What Multiverse models read and write (paper, figure 4)."""

UNTAGGED = Syntax("untagged", tagged=False)
"""Plain prose for models that were never taught the tags; render only."""
