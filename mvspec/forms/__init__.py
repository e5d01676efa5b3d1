"""Every surface form by name: one way in, one way out."""

from __future__ import annotations

from typing import Literal, overload

from mvspec.errors import Diagnostic, Source, Unsupported, VerifyError
from mvspec.forms.can_hold import refuse, refuse_hole
from mvspec.forms.notations import NOTATIONS
from mvspec.forms.parser import parse_text, recover_text
from mvspec.forms.recovery import Code
from mvspec.forms.syntax import (
    CURATOR,
    MULTIVERSE,
    MULTIVERSE_PROMPT,
    THREADWEAVER,
    UNTAGGED,
    Syntax,
)
from mvspec.tree.ir import Document, Message

__all__ = ["FORMS", "JSON", "parse", "render"]

JSON = "json"
FORMS: dict[str, Syntax] = {
    syntax.name: syntax
    for syntax in (
        MULTIVERSE,
        MULTIVERSE_PROMPT,
        THREADWEAVER,
        CURATOR,
        *(notation.syntax for notation in NOTATIONS.values()),
        UNTAGGED,
    )
}
"""The text forms; docs/forms.md shows each."""


@overload
def parse(
    text: str, form: str = ..., recover: Literal[False] = ..., *, name: str = ...
) -> Document: ...
@overload
def parse(
    text: str, form: str = ..., *, recover: Literal[True], name: str = ...
) -> tuple[Document, tuple[Diagnostic, ...]]: ...
def parse(
    text: str, form: str = "multiverse", recover: bool = False, *, name: str = "<text>"
) -> Document | tuple[Document, tuple[Diagnostic, ...]]:
    """Read a text of a surface form.

    A text form holds one assistant turn; "json" holds any document.

    Args:
        text: the whole text.
        form: "multiverse", "json", or another of docs/forms.md.
        recover: return the best tree and every repair, and never raise on a str.
        name: what errors call the text, such as its file.

    Raises:
        ParseError: the first violation, with line, column and caret (strict only).
        VerifyError: JSON that is no document.
        Unsupported: the form cannot be parsed.

    >>> import mvspec
    >>> document, repairs = mvspec.parse("<Think>\\nHm", recover=True)
    >>> repairs[0].code, repairs[0].inserted
    ('cut', '\\n</Think>\\n\\n')
    """
    if not isinstance(text, str):
        raise VerifyError("text", f"parse takes a str, not {type(text).__name__}: decode it first")
    if form == JSON:
        return recover_json(text, name) if recover else Document.from_json(text)
    syntax = find(form)
    if not syntax.tagged:
        raise Unsupported(f"form {form!r} writes no tags, so it cannot be read back")
    return recover_text(text, syntax, name) if recover else parse_text(text, syntax, name)


def recover_json(text: str, name: str) -> tuple[Document, tuple[Diagnostic, ...]]:
    """JSON that is no document has no tree worth guessing: all of it is one diagnostic."""
    try:
        return Document.from_json(text), ()
    except VerifyError as error:
        code: Code = "not-a-document"
        return Document(), (Source(text, name).diagnostic(0, code, str(error), end=len(text)),)


def render(document: Document | Message, form: str = "multiverse") -> str:
    """Write a document, or one assistant turn, in a surface form.

    Raises:
        Unsupported: the form cannot hold it (several messages, holes, blocks nested deeper than
            it can say), with the path to the node and what to do.

    >>> import mvspec
    >>> mvspec.render(mvspec.parse("<Think>\\n</Think>\\n\\nAnswer: 4"))
    '<Think>\\n</Think>\\n\\nAnswer: 4'
    """
    if not isinstance(document, Document | Message):
        raise VerifyError(
            "document", f"render takes a Document or a Message, not {type(document).__name__}"
        )
    if form == JSON:
        whole = document if isinstance(document, Document) else Document(messages=(document,))
        return whole.to_json()
    syntax = find(form)
    message = document if isinstance(document, Message) else only_turn(document, form)
    address = "messages[0]" if isinstance(document, Document) else ""
    refuse(message, syntax, address)
    if form in NOTATIONS:
        NOTATIONS[form].refuse(message, address)
        return NOTATIONS[form].write(message)
    pieces: list[str] = []
    for piece in syntax.pieces(message):
        if piece.hole is not None:
            raise refuse_hole(message, piece.hole, syntax, address)
        pieces.append(piece.text)
    return "".join(pieces)


def find(form: str) -> Syntax:
    """Return the syntax of that name.

    Raises:
        Unsupported: there is none.
    """
    if form not in FORMS:
        raise Unsupported(f"no form is named {form!r}: use one of {', '.join(FORMS)}, {JSON}")
    return FORMS[form]


def only_turn(document: Document, form: str) -> Message:
    """Return the one assistant message of a document that has no other."""
    messages = document.messages
    if len(messages) != 1 or messages[0].role != "assistant":
        raise Unsupported(
            f"form {form!r} holds one assistant turn, this document has "
            f"{', '.join(m.role for m in messages) or 'no message'}: "
            "render one of its messages, or write form 'json'"
        )
    return messages[0]
