"""Segments of a document: runs of text, each tokenised on its own, and their authors.

Boundaries stand exactly where a runtime switches between writing and letting the model choose,
so byte-pair merges never cross a place where they could not arise at inference.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from mvspec.data.chat import ChatContext
from mvspec.errors import Unsupported
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.law.tags import Tag
from mvspec.tree.ir import Document, Gen, Message, Text

NO_CONTEXT = ChatContext()
"""Every turn of the assistant carries loss, and a template gets roles and contents alone."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text that is tokenised on its own.

    Args:
        text: its characters; "" for a tag that the form does not write, and for a hole.
        author: "template", "outside" (a question, a tool: nothing in it is structure),
            "engine" (forced tokens) or "model" (free tokens).
        tag: of a fork header `<Path>`, of a join header `<Conclusion>`; a tag that the form
            does not write is a segment of its own, without text.
        hole: what a runtime fills here.
        loss: whether the turn that it is of carries loss, if it is the assistant's.
    """

    text: str
    author: str
    tag: Tag | None = None
    hole: Gen | None = None
    loss: bool = True


def document_segments(
    document: Document | Message,
    tokenizer: Any = None,
    *,
    syntax: Syntax = MULTIVERSE,
    template: bool | None = None,
    forced: bool = True,
    context: ChatContext = NO_CONTEXT,
) -> list[Segment]:
    """Cut a document into segments.

    Args:
        document: a document, or one assistant turn.
        tokenizer: its chat template renders what stands around the assistant's turns.
        syntax: the surface form of the assistant's turns.
        template: whether to use the chat template; by default, where the document has any
            message that is not the assistant's.
        forced: whether an engine writes fork and join headers; if not, the model writes all.
        context: what a chat says beside the document: tools, and turns without loss.

    Raises:
        Unsupported: a template is needed and the tokenizer has none, or the template drops or
            repeats a message.
    """
    messages = document.messages if isinstance(document, Document) else (document,)
    if template is None:
        template = any(message.role != "assistant" for message in messages)
        template = template or bool(context.tools or context.fields)
    if template:
        return list(_templated(messages, tokenizer, syntax, forced, context))
    return [
        replace(segment, loss=number not in context.no_loss)
        for number, message in enumerate(messages)
        for segment in turn(message, syntax, forced)
    ]


def turn(message: Message, syntax: Syntax, forced: bool = True) -> Iterator[Segment]:
    """Yield the segments of an assistant's turn: pieces of one author, joined."""
    text, author, header = "", "", None
    for piece in syntax.pieces(message):
        who = "engine" if piece.forced and forced else "model"
        alone = piece.hole is not None or (piece.tag is not None and not piece.text)
        if text and (who != author or alone):
            yield Segment(text, author, header)
            text, header = "", None
        if alone:
            yield Segment("", who, piece.tag, piece.hole)
            continue
        text += piece.text
        author = who
        if who == "engine" and piece.tag:
            header = piece.tag
    if text:
        yield Segment(text, author, header)


def _templated(
    messages: tuple[Message, ...],
    tokenizer: Any,
    syntax: Syntax,
    forced: bool,
    context: ChatContext,
) -> Iterator[Segment]:
    if not getattr(tokenizer, "chat_template", None):
        raise Unsupported(
            "the document has messages around the assistant's turn, and the tokenizer has no "
            "chat template: pass a transformers tokenizer that has one, set "
            "tokenizer.chat_template, or compile the assistant's message alone"
        )
    if not messages:
        return
    nonce = secrets.token_hex(8)
    marks = [f"mvspec{nonce}x{index}x" for index in range(len(messages))]
    generate = messages[-1].role != "assistant"
    chat = [
        {"role": message.role, "content": mark, **context.fields.get(number, {})}
        for number, (message, mark) in enumerate(zip(messages, marks, strict=True))
    ]

    def written(turns: list[dict[str, Any]], tools: tuple[Any, ...]) -> str:
        return tokenizer.apply_chat_template(  # type: ignore[no-any-return]
            turns, tokenize=False, add_generation_prompt=generate, tools=list(tools) or None
        )

    calls = [{k: v for k, v in each.items() if k != "tool_calls"} for each in chat]
    try:
        rendered = written(chat, context.tools)
        if context.tools and rendered == written(chat, ()):
            raise Unsupported("the chat template writes nothing of the tools: use one that does")
        if calls != chat and rendered == written(calls, context.tools):
            raise Unsupported("the chat template writes nothing of tool_calls: use one that does")
    except (TemplateError, ValueError, TypeError) as error:
        roles = ", ".join(message.role for message in messages)
        raise Unsupported(f"the chat template refuses the turns {roles}: {error}") from None
    backend = tokenizer.backend_tokenizer
    controls = tuple(t.content for t in backend.get_added_tokens_decoder().values() if t.special)
    after_assistant = False
    loss = True
    for number, (message, mark) in enumerate(zip(messages, marks, strict=True)):
        found = rendered.count(mark)
        if found != 1:
            raise Unsupported(
                f"the chat template writes the {message.role} message {found} times: "
                "set tokenizer.chat_template to one that writes every message once"
            )
        before, rendered = rendered.split(mark)
        yield from _between(before, controls, after_assistant, loss)
        after_assistant = message.role == "assistant"
        loss = number not in context.no_loss
        if after_assistant:
            yield from (replace(each, loss=loss) for each in turn(message, syntax, forced))
        else:
            for part in message.body:
                if isinstance(part, Text):
                    yield Segment(part.text, "outside")
    yield from _between(rendered, controls, after_assistant, loss)


def _between(
    text: str, controls: tuple[str, ...], after_assistant: bool, loss: bool
) -> Iterator[Segment]:
    # The end of an assistant's turn is the model's to write.
    if after_assistant:
        end = max(filter(text.startswith, controls), key=len, default="")
        if end:
            yield Segment(end, "model", loss=loss)
            text = text[len(end) :]
    if text:
        yield Segment(text, "template")
