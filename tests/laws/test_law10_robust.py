"""Law 10 for the parser: no input crashes it, and recovery is what its diagnostics say."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import canonical_texts, mutated, soup
from test_law10_forms import bare, bare_differs
from traces import CANONICAL

import mvspec
from mvspec.forms.recovery.edits import apply
from mvspec.law.tags import Tag


def check(text: str) -> None:
    """Hold every promise of the two modes about one text."""
    document, diagnostics = mvspec.parse(text, recover=True)
    repaired = apply(text, diagnostics)
    rendered = mvspec.render(document)
    assert rendered == repaired if diagnostics else bare(rendered) == bare(repaired)
    assert mvspec.parse(repaired) == mvspec.parse(rendered) == document
    at = 0
    for each in diagnostics:
        assert at <= each.offset <= each.end <= len(text)
        assert each.dropped == text[each.offset : each.end]
        assert each.dropped or each.inserted
        assert each.message
        assert each.line == text.count("\n", 0, each.offset) + 1
        assert each.column == each.offset - text.rfind("\n", 0, each.offset)
        at = each.end
    if not diagnostics:
        assert mvspec.parse(text) == document
        return
    with pytest.raises(mvspec.ParseError) as caught:
        mvspec.parse(text)
    first, *_ = (each for each in diagnostics if bare_differs(each))
    assert caught.value.diagnostic == first
    assert first.message in str(caught.value)
    assert caught.value.cut == (first.code == "cut")
    if caught.value.cut:
        assert first == diagnostics[-1]
        assert bare(text + first.inserted) == bare(repaired)


@given(st.text())
@example("\0")
@example("\ud800")
@example("<Goal>\n\ud800</Goal>\ud800\n<Path>\udfff")
def test_any_text(text: str) -> None:
    check(text)


@given(soup())
def test_tag_soup(text: str) -> None:
    check(text)


@given(mutated())
def test_mutated_canonical_text(text: str) -> None:
    check(text)


@given(canonical_texts(), st.data())
def test_a_prefix_is_well_formed_or_cut(text: str, data: st.DataObject) -> None:
    prefix = text[: data.draw(st.integers(0, len(text)))]
    document, diagnostics = mvspec.parse(prefix, recover=True)
    assert [each.code for each in diagnostics] in ([], ["cut"])
    assert mvspec.render(document).startswith(prefix)
    check(prefix)


def test_a_trace_cut_at_every_character() -> None:
    for size in range(len(CANONICAL) + 1):
        prefix = CANONICAL[:size]
        document, diagnostics = mvspec.parse(prefix, recover=True)
        assert [each.code for each in diagnostics] in ([], ["cut"]), prefix
        assert mvspec.render(document).startswith(prefix), prefix


@pytest.mark.parametrize("end", ["", "\n"])
def test_every_short_row_of_tags(end: str) -> None:
    bits = [tag.value + end for tag in Tag] + ["1: a" + end, "x" + end]
    for size in range(4):
        for row in itertools.product(bits, repeat=size):
            text = "".join(row)
            document, diagnostics = mvspec.parse(text, recover=True)
            rendered, repaired = mvspec.render(document), apply(text, diagnostics)
            assert bare(rendered) == bare(repaired), text
            assert rendered == repaired or not diagnostics, text


@given(st.text() | soup())
def test_json_never_crashes(text: str) -> None:
    document, diagnostics = mvspec.parse(text, form="json", recover=True)
    if diagnostics:
        assert diagnostics[0].dropped == text
        with pytest.raises(mvspec.VerifyError):
            mvspec.parse(text, form="json")
    else:
        assert mvspec.parse(text, form="json") == document


OPENING = "<Parallel>\n<Goal>\n<Outline>\n1: a\n</Outline>\n</Goal>\n<Path>\n1: \n"
CLOSING = "</Path>\n<Conclusion>\n\n</Conclusion>\n</Parallel>\n"
N = 500
HARD = {
    "nest of <Parallel>": "<Parallel>\n" * N,
    "nest of openings": OPENING * N,
    "nest": OPENING * N + CLOSING * N,
    "paths": OPENING + "".join(f"</Path>\n<Path>\n{n}: b\n" for n in range(N, 0, -1)),
    "outlines": "<Parallel>\n<Goal>\n" + "<Outline>\n1: a\n</Outline>\n" * N,
    "lines of a goal": "<Goal>\n" + "1: a\n" * N + "</Goal>\n",
    "less-than": "<" * N,
    "less-than in Think": "<Think>\n" + "</" * N,
    "stray": "</Path>\n" * N,
    "words": "<Path> x" * N,
    "lines of an outline": "<Goal>\n<Outline>\n1: " + "x\n</Path>" * N + "</Outline>",
    "text between": OPENING + "</Path>\ntext\n" * N,
    "digits": "<Path>\n" + "1" * N + "<Path>\n" + "1." * N,
    "spaces": "<Path>" + " " * N + "<Path>" + "\n " * N + "<Path>",
    "surrogates": "<Goal>\n" + "\ud800x" * N,
    "NUL": "\0" * N + "<Think>" + "\0" * N,
    "CRLF": (OPENING + CLOSING).replace("\n", "\r\n") * 30,
    "conclusions": OPENING + "</Path>\n" + "<Conclusion>\nx\n</Conclusion>\n" * N,
    "thinks": "<Think>\n" * N + "</Think>\n" * N,
}


@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
def test_hard_cases(text: str) -> None:
    check(text)


def test_blocks_too_deep_keep_their_text() -> None:
    document, diagnostics = mvspec.parse(OPENING * 40 + "deep\n" + CLOSING * 40, recover=True)
    (block,) = (item for item in document.messages[0].body if isinstance(item, mvspec.Parallel))
    assert block.depth == 32
    assert {each.code for each in diagnostics} >= {"too-deep"}
    assert "deep\n" in mvspec.render(document)
