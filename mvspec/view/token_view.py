"""Documents as tokens of a view: their rendering in words, and the tree over it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mvspec.data.measure import author_runs, has_prompt
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Piece, Syntax
from mvspec.law.automaton import TagReader
from mvspec.law.tags import Tag
from mvspec.tree.ir import Document, Message, Parallel, Text
from mvspec.view.record_view import AUTHORS, TokenRun, TreeBranch, TreeLeaf, ViewedThread, units
from mvspec.view.terminal import entry

__all__ = ["TokenView", "lay_words", "trees", "words"]

_WORD = re.compile(r"\S+\s*")
_OPENS = {
    Tag.THINK: "think",
    Tag.PARALLEL: "parallel",
    Tag.PATH: "path",
    Tag.CONCLUSION: "conclusion",
}


def words(text: str) -> tuple[str, list[str]]:
    """Cut a text into the words that `mvspec stats` counts, each with the white space behind it.

    Returns:
        The white space before the first word, and the words.

    >>> words("two  words\\n")
    ('', ['two  ', 'words\\n'])
    """
    return text[: len(text) - len(text.lstrip())], _WORD.findall(text)


@dataclass(slots=True)
class TokenView:
    """A document laid out in tokens: the parts of a `RecordView` of the same names."""

    text: str = ""
    tree: tuple[TreeBranch | TreeLeaf, ...] = ()
    threads: list[ViewedThread] = field(default_factory=lambda: [ViewedThread()])
    runs: list[TokenRun] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    ids: Sequence[int] = ()


def trees(message: Message, syntax: Syntax, start: int = 0) -> tuple[TreeBranch | TreeLeaf, ...]:
    """Return the tree of an assistant's turn over the characters of its rendering.

    Args:
        start: where the rendering begins, in UTF-16 units.
    """
    tree = _Tree(message, start)
    for piece in syntax.pieces(message):
        tree.add(piece)
    return tuple(tree.levels[0])


class _Tree:
    """Builds the tree of a turn from the pieces of its rendering."""

    def __init__(self, message: Message, start: int) -> None:
        self.at = start
        self.levels: list[list[TreeBranch | TreeLeaf]] = [[]]
        self.opened: list[tuple[str, str, str, int]] = []
        # Paths come in the order of their blocks; those of inner blocks in between.
        self.blocks = message.walk(Parallel)
        self.paths: list[Iterator[tuple[str, str]]] = []
        self.in_outline = False

    def add(self, piece: Piece) -> None:
        stop = self.at + units(piece.text)
        if piece.tag is not None:
            self.event(piece.tag, stop)
        elif piece.hole is not None:
            item = entry(piece.hole)
            hole = TreeBranch("gen", piece.hole.name, item.text, self.at, stop)
            self.levels[-1].append(hole)
        elif piece.content and not self.in_outline:
            self.levels[-1].append(TreeLeaf(self.at, stop))
        self.at = stop

    def event(self, tag: Tag, stop: int) -> None:
        if tag in (Tag.OUTLINE, Tag.END_OUTLINE):
            self.in_outline = tag is Tag.OUTLINE
        elif tag in _OPENS:
            title = text = ""
            if tag is Tag.PARALLEL:
                block = next(self.blocks)
                self.paths.append(iter([(each.label, each.text) for each in block.goal.outlines]))
            elif tag is Tag.PATH:
                title, text = next(self.paths[-1])
            self.opened.append((_OPENS[tag], title, text, self.at))
            self.levels.append([])
        elif tag.closes and tag.partner in _OPENS:
            inside = tuple(self.levels.pop())
            kind, title, text, start = self.opened.pop()
            self.levels[-1].append(TreeBranch(kind, title, text, start, stop, inside))
            if tag is Tag.END_PARALLEL:
                self.paths.pop()


def lay_words(document: Document, syntax: Syntax = MULTIVERSE) -> TokenView:
    """Lay a document out in words: the law on a unit that needs no tokenizer.

    The machine places every word as if it were a token; a tag is one word.

    Args:
        syntax: the form in which the assistant's turns are written.

    >>> import mvspec
    >>> block = mvspec.parallel(mvspec.branch("A", "x y"), mvspec.branch("B", "z"))
    >>> view = lay_words(mvspec.document(mvspec.assistant(block)))
    >>> [thread.label for thread in view.threads], sum(run.size for run in view.runs)
    (['', '1', '2'], 23)
    """
    laid = _Laid(TokenView())
    for message in document.messages:
        start = laid.chars
        if message.role == "assistant":
            inside = trees(message, syntax, start)
            laid.turn(message, syntax)
            if has_prompt(document):  # its end is a token that has no text
                laid.token("", AUTHORS.index("model"))
        else:
            for part in message.body:
                if isinstance(part, Text):
                    laid.words(part.text, 0, AUTHORS.index("prompt"), laid.position)
            inside = (TreeLeaf(start, laid.chars),) if laid.chars > start else ()
        branch = TreeBranch("message", message.role, "", start, laid.chars, inside)
        laid.view.tree += (branch,)
    if laid.before:  # a text of white space alone
        laid.token("", AUTHORS.index("prompt"))
    laid.view.text = "".join(laid.parts)
    return laid.view


@dataclass(slots=True)
class _Laid:
    """Words, placed one after the other.

    White space belongs to the word before it, whichever thread that is of; `before` is what
    stands before the first.
    """

    view: TokenView
    parts: list[str] = field(default_factory=list)
    chars: int = 0
    before: int = 0
    position: int = 0
    blocks: int = 0

    def words(self, text: str, thread: int, author: int, position: int) -> int:
        """Place the words of a text, and return how many they are."""
        space, found = words(text)
        self.parts.append(text)
        self.chars += units(text)
        if self.view.widths:
            self.view.widths[-1] += units(space)
        else:
            self.before += units(space)
        for word in found:
            self.view.widths.append(self.before + units(word))
            self.before = 0
        add_run(self.view.runs, TokenRun(thread, author, len(found), position))
        if thread == 0:
            self.position = position + len(found)
        return len(found)

    def token(self, text: str, author: int) -> None:
        """Place one token of the root thread, whatever its text."""
        self.view.widths.append(self.before + units(text))
        self.before = 0
        add_run(self.view.runs, TokenRun(0, author, 1, self.position))
        self.position += 1

    def turn(self, message: Message, syntax: Syntax) -> None:
        reader = TagReader(self.position)
        law = reader.law
        names = {law.here: 0}
        blocks = message.walk(Parallel)
        for text, tag, forced in author_runs(message, syntax):
            author = AUTHORS.index("engine" if forced else "model")
            here = law.here
            law.tokens(self.words(text, names[here], author, here.position))
            if tag is not None:
                reader.take(tag)
            if tag is Tag.END_GOAL:
                for outline, thread in zip(next(blocks).goal.outlines, here.paths, strict=True):
                    names[thread] = len(self.view.threads)
                    path = ViewedThread(outline.label, outline.text, names[here], self.blocks)
                    self.view.threads.append(path)
                self.blocks += 1
        self.position = law.here.position


def add_run(runs: list[TokenRun], run: TokenRun) -> None:
    """Add a run, to the one before where it goes on there."""
    if not run.size:
        return
    if runs:
        last = runs[-1]
        if run[:2] == last[:2] and run.position == last.position + last.size:
            runs[-1] = last._replace(size=last.size + run.size)
            return
    runs.append(run)
