"""Segments of a document: runs of text, each tokenised on its own, and their authors.

Boundaries stand exactly where a runtime switches between writing and letting the model choose,
so byte-pair merges never cross a place where they could not arise at inference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from mvspec.compiler.chat_template import (
    ChatRenderer,
    ChatShape,
    MarkedChat,
    apart,
    unwritten,
)
from mvspec.data.chat import ChatContext
from mvspec.errors import MvspecError, Unsupported
from mvspec.forms import parse
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.law.tags import Tag
from mvspec.tree.ir import Document, Gen, Message, Parallel, Text

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
    """Cut a document into segments, as a run comes to its end.

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
    if templated(messages, template, context):
        return TemplatedChat(messages, tokenizer, syntax, forced, context).segments()
    return row_segments(
        document, tokenizer, syntax=syntax, template=False, forced=forced, context=context
    )[0]


def templated(messages: Sequence[Message], template: bool | None, context: ChatContext) -> bool:
    """Whether a chat template is used: as is said, or else where it is needed."""
    if template is not None:
        return template
    others = any(message.role != "assistant" for message in messages)
    return others or bool(context.tools or context.fields)


def row_segments(
    document: Document | Message,
    tokenizer: Any,
    *,
    syntax: Syntax = MULTIVERSE,
    template: bool | None = None,
    forced: bool = True,
    context: ChatContext = NO_CONTEXT,
    ended: bool = False,
) -> list[list[Segment]]:
    """Cut a document into the rows that teach it.

    It is one row but where the chat template writes earlier turns anew: then it is one for each
    turn with loss.

    Args:
        document, tokenizer, syntax, template, forced, context: as of `document_segments`.
        ended: whether turns that no template is around end with the tokenizer's end-of-text token.

    Raises:
        Unsupported: as `document_segments`; or nothing would teach the model to stop.
    """
    messages = document.messages if isinstance(document, Document) else (document,)
    if messages and templated(messages, template, context):
        return TemplatedChat(messages, tokenizer, syntax, forced, context).rows()
    end = getattr(tokenizer, "eos_token", None) if ended else None
    row = []
    for number, message in enumerate(messages):
        loss = number not in context.no_loss
        row += [replace(each, loss=loss) for each in turn(message, syntax, forced)]
        row += [Segment(end, "model", loss=loss)] if end else []
    return [row]


def rewriting(one: Sequence[Segment], other: Sequence[Segment]) -> str:
    """Return where two rows of one conversation differ, one beside the other."""
    return apart(*("".join(each.text for each in row) for row in (one, other)))


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


class TurnEnd(NamedTuple):
    """End of a turn: the text of a template behind an answer.

    Args:
        text: through the token that ends the turn; "" where nothing does.
        rest: what comes then.
    """

    text: str
    rest: str = ""


Part = tuple[int, Segment]
"""A segment and the number of the message that it is of; -1 is the template."""


