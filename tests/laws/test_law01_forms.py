"""Law 1: reading and writing a form are inverses; JSON round-trips every document."""

from __future__ import annotations

import pytest
from hypothesis import given
from strategies import canonical_texts, documents, mutated, soup, turns

import mvspec
from mvspec.ir import Document, Message, Parallel, Path, Text, Think


@given(turns())
def test_a_rendered_turn_reads_back_equal(message: Message) -> None:
    document = Document(messages=(message,))
    text = mvspec.render(document)
    assert mvspec.parse(text) == document
    assert mvspec.parse(text, recover=True) == (document, ())


@given(canonical_texts())
def test_a_canonical_text_is_written_back_byte_for_byte(text: str) -> None:
    assert mvspec.render(mvspec.parse(text)).encode() == text.encode()


@given(soup() | mutated())
def test_whatever_is_read_is_canonical(text: str) -> None:
    # On any text that strict mode takes, writing gives the same bytes: no two texts, one tree.
    try:
        document = mvspec.parse(text)
    except mvspec.ParseError:
        return
    assert mvspec.render(document) == text


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


@pytest.mark.parametrize("message", EDGES.values(), ids=EDGES)
def test_edges(message: Message) -> None:
    assert mvspec.parse(mvspec.render(message)).messages == (message,)


def test_text_is_as_it_was_written() -> None:
    text = mvspec.render(mvspec.assistant(mvspec.parallel(mvspec.branch("A", "one", "\ntwo\n"))))
    assert text == (
        "<Parallel>\n<Goal>\n<Outline>\n1: A\n</Outline>\n</Goal>\n"
        "<Path>\n1: one\ntwo\n\n</Path>\n<Conclusion>\n\n</Conclusion>\n</Parallel>\n"
    )
    (block,) = mvspec.parse(text).messages[0].body
    assert isinstance(block, Parallel)
    assert block.paths == (Path(label="1", body=(Text(text="one\ntwo\n"),)),)
