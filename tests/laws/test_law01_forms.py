"""Law 1: reading and writing a form are inverses; JSON round-trips every document."""

from __future__ import annotations

import json
import re

import pytest
from dialects import READABLE, forms, mutated, soup, texts_in, turns_in
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import documents, turns

import mvspec
from mvspec.forms import FORMS
from mvspec.tree.ir import Document, Message, Parallel, Path, Text, Think


@pytest.mark.parametrize("form", READABLE)
@given(data=st.data())
def test_a_rendered_turn_reads_back_equal(form: str, data: st.DataObject) -> None:
    document = Document(messages=(data.draw(turns_in(form)),))
    try:
        text = mvspec.render(document, form)
    except mvspec.Unsupported:  # a text that holds a tag, or a line that reads as one
        assume(False)
    assert mvspec.parse(text, form) == document
    assert mvspec.parse(text, form, recover=True) == (document, ())


@given(turns(), forms())
def test_a_turn_reads_back_equal_or_is_refused_by_its_node(message: Message, form: str) -> None:
    document = Document(messages=(message,))
    try:
        text = mvspec.render(document, form)
    except mvspec.Unsupported as error:
        found = re.search(r"cannot hold (messages\[0\]\S*?): ", str(error))
        assert found
        assert found.group(1) in dict(document.addresses())
        return
    assert mvspec.parse(text, form) == document


@pytest.mark.parametrize("form", READABLE)
@given(data=st.data())
def test_a_canonical_text_is_written_back_byte_for_byte(form: str, data: st.DataObject) -> None:
    text = data.draw(texts_in(form))
    assert mvspec.render(mvspec.parse(text, form), form).encode() == text.encode()


@pytest.mark.parametrize("form", READABLE)
@given(data=st.data())
def test_whatever_is_read_is_canonical(form: str, data: st.DataObject) -> None:
    # On any text that strict mode takes, writing gives the same bytes: no two texts, one tree.
    # Only the JSON of a trace may be spelled in more than one way, and white space at tags.
    text = data.draw(st.one_of(soup(form), mutated(form)))
    try:
        document = mvspec.parse(text, form)
    except mvspec.ParseError:
        return
    rendered = mvspec.render(document, form)
    if form == "apr":
        assert json.loads(rendered) == json.loads(text)
    elif FORMS[form].syntax.loose:
        assert "".join(rendered.split()) == "".join(text.split())
        assert mvspec.parse(rendered, form) == document
    else:
        assert rendered == text


@given(turns(), forms(), forms())
def test_conversions_compose(message: Message, first: str, second: str) -> None:
    document = Document(messages=(message,))
    try:
        text = mvspec.render(document, first)
        other = mvspec.render(mvspec.parse(text, first), second)
    except mvspec.Unsupported:
        return
    assert mvspec.render(mvspec.parse(other, second), first) == text


@given(documents())
def test_json_holds_every_document(document: Document) -> None:
    text = mvspec.render(document, form="json")
    again = mvspec.parse(text, form="json")
    assert again == document
    assert hash(again) == hash(document)
    assert mvspec.render(again, form="json") == text
    assert Document.from_json(document.to_json(indent=2)) == document


EDGES = {
    "empty": mvspec.assistant(),
    "empty Think": mvspec.assistant(Think()),
    "empty path and conclusion": mvspec.assistant(mvspec.parallel(mvspec.branch(""))),
    "newlines": mvspec.assistant(
        mvspec.think("\n"), "\n", mvspec.parallel(mvspec.branch("a", "\n"), conclusion="\n\n"), "\n"
    ),
    "blocks touch": mvspec.assistant(
        mvspec.parallel(mvspec.branch("a")), mvspec.parallel(mvspec.branch("b"))
    ),
    "answer begins with newlines": mvspec.assistant(Think(), "\n\nAnswer"),
    "block begins a path": mvspec.assistant(
        mvspec.parallel(mvspec.branch("a", mvspec.parallel(mvspec.branch("b")), "after"))
    ),
    "partial tag before a tag": mvspec.assistant(mvspec.think("</Thin"), "<Think"),
    "carriage return": mvspec.assistant(mvspec.parallel(mvspec.branch("a\r", "b\r")), "\r"),
}


@pytest.mark.parametrize("form", READABLE)
@pytest.mark.parametrize("message", EDGES.values(), ids=EDGES)
def test_edges(message: Message, form: str) -> None:
    try:
        text = mvspec.render(message, form)
    except mvspec.Unsupported:
        assert form not in ("multiverse", "multiverse-prompt")  # these two hold every turn here
        return
    assert mvspec.parse(text, form).messages == (message,)


def test_text_is_as_it_was_written() -> None:
    text = mvspec.render(mvspec.assistant(mvspec.parallel(mvspec.branch("A", "one", "\ntwo\n"))))
    assert text == (
        "<Parallel>\n<Goal>\n<Outline>\n1: A\n</Outline>\n</Goal>\n"
        "<Path>\n1: one\ntwo\n\n</Path>\n<Conclusion>\n\n</Conclusion>\n</Parallel>\n"
    )
    (block,) = mvspec.parse(text).messages[0].body
    assert isinstance(block, Parallel)
    assert block.paths == (Path(label="1", body=(Text(text="one\ntwo\n"),)),)
