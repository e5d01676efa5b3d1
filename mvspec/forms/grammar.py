"""Lark grammars of tagged forms: rules from the law's table of moves, terminals from a `Syntax`.

A rule is named after the tag that opens it, and stands for what lies between that tag and its
partner. So the grammar of tags is written once, in mvspec/law/automaton.py; lark's LALR parser
holds a text to it, and nodes are made as rules are reduced. This module is imported with the first
text that is read: what reads none starts without lark.
"""

from __future__ import annotations

from typing import Any, cast

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedInput

from mvspec.forms.form import NO_CONCLUSION, Mismatch, document_of, text_of
from mvspec.forms.syntax import Syntax
from mvspec.law.automaton import LEADS_TO, MOVES, Place
from mvspec.law.tags import Tag
from mvspec.tree.builder import number
from mvspec.tree.ir import LABEL, Conclusion, Document, Goal, Outline, Parallel, Path, Think

_GOES_ON = {Place.FORKED: Place.BETWEEN, Place.ENDED: Place.JOINED}
"""Where a block goes on after its goal, and after the last of its paths."""

_NAMED = frozenset({Tag.OUTLINE, Tag.END_OUTLINE, Tag.PATH, Tag.END_PATH})
"""Tags that labels stand at; lark leaves the others, whose terminals begin with _, out."""


class StrictReader:
    """Parser of the canonical texts of one form."""

    def __init__(self, syntax: Syntax) -> None:
        self._lark = Lark(grammar(syntax), parser="lalr", transformer=_TreeBuilder(syntax))

    def read(self, text: str) -> Document:
        """Return the document of a text.

        Raises:
            Mismatch: the text is not of the form, or its labels do not agree.
        """
        try:
            return cast(Document, self._lark.parse(text))
        except UnexpectedInput:
            pass
        raise Mismatch("not of the form")


def grammar(syntax: Syntax) -> str:
    """Return the grammar of a form in lark's notation.

    >>> from mvspec.forms.multiverse import MULTIVERSE
    >>> print(*grammar(MULTIVERSE).splitlines()[:7], sep="\\n")
    start: think? TEXT? (parallel TEXT?)* TAIL?
    think: _THINK TEXT? (parallel TEXT?)* _END_THINK
    parallel: _PARALLEL goal path+ conclusion _END_PARALLEL
    goal: _GOAL outline+ _END_GOAL
    outline: OUTLINE END_OUTLINE
    path: PATH (BLANK | TEXT) (parallel TEXT?)* END_PATH
    conclusion: _CONCLUSION (BLANK | TEXT) _END_CONCLUSION
    """
    written = zip(Tag, syntax.tags, strict=True)
    tags = {each: tag_pattern(each, text, syntax) for each, text in written if text}
    names = {each: each.name if each in _NAMED else f"_{each.name}" for each in tags}
    lines = [f"start: think? {_text(Place.TURN, syntax)} TAIL?"]
    for tag in Tag:
        if not tag.closes and (written_goal(syntax) or tag not in (Tag.GOAL, Tag.OUTLINE)):
            parts = [names.get(tag), *_inside(tag, syntax), names.get(tag.partner)]
            if tag is Tag.PARALLEL and syntax.outside:
                parts[-2:] = parts[:-3:-1]
            lines.append(f"{tag.name.lower()}: {' '.join(part for part in parts if part)}")
    patterns = run_patterns(syntax) | {names[each]: pattern for each, pattern in tags.items()}
    for name, pattern in patterns.items():
        escaped = pattern.replace("/", r"\/").replace("\n", r"\n")
        lines.append(f"{name}: /{escaped}/")
    return "\n".join(lines)


def _inside(tag: Tag, syntax: Syntax) -> list[str]:
    """Return what stands between a tag and its partner: the moves from one to the other."""
    place = LEADS_TO[tag]
    parts = []
    while tag.partner not in MOVES[place]:
        (inner,) = MOVES[place]
        optional = inner is Tag.CONCLUSION and syntax.optional_join
        repeats = "+" if inner is Tag.PATH else "?" if optional else ""
        if inner is not Tag.GOAL or written_goal(syntax):
            parts.append(inner.name.lower() + repeats)
        place = LEADS_TO[inner.partner]
        place = _GOES_ON.get(place, place)
    if place is Place.GOAL:
        parts.append("outline+")
    elif place in (Place.THINK, Place.PATH, Place.CONCLUSION):
        parts.append(_text(place, syntax))
    return parts


def written_goal(syntax: Syntax) -> bool:
    """Whether a form writes the outlines of a block."""
    return bool(syntax.written(Tag.OUTLINE))


def _text(place: Place, syntax: Syntax) -> str:
    """Return the runs of text at a place, with the blocks between them."""
    if place is Place.CONCLUSION and syntax.optional_join:
        return "TEXT"
    # Where text stands in line with a label or a header, its newline is always written.
    inline = place is Place.CONCLUSION or (place is Place.PATH and syntax.labels == "text")
    blocks = " (parallel TEXT?)*" if Tag.PARALLEL in MOVES[place] else ""
    return ("(BLANK | TEXT)" if inline else "TEXT?") + blocks


