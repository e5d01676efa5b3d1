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
from mvspec.forms.parser import apply

BARE_JOIN = re.compile(r"(?:|<C[a-z]*|<Conclusion>\s*(?:</?[A-Za-z]*)?)\Z")
HALF = re.compile(r"(\\?u[dD][89abAB]..)?(\\?(u[0-9a-fA-F]{0,3})?)?|[0-9a-fA-F]{1,3}")
NOTHING = re.compile("")
OTHERS = [form for form in READABLE if form != "multiverse"]  # whose law has a file of its own


def check(text: str, form: str) -> None:
    """Hold every promise of the two modes about one text of a form."""
    document, diagnostics = mvspec.parse(text, form, recover=True)
    repaired = apply(text, diagnostics)
    assert mvspec.parse(repaired, form) == document
    rendered = mvspec.render(document, form)
    if form == "apr":
        assert json.loads(rendered) == json.loads(repaired)
    else:
        assert rendered == repaired
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
    assert caught.value.diagnostic.offset == diagnostics[0].offset
    assert caught.value.cut == (diagnostics[0].code == "cut")
    if caught.value.cut:
        assert len(diagnostics) == 1
        # Nothing is left out but a conclusion of which nothing stands there, where it is not
        # written, and half of an escape.
        half = {"threadweaver": BARE_JOIN, "apr": HALF}.get(form, NOTHING)
        assert half.fullmatch(each.dropped)


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


@pytest.mark.parametrize("form", [form for form in OTHERS if form != "apr"])
@given(data=st.data())
def test_a_prefix_is_well_formed_or_cut(form: str, data: st.DataObject) -> None:
    text = data.draw(texts_in(form))
    prefix = text[: data.draw(st.integers(0, len(text)))]
    check(prefix, form)
    document, diagnostics = mvspec.parse(prefix, form, recover=True)
    assert [each.code for each in diagnostics] in ([], ["cut"])
    kept = diagnostics[0].offset if diagnostics else len(prefix)
    assert mvspec.render(document, form).startswith(prefix[:kept])


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


FOUND = (  # by fuzzing
    "<parallel>[parallel reason: r]\n<parallel>W 1: a\nS1: a\nx\n\n",
    "x\n<parallel>[parallel reason: r]\n<parallel>\n\t<parallel>\nS1: a\n",
    "<parallel>2: b\nS2: b\nS1: a\n<parallel>S1: a\n</parallel>\n",
    "\t<parallel>\n\tS3.1: \n\t</parallel>\nThe\n<parallel>\nS1: \n</parallel>\n",
)


@pytest.mark.parametrize("text", FOUND)
def test_summaries_that_once_failed(text: str) -> None:
    check(text, "curator-summary")


@given(soup("apr"))
@example('{"main_calls": [], "sub_calls": []}')
@example('{"main_calls": ["a\\\\n<Sub Searches>\\\\n"], "sub_calls": 3}')
@example('{"main_calls": 3}')
@example("[" * 100_000)
@example('{"main_calls": ["\\\\ud800"], "sub_calls": []}')
def test_a_trace_that_is_none(text: str) -> None:
    check(text, "apr")


@pytest.mark.parametrize("form", [form for form in OTHERS if FORMS[form].ordered])
@pytest.mark.parametrize("size", [40, 400])
def test_hard_cases(form: str, size: int) -> None:
    syntax = FORMS[form]
    for tag in mvspec.forms.syntax.Tag:
        written = syntax.written(tag, "1")
        for glue in ("", "\n", " x "):
            check((written + glue) * size, form)
