"""One thread as live columns show it: its name, and the end of its text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from mvspec.law.tags import TAG
from mvspec.shown import visible

__all__ = ["Column", "one_line"]

KEPT = 20_000
"""Characters of a thread that are kept, about: its newest."""


@dataclass(slots=True)
class Column:
    """A thread on the screen.

    Args:
        parent: the column that forked it; None at the root.
        paths: the live columns that it waits for.
        pieces: its newest tokens: what each says, and who wrote it.
        tokens, holes: how many it has written and filled.
        step: of its newest token.
        ended: whether it waits for the join of its block.
    """

    label: str = ""
    title: str = ""
    parent: Column | None = None
    paths: dict[int, Column] = field(default_factory=dict)
    pieces: list[tuple[str, str]] = field(default_factory=list)
    tokens: int = 0
    holes: int = 0
    step: int = 0
    ended: bool = False

    @property
    def name(self) -> str:
        """Its label, after its parent's where that is no part of it, and its title."""
        name, at = self.label, self.parent
        while at is not None and at.label:
            name = name if name.startswith(at.label + ".") else f"{at.label} › {name}"
            at = at.parent
        return one_line(f"{name} {self.title}".strip() or "root")

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    def header(self, text: str) -> int:
        """Where the thread's own text begins: its label and title are in its name."""
        label, title = re.escape(self.label), re.escape(visible(self.title))
        plain = rf"\n{label}\. (?:{title}\n)?"  # as prose without tags has it
        found = self.parent and re.match(rf"\s*<Path>\s*{label}: *|{plain}", text)
        return found.end() if found else 0

    def write(self, text: str, author: str) -> None:
        self.pieces.append((visible(text), author))
        self.tokens += 1
        if self.tokens % 512 == 0:
            # Seldom, since lines that lose their beginning break elsewhere.
            over = len(self.text) - KEPT
            count = 0
            while over > 0:
                over -= len(self.pieces[count][0])
                count += 1
            del self.pieces[:count]

    def take_back(self, count: int) -> None:
        del self.pieces[-count:]
        self.tokens -= count

    def lines(self, console: Console, width: int, count: int, style: str) -> list[Text]:
        """Return the newest lines that say something, wrapped."""
        text = self.text
        start = len(text)
        for _ in range(4 * count):  # most lines may be blank, or a tag
            start = max(0, text.rfind("\n", 0, start))
        start = max(start, self.header(text))
        shown = Text(text[start:], style)
        at = len(text) - start
        for piece, author in reversed(self.pieces):
            if at <= 0:
                break
            if author == "engine":
                shown.stylize("dim", max(0, at - len(piece)), at)
            at -= len(piece)
        found: list[Text] = []
        for line in reversed(shown.split("\n", allow_blank=True)):
            if len(found) < count and TAG.sub("", line.plain).strip():
                found += reversed(line.wrap(console, width, overflow="fold"))
        return found[:count][::-1]

    def walk(self) -> Iterator[Column]:
        yield self
        for path in self.paths.values():
            yield from path.walk()


def one_line(text: str) -> str:
    """Return a text in one line, control codes made visible."""
    return visible(text).replace("\n", "␊")
