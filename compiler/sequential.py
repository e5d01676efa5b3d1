"""Plain causal layouts, and documents without blocks for them."""

from __future__ import annotations

from typing import Any, overload

import numpy as np

from mvspec.compiler.layout import Layout, lay_out
from mvspec.compiler.tokens import Tokens
from mvspec.errors import Unsupported
from mvspec.law.threads import SurfaceLaw
from mvspec.tree.ir import Document, Gen, Message, Parallel, Text, Think
from mvspec.tree.node import Node

__all__ = ["flatten", "sequential"]


def sequential(tokens: Tokens) -> Layout:
    """Lay the structured text out as plain causal text, all of it the model's own.

    Source: the rebuttal's question whether plain fine-tuning on such text would suffice.
    """
    written = tokens.free | tokens.forced
    return lay_out(tokens.ids, written, np.zeros_like(written), SurfaceLaw())


@overload
def flatten(document: Document) -> Document: ...
@overload
def flatten(document: Message) -> Message: ...
@overload
def flatten(document: Document | Message) -> Document | Message: ...
def flatten(document: Document | Message) -> Document | Message:
    """Return a document without blocks: the paths' text in order, one after the other.

    Tags, labels and the text of Goal and Conclusion go; `Think` stays.
    Source: the paper's autoregressive baseline.

    Raises:
        Unsupported: the document has holes.
    """
    if isinstance(document, Document):
        messages = tuple(flatten(message) for message in document.messages)
        return Document.build(messages=messages)
    body: list[Node] = []
    rest: tuple[Node, ...] = document.body
    if rest and isinstance(rest[0], Think):
        body.append(Think.build(body=_as_text(rest[0].body)))
        rest = rest[1:]
    return Message.build(role=document.role, body=(*body, *_as_text(rest)))


def _as_text(body: tuple[Any, ...]) -> tuple[Text, ...]:
    text = "\n".join(_lines(body))
    return (Text.build(text=text),) if text else ()


def _lines(body: tuple[Any, ...]) -> list[str]:
    lines: list[str] = []
    for item in body:
        if isinstance(item, Gen):
            raise Unsupported(f"hole {item.name!r} has no text yet: fill it first")
        if isinstance(item, Parallel):
            for path in item.paths:
                lines += _lines(path.body)
        else:
            lines.append(item.text)
    return lines
