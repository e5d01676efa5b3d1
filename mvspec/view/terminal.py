"""A document for the eye: a plain tree, a rich tree with paths side by side.

Both print the same outline of a node, as mvspec/view/notebook.py does. Text is data in each of
them: markup is never interpreted, and characters that cannot be seen or would move the cursor are
made visible.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rich.box import ROUNDED
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text as Styled
from rich.tree import Tree

from mvspec.shown import excerpt, visible
from mvspec.tree.ir import (
    Gen,
    Goal,
    Message,
    Outline,
    Parallel,
    Path,
    Text,
)
from mvspec.tree.node import Node

TEXT_LIMIT = 400
"""Characters of one text that a terminal view shows before it says how many more there are."""

MIN_COLUMN = 32
"""Columns of a terminal that a path needs to stand beside its siblings."""

MIN_TEXT = 16
"""Columns that a text has at least, however deep it stands in the tree."""

INDENT = 4
"""Columns of a level of a rich tree."""

_STYLES = {
    "document": "bold",
    "message": "bold cyan",
    "think": "bold blue",
    "parallel": "bold magenta",
    "path": "bold green",
    "conclusion": "bold yellow",
    "gen": "italic red",
}


class OutlineEntry(NamedTuple):
    """One line of the outline that every view prints.

    Args:
        kind: what the node is; views style by it.
        title: the line itself; "" for plain text.
        text: what follows the title: a path's outline, a text's characters.
        children: the entries below it.
    """

    kind: str
    title: str
    text: str = ""
    children: tuple[OutlineEntry, ...] = ()


def entry(node: Node) -> OutlineEntry:
    """Return the outline of a node; a goal's lines become the titles of their paths."""
    match node:
        case Text(text=text):
            return OutlineEntry("text", "", text)
        case Gen():
            return OutlineEntry("gen", f"gen {node.name}", _terms(node))
        case Outline(label=label, text=text):
            return OutlineEntry("path", f"outline {label}", text)
        case Parallel(goal=goal, paths=paths, conclusion=conclusion):
            number = f"{len(paths)} path{'s' * (len(paths) != 1)}"
            branches = tuple(
                entry(path)._replace(text=outline.text)
                for outline, path in zip(goal.outlines, paths, strict=True)
            )
            return OutlineEntry(
                "parallel", f"parallel, {number}", "", (*branches, entry(conclusion))
            )
    below = tuple(entry(child) for child in node.children)
    name = type(node).__name__.lower()
    kind = name if name in _STYLES else "parallel" if isinstance(node, Goal) else "node"
    title = f"path {node.label}" if isinstance(node, Path) else name
    return OutlineEntry(kind, node.role if isinstance(node, Message) else title, "", below)


def _terms(hole: Gen) -> str:
    terms = [f"at most {hole.max_tokens} tokens"]
    if hole.stop:
        terms.append("until " + " or ".join(map(repr, hole.stop)))
    if hole.choices:
        terms.append("one of " + ", ".join(map(repr, hole.choices)))
    if hole.regex is not None:
        terms.append(f"matches {hole.regex!r}")
    if hole.json_schema is not None:
        terms.append(f"JSON of {hole.json_schema}")
    return "; ".join(terms)


def one_line(text: str) -> str:
    """Return a text in one line, made visible."""
    return visible(text).replace("\n", "␊")


def tree_text(node: Node, limit: int | None = TEXT_LIMIT) -> str:
    """Return a node as an indented tree, without colour or width.

    Args:
        limit: characters shown of each text; None shows all.

    >>> import mvspec
    >>> block = mvspec.parallel(mvspec.branch("Cost", "Low."), conclusion="Buy.")
    >>> print(tree_text(block))
    parallel, 1 path
    ├─ path 1: Cost
    │  └─ Low.
    └─ conclusion
       └─ Buy.
    """
    return "\n".join(_lines(entry(node), limit))


def _lines(item: OutlineEntry, limit: int | None) -> Iterator[str]:
    shown = excerpt(item.text, limit)
    head = f"{item.title}: {shown}" if item.title and shown else item.title or shown
    yield from head.split("\n")
    for index, child in enumerate(item.children):
        last = index + 1 == len(item.children)
        first, *rest = _lines(child, limit)
        # The bar goes on beside what hangs below an entry, and ends with the last entry.
        yield ("└─ " if last else "├─ ") + first
        yield from (("   " if last else "│  ") + line for line in rest)


def least_width(node: Node) -> int:
    """Return the columns that the rich tree of a node needs: in fewer, rich leaves text out.

    >>> import mvspec
    >>> least_width(mvspec.parse("Plain text is two levels below its document."))
    24
    """
    return _least(entry(node))


def _least(item: OutlineEntry) -> int:
    below = (_least(child) + INDENT for child in item.children)
    return max(below, default=MIN_TEXT)


def tree_rich(node: Node, limit: int | None = TEXT_LIMIT) -> Tree:
    """Return a node as a rich tree; where the terminal is wide, paths stand side by side.

    Rich leaves out what stands too deep for the width: give it `least_width` columns.

    Args:
        limit: characters shown of each text; None shows all.
    """
    tree = Tree("", guide_style="dim", hide_root=True)
    item = entry(node)
    if _forks(item):
        tree.add(_Block(item, limit))
        return tree
    return _branch(item, limit)


def _branch(item: OutlineEntry, limit: int | None) -> Tree:
    tree = Tree(_styled(item, limit), guide_style="dim")
    for child in item.children:
        if _forks(child):
            tree.add(_Block(child, limit))
        else:
            tree.children.append(_branch(child, limit))
    return tree


def _forks(item: OutlineEntry) -> bool:
    return item.kind == "parallel" and sum(child.kind == "path" for child in item.children) > 1


def _styled(item: OutlineEntry, limit: int | None) -> Styled:
    line = Styled(visible(item.title), _STYLES.get(item.kind, ""), overflow="fold")
    if item.text:
        line.append(": " if item.title else "", "default")
        line.append(excerpt(item.text, limit), "not bold default")
    return line


class _Block:
    """A block: a column for each path where the width allows, else a tree like any other."""

    def __init__(self, item: OutlineEntry, limit: int | None) -> None:
        self.item = item
        self.limit = limit

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        *paths, conclusion = self.item.children
        column = max(MIN_COLUMN, *map(_least, paths))
        if options.max_width < len(paths) * (column + 3) + 1:
            yield _branch(self.item, self.limit)
            return
        yield _styled(self.item, self.limit)
        table = Table(box=ROUNDED, border_style="dim", expand=True)
        bodies = []
        for path in paths:
            table.add_column(_styled(path, self.limit), ratio=1, overflow="fold")
            body = _branch(path, self.limit)
            body.hide_root = True
            bodies.append(body)
        table.add_row(*bodies)
        yield table
        yield _branch(conclusion, self.limit)
