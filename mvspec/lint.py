"""What is legal but unusual: labels that do not count 1, 2, 3 and 2.1, 2.2 inside path 2."""

from __future__ import annotations

from collections.abc import Iterator

from mvspec.errors import Diagnostic, Source
from mvspec.ir import Document, Parallel
from mvspec.node import Node
from mvspec.syntax import Syntax, Tag

__all__ = ["numbering_warnings"]


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
    >>> from mvspec.syntax import MULTIVERSE
    >>> outline = "<Outline>\\n3: A\\n</Outline>\\n"
    >>> text = "<Parallel>\\n<Goal>\\n" + outline + "</Goal>\\n<Path>\\n3: a\\n</Path>\\n"
    >>> text += "<Conclusion>\\nb\\n</Conclusion>\\n</Parallel>\\n"
    >>> document = mvspec.parse(text)
    >>> numbering_warnings(document, Source(text), MULTIVERSE)[0].message
    'outlines are labelled 3: expected 1'
    """
    unusual = dict(_unusual(document, "", ""))
    if not unusual:
        return ()
    if syntax is not None and not syntax.ordered:
        syntax = None
    places = {} if syntax is None else dict(_places(document, syntax))
    warnings = []
    for address, (labels, expected) in unusual.items():
        odd = next(i for i, (a, b) in enumerate(zip(labels, expected, strict=True)) if a != b)
        message = f"outlines are labelled {', '.join(labels)}: expected {', '.join(expected)}"
        if syntax is None:
            offset, end, message = 0, 0, f"{address}: {message}"
        else:
            offset = places[address][odd]
            end = offset + len(labels[odd])
        line, column = source.position(offset)
        warnings.append(
            Diagnostic(offset, end, line, column, "numbering", message, severity="warning")
        )
    return tuple(warnings)


def _unusual(
    node: Node, address: str, prefix: str
) -> Iterator[tuple[str, tuple[list[str], list[str]]]]:
    for step, child in node._addressed_children():
        below = f"{address}.{step}" if address else step
        if not isinstance(child, Parallel):
            yield from _unusual(child, below, prefix)
            continue
        labels = [path.label for path in child.paths]
        expected = [f"{prefix}{index}" for index in range(1, len(labels) + 1)]
        if labels != expected:
            yield below, (labels, expected)
        for index, path in enumerate(child.paths):
            # A path's own label is the prefix below it, so that one slip is one warning.
            yield from _unusual(path, f"{below}.paths[{index}]", f"{path.label}.")


def _places(document: Document, syntax: Syntax) -> Iterator[tuple[str, list[int]]]:
    """Yield the address of each block with the offsets of its outlines' labels."""
    offsets = _label_offsets(document, syntax)
    for address, node in document.addresses():
        if isinstance(node, Parallel):
            yield address, [next(offsets) for _ in node.goal.outlines]


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
