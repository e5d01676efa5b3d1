"""One way in, one way out: `parse` and `render` by the name of a form."""

from __future__ import annotations

import pytest
from traces import CANONICAL

import mvspec
from mvspec.forms import FORMS

BLOCK = mvspec.parallel(
    mvspec.branch("Cost", "Low."), mvspec.branch("Speed", "High."), conclusion="Buy."
)


def test_a_turn_and_its_document_render_alike() -> None:
    turn = mvspec.assistant(mvspec.think("Hm.", BLOCK), "Answer: yes")
    document = mvspec.document(turn)
    assert mvspec.render(turn) == mvspec.render(document)
    assert mvspec.render(turn, form="json") == mvspec.render(document, form="json")
    assert mvspec.parse(mvspec.render(turn)) == document


def test_the_canonical_form() -> None:
    turn = mvspec.assistant(mvspec.think("Hm.", BLOCK), "Answer: yes")
    assert mvspec.render(turn) == (
        "<Think>\nHm.\n<Parallel>\n<Goal>\n<Outline>\n1: Cost\n</Outline>\n<Outline>\n2: Speed\n"
        "</Outline>\n</Goal>\n<Path>\n1: Low.\n</Path>\n<Path>\n2: High.\n</Path>\n<Conclusion>\n"
        "Buy.\n</Conclusion>\n</Parallel>\n</Think>\n\nAnswer: yes"
    )


def test_what_is_no_document_is_refused_by_name() -> None:
    with pytest.raises(mvspec.VerifyError, match="takes a Document or a Message, not str"):
        mvspec.render("<Think>")  # type: ignore[arg-type]
    with pytest.raises(mvspec.VerifyError, match="takes a str, not bytes"):
        mvspec.parse(b"<Think>")  # type: ignore[call-overload]


def test_the_untagged_form_is_written_and_never_read() -> None:
    text = mvspec.render(mvspec.assistant(BLOCK), form="untagged")
    assert "<" not in text
    for said in ("Cost", "Low.", "Speed", "High.", "Buy."):
        assert said in text
    with pytest.raises(mvspec.Unsupported, match="'untagged' writes no tags"):
        mvspec.parse(text, form="untagged")


@pytest.mark.parametrize("form", [form for form in FORMS if form != "json"])
def test_a_text_form_holds_no_hole(form: str) -> None:
    document = mvspec.document(mvspec.assistant("a ", mvspec.gen("answer")))
    with pytest.raises(mvspec.Unsupported, match="cannot hold the hole 'answer'"):
        mvspec.render(document, form=form)
    assert mvspec.parse(mvspec.render(document, form="json"), form="json") == document


@pytest.mark.parametrize(
    ("messages", "roles"),
    [
        ((), "no message"),
        ((mvspec.user("Hi"),), "user"),
        ((mvspec.user("Hi"), mvspec.assistant("Ho")), "user, assistant"),
    ],
)
def test_a_text_form_holds_one_assistant_turn(
    messages: tuple[mvspec.Message, ...], roles: str
) -> None:
    with pytest.raises(mvspec.Unsupported, match=f"this document has {roles}: render one of"):
        mvspec.render(mvspec.document(*messages))


def test_an_unknown_form_names_those_there_are() -> None:
    for act in (lambda: mvspec.parse("", form="xml"), lambda: mvspec.render(BLOCK_TURN, "xml")):
        with pytest.raises(mvspec.Unsupported, match=r"no form is named 'xml': use one of .*json"):
            act()


BLOCK_TURN = mvspec.assistant(BLOCK)


def test_json_keeps_roles_holes_and_tags_from_outside() -> None:
    document = mvspec.document(
        mvspec.system("Be brief."),
        mvspec.user("What does <Path> do?</Parallel>"),
        mvspec.assistant(mvspec.gen("a", 8, stop="\n", choices=["x", "y"]), BLOCK),
        mvspec.tool("<Goal>"),
    )
    assert mvspec.parse(mvspec.render(document, form="json"), form="json") == document


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ('{"messages": 3}', "messages: "),
        ('{"messages": [{"role": "robot"}]}', r"messages\[0\]\.role: "),
        ('{"extra": 1}', "extra: "),
        ("[" * 100_000, "Invalid JSON"),
        ('{"messages": [{"role": "user", "body": [{"kind": "text", "text": "\\ud800"}]}]}', "JSON"),
        ("\ud800", "unicode"),
        (
            '{"messages": [{"role": "assistant", "body": [{"kind": "text", "text": "<Path>"}]}]}',
            r"messages\[0\]: text holds the tag <Path>",
        ),
    ],
)
def test_json_that_is_no_document(text: str, where: str) -> None:
    with pytest.raises(mvspec.VerifyError, match=where):
        mvspec.parse(text, form="json")
    document, diagnostics = mvspec.parse(text, form="json", recover=True)
    assert document == mvspec.Document()
    assert [(each.code, each.dropped) for each in diagnostics] == [("not-a-document", text)]


def test_strict_errors_are_located() -> None:
    text = CANONICAL.replace("1.2: Also", "1.3: Also")
    with pytest.raises(mvspec.ParseError) as caught:
        mvspec.parse(text, name="trace.txt")
    error = caught.value
    assert (error.diagnostic.line, error.diagnostic.column) == (29, 1)
    assert error.diagnostic.code == "wrong-label"
    assert not error.cut
    assert "trace.txt:29:1: the label is 1.3: expected 1.2" in str(error)


def test_text_without_tags_is_a_document() -> None:
    for text in ("", "Plain.", "a < b & c", "\n", "\0", r"\(\frac{1}{2}\)"):
        document = mvspec.parse(text)
        assert document == mvspec.document(mvspec.assistant(text))
        assert mvspec.render(document) == text


def test_bytes_are_refused_with_what_to_do() -> None:
    with pytest.raises(mvspec.VerifyError, match="decode it first"):
        mvspec.parse(b"text")  # type: ignore[call-overload]
