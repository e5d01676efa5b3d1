"""Recovery: each kind of defect has the repair that a reader would make, and says so."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path as File
from typing import Any, get_args

import pytest
from traces import CANONICAL, TRACES, Trace

import mvspec
from mvspec.errors import Diagnostic, Source
from mvspec.forms.recovery.edits import Code, apply
from mvspec.law.tags import TAG

CODE = re.compile(r"[a-z]+(?:-[a-z0-9]+)*")
ROOT = File(__file__).parents[2]
CORPUS = ROOT.parent / "shared" / "corpus"


def codes(diagnostics: tuple[Diagnostic, ...]) -> tuple[str, ...]:
    return tuple(each.code for each in diagnostics)


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.name)
def test_trace(trace: Trace) -> None:
    document, diagnostics = mvspec.parse(trace.text, recover=True)
    assert mvspec.render(document) == trace.repaired
    if {*trace.codes} <= {"separator", "missing-newline"}:  # a variant of the form, and no damage
        assert diagnostics == ()
        assert "".join(trace.text.split()) == "".join(trace.repaired.split())
        assert mvspec.parse(trace.text) == document
        return
    assert codes(diagnostics) == trace.codes
    assert apply(trace.text, diagnostics) == trace.repaired
    if not trace.codes:
        assert mvspec.parse(trace.text) == document
        return
    with pytest.raises(mvspec.ParseError) as caught:
        mvspec.parse(trace.text)
    assert caught.value.diagnostic == diagnostics[0]
    assert caught.value.cut == (trace.codes == ("cut",))


TAGS = list(TAG.finditer(CANONICAL))


@pytest.mark.parametrize("index", range(len(TAGS)))
def test_a_missing_tag_is_written_again(index: int) -> None:
    start, end = TAGS[index].span()
    text = CANONICAL[:start] + CANONICAL[end + 1 :]
    document, diagnostics = mvspec.parse(text, recover=True)
    if TAGS[index].group() == "</Think>":  # then the answer reads as more of the reasoning
        assert codes(diagnostics) == ("cut",)
    else:
        assert diagnostics
        assert mvspec.render(document) == CANONICAL


@pytest.mark.parametrize("glue", ["", "\n"])
@pytest.mark.parametrize("index", range(len(TAGS)))
def test_a_doubled_tag_is_left_out(index: int, glue: str) -> None:
    tag = TAGS[index]
    text = CANONICAL[: tag.end()] + glue + tag.group() + CANONICAL[tag.end() :]
    document, diagnostics = mvspec.parse(text, recover=True)
    assert mvspec.render(document) == CANONICAL
    assert {"stray-tag"} <= set(codes(diagnostics)) <= {"stray-tag", "separator"}


@pytest.mark.parametrize("index", range(len(TAGS)))
def test_a_tag_glued_to_text_is_believed(index: int) -> None:
    tag = TAGS[index]
    before = CANONICAL[: tag.start()].rstrip("\n") + CANONICAL[tag.start() :]
    after = CANONICAL[: tag.end()] + CANONICAL[tag.end() :].lstrip("\n")
    for text in (before, after):
        document, diagnostics = mvspec.parse(text, recover=True)
        assert mvspec.render(document) == CANONICAL
        assert diagnostics == ()


def test_the_whole_trace_on_one_line_keeps_its_blocks() -> None:
    strict = mvspec.parse(CANONICAL)
    for text in (CANONICAL.replace("\n", " "), CANONICAL.replace("\n", "\r\n")):
        document, diagnostics = mvspec.parse(text, recover=True)
        assert [path.label for path in document.walk(mvspec.Path)] == [
            path.label for path in strict.walk(mvspec.Path)
        ]
        assert diagnostics == ()
        assert mvspec.parse(text) == document


MESSAGES = {
    "Hm.\n</Path>\n": "</Path> closes nothing, no <Path> is open: left out",
    "<Think>\nHm": "the text ends inside <Think>: expected </Think>",
    "<Think>\n<Parallel>\n<Go": "the text ends inside the tag <Goal>: expected al>",
    "<Goal>\n": "<Goal> stands in no block: expected <Parallel> before it",
    "a <Path> b": "<Path> stands in the text at the top level like a word: left out",
    "<Parallel>\n<Goal>\n</Goal>\n": "the goal has no outline: expected <Outline> before </Goal>",
}


@pytest.mark.parametrize(("text", "message"), MESSAGES.items())
def test_messages_say_what_was_found_and_expected(text: str, message: str) -> None:
    with pytest.raises(mvspec.ParseError) as caught:
        mvspec.parse(text, name="a.txt")
    assert caught.value.diagnostic.message.startswith(message)
    line, column = caught.value.diagnostic.line, caught.value.diagnostic.column
    assert str(caught.value).startswith(f"a.txt:{line}:{column}: {message}")


def test_an_error_shows_the_place() -> None:
    with pytest.raises(mvspec.ParseError) as caught:
        mvspec.parse("<Think>\nabc\n</Path>\n</Think>\n\n")
    assert str(caught.value).splitlines()[1:] == ["    3 | </Path>", "        ^"]


@pytest.mark.parametrize(
    "text", ["", "a", "\n", "a\n" * 5000, "a" * 9000, ("é" * 50 + "\n") * 200, "\n" * 4096 + "x"]
)
def test_positions_are_those_of_a_count(text: str) -> None:
    source = Source(text)
    for offset in {0, 1, 4095, 4096, 4097, 8192, len(text) // 2, len(text)}:
        if offset <= len(text):
            line = text.count("\n", 0, offset) + 1
            assert source.position(offset) == (line, offset - text.rfind("\n", 0, offset))


def test_labels_that_are_made_up_take_no_label_that_is_there() -> None:
    goal = "".join(
        f"<Outline>\n{line}\n</Outline>\n" for line in ("x", "1: a", "y", "1: b", "3: c")
    )
    document, _ = mvspec.parse(f"<Parallel>\n<Goal>\n{goal}</Goal>\n", recover=True)
    outlines = [(each.label, each.text) for each in document.walk(mvspec.Outline)]
    assert outlines == [("2", "x"), ("1", "a"), ("4", "y"), ("5", "b"), ("3", "c")]


def written_codes() -> set[str]:
    """The codes that the package hands to a diagnostic as they stand."""
    codes: set[str] = set()
    for file in (ROOT / "mvspec").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
                if name in ("Diagnostic", "RowError", "diagnostic", "bad"):
                    args = node.args[name != "bad" :]  # else the first is a place
                    given = [arg.value for arg in args if isinstance(arg, ast.Constant)]
                    codes |= {arg for arg in given if isinstance(arg, str) and CODE.fullmatch(arg)}
    return codes


def test_the_page_of_diagnostics_lists_every_code() -> None:
    page = (ROOT / "docs" / "diagnostics.md").read_text("utf-8")
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert "numbering" in written_codes()
    assert sorted(listed) == sorted({*get_args(Code), *written_codes()})


def records() -> list[Any]:
    if not CORPUS.is_dir():
        pytest.skip("no corpus of real outputs here")
    lines = (CORPUS / "multiverse-dev.jsonl").read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def test_real_outputs() -> None:
    outputs = records()
    classes = json.loads((CORPUS / "dev-class.json").read_text("utf-8"))
    found: dict[str, int] = {}
    for record in outputs:
        text = record["output"]
        document, diagnostics = mvspec.parse(text, recover=True)
        # Every character is in the tree or in a diagnostic.
        assert mvspec.render(document) == apply(text, diagnostics)
        try:
            assert mvspec.render(mvspec.parse(text)) == text
            kind = "ok"
        except mvspec.ParseError as error:
            kind = "cut" if error.cut else "malformed"
        assert kind == classes[record["id"]], record["id"]
        found[kind] = found.get(kind, 0) + 1
        lost = re.sub(r"\s|" + TAG.pattern, "", "".join(each.dropped for each in diagnostics))
        assert not re.sub(r"[0-9.]+:", "", lost), record["id"]  # no text but labels is dropped
    assert found == {"ok": 53, "cut": 17, "malformed": 14}
