"""Law 10 for every form: no text crashes it, and recovery is what its diagnostics say."""

from __future__ import annotations

import json
import re

import pytest
from dialects import READABLE, mutated, soup, texts_in
from hypothesis import example, given
from hypothesis import strategies as st
from traces import CANONICAL

import mvspec
from mvspec.forms import FORMS
from mvspec.forms.recovery.edits import apply

BARE_JOIN = re.compile(r"(?:|<C[a-z]*|<Conclusion>\s*(?:</?[A-Za-z]*)?)\Z")
NOTHING = re.compile("")
STRICT = ("curator-summary", "curator-plan", "apr")
OTHERS = [form for form in READABLE if form != "multiverse"]  # whose law has a file of its own


def check(text: str, form: str) -> None:
    """Hold every promise of the two modes about one text of a form."""
    document, diagnostics = mvspec.parse(text, form, recover=True)
    if form in STRICT:
        check_strict(text, form, document, diagnostics)
        return
    repaired = apply(text, diagnostics)
    rendered = mvspec.render(document, form)
    assert mvspec.parse(repaired, form) == mvspec.parse(rendered, form) == document
    loose = FORMS[form].syntax.loose
    if diagnostics or not loose:
        assert rendered == repaired
    assert bare(rendered) == bare(repaired)
    at = 0
    for each in diagnostics:
        assert at <= each.offset <= each.end <= len(text)
        assert each.dropped == text[each.offset : each.end]
        assert each.dropped or each.inserted
        assert each.message
        at = each.end
    if not diagnostics:
        assert mvspec.parse(text, form) == document
        return
    with pytest.raises(mvspec.ParseError) as caught:
        mvspec.parse(text, form)
    first, *_ = (each for each in diagnostics if not loose or bare_differs(each))
    assert caught.value.diagnostic.offset == first.offset
    assert caught.value.cut == (first.code == "cut")
    if caught.value.cut:
        assert first == diagnostics[-1]
        # Nothing is left out but a conclusion of which nothing stands there, where it is not
        # written.
        assert {"threadweaver": BARE_JOIN}.get(form, NOTHING).fullmatch(each.dropped)


def bare(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())


def bare_differs(each: mvspec.Diagnostic) -> bool:
    """Whether a repair is more than white space at a tag."""
    return each.code in ("cut", "outline-line") or bare(each.dropped) != bare(each.inserted)


def check_strict(
    text: str, form: str, document: mvspec.Document, diagnostics: tuple[mvspec.Diagnostic, ...]
) -> None:
    """Hold the promises of a form that is read strictly only."""
    if not diagnostics:
        assert mvspec.parse(text, form) == document
        return
    (only,) = diagnostics
    assert (only.code, document) == ("strict-only", mvspec.Document())
    assert only.dropped == text[only.offset : only.end]
    with pytest.raises(mvspec.ParseError) as caught:
        mvspec.parse(text, form)
    assert caught.value.diagnostic == only


@pytest.mark.parametrize("form", OTHERS)
@given(data=st.data())
def test_any_text(form: str, data: st.DataObject) -> None:
    check(data.draw(st.text()), form)


@pytest.mark.parametrize("form", OTHERS)
@given(data=st.data())
def test_tag_soup(form: str, data: st.DataObject) -> None:
    check(data.draw(soup(form)), form)


@pytest.mark.parametrize("form", OTHERS)
@given(data=st.data())
def test_mutated_canonical_text(form: str, data: st.DataObject) -> None:
    check(data.draw(mutated(form)), form)


@pytest.mark.parametrize("form", [form for form in OTHERS if form not in STRICT])
@given(data=st.data())
def test_a_prefix_is_well_formed_or_cut(form: str, data: st.DataObject) -> None:
    text = data.draw(texts_in(form))
    prefix = text[: data.draw(st.integers(0, len(text)))]
    check(prefix, form)
    document, diagnostics = mvspec.parse(prefix, form, recover=True)
    assert [each.code for each in diagnostics] in ([], ["cut"])
    kept = diagnostics[0].offset if diagnostics else len(prefix)
    rendered = mvspec.render(document, form)
    if not rendered.startswith(prefix[:kept]):  # it ends in white space that is read and not kept
        assert FORMS[form].syntax.loose
        assert bare(rendered) == bare(prefix)


@pytest.mark.parametrize("form", OTHERS)
@pytest.mark.parametrize("text", ["", "\n", "\ud800", "<" * 500, CANONICAL, "\0" * 200])
def test_texts_of_no_form(form: str, text: str) -> None:
    check(text, form)


HIDDEN = (
    "a <Pa<Path>th> b",
    "x <Pa<Pa<Path>th>th>",
    "<Thr<Path>ead> x",
    "<Thr<Thread>ead> x",
    "</th<Path>ink>" * 3,
    "<Pa<Thread>th 1><Path<Path 1> 1>",
    "<Goal>\n<Outline>\n2: <Pa<Path>th>\n</Outline>\n<Outline>\n1: a\n</Outline>\n</Goal>\n"
    "<Path>\n1: A\n</Path>\n<Path>\n2: B <Pa<Goal>th>\n</Path>",
    "<parallel>\nS<Path>1: a\n</par</parallel>allel>\n",
    "<Pa" * 300 + "<Path>" + "th>" * 300,
)


@pytest.mark.parametrize("form", READABLE)
@pytest.mark.parametrize("text", HIDDEN)
def test_a_tag_around_a_tag_that_is_left_out_is_left_out_too(form: str, text: str) -> None:
    check(text, form)
    check(json.dumps({"main_calls": [text], "sub_calls": []}), form)


FOUND = (  # by fuzzing: a tag that a label alone stood for is doubled
    "<Goal></Goal>2:<Path>2:",
    "<Path>\n1:\n</Goal></Path>1:<Path>1:",
    "<Goal>1:<Outline>1: a",
    "<Think>\nx\n</Think>",  # in `curator`, which writes a fence
)


@pytest.mark.parametrize("form", READABLE)
@pytest.mark.parametrize("text", FOUND)
def test_texts_that_once_failed(text: str, form: str) -> None:
    check(text, form)


@given(soup("apr"))
@example('{"main_calls": [], "sub_calls": []}')
@example('{"main_calls": ["a\\\\n<Sub Searches>\\\\n"], "sub_calls": 3}')
@example('{"main_calls": 3}')
@example("[" * 100_000)
@example('{"main_calls": ["\\\\ud800"], "sub_calls": []}')
def test_a_trace_that_is_none(text: str) -> None:
    check(text, "apr")


@pytest.mark.parametrize("form", [form for form in OTHERS if FORMS[form].syntax.ordered])
@pytest.mark.parametrize("size", [40, 400])
def test_hard_cases(form: str, size: int) -> None:
    syntax = FORMS[form].syntax
    for tag in mvspec.law.tags.Tag:
        written = syntax.written(tag, "1")
        for glue in ("", "\n", " x "):
            check((written + glue) * size, form)