def run_patterns(syntax: Syntax) -> dict[str, str]:
    """Return the terminals of text: before a tag, at the end, and a newline that stands for none.

    The repeats are possessive: a run ends at a tag or at the end, so backtracking cannot help.
    """
    tag = syntax.marker.pattern
    raw = f"(?!{tag})<"
    run = f"(?:[^<]|{raw})[^<]*+(?:{raw}[^<]*+)*+"
    return {
        "TEXT": rf"(?!\n(?:{tag})){run}(?<=\n)(?=<)",
        "TAIL": rf"(?:{run})\Z",
        "BLANK": rf"\n(?={tag})",
    }


def tag_pattern(tag: Tag, written: str, syntax: Syntax) -> str:
    """Return the terminal of a tag with the fixed text after it, a label and an outline's line.

    So white space is read only where it is text.
    """
    label = LABEL.pattern + syntax.label_end if syntax.labels == "text" else ""
    after = syntax.after(tag)
    if tag is Tag.PATH:
        after += label
    elif tag is Tag.OUTLINE:
        after += label + syntax.line_pattern + _after_line(syntax)
    elif tag is Tag.END_PATH and syntax.path_gap != syntax.separator:
        path = syntax.written(Tag.PATH)
        after = f"(?:{syntax.path_gap}(?={path})|{syntax.separator}(?!{path}))"
    return written.replace("{}", LABEL.pattern) + after


def _after_line(syntax: Syntax) -> str:
    """Return the fixed text after an outline's line."""
    return syntax.outline_gap + ("" if syntax.written(Tag.END_OUTLINE) else syntax.separator)


class _TreeBuilder(Transformer[Token, Document]):
    """Nodes of the rules as they are reduced; labels are checked where no grammar can count."""

    def __init__(self, syntax: Syntax) -> None:
        super().__init__(visit_tokens=False)
        self.syntax = syntax
        self.labelled = syntax.labels != "none"
        label_end = syntax.label_end if syntax.labels == "text" else ""
        self.before_line = len(syntax.written(Tag.OUTLINE) + syntax.after(Tag.OUTLINE) + label_end)
        self.after_line = len(_after_line(syntax))

    def start(self, items: list[Any]) -> Document:
        return document_of(self._body(items, outermost=True))

    def think(self, items: list[Any]) -> Think:
        return Think.trusted(kind="think", body=self._body(items, outermost=True))

    def _body(self, items: list[Any], *, outermost: bool = False) -> tuple[Any, ...]:
        """Return texts and blocks; where no labels are written, blocks in blocks are numbered."""
        count = outermost and not self.labelled
        body: list[Any] = []
        for item in items:
            if isinstance(item, Token):
                if item.type != "BLANK":
                    body.append(text_of(str(item) if item.type == "TAIL" else item[:-1]))
            elif count and isinstance(item, Parallel) and item.depth > 1:
                body.append(number(item))
            else:
                body.append(item)
        return tuple(body)

    def _label(self, opening: str, closing: str) -> str:
        """Return the label at a tag, which its partner repeats where tags bear labels."""
        if not self.labelled:
            return ""
        found = LABEL.search(opening)
        label = found.group() if found else ""
        if self.syntax.labels == "tag" and f" {label}>" not in closing:
            raise Mismatch("the labels of two tags differ")
        return label

    def outline(self, items: list[Token]) -> Outline:
        opening, closing = items[0], items[-1]
        label = self._label(opening, closing)
        line = opening[self.before_line + len(label) : len(opening) - self.after_line]
        return Outline.trusted(label=label, text=line)

    def goal(self, items: list[Outline]) -> Goal:
        counted = [str(k) for k in range(1, len(items) + 1)]
        if not self.labelled:
            texts = [outline.text for outline in items]
            items = [Outline.trusted(label=a, text=b) for a, b in zip(counted, texts, strict=True)]
        labels = [outline.label for outline in items]
        if self.syntax.counted and labels != counted:
            raise Mismatch("labels do not count")
        if len(set(labels)) < len(labels):
            raise Mismatch("labels repeat")
        return Goal.trusted(outlines=tuple(items))

    def path(self, items: list[Any]) -> Path:
        opening, *body, closing = items
        return Path.trusted(label=self._label(opening, closing), body=self._body(body))

    def conclusion(self, items: list[Any]) -> Conclusion:
        return Conclusion.trusted(body=self._body(items))

    def parallel(self, items: list[Any]) -> Parallel:
        goal, *paths = items if written_goal(self.syntax) else (None, *items)
        conclusion = paths.pop() if isinstance(paths[-1], Conclusion) else NO_CONCLUSION
        if goal is None:
            goal = self.goal([Outline.trusted(label="", text="") for _ in paths])
        labels = [outline.label for outline in goal.outlines]
        if not self.labelled and len(paths) == len(labels):
            bodies = [path.body for path in paths]
            paths = [Path.trusted(label=a, body=b) for a, b in zip(labels, bodies, strict=True)]
        if [path.label for path in paths] != labels:
            raise Mismatch("labels differ")
        inner = (item.depth for path in paths for item in path.body if isinstance(item, Parallel))
        if max(inner, default=0) >= self.syntax.max_depth:
            raise Mismatch("too deep")
        return Parallel.trusted(goal=goal, paths=tuple(paths), conclusion=conclusion)
