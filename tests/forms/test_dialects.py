"""The other surface forms: their page, what each refuses, and how each kind of defect is mended."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dialects import READABLE

import mvspec
from mvspec.forms import FORMS
from mvspec.forms.recovery.edits import apply

FORM = r"<!-- form: (\S+) -->\n~~~~text\n(.*?)~~~~\n"
PAGE = Path(__file__).parents[2] / "docs" / "forms.md"
# A fence needs a newline at its end, which a text need not have.
EXAMPLES = {
    form: text if form in ("curator-summary", "curator-plan") else text.removesuffix("\n")
    for form, text in re.findall(FORM, PAGE.read_text("utf-8"), re.DOTALL)
}


@pytest.mark.parametrize("form", READABLE)
def test_the_page_shows_each_form_as_it_is(form: str) -> None:
    text = EXAMPLES[form]
    document = mvspec.parse(text, form)
    assert mvspec.render(document, form) == text
    assert list(document.walk(mvspec.Parallel))


def test_the_page_lists_every_form() -> None:
    listed = re.findall(r"^\| `(\S+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(FORMS)


BLOCK = mvspec.parallel(mvspec.branch("A", "a"), mvspec.branch("B", "b"))
DEEP = mvspec.parallel(mvspec.branch("A", BLOCK))
ODD = mvspec.Parallel(
    goal=mvspec.Goal(outlines=(mvspec.Outline(label="3", text="S1: a"),)),
    paths=(mvspec.Path(label="3"),),
)
CONCLUDED = mvspec.parallel(mvspec.branch("S1: A"), conclusion="so")
HOLE = mvspec.parallel(mvspec.branch("A", mvspec.gen("x")))
REFUSED = (
    ("threadweaver", mvspec.assistant("x", DEEP), "body[1].paths[0].body[0]: it is a block 2 lev"),
    ("npr", mvspec.assistant("x", DEEP), "body[1].paths[0].body[0]: it is a block 2 levels deep"),
    ("npr", mvspec.assistant("a <step>"), "body[0]: its text holds the tag <step>"),
    ("parallel-r1", mvspec.assistant(mvspec.parallel(mvspec.branch("", DEEP))),
     "body[0].paths[0].body[0]: it is a block 2 levels deep"),
    ("parallel-r1", mvspec.assistant(BLOCK), "body[0].goal.outlines[0]: it says something wh"),
    ("threadweaver", mvspec.assistant(ODD), "body[0]: its labels are 3, and the form counts 1"),
    ("threadweaver", mvspec.assistant("a <Thread>"), "body[0]: its text holds the tag <Thread>"),
    ("multiverse-prompt", mvspec.assistant("a <Path 2.1>"), "body[0]: its text holds the tag"),
    ("curator", mvspec.assistant(mvspec.think("a"), "b"), "body[1]: its fence is the whole text"),
    ("curator", mvspec.assistant("```\na\n```"), "body[0]: text that begins with ```"),
    ("curator", mvspec.assistant(ODD), "body[0]: its labels are 3"),
    ("curator-summary", mvspec.assistant(mvspec.think("a")), "body[0]: a summary has no reason"),
    ("curator-summary", mvspec.assistant(CONCLUDED), "body[0].conclusion: a summary has no conc"),
    ("curator-summary",
     mvspec.assistant(mvspec.parallel(mvspec.branch("A", "a\nS2: b"))),
     "body[0].paths[0].body[0]: the line 'S2:' of its text reads as a step"),
    ("curator-plan", mvspec.assistant("text", BLOCK), "body[0]: a plan has no text"),
    ("curator-plan", mvspec.assistant(BLOCK), "body[0].goal.outlines[0]: an outline of a plan"),
    ("curator-plan", mvspec.assistant(CONCLUDED), "body[0].conclusion: a plan has no conclusions"),
    ("apr", mvspec.assistant(DEEP), "body[0].paths[0].body[0]: it is a block 2 levels deep"),
    ("apr", mvspec.assistant(mvspec.think("a")), "body[0]: a trace has no reasoning span"),
    ("apr", mvspec.assistant("<Sub Searches>"), "body[0]: its text holds the tag <Sub Searches>"),
    ("apr", mvspec.assistant(HOLE), "the hole 'x' at messages[0].body[0].paths[0].body[0]"),
)  # fmt: skip


@pytest.mark.parametrize(("form", "turn", "why"), REFUSED)
def test_a_refusal_names_the_node(form: str, turn: mvspec.Message, why: str) -> None:
    where = "cannot hold " + ("" if why.startswith("the hole") else "messages[0].") + why
    with pytest.raises(mvspec.Unsupported, match=re.escape(where)):
        mvspec.render(mvspec.document(turn), form)


Defect = tuple[str, str, str, str]
"""A form, what its example has, what is found instead, the codes; mended, it is the example."""

SAME: tuple[Defect, ...] = (
    ("multiverse-prompt", "</Path 1>\n", "", "missing-closing"),
    ("multiverse-prompt", "</Path 1>", "</Path 2>", "wrong-label"),
    ("multiverse-prompt", "<Path 2>", "<Path 3>", "wrong-label"),
    ("multiverse-prompt", "</Goal 1>\n<Goal 2>", "<Goal 2>", "missing-closing"),
    ("multiverse-prompt", "<Goal 1>\n", "<Goal 1>", "separator"),
    ("multiverse-prompt", "It is 5.\n", "It is 5.", "missing-newline"),
    ("multiverse-prompt", "<Parallel>\n", "", "missing-opening"),
    ("threadweaver", "</Thread><Thread>", "</Thread>\n<Thread>", ""),
    ("threadweaver", "</Thread><Thread>", "<Thread>", "missing-closing"),
    ("threadweaver", "</Outlines>\n", "", "missing-closing"),
    ("threadweaver", "<Outlines>\n", "", "missing-opening"),
    ("threadweaver", "2: It is 6", "3: It is 6", "wrong-label"),
    ("threadweaver", "1: Add.", "\n1: Add.\n", ""),
    ("threadweaver", "<Outline>1: Add.</Outline>\n", "<Outline>1: Add.</Outline>", ""),
    ("npr", "</step>\n<step>", "<step>", "missing-closing"),
    ("npr", "</guideline>\n", "", "missing-closing"),
    ("npr", "<guideline>\n", "", "missing-opening"),
    ("npr", "<guideline>\n", "<guideline>\n<guideline>\n", "stray-tag"),
    ("npr", "<takeaway>\n", "", "missing-opening"),
    ("npr", "</takeaway>\n", "</takeaway>\n</takeaway>\n", "stray-tag"),
    ("npr", "2: It is 6", "1: It is 6", "wrong-label"),
    ("npr", "</step>\n<takeaway>", "</step><takeaway>", ""),
    ("npr", "</plan>\n<plan>", "</plan> \r\n\n<plan>", ""),
    ("parallel-r1", "</Path>\n<Path>", "</Path> \n\n<Path>", ""),
    ("parallel-r1", "<Parallel>\n<Path>\n", "<Parallel><Path>", ""),
    ("parallel-r1", "</Path>\n<Path>", "<Path>", "missing-closing"),
    ("parallel-r1", "</Parallel>\n", "", "missing-closing"),
    ("parallel-r1", "</Parallel>\n", "</Parallel>\n</Parallel>\n", "stray-tag"),
    ("parallel-r1", "<Parallel>\n", "<Parallel>\n<Parallel>\n", "stray-tag"),
    ("parallel-r1", "<Parallel>\n", "", "missing-opening"),
    ("parallel-r1", "<Summary>\n", "", "missing-opening"),
    ("threadweaver", "</think>\n\n", "</think></think>\n\n", "stray-tag"),
    ("threadweaver", "Done.\n", "Done.\n</Thread>\n", "stray-tag"),
    ("curator", "</Path>\n\n<Path>", "</Path>\n<Path>", "separator"),
    ("curator", "Path: Add.", "Path 1: Add.", "separator"),
    ("curator", "Path: Add.", "path:Add.", "separator"),
    ("curator", "</Goal>\n\n", "", "missing-closing"),
    ("curator", "Done.\n", "Done.\n<Outline>\n", "tag-as-word"),
)  # fmt: skip


@pytest.mark.parametrize(("form", "canonical", "found", "codes"), SAME)
def test_a_defect_is_mended(form: str, canonical: str, found: str, codes: str) -> None:
    example = EXAMPLES[form]
    assert canonical in example
    text = example.replace(canonical, found, 1)
    document, diagnostics = mvspec.parse(text, form, recover=True)
    assert " ".join(each.code for each in diagnostics) == codes
    assert mvspec.render(document, form) == (apply(text, diagnostics) if codes else example)
    assert document == mvspec.parse(example, form)


def test_text_is_kept_where_tags_are_wrong() -> None:
    text = EXAMPLES["threadweaver"].replace(
        "It is 5.", "a\n<Parallel>\n<Thread>\nb\n</Parallel>\nc"
    )
    document, diagnostics = mvspec.parse(text, "threadweaver", recover=True)
    kept = " ".join(part.text for part in document.walk(mvspec.Text))
    assert re.findall(r"\b[abc]\b", kept) == ["a", "b", "c"]
    assert diagnostics


STRICT: tuple[tuple[str, str, str, int, str], ...] = (
    ("curator-summary", "S4: Compare", "</parallel>\nS4: C", 8, "</parallel> may not stand"),
    ("curator-summary", "S3: The product", "S2: The product", 2, "a label comes twice"),
    ("curator-plan", "[S1+S2, S3]", "[S1, S3]", 1, "the list of groups is not that of the plan"),
    ("curator-plan", "P1[", "P2[", 4, "expected group P1 and its units"),
    ("apr", "found it", "found <Path> it", 1, "a tag stands in a text"),
    ("apr", "right it is", "right \\ud83d", 1, "half of a surrogate pair is no character"),
    ("apr", '"sub_calls": [[', '"sub_calls": [[], [', 1, "a trace has one call more than"),
    ("apr", "]}]]}", "", 1, "this is not JSON"),
)
"""A form that is read strictly only, what its example has, what is found, the line, the message."""


@pytest.mark.parametrize(("form", "canonical", "found", "line", "message"), STRICT)
def test_a_form_that_is_read_strictly_only(
    form: str, canonical: str, found: str, line: int, message: str
) -> None:
    assert canonical in EXAMPLES[form]
    text = EXAMPLES[form].replace(canonical, found, 1)
    document, (diagnostic,) = mvspec.parse(text, form, recover=True)
    assert document == mvspec.Document()
    assert (diagnostic.code, diagnostic.line) == ("strict-only", line)
    assert diagnostic.message.startswith(message)
    with pytest.raises(mvspec.ParseError, match=f"'{form}' is read strictly only") as caught:
        mvspec.parse(text, form)
    assert (caught.value.diagnostic, caught.value.cut) == (diagnostic, False)


def test_a_warning_of_numbers_points_at_the_label() -> None:
    text = EXAMPLES["multiverse-prompt"].replace(" 2>", " 7>")
    from mvspec.data.check import check_record
    from mvspec.data.records import Fields, Record

    (warning,) = check_record(Record("a", text, fields=Fields("multiverse-prompt"))).diagnostics
    assert (warning.code, text[warning.offset : warning.end]) == ("numbering", "7")
