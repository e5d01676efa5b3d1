"""The tree that the threads of a trace tell by themselves, where its text does not say more."""

from __future__ import annotations

from dataclasses import dataclass, field

from mvspec.view.record_view import Branch, Leaf, Sheet

__all__ = ["thread_tree"]


def thread_tree(sheet: Sheet) -> tuple[Branch | Leaf, ...]:
    """Return what each thread wrote, tags and all, with the paths of a block side by side.

    Args:
        sheet: its text, widths, threads and runs.
    """
    ends = [0]
    for width in sheet.widths:
        ends.append(ends[-1] + width)
    root = _Open("", "", "", 0)
    opened = [root]
    chain: list[int] = []  # the paths that are open, outermost first
    at = 0
    for run in sheet.runs:
        wanted: list[int] = []
        thread = run.thread
        while thread > 0:
            wanted.insert(0, thread)
            thread = sheet.threads[thread].parent
        common = 0
        while chain[common : common + 1] == wanted[common : common + 1] != []:
            common += 1
        del chain[common:], opened[1 + common :]
        for path in wanted[common:]:
            label, title, _, block = sheet.threads[path]
            made = _Open("path", label, title, ends[at])
            opened[-1].block(block, ends[at]).children.append(made)
            chain.append(path)
            opened.append(made)
        stop = at + run.size
        for node in opened:
            node.stop = ends[stop]
        if ends[stop] > ends[at]:
            opened[-1].children.append(Leaf(ends[at], ends[stop]))
        at = stop
    return root.branch().children


@dataclass(slots=True)
class _Open:
    """A node of a tree that is being built."""

    kind: str
    title: str
    text: str
    start: int
    stop: int = 0
    number: int = -1  # of a block
    children: list[_Open | Leaf] = field(default_factory=list)

    def block(self, number: int, start: int) -> _Open:
        """Return the block of this number: the last child, or else a new one."""
        last = self.children[-1] if self.children else None
        if isinstance(last, _Open) and last.number == number:
            return last
        self.children.append(_Open("parallel", "", "", start, number=number))
        return self.block(number, start)

    def branch(self) -> Branch:
        """Return the node as it stays."""
        inside = tuple(each if isinstance(each, Leaf) else each.branch() for each in self.children)
        stop = max([self.stop, *(each.stop for each in inside)])
        return Branch(self.kind, self.title, self.text, self.start, stop, inside)
