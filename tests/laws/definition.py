"""The structural law, defined over all pairs of tokens: slow, and plainly the law.

Nothing here is shared with the machine or the layout, so that neither can agree with itself by
mistake. A token is an event of the surface form: a tag, or one character of text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from mvspec.law.tags import Tag
from mvspec.tree.ir import Gen, Message, Parallel, Text, Think
from mvspec.tree.node import Node

Place = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Token:
    """One token: its event, and (block, path) for every path that it stands in."""

    event: Tag | str
    place: Place
    forced: bool = False


def tokens(message: Message) -> list[Token]:
    """Return the tokens of an assistant's turn, in the order of the multiverse form."""
    return list(_turn(message, count()))


def _text(text: str, place: Place, *, forced: bool = False) -> Iterator[Token]:
    for character in text:
        yield Token(character, place, forced)


def _turn(message: Message, blocks: count[int]) -> Iterator[Token]:
    body = message.body
    if body and isinstance(body[0], Think):
        yield Token(Tag.THINK, ())
        yield from _text("\n", ())
        yield from _body(body[0].body, (), blocks, line_open=False)
        yield Token(Tag.END_THINK, ())
        yield from _text("\n\n", ())
        body = body[1:]
    ends_in_text = bool(body) and not isinstance(body[-1], Parallel)
    yield from _items(body, (), blocks, newline_at_end=not ends_in_text)


def _body(
    body: tuple[Node, ...], place: Place, blocks: count[int], *, line_open: bool
) -> Iterator[Token]:
    """A body before a tag; where its line is open already, even an empty one ends it."""
    if line_open and (not body or isinstance(body[0], Parallel)):
        yield from _text("\n", place)
    yield from _items(body, place, blocks, newline_at_end=True)


def _items(
    body: tuple[Node, ...], place: Place, blocks: count[int], *, newline_at_end: bool
) -> Iterator[Token]:
    for index, item in enumerate(body):
        following = body[index + 1] if index + 1 < len(body) else None
        if isinstance(item, Parallel):
            yield from _block(item, place, blocks)
        elif isinstance(item, Text):
            yield from _text(item.text, place)
            if isinstance(following, Parallel) or (following is None and newline_at_end):
                yield from _text("\n", place)
        else:
            assert not isinstance(item, Gen), "a text form holds no hole"


def _block(block: Parallel, place: Place, blocks: count[int]) -> Iterator[Token]:
    number = next(blocks)
    yield Token(Tag.PARALLEL, place)
    yield from _text("\n", place)
    yield Token(Tag.GOAL, place)
    for outline in block.goal.outlines:
        yield from _text("\n", place)
        yield Token(Tag.OUTLINE, place)
        yield from _text(f"\n{outline.label}: {outline.text}\n", place)
        yield Token(Tag.END_OUTLINE, place)
    yield from _text("\n", place)
    yield Token(Tag.END_GOAL, place)
    for index, path in enumerate(block.paths):
        inside = (*place, (number, index))
        yield from _text("\n", inside, forced=True)
        yield Token(Tag.PATH, inside, True)
        yield from _text(f"\n{path.label}:", inside, forced=True)
        yield from _text(" ", inside)
        yield from _body(path.body, inside, blocks, line_open=True)
        yield Token(Tag.END_PATH, inside)
    yield from _text("\n", place, forced=True)
    yield Token(Tag.CONCLUSION, place, True)
    yield from _text("\n", place, forced=True)
    yield from _body(block.conclusion.body, place, blocks, line_open=True)
    yield Token(Tag.END_CONCLUSION, place)
    yield from _text("\n", place)
    yield Token(Tag.END_PARALLEL, place)
    yield from _text("\n", place)


def visible(places: list[Place]) -> list[list[bool]]:
    """[q][k]: k does not come after q, and no block has q and k in different paths."""
    paths = [dict(place) for place in places]
    return [
        [
            k <= q and all(paths[k].get(block, path) == path for block, path in paths[q].items())
            for k in range(len(places))
        ]
        for q in range(len(places))
    ]


def positions(visibility: list[list[bool]]) -> list[int]:
    """A token sits right after the furthest one that it sees."""
    out: list[int] = []
    for q, row in enumerate(visibility):
        out.append(max((out[k] + 1 for k in range(q) if row[k]), default=0))
    return out


def parents(places: list[Place]) -> list[int]:
    """The previous token of the same thread; for a path's first token, the fork's last.

    The join's first token has no single parent: -1, like the first token of all.
    """
    out: list[int] = []
    for q, place in enumerate(places):
        if q == 0:
            out.append(-1)
        elif len(places[q - 1]) > len(place):
            out.append(-1)  # the paths of a block ended right before: this joins them
        else:
            same = [k for k in range(q) if places[k] == place]
            fork = [k for k in range(q) if places[k] == place[:-1]]
            first = not same
            out.append(fork[-1] if first else same[-1])
    return out
