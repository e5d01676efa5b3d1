"""Columns of a terminal, one for each thread of a run, while the threads write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import RLock
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from mvspec.events import (
    Event,
    Finished,
    Forked,
    HoleFilled,
    Joined,
    PathEnded,
    TakenBack,
    Written,
)
from mvspec.law.tags import TAG
from mvspec.shown import excerpt, visible
from mvspec.view.terminal import TEXT_LIMIT, one_line

NARROWEST = 18
"""Columns of a terminal that a thread has, at least."""

TALLEST = 16
"""Lines of text of a thread, at most."""

GAP = 2
"""Columns between two threads."""

LAG = 2
"""Steps without a new token after which a thread is idle: it is not its turn."""


MARKS = ("", "· ", "✓ ")
"""Before the name of a thread that writes, that is idle, and that has ended."""


KEPT = 20_000
"""Characters of a thread that are kept, about: its newest."""


@dataclass(slots=True)
class LiveThread:
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
    parent: LiveThread | None = None
    paths: dict[int, LiveThread] = field(default_factory=dict)
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

    def walk(self) -> Iterator[LiveThread]:
        yield self
        for path in self.paths.values():
            yield from path.walk()


@dataclass(slots=True)
class LiveRun:
    """One run: its threads, and its newest step."""

    columns: dict[int, LiveThread] = field(default_factory=lambda: {0: LiveThread()})
    step: int = 0


class LiveColumns:
    """Shows the threads of running requests side by side, each by the end of its text.

    A path that has ended stays until its block joins, dim and with ✓; so does one that writes
    nothing, with ·. A thread that waits for its paths is a line on top. What is no terminal gets
    a plain line for each hole and each path that is done. Text is data: neither markup nor
    control codes in it have an effect.

    Args:
        console: where to; by default standard error, since results go to standard output.

    >>> with LiveColumns(Console(force_terminal=False)) as live:
    ...     live.show(Forked("", 0, (1,), ("1",), ("Cost",), 0))
    ...     live.show(Written("", 1, 5, 0, "Low.", "model", -0.1, "", 1))
    ...     live.show(PathEnded("", 1, 1))
    1 Cost: 1 token: Low.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.runs: dict[str, LiveRun] = {}
        self._lock = RLock()  # a thread of rich's own draws
        self._live: Live | None = None
        if self.console.is_interactive:
            self._live = Live(
                self,
                console=self.console,
                refresh_per_second=8,
                transient=True,
                vertical_overflow="crop",
            )

    def __enter__(self) -> LiveColumns:
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, event: Event) -> None:
        """Take an event of a run."""
        with self._lock:
            lines = self._take(event)
        if self._live is None:
            for line in lines:
                self.console.print(Text(line), soft_wrap=True)

    def _take(self, event: Event) -> list[str]:
        """Change what is shown; return what a log says of it."""
        several = len(self.runs) > 1
        run = self.runs.setdefault(event.request, LiveRun())
        where = f"{one_line(event.request)}: " if several else ""
        if isinstance(event, Finished):
            del self.runs[event.request]
            broken = [each for each in run.columns[0].walk() if each.parent and not each.ended]
            return [where + _ended(path) for path in broken]
        column = run.columns.get(event.thread, run.columns[0])
        run.step = max(run.step, event.forward)
        column.step = max(column.step, event.forward)
        match event:
            case Written(text=text, author=author):
                if author != "prompt":
                    column.write(text, author)
            case TakenBack(count=count):
                column.take_back(count)
            case Forked(paths=paths, labels=labels, titles=titles):
                for thread, label, title in zip(paths, labels, titles, strict=True):
                    run.columns[thread] = LiveThread(label, title, column, step=event.forward)
                    column.paths[thread] = run.columns[thread]
            case Joined(paths=paths):
                for path in paths:
                    column.paths.pop(path, None)
                    run.columns.pop(path, None)
            case PathEnded():
                column.ended = True
                return [where + _ended(column)]
            case HoleFilled(name=name, text=text, cut=cut):
                column.holes += 1
                note = " (cut)" if cut else ""
                return [f"{where}{column.name}: {one_line(name)}{note} = {_short(text)}"]
        return []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            yield from self._frame(console, options.max_width, options.size.height - 1)

    def _frame(self, console: Console, width: int, height: int) -> Iterator[Text]:
        """Yield the lines of the screen: who waits, then the others in a grid."""
        several = len(self.runs) > 1
        waiting: list[str] = []
        live: list[tuple[str, str, LiveThread]] = []
        for request, run in self.runs.items():
            for column in run.columns[0].walk():
                name = f"{one_line(request)}: {column.name}" if several else column.name
                if column.paths:
                    labels = ", ".join(one_line(path.label) for path in column.paths.values())
                    waiting.append(f"{name} waits for {labels}")
                else:
                    mark = MARKS[2 if column.ended else run.step - column.step > LAG]
                    live.append((mark, name, column))
        waiting = waiting[: max(1, height // 6)]
        yield from (_cut(Text(line, "dim"), width) for line in waiting)
        height -= len(waiting)
        most = max(1, (width + GAP) // (NARROWEST + GAP))
        if len(live) > most * (height // 4):
            # Those that run come first; one line is for the note.
            fits = max(1, most * ((height - 1) // 4))
            kept = sorted(range(len(live)), key=lambda index: MARKS.index(live[index][0]))[:fits]
            note = f"… {len(live) - len(kept):,} more threads"
            live = [live[index] for index in sorted(kept)]
            yield _cut(Text(note, "dim"), width)
            height -= 1
        if not live:
            return
        deep = -(-len(live) // most)
        across = -(-len(live) // deep)
        wide = (width - GAP * (across - 1)) // across
        tall = max(1, min(TALLEST, height // deep - 1))
        for start in range(0, len(live), across):
            cells = [_cell(console, *each, wide, tall) for each in live[start : start + across]]
            for row in range(max(map(len, cells))):
                line = Text(no_wrap=True, overflow="crop")
                for index, cell in enumerate(cells):
                    line.append(" " * (GAP if index else 0))
                    line.append_text(_cut(cell[row] if row < len(cell) else Text(), wide))
                yield line


def _cell(
    console: Console, mark: str, name: str, column: LiveThread, width: int, tall: int
) -> list[Text]:
    """Return the head of a thread and the end of its text."""
    count = f" {column.tokens:,}"
    head = Text(mark + name, "dim" if mark else "bold green")
    head.truncate(width - len(count) - 2, overflow="ellipsis")
    head.append(" ").append("─" * (width - head.cell_len - len(count)), "dim not bold")
    head.append(count, "dim not bold")
    return [head, *column.lines(console, width, tall, "dim" if mark else "")]


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis", pad=True)
    return line


def _short(text: str) -> str:
    return excerpt(text, TEXT_LIMIT).replace("\n", "␊")


def _ended(path: LiveThread) -> str:
    """Return what a log says of a path: its text too, if no hole of it was told before."""
    text = path.text
    text = text[path.header(text) :].strip().removesuffix("</Path>").strip()
    said = f": {_short(text)}" if text and not path.holes else ""
    return f"{path.name}: {path.tokens:,} token{'s' * (path.tokens != 1)}{said}"
