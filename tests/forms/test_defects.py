"""Every kind of defect in every form that has tags: no word is lost, all is well-formed again."""

from __future__ import annotations

import re

import pytest
from test_dialects import EXAMPLES
from test_law10_forms import check

import mvspec
from mvspec.forms import FORMS
from mvspec.law.tags import Tag

TAGGED = ("multiverse", "multiverse-prompt", "threadweaver", "npr", "parallel-r1", "curator")
WORD = re.compile(r"[A-Za-z]{2,}")


def said(text: str, form: str) -> list[str]:
    """The words of a text, without its tags."""
    own = FORMS[form].syntax.marker.sub(" ", text.replace("Path:", " ").replace("```", " "))
    return sorted(WORD.findall(own))


def held(document: mvspec.Document) -> list[str]:
    """The words of a tree."""
    nodes: list[mvspec.Text | mvspec.Outline] = [*document.walk(mvspec.Text)]
    nodes += document.walk(mvspec.Outline)
    # Outside of a goal, a line of curation that begins so is text as it stands.
    return sorted(WORD.findall(" ".join(node.text for node in nodes).replace("Path:", " ")))


def mend(text: str, form: str) -> tuple[mvspec.Document, tuple[str, ...]]:
    """Recover a text that loses no word; hold law 10; return its tree and the codes."""
    check(text, form)
    document, diagnostics = mvspec.parse(text, form, recover=True)
    assert held(document) == said(text, form)
    return document, tuple(each.code for each in diagnostics)


def tags(form: str) -> list[tuple[int, int]]:
    return [tag.span() for tag in FORMS[form].syntax.marker.finditer(EXAMPLES[form])]


EVERY = [(form, index) for form in TAGGED for index in range(len(tags(form)))]


@pytest.mark.parametrize(("form", "index"), EVERY)
def test_a_missing_tag(form: str, index: int) -> None:
    text = EXAMPLES[form]
    start, end = tags(form)[index]
    for stop in (end, min(end + 1, len(text))):  # without its newline, and with it
        document, codes = mend(text[:start] + text[stop:], form)
        assert codes
        assert len(list(document.walk(mvspec.Parallel))) == 1


@pytest.mark.parametrize(("form", "index"), EVERY)
def test_a_doubled_tag(form: str, index: int) -> None:
    text = EXAMPLES[form]
    start, end = tags(form)[index]
    for glue in ("", "\n"):
        document, codes = mend(text[:end] + glue + text[start:end] + text[end:], form)
        assert codes
        if written(form, Tag.END_THINK) != text[start:end]:  # a newline more in the answer
            assert document == mvspec.parse(text, form)


def written(form: str, tag: Tag, label: str = "1") -> str:
    return FORMS[form].syntax.written(tag, label)


@pytest.mark.parametrize("form", TAGGED)
def test_text_between_paths(form: str) -> None:
    closing = written(form, Tag.END_PATH)
    document, codes = mend(EXAMPLES[form].replace(closing, f"{closing}\nMeanwhile.\n", 1), form)
    assert {*codes} <= {"stray-tag", "missing-closing", "separator"}
    assert "Meanwhile." in str(next(document.walk(mvspec.Path)))


LABELS = {
    "multiverse": "2: It",
    "multiverse-prompt": "<Path 2>",
    "threadweaver": "2: It",
    "npr": "2: It",
}


@pytest.mark.parametrize("number", ["1", "3", "12", "2.1"])
@pytest.mark.parametrize(("form", "place"), LABELS.items())
def test_repeated_and_skipped_numbers(form: str, place: str, number: str) -> None:
    document, codes = mend(EXAMPLES[form].replace(place, place.replace("2", number)), form)
    assert set(codes) & {"wrong-label", "missing-outline"}
    assert len(list(document.walk(mvspec.Parallel))) == 1


@pytest.mark.parametrize("tag", list(Tag))
@pytest.mark.parametrize("form", TAGGED)
def test_a_tag_as_a_word_in_code_and_in_latex(form: str, tag: Tag) -> None:
    name = written(form, tag)
    if not name.startswith("<"):
        pytest.skip("the form does not write it as a tag")
    for around in ("the {} tag", 'print("{} x")', "\\text{{ {} }} + 1", "`{}`."):
        text = EXAMPLES[form].replace("It is 5.", f"It is {around.format(name)} 5.")
        document, codes = mend(text, form)
        assert codes
        assert set(codes) <= {"tag-as-word", "stray-tag"}
        assert len(list(document.walk(mvspec.Path))) == 2


@pytest.mark.parametrize("form", ["multiverse", "multiverse-prompt", "threadweaver"])
def test_a_doubled_answer(form: str) -> None:
    text = EXAMPLES[form] + f"\n{written(form, Tag.END_THINK)}\n\nAnswer: 6"
    document, codes = mend(text, form)
    assert codes == ("stray-tag",)
    (turn,) = document.messages
    assert isinstance(turn.body[1], mvspec.Text)
    assert turn.body[1].text.count("Answer: 6") == 2


@pytest.mark.parametrize("form", [form for form in TAGGED if form != "parallel-r1"])
def test_paths_in_another_order_and_one_too_few(form: str) -> None:
    text = EXAMPLES[form]
    opening, closing = written(form, Tag.PATH, "2"), written(form, Tag.END_PATH, "2")
    start = text.rindex(opening)
    end = text.rindex(closing) + len(closing)
    document, codes = mend(text[:start] + text[end:], form)
    assert "missing-path" in codes or "separator" in codes
    assert [path.label for path in document.walk(mvspec.Path)] == ["1", "2"]
