"""Refusals of what a form cannot hold: the first such node, by its place in the tree."""

from __future__ import annotations

from mvspec.errors import Unsupported
from mvspec.forms.syntax import Syntax
from mvspec.law.limits import MAX_DEPTH
from mvspec.law.tags import Tag
from mvspec.tree.ir import Document, Gen, Message, Outline, Parallel, Path, Text, Think
from mvspec.tree.node import Node


def only_turn(document: Document | Message, syntax: Syntax) -> tuple[Message, str]:
    """Return the one assistant's message of a document that has no other, and its address.

    Raises:
        Unsupported: the document has other messages.
    """
    if isinstance(document, Message):
        return document, ""
    messages = document.messages
    if len(messages) != 1 or messages[0].role != "assistant":
        raise Unsupported(
            f"form {syntax.name!r} holds one assistant turn, this document has "
            f"{', '.join(m.role for m in messages) or 'no message'}: "
            "render one of its messages, or write form 'json'"
        )
    return messages[0], "messages[0]"


def check_turn(message: Message, syntax: Syntax, address: str = "") -> None:
    """Raise Unsupported where a turn cannot be written in a form.

    A hole, which no text form can hold, is met when the pieces are written; only where a text is
    not the tree in its order is it looked for here.

    Args:
        address: where the turn stands in its document, such as `messages[0]`.

    Raises:
        Unsupported: the first node that the form cannot hold, and what to do.

    >>> import mvspec
    >>> from mvspec.forms.threadweaver import THREADWEAVER
    >>> inner = mvspec.parallel(mvspec.branch("b"))
    >>> turn = mvspec.assistant(mvspec.parallel(mvspec.branch("a", inner)))
    >>> try:
    ...     check_turn(turn, THREADWEAVER, "messages[0]")
    ... except mvspec.Unsupported as error:
    ...     print(str(error).split(": ")[0])
    form 'threadweaver' cannot hold messages[0].body[0].paths[0].body[0]
    """
    if not syntax.tagged:
        return
    own = syntax.tags != tuple(Tag)
    if own or syntax.fence:
        for where, node in message.addresses(address):
            if isinstance(node, Text | Outline):
                _refuse_tags(node.text, syntax, where)
    if not syntax.ordered:
        for hole in message.walk(Gen):
            raise hole_refusal(message, hole, syntax, address)
    if syntax.fence:
        _refuse_beside_fence(message, syntax, address)
    if syntax.counted or syntax.max_depth < MAX_DEPTH:
        _refuse_blocks(message, syntax, address, "", 1)
    if syntax.ordered and not syntax.written(Tag.OUTLINE):
        _refuse_outlines(message, syntax, address)


def hole_refusal(message: Message, hole: Gen, syntax: Syntax, address: str = "") -> Unsupported:
    """Return the error for a hole, which no text form can hold."""
    where = next((at for at, node in message.addresses(address) if node is hole), address)
    place = f" at {where}" if where else ""
    return Unsupported(
        f"form {syntax.name!r} cannot hold the hole {hole.name!r}{place}: "
        "fill it, or write form 'json'"
    )


def refusal(syntax: Syntax, address: str, why: str) -> Unsupported:
    """Return the error for a node that a form cannot hold."""
    where = address or "the turn"
    other = "or write form 'multiverse'"
    return Unsupported(f"form {syntax.name!r} cannot hold {where}: {why}, {other}")


def _refuse_tags(text: str, syntax: Syntax, address: str) -> None:
    tag = syntax.marker.search(text) if "<" in text else None
    if tag:
        why = f"its text holds the tag {tag.group()} at character {tag.start()}"
        raise refusal(syntax, address, f"{why}: write it another way")


def _refuse_beside_fence(message: Message, syntax: Syntax, address: str) -> None:
    first = message.body[0] if message.body else None
    if isinstance(first, Think) and len(message.body) > 1:
        why = "its fence is the whole text, so nothing follows the reasoning: take the answer out"
        raise refusal(syntax, f"{address}.body[1]".lstrip("."), why)
    if isinstance(first, Text) and (first.text + "\n").startswith(f"{syntax.fence}\n"):
        why = f"text that begins with {syntax.fence} reads as the fence: put it into Think"
        raise refusal(syntax, f"{address}.body[0]".lstrip("."), why)


def _refuse_outlines(message: Message, syntax: Syntax, address: str) -> None:
    for where, node in message.addresses(address):
        if isinstance(node, Outline) and node.text:
            raise refusal(syntax, where, "it says something where the form is mute: empty it")


def _refuse_blocks(node: Node, syntax: Syntax, address: str, prefix: str, depth: int) -> None:
    for step, child in node.addressed_children():
        where = f"{address}.{step}".lstrip(".")
        if not isinstance(child, Parallel):
            below = f"{child.label}." if isinstance(child, Path) else prefix
            _refuse_blocks(child, syntax, where, below, depth)
            continue
        if depth > syntax.max_depth:
            levels = f"{syntax.max_depth} level{'s' * (syntax.max_depth > 1)}"
            why = f"it is a block {depth} levels deep, and the form has {levels}: flatten the plan"
            raise refusal(syntax, where, why)
        labels = [path.label for path in child.paths]
        expected = [f"{prefix}{index}" for index in range(1, len(labels) + 1)]
        if syntax.counted and labels != expected:
            why = f"its labels are {', '.join(labels)}, and the form counts {', '.join(expected)}"
            raise refusal(syntax, where, f"{why}: number the block so")
        _refuse_blocks(child, syntax, where, prefix, depth + 1)
