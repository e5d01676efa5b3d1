"""Surface forms by name: one way to read a text, one way to write a document."""

from __future__ import annotations

from typing import Literal, overload

from mvspec.errors import Diagnostic, Source, Unsupported, VerifyError
from mvspec.forms import (
    apr,
    curator,
    curator_plan,
    curator_summary,
    json_form,
    multiverse,
    multiverse_prompt,
    npr,
    parallel_r1,
    threadweaver,
    untagged,
)
from mvspec.forms.form import Form
from mvspec.forms.json_form import JSON
from mvspec.forms.likeness import AUTO, likeness_of
from mvspec.tree.ir import Document, Message

__all__ = ["FORMS", "JSON", "READABLE", "parse", "render"]

FORMS: dict[str, Form] = {
    form.syntax.name: form
    for form in (
        multiverse.FORM,
        multiverse_prompt.FORM,
        threadweaver.FORM,
        npr.FORM,
        parallel_r1.FORM,
        curator.FORM,
        curator_summary.FORM,
        curator_plan.FORM,
        apr.FORM,
        untagged.FORM,
        json_form.FORM,
    )
}
"""Every surface form; docs/forms.md shows each."""

READABLE = tuple(name for name, form in FORMS.items() if form.readable)
"""The forms whose texts can be read back."""


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
        form: "multiverse", "json", or another of docs/forms.md; "auto" takes the one whose tags
            the text has, and "multiverse" where it has none.
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
    source = Source(text, name)
    if form == AUTO:
        like = likeness_of(text, FORMS)
        form = like.name if like and like.readable else multiverse.MULTIVERSE.name
    return find(form).repair(source) if recover else find(form).parse(source)


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
    return find(form).render(document)


def find(form: str) -> Form:
    """Return the form of that name.

    Raises:
        Unsupported: there is none.
    """
    if form not in FORMS:
        raise Unsupported(f"no form is named {form!r}: use one of {', '.join(FORMS)}")
    return FORMS[form]
