"""Labels that are legal but unusual: they do not count 1, 2, 3 and 2.1, 2.2 inside path 2."""

from __future__ import annotations

from collections.abc import Iterator

from mvspec.errors import Diagnostic, Source
from mvspec.forms.syntax import Syntax
from mvspec.law.tags import Tag
from mvspec.tree.ir import Document, Parallel, Text
from mvspec.tree.node import Node


def numbering_warnings(
    document: Document, source: Source, syntax: Syntax | None
) -> tuple[Diagnostic, ...]:
    """Return one warning for each block whose labels are not the canonical ones.

    Args:
        document: the tree of `source.text`.
        source: well-formed text of the form; the warnings point at its outlines.
        syntax: its surface form; where the text is not the tree in its order, as in JSON, which
            has none, a warning names the node instead.

    >>> import mvspec
    >>> from mvspec.forms.multiverse import MULTIVERSE
    >>> outline = "<Outline>\\n3: A\\n</Outline>\\n"
    >>> text = "<Parallel>\\n<Goal>\\n" + outline + "</Goal>\\n<Path>\\n3: a\\n</Path>\\n"
    >>> text += "<Conclusion>\\nb\\n</Conclusion>\\n</Parallel>\\n"
    >>> document = mvspec.parse(text)
    >>> numbering_warnings(document, Source(text), MULTIVERSE)[0].message
    'outlines are labelled 3: expected 1'
    """
    unusual = list(_unusual(document))
    if not unusual:
        return ()
    ordered = syntax is not None and syntax.ordered
    if syntax is not None and ordered and syntax.loose:  # white space at tags may be another
        pieces = (piece.text for turn in document.messages for piece in syntax.pieces(turn))
        ordered = "".join(pieces) == source.text
    addresses = [where for where, node in document.addresses() if isinstance(node, Parallel)]
    offsets = list(_label_offsets(document, syntax)) if syntax and ordered else []
    warnings = []
    for number, place, labels, expected in unusual:
        odd = next(i for i, (a, b) in enumerate(zip(labels, expected, strict=True)) if a != b)
        message = f"outlines are labelled {', '.join(labels)}: expected {', '.join(expected)}"
        if ordered:
            offset = offsets[place + odd]
            end = offset + len(labels[odd])
        else:
            offset, end, message = 0, 0, f"{addresses[number]}: {message}"
        line, column = source.position(offset)
        warnings.append(
            Diagnostic(offset, end, line, column, "numbering", message, severity="warning")
        )
    return tuple(warnings)


def _unusual(document: Document) -> Iterator[tuple[int, int, list[str], list[str]]]:
    """Yield each block whose labels are others than expected, and both.

    A block is known by its number among the blocks, and by that of its first outline.
    """
    place = 0
    for number, (block, prefix) in enumerate(_blocks(document, "")):
        labels = [path.label for path in block.paths]
        expected = [f"{prefix}{index}" for index in range(1, len(labels) + 1)]
        if labels != expected:
            yield number, place, labels, expected
        place += len(labels)


def _blocks(node: Node, prefix: str) -> Iterator[tuple[Parallel, str]]:
    """Yield every block in surface order, with what its labels begin with."""
    for child in node.children:
        if isinstance(child, Parallel):
            yield child, prefix
            for path in child.paths:
                # A path's own label is the prefix below it, so that one slip is one warning.
                yield from _blocks(path, f"{path.label}.")
        elif not isinstance(child, Text):
            yield from _blocks(child, prefix)


def _label_offsets(document: Document, syntax: Syntax) -> Iterator[int]:
    at = 0
    for message in document.messages:
        for piece in syntax.pieces(message):
            at += len(piece.text)
            if piece.tag is Tag.OUTLINE:
                inside = syntax.labels == "tag"
                yield (
                    at - len(piece.text.partition(" ")[2])
                    if inside
                    else at + len(syntax.outline_gap)
                )