class TemplatedChat:
    """A conversation as a chat template writes it, cut into segments.

    Args:
        messages: of the conversation.
        tokenizer: of transformers, with a chat template.
        syntax: the surface form of the assistant's turns.
        forced: whether an engine writes fork and join headers.
        context: what the chat says beside its messages.

    Raises:
        Unsupported: the tokenizer has no chat template.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        tokenizer: Any,
        syntax: Syntax = MULTIVERSE,
        forced: bool = True,
        context: ChatContext = NO_CONTEXT,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise Unsupported(
                "the document has messages around the assistant's turn, and the tokenizer has no "
                "chat template: pass a transformers tokenizer that has one, set "
                "tokenizer.chat_template, or compile the assistant's message alone"
            )
        self.messages = tuple(messages)
        self.context = context
        self._syntax = syntax
        self._forced = forced
        self._tokenizer = tokenizer
        self._renderer = ChatRenderer.of(tokenizer, context.tools)
        self._contents = [self._content(message) for message in self.messages]
        self._asked: dict[int, list[Part]] = {}
        self._ends: dict[int, TurnEnd] = {}

    def _content(self, message: Message) -> str | None:
        """Return the text of a message; None where holes stand in it."""
        if message.role != "assistant":
            return "".join(text.text for text in message.walk(Text))
        pieces = list(self._syntax.pieces(message))
        return None if any(p.hole for p in pieces) else "".join(p.text for p in pieces)

    def _shape(self, count: int, *, generate: bool, answers: bool = False) -> ChatShape:
        """Return the shape of the first messages: asked, or else with the answer at their end.

        Args:
            answers: whether empty ones have a mark too, which some templates write otherwise.
        """
        described = []
        for number, (message, content) in enumerate(
            zip(self.messages[:count], self._contents, strict=False)
        ):
            filled = content != "" or (number == count - 1 and not generate)
            filled |= answers and message.role == "assistant"
            fields = json.dumps(dict(self.context.fields.get(number, {})), default=str)
            described.append((message.role, filled, fields))
        return ChatShape(tuple(described), generate)

    def _given(self, shape: ChatShape) -> list[str]:
        """Return the contents of a shape's messages; marks where they are not known."""
        return [mark if text is None else text
                for text, mark in zip(self._contents, shape.marks, strict=False)]  # fmt: skip

    # What a run asks

    def at_another_time(self, text: str, other: str) -> bool:
        """Whether another prompt is this one but for what a template with a clock says of now."""
        times = self._renderer.times
        pattern = re.escape(text)
        for each in sorted(times, key=len, reverse=True):
            pattern = pattern.replace(re.escape(each), ".+")
        return bool(times) and re.fullmatch(pattern, other, re.DOTALL) is not None

    def asked(self, count: int) -> list[Part]:
        """Return the prompt of the turn behind the first messages.

        Raises:
            Unsupported: the template does not write every message once, or what it writes around
                one depends on what that says.
        """
        if count not in self._asked:
            self._asked[count] = list(self._prompt(count))
        return self._asked[count]

    def _prompt(self, count: int) -> Iterator[Part]:
        if not count:  # there is no message to render: what the answer begins with
            before = self._answered(0).pieces[0]
            if isinstance(before, str):
                yield -1, Segment(before, "template")
            return
        shape, cut = self._marked(count)
        self._check_written(count, cut)
        texts = self._written(shape, cut)
        behind = -1  # the answer that the template's text stands behind
        for piece in cut.pieces:
            if isinstance(piece, str):
                end = self._end_of_earlier(behind, piece)
                yield from ((behind, each) for each in end)
                if piece := piece[sum(len(each.text) for each in end) :]:
                    yield -1, Segment(piece, "template")
                behind = -1
            elif self.messages[piece].role == "assistant":
                yield from ((piece, each) for each in self._earlier(piece, texts[piece]))
                behind = piece
            elif texts[piece]:
                yield piece, Segment(texts[piece], "outside")

    def _marked(self, count: int) -> tuple[ChatShape, MarkedChat]:
        """Return the messages before a turn, cut: at empty answers too, if they are written so."""
        bare, whole = (self._shape(count, generate=True, answers=each) for each in (False, True))
        cut = self._renderer.cut(bare)
        if whole != bare:
            with suppress(Unsupported):
                marked = self._renderer.cut(whole)
                if marked.filled(bare.marks) == cut.filled(bare.marks):
                    return whole, marked
        return bare, cut

    def _check_written(self, count: int, cut: MarkedChat) -> None:
        """Refuse a template that never writes a message; later turns may be asked without it."""
        for number, message in enumerate(self.messages[:count]):
            if number in cut.pieces or self._contents[number] == "":
                continue
            if message.role == "assistant":
                self._answered(number)
                continue
            later = (each for each in range(number, count)
                     if self.messages[each].role == "assistant")  # fmt: skip
            first = next(later, None)
            if (
                first is None
                or number not in self._renderer.cut(self._shape(first, generate=True)).pieces
            ):
                raise unwritten(message.role, 0)

    def _written(self, shape: ChatShape, cut: MarkedChat) -> list[str]:
        """Return each message's text as the template writes it, which may trim or escape it."""
        texts, marks = self._given(shape), shape.marks
        whole = self._renderer.render(shape, texts, parts=cut.parts)
        if whole == cut.filled(texts):
            return texts
        given = list(texts)
        for at, piece in enumerate(cut.pieces):
            if isinstance(piece, str):
                continue
            contents = [*marks[:piece], given[piece], *marks[piece + 1 :]]
            alone = self._renderer.render(shape, contents, parts=cut.parts)
            before, after = cut.filled(marks, 0, at), cut.filled(marks, at + 1)
            if alone.startswith(before) and alone.endswith(after):
                texts[piece] = alone[len(before) : max(len(alone) - len(after), len(before))]
        if whole != cut.filled(texts):
            raise Unsupported(
                "what the chat template writes around a message depends on what that says, so no "
                f"prompt can be cut: {apart(whole, cut.filled(texts))}"
            )
        return texts

    def _earlier(self, number: int, text: str) -> Iterator[Segment]:
        """Yield the segments of an earlier answer, which the template may have written anew."""
        message, content = self.messages[number], self._contents[number]
        loss = number not in self.context.no_loss
        if content is None or content == text:
            yield from self._turn(message, loss)
        elif content.strip() == text.strip():
            yield from self._trimmed(list(self._turn(message, loss)), content, text)
        elif not self._syntax.tagged and not any(message.walk(Parallel)):
            yield Segment(text, "model", loss=loss)
        else:
            again: Message | None = None
            with suppress(MvspecError):
                again = next(iter(parse(text, self._syntax.name).messages), None)
            if again is None or self._content(again) != text:
                raise Unsupported(
                    f"the chat template writes messages[{number}] anew, and what it makes of it "
                    f"is not well-formed: {apart(content, text)}"
                )
            yield from self._turn(again, loss)

    def _trimmed(self, found: list[Segment], content: str, text: str) -> Iterator[Segment]:
        """Yield the segments of an answer with other white space at its edges."""
        inner = content.strip()
        start, end = content.find(inner), content.find(inner) + len(inner)
        lead, tail = text[: text.find(inner)], text[text.find(inner) + len(inner) :]
        at = 0
        for each in found:
            kept = each.text[max(start - at, 0) : max(end - at, 0)]
            at += len(each.text)
            if kept and lead:
                kept, lead = lead + kept, ""
            if at >= end and tail:
                kept, tail = kept + tail, ""
            if kept or not each.text:
                yield replace(each, text=kept)

    def _turn(self, message: Message, loss: bool) -> Iterator[Segment]:
        for each in turn(message, self._syntax, self._forced):
            yield each if loss else replace(each, loss=False)

    def _end_of_earlier(self, number: int, text: str) -> list[Segment]:
        """Return what of a template's text ends an earlier turn."""
        if number < 0 or not self._renderer.tokens:  # a server writes its prompt behind any text
            return []
        try:
            end = self.end(number).text
        except Unsupported:
            return []  # a turn that nobody could have ended so
        loss = number not in self.context.no_loss
        return [Segment(end, "model", loss=loss)] if end and text.startswith(end) else []

    # How a turn ends

    def _answered(self, number: int) -> MarkedChat:
        """Return the messages through an answer, cut."""
        cut = self._renderer.cut(self._shape(number + 1, generate=False))
        if number not in cut.pieces:
            raise unwritten(self.messages[number].role, 0)
        return cut

    def end(self, number: int) -> TurnEnd:
        """Return what the template writes behind an answer.

        A turn ends with the tokenizer's end-of-text token, or else with the first special token;
        where the template writes none, with that end-of-text token all the same.

        Raises:
            Unsupported: the template does not write the answer once, or another message behind it.
        """
        if number not in self._ends:
            self._ends[number] = self._end(number)
        return self._ends[number]

    def _end(self, number: int) -> TurnEnd:
        cut = self._answered(number)
        after = cut.pieces[cut.pieces.index(number) + 1 :]
        others = [each for each in after if isinstance(each, int)]
        if others:
            role = self.messages[others[0]].role
            raise Unsupported(f"the chat template writes the {role} message behind the answer")
        behind = "".join(map(str, after))
        if self._contents[number]:
            shape = self._shape(number + 1, generate=False)
            whole = self._renderer.render(shape, self._given(shape), parts=cut.parts)
            if not whole.endswith(behind):
                raise Unsupported(
                    "what the chat template writes behind an answer depends on what that says: "
                    f"{apart(whole[-len(behind) - 8 :], behind)}"
                )
        eos: str = getattr(self._tokenizer, "eos_token", None) or ""
        added = self._tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        controls = {each.content for each in added if each.special or each.content == eos}
        ends = {eos} if eos in controls and eos in behind else controls
        places = [(behind.index(each), -len(each), each) for each in ends if each in behind]
        if not places:
            return TurnEnd(eos if eos in controls else "")
        at, _, found = min(places)
        text, rest = behind[: at + len(found)], behind[at + len(found) :]
        if number and any(each in rest for each in controls):
            prompt = self._renderer.cut(self._shape(number, generate=True)).pieces[-1]
            if isinstance(prompt, str) and prompt.endswith(rest):
                rest = ""  # the next prompt, by a template that always writes one
        return TurnEnd(text, rest)

    # Whole conversations

    def through(self, number: int) -> list[Part]:
        """Return the segments through a message; behind an answer comes what ends its turn."""
        message = self.messages[number]
        if message.role != "assistant":
            return self.asked(number + 1)
        loss = number not in self.context.no_loss
        found = [*self.asked(number), *((number, each) for each in self._turn(message, loss))]
        end = self.end(number)
        found += [(number, Segment(end.text, "model", loss=loss))] if end.text else []
        found += [(-1, Segment(end.rest, "template"))] if end.rest else []
        return found

    def segments(self) -> list[Segment]:
        """Return the segments of the conversation as a run comes to its end.

        Raises:
            Unsupported: an earlier turn has holes, and would not be asked as one alone is.
        """
        whole = self.through(len(self.messages) - 1) if self.messages else []
        for number, content in enumerate(self._contents[:-1]):
            stop = next((at for at, (owner, _) in enumerate(whole) if owner == number), len(whole))
            before = [each for _, each in whole[:stop]]
            asked = [each for _, each in self.asked(number)] if content is None else before
            if "".join(each.text for each in before) != "".join(each.text for each in asked):
                raise Unsupported(
                    f"messages[{number}] has holes, and the chat template writes earlier turns "
                    f"anew ({rewriting(asked, before)}): run the conversation up to that turn, "
                    "fill the document, and run it with the next turn"
                )
        return [each for _, each in whole]

    def rows(self) -> list[list[Segment]]:
        """Return the segments of the rows that teach the turns with loss.

        It is one row where every such turn stands in the whole conversation as a run asks for it
        and ends it. Where the template writes earlier turns anew, each has a row of its own.

        Raises:
            Unsupported: nothing ends a turn with loss.
        """
        if self._is_one():
            return [self.segments()]
        return [
            [replace(each, loss=of == number) for of, each in self.through(number)]
            for number in self._learned
        ]

    @cached_property
    def _learned(self) -> list[int]:
        return [number for number, message in enumerate(self.messages)
                if message.role == "assistant" and number not in self.context.no_loss]  # fmt: skip

    def _is_one(self) -> bool:
        """Whether all turns with loss stand in the whole conversation as they are asked and ended.

        Raises:
            Unsupported: nothing ends a turn with loss.
        """
        whole = self.through(len(self.messages) - 1)
        for number in self._learned:
            if not self.end(number).text:
                raise Unsupported(
                    "nothing teaches the model to stop: the chat template writes no special token "
                    "behind an answer, and the tokenizer has no eos_token: give it one"
                )
            own = self.through(number)
            while own and own[-1][0] != number:
                own.pop()  # what comes behind the end
            if whole[: len(own)] != own:
                return False
        return True
