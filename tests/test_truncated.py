"""Traces of APR that break off, and other texts that end early: what is there is kept."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import mvspec
from mvspec.cli import app
from mvspec.forms.parser import apply

CORPUS = Path(__file__).parents[2] / "shared" / "corpus"
CALLS = (
    "Start\n<Calling Sub Searches>\n<Start Sub Search 0 at level 1> go left\n"
    "<Start Sub Search 1 at level 1> go right\n<End Calling Sub Searches>\n",
    "Start\n<Sub Searches>\nright it is\n<End Sub Searches>\nAgain\n<Calling Sub Searches>\n"
    "<Start Sub Search 0 at level 1> check\n<End Calling Sub Searches>\n",
    "Start\n<Sub Searches>\nright it is\n<End Sub Searches>\nAgain\n<Sub Searches>\n"
    'it "holds"\\\n<End Sub Searches>\nDone 😀.\n',
)
FOUND = (("no way\n", "found it 😀\n"), ("yes\n",))


def trace(ascii: bool = False) -> str:
    """The trace of two spawns, its emoji as they are or as escapes."""
    searches = [[{"main_calls": [said], "sub_calls": []} for said in group] for group in FOUND]
    return json.dumps({"main_calls": CALLS, "sub_calls": searches}, ensure_ascii=ascii)


def texts(document: mvspec.Document) -> str:
    """Everything that a document says."""
    said = [node.text for node in document.walk(mvspec.Text)]
    return "\n".join((*said, *(each.text for each in document.walk(mvspec.Outline))))


@pytest.mark.parametrize("ascii", [True, False])
def test_every_beginning_of_a_trace_is_cut(ascii: bool) -> None:
    whole = trace(ascii)
    for size in range(len(whole)):
        text = whole[:size]
        document, (diagnostic,) = mvspec.parse(text, "apr", recover=True)
        assert diagnostic.code == "cut", text
        repaired = apply(text, (diagnostic,))
        assert json.loads(repaired) == json.loads(mvspec.render(document, "apr"))
        # Only an escape that lacks its end is left out.
        escape = re.compile(r"(\\?ud83d)?(\\?u?[0-9a-f]{0,3})?")
        assert escape.fullmatch(diagnostic.dropped)
        assert not diagnostic.dropped or "\\" in text[-12:]
        with pytest.raises(mvspec.ParseError) as caught:
            mvspec.parse(text, "apr")
        assert caught.value.cut


CUTS = {
    "in the first text": ('{"main_calls": ["Sta', "Sta", 0),
    "in a start line": (trace()[: trace().index("go right") + 4], "go left go r", 1),
    "in the name of a start line": (trace()[: trace().index("Search 1 at")], "Start go left", 1),
    "in what was found": (trace()[: trace().index("right it is") + 5], "right", 1),
    "in a call that repeats the one before": (trace()[: trace().index("it is") - 20], "go left", 1),
    "in a search": (trace()[: trace().index("found it") + 5], "no way found Done", 2),
    "between searches": (trace()[: trace().index("found it") - 40], "no way Done holds", 2),
}


@pytest.mark.parametrize(("text", "words", "blocks"), CUTS.values(), ids=CUTS)
def test_what_stands_before_the_end_is_kept(text: str, words: str, blocks: int) -> None:
    document, _ = mvspec.parse(text, "apr", recover=True)
    said = texts(document)
    assert all(word in said for word in words.split())
    assert len(list(document.walk(mvspec.Parallel))) == blocks


REST = ("\x00 oops", "} ]", "\n raw newline", "\\x", "3", "]" * 9)


@pytest.mark.parametrize("rest", REST)
@pytest.mark.parametrize("ascii", [True, False])
def test_what_follows_a_beginning_is_a_diagnostic(rest: str, ascii: bool) -> None:
    whole = trace(ascii)
    for size in range(0, len(whole) + 1, 7):
        text = whole[:size] + rest
        document, diagnostics = mvspec.parse(text, "apr", recover=True)
        assert json.loads(apply(text, diagnostics)) == json.loads(mvspec.render(document, "apr"))
        if "found it" in whole[:size] and ascii is False and rest.startswith(("\x00", "\n")):
            assert "found it" in texts(document)
            assert [each.code for each in diagnostics] == ["text-outside"]


def test_text_behind_a_trace_is_left_out() -> None:
    document, (diagnostic,) = mvspec.parse(trace() + "\nmore", "apr", recover=True)
    assert document == mvspec.parse(trace(), "apr")
    assert (diagnostic.code, diagnostic.dropped.strip()) == ("text-outside", "more")


@given(st.text(alphabet='[]{}",: \\nu0dm\n', max_size=40))
def test_broken_json_never_crashes(text: str) -> None:
    for start in ("", '{"main_calls": [', '{"sub_calls": [[{"main_calls": ["a'):
        document, diagnostics = mvspec.parse(start + text, "apr", recover=True)
        repaired = json.loads(apply(start + text, diagnostics))
        assert repaired == json.loads(mvspec.render(document, "apr"))


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs ../shared/corpus")
def test_real_traces_cut_anywhere() -> None:
    rng = random.Random(0)
    for line in (CORPUS / "apr-traces.jsonl").read_text("utf-8").splitlines():
        whole = json.dumps(json.loads(line)["trace_dict"])
        for _ in range(20):
            text = whole[: rng.randrange(len(whole))]
            document, diagnostics = mvspec.parse(text, "apr", recover=True)
            assert [each.code for each in diagnostics] == ["cut"]
            repaired = json.loads(apply(text, diagnostics))
            assert repaired == json.loads(mvspec.render(document, "apr"))


def test_a_row_that_breaks_off_is_a_cut_trace(tmp_path: Path) -> None:
    path, out = tmp_path / "traces.jsonl", tmp_path / "fixed.jsonl"
    path.write_text(f"{trace()}\n{trace()[:-30]}\n{{oops\n", "utf-8")
    args = ["check", str(path), "--form", "apr", "--recover", "--json", "--fix", str(out)]
    result = CliRunner().invoke(app, args)
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert first["ok"]
    assert (second["cut"], [each["code"] for each in second["diagnostics"]]) == (True, ["cut"])
    assert [each["code"] for each in third["diagnostics"]] == ["not-a-trace"]
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(rows) == 2
    assert CliRunner().invoke(app, ["check", str(out), "--field", "text"]).exit_code == 0


@pytest.mark.parametrize(
    "end", ["<C", "<Conclusion", "<Conclusion>", "<Conclusion>\n", "<Conclusion>\n\n"]
)
def test_a_bare_conclusion_of_threads_is_cut(end: str) -> None:
    block = (
        "<Parallel>\n<Outlines>\n<Outline>1: a</Outline>\n</Outlines>\n<Thread>\n1: A\n</Thread>"
    )
    document, (diagnostic,) = mvspec.parse(f"{block}\n{end}", "threadweaver", recover=True)
    assert (diagnostic.code, diagnostic.dropped) == ("cut", end)
    assert mvspec.render(document, "threadweaver") == f"{block}\n</Parallel>\n"
    with pytest.raises(mvspec.ParseError) as caught:
        mvspec.parse(f"{block}\n{end}", "threadweaver")
    assert caught.value.cut
