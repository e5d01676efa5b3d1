"""Labels of outlines and paths: which path belongs to which outline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from mvspec.forms.recovery.edits import LABEL, NUMBER, Code, without_tags
from mvspec.forms.recovery.structure import TagToken
from mvspec.law.tags import TAG, Tag

_PARTIAL_LABEL = re.compile(rf"\n({NUMBER}\.?)\Z")


def pair_labels(text: str, tokens: list[TagToken]) -> list[TagToken]:
    """Return the tags with a label for every outline and path, and one path for every outline.

    Outlines follow the order of their paths, so equal labels pair in order; between two pairs,
    the others pair as they come; then outlines without a path get an empty one, and paths without
    an outline an empty outline. Takes O(n log n).
    """
    before: dict[int, list[TagToken]] = {}
    open_blocks: list[_BlockLabels] = []
    for index, token in enumerate(tokens):
        if token.tag is Tag.PARALLEL:
            open_blocks.append(_BlockLabels(text, tokens, before))
        elif token.tag is Tag.OUTLINE:
            open_blocks[-1].outlines.append(index)
        elif token.tag is Tag.PATH:
            open_blocks[-1].paths.append(index)
        elif token.tag is Tag.END_GOAL:
            open_blocks[-1].goal_end = index
        elif token.tag is Tag.CONCLUSION:
            open_blocks[-1].conclusion = index
        elif token.tag is Tag.END_PARALLEL:
            open_blocks.pop().pair()
    out: list[TagToken] = []
    for index, token in enumerate(tokens):
        out += before.get(index, ())
        out.append(token)
    return out


@dataclass(slots=True)
class _BlockLabels:
    """The tags of one block, by their index."""

    text: str
    tokens: list[TagToken]
    before: dict[int, list[TagToken]]  # the tags to write before a tag
    outlines: list[int] = field(default_factory=list)
    paths: list[int] = field(default_factory=list)
    goal_end: int = -1
    conclusion: int = -1

    def pair(self) -> None:
        names = [self.label(index) for index in self.outlines]
        path_names = [self.label(index) for index in self.paths]
        found, wanted = places_of(names), places_of(path_names)
        # Outlines that have a path stand in the order of the paths: slot by slot.
        common = sorted(found.keys() & wanted.keys(), key=wanted.__getitem__)
        slots = sorted(found[key] for key in common)
        places = [found[key] for key in common]
        moved = list(names)
        for slot, place in zip(slots, places, strict=True):
            if slot != place:
                self.tokens[self.outlines[slot]].line = self.line(place)
                moved[slot] = names[place]
        numbers = _FreeLabels(moved)
        # A label that repeats is that of the outline whose path has it.
        taken, kept = {label for label, _ in common}, {*slots}
        names = [
            label if label not in taken or place in kept else ""
            for place, label in enumerate(moved)
        ]
        equal = zip(slots, (wanted[key] for key in common), strict=True)
        for o, p, lacks in paired([*equal, (len(names), len(path_names))]):
            name = "" if lacks is Tag.OUTLINE else names[o]
            path_name = "" if lacks is Tag.PATH else path_names[p]
            label = numbers.take(name, path_name)
            if lacks is Tag.OUTLINE:
                label = label or numbers.fresh()
                at = self.outlines[o] if o < len(self.outlines) else self.goal_end
                message = f"path {label} has no outline: expected <Outline> {label}"
                if path_name and path_name != label:
                    why = "repeats or leaves the order of the outlines"
                    message = f"path {path_name} {why}: it becomes path {label}"
                self.add(at, lacks, label, "missing-outline", message)
            else:
                label = label or self.partial(o, numbers)
                self.tokens[self.outlines[o]].label = label
            if lacks is Tag.PATH:
                at = self.paths[p] if p < len(self.paths) else self.conclusion
                message = f"outline {label} has no path: expected <Path> {label}"
                self.add(at, lacks, label, "missing-path", message)
            else:
                self.tokens[self.paths[p]].label = label

    def line(self, place: int) -> str:
        """Return what an outline says, on one line and without its label."""
        index = self.outlines[place]
        text = self.text[self.tokens[index].end : self.tokens[index + 1].start]
        label = LABEL.match(text)
        text = without_tags(text[label.end() :] if label else text, TAG)
        return " ".join(text.strip("\n \t\r").split("\n")) if "\n" in text else text.strip()

    def add(self, index: int, tag: Tag, label: str, code: Code, message: str) -> None:
        at = self.tokens[index].start
        self.before.setdefault(index, []).extend(
            TagToken(each, at, at, code, message, label) for each in (tag, tag.partner)
        )

    def label(self, index: int) -> str:
        """Return the label that the text gives an outline or a path, or ""."""
        match = LABEL.match(self.text, self.tokens[index].end, self.tokens[index + 1].start)
        return match.group(1) if match else ""

    def partial(self, o: int, numbers: _FreeLabels) -> str:
        """Return a label that a text cut inside of it can still become, else the next number."""
        match = _PARTIAL_LABEL.match(self.text, self.tokens[self.outlines[o]].end)
        return numbers.longer(match.group(1)) if match else numbers.fresh()


class _FreeLabels:
    """The labels of one block: those that are taken, and the next that is free."""

    def __init__(self, names: list[str]) -> None:
        self.reserved = {name for name in names if name}
        self.used: set[str] = set()
        first = next(filter(None, names), "")
        self.prefix = first[: first.rfind(".") + 1]
        self.number = 0

    def take(self, name: str, path_name: str) -> str:
        """Return the outline's own label, else the path's, where it is free; else ""."""
        if name and name not in self.used:
            label = name
        elif path_name and path_name not in self.used and path_name not in self.reserved:
            label = path_name
        else:
            return ""
        self.used.add(label)
        return label

    def fresh(self) -> str:
        """Return the first number at the prefix that no outline has."""
        self.number = max(self.number, len(self.used)) + 1
        while (label := f"{self.prefix}{self.number}") in self.reserved or label in self.used:
            self.number += 1
        self.used.add(label)
        return label

    def longer(self, start: str) -> str:
        """Return a free label that begins with `start`."""
        label = f"{start}1" if start.endswith(".") else start
        while label in self.used:
            label += "0"
        self.used.add(label)
        return label


def places_of(names: list[str]) -> dict[tuple[str, int], int]:
    """Return where each label stands, by how often it has come."""
    places: dict[tuple[str, int], int] = {}
    count: dict[str, int] = {}
    for index, name in enumerate(names):
        if name:
            count[name] = count.get(name, 0) + 1
            places[name, count[name]] = index
    return places


def paired(equal: list[tuple[int, int]]) -> Iterator[tuple[int, int, Tag | None]]:
    """Yield (outline, path, the one of the two that is missing and belongs there).

    Args:
        equal: outlines and paths of equal labels, both rising, and the count of each at last.
    """
    o = p = 0
    for next_o, next_p in equal:
        while o < next_o and p < next_p:
            yield o, p, None
            o, p = o + 1, p + 1
        for alone in range(o, next_o):
            yield alone, p, Tag.PATH
        for alone in range(p, next_p):
            yield next_o, alone, Tag.OUTLINE
        if (next_o, next_p) != equal[-1]:
            yield next_o, next_p, None
        o, p = next_o + 1, next_p + 1
