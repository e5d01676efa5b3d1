"""Forms on one line, rounds of NPR, half tags, and conversion between all forms that can hold."""

from __future__ import annotations

import itertools

import pytest

import mvspec
from mvspec.errors import Diagnostic
from mvspec.forms import FORMS

LOOSE = [name for name, form in FORMS.items() if form.syntax.loose]
SPACES = (" ", "", "\n\n", "\r\n", " \n", "\t", "\n \n")


def example(form: str, rounds: int = 2) -> mvspec.Document:
    """Blocks one after the other, with text between some of them, as the form can hold them."""
    titled = form != "parallel-r1"
    body: list[str | mvspec.Parallel] = ["We try both."]
    for number in range(1, rounds + 1):
        ways = [("Sum", f"It is {number}+2."), ("Product", f"It is {number}*2.")]
        paths = [mvspec.branch(title if titled else "", said) for title, said in ways]
        body.append(mvspec.parallel(*paths[: 2 - (number == 3)], conclusion=f"Round {number}."))
        body += ["Once more."] if number % 2 else []
    return mvspec.document(mvspec.assistant(*body, "The answer is 4."))


def words(document: mvspec.Document) -> list[list[str]]:
    nodes = (node for _, node in document.addresses() if isinstance(node, mvspec.Text))
    return [node.text.split() for node in nodes]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("form", LOOSE)
def test_white_space_at_tags_is_a_variant(form: str, space: str) -> None:
    document = example(form)
    text = mvspec.render(document, form)
    lines = text.split("\n")
    for pick in ((lambda at: True), (lambda at: at % 2), (lambda at: at % 3 == 0)):
        parts = [line + (space if pick(at) else "\n") for at, line in enumerate(lines[:-1])]
        varied = "".join([*parts, lines[-1]])
        found, diagnostics = mvspec.parse(varied, form, recover=True)
        assert diagnostics == ()
        assert mvspec.parse(varied, form) == found
        assert words(found) == words(document)
        assert mvspec.parse(mvspec.render(found, form), form) == found


@pytest.mark.parametrize("rounds", range(2, 7))
def test_rounds_of_npr(rounds: int) -> None:
    document = example("npr", rounds)
    text = mvspec.render(document, "npr")
    assert text.count("<guideline>") == text.count("</takeaway>") == rounds
    assert "<Parallel>" not in text
    loose = text.replace("</step>\n<takeaway>", "</step><takeaway>")
    loose = loose.replace("</takeaway>\n", "</takeaway>\n\n")
    assert mvspec.parse(text, "npr") == document
    found, diagnostics = mvspec.parse(loose, "npr", recover=True)
    assert (words(found), diagnostics) == (words(document), ())
    assert len(list(found.walk(mvspec.Parallel))) == rounds


@pytest.mark.parametrize("space", ["\n", " ", ""])
@pytest.mark.parametrize("form", LOOSE)
def test_any_beginning_is_well_formed_or_cut(form: str, space: str) -> None:
    text = mvspec.render(example(form, 1), form).replace("\n", space)
    for size in range(len(text)):
        document, diagnostics = mvspec.parse(text[:size], form, recover=True)
        real = [each.code for each in diagnostics if changes(each)]
        assert real in ([], ["cut"]), text[:size]
        if real:
            with pytest.raises(mvspec.ParseError) as caught:
                mvspec.parse(text[:size], form)
            assert caught.value.cut
        assert document.messages


def bare(text: str) -> str:
    return "".join(text.split())


def changes(each: Diagnostic) -> bool:
    return each.code == "cut" or bare(each.dropped) != bare(each.inserted)


TITLED = ("multiverse", "multiverse-prompt", "threadweaver", "npr", "curator")


@pytest.mark.parametrize(("first", "second"), itertools.permutations((*TITLED, "json"), 2))
def test_a_document_goes_from_form_to_form(first: str, second: str) -> None:
    document = example("npr", 3)
    there = mvspec.parse(mvspec.render(document, first), first)
    assert mvspec.parse(mvspec.render(there, second), second) == document


@pytest.mark.parametrize("other", [*TITLED, "json"])
def test_a_document_of_parallel_r1_goes_to_every_form(other: str) -> None:
    document = example("parallel-r1", 3)
    there = mvspec.parse(mvspec.render(document, other), other)
    assert there == document
    assert mvspec.parse(mvspec.render(there, "parallel-r1"), "parallel-r1") == document


def test_a_document_that_a_form_cannot_hold_names_the_one_that_can() -> None:
    inner = mvspec.parallel(mvspec.branch("", "a"))
    turn = mvspec.assistant(mvspec.parallel(mvspec.branch("", inner)))
    for form in ("npr", "parallel-r1", "threadweaver"):
        with pytest.raises(mvspec.Unsupported, match="or write form 'multiverse'"):
            mvspec.render(turn, form)
