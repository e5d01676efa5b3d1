"""What a text looks like: other forms' tags are named, words are words, auto reads each."""

from __future__ import annotations

import pytest
from test_dialects import EXAMPLES

import mvspec
from mvspec.data.check import check_record
from mvspec.data.records import Fields, Record

TAGGED = ("multiverse", "multiverse-prompt", "threadweaver", "npr", "parallel-r1")


@pytest.mark.parametrize("recover", [False, True])
@pytest.mark.parametrize("form", TAGGED)
@pytest.mark.parametrize("own", TAGGED)
def test_a_text_of_another_form_names_the_form(own: str, form: str, recover: bool) -> None:
    for text in (EXAMPLES[own], EXAMPLES[own].replace("\n", " ")):
        verdict = check_record(Record("a", text, fields=Fields(form)), recover)
        if own == form:
            assert "other-form" not in {each.code for each in verdict.diagnostics}
            continue
        (found,) = verdict.diagnostics
        assert (verdict.ok, verdict.cut, found.code) == (False, False, "other-form")
        assert f"--form {own}" in found.message
        assert text[found.offset] == "<"


@pytest.mark.parametrize("form", TAGGED)
def test_auto_reads_each_form(form: str) -> None:
    verdict = check_record(Record("a", EXAMPLES[form], fields=Fields("auto")))
    assert (verdict.ok, verdict.blocks) == (True, 1)
    assert mvspec.parse(EXAMPLES[form], "auto") == mvspec.parse(EXAMPLES[form], form)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("<Plan>\n<Outline>1: a; Dependency: []</Outline>\n</Plan>\n<Execution>\n", "MedVerse"),
        ("<think1>\na\n</think1>\n<summary>b</summary>", "ParaThinker"),
        ("<FORK-1> solve it\n<JOIN-1>\n", "AsyncThink"),
    ],
)
@pytest.mark.parametrize("form", [*TAGGED, "auto"])
def test_what_is_only_recognised_is_refused_by_name(text: str, name: str, form: str) -> None:
    (found,) = check_record(Record("a", text, fields=Fields(form))).diagnostics
    assert found.code == "other-form"
    assert name in found.message


@pytest.mark.parametrize(
    "text",
    ["the tags <guideline> and <step> here", "a <plan>\nb", "x < y & <b>z</b>", "`<FORK-1>` is it"],
)
def test_words_are_words(text: str) -> None:
    assert check_record(Record("a", text)).ok
