"""Record views: what the page shows of a record is what the law says; nothing of it is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bpe import chat_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from nasty import NASTY, nasty
from strategies import documents, mutated, turns
from test_traces import RUNS
from traces import CANONICAL, TRACES

import mvspec
from mvspec.compiler import compile_document, dense_mask
from mvspec.compiler.token_view import lay_tokens
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.data.measure import count_words, measure
from mvspec.data.records import Fields, Record
from mvspec.data.sources import read
from mvspec.errors import VerifyError
from mvspec.forms.recovery.edits import apply
from mvspec.tree.ir import Document, Message
from mvspec.view.record_view import (
    AUTHORS,
    RecordView,
    TokenRun,
    TreeBranch,
    TreeLeaf,
    ViewedThread,
    lay_words,
    ramps,
    units,
    words,
)
from mvspec.view.records import trace_view, view_of

TOKENIZER = chat_tokenizer()
VOCABULARY = Vocabulary.of(TOKENIZER)


def expanded(runs: list[TokenRun]) -> tuple[list[int], list[int], list[int]]:
    """Thread, author and position of each token."""
    threads: list[int] = []
    authors: list[int] = []
    positions: list[int] = []
    for run in runs:
        threads += [run.thread] * run.size
        authors += [run.author] * run.size
        positions += range(run.position, run.position + run.size)
    return threads, authors, positions


def mask(threads: list[ViewedThread], runs: list[TokenRun]) -> np.ndarray[Any, Any]:
    """Who sees whom, by the view's intervals, as the page draws it."""
    owners = expanded(runs)[0]
    seen = np.tril(np.ones((len(owners), len(owners)), dtype=np.bool_))
    _, hidden = RecordView("", "", "text", threads=threads, runs=runs).law()
    for query, owner in enumerate(owners):
        intervals = hidden[owner]
        for lo, hi in zip(intervals[::2], intervals[1::2], strict=True):
            seen[query, lo:hi] = False
    return seen


def in_units(text: str, start: int, stop: int) -> str:
    data = text.encode("utf-16-le", "surrogatepass")
    return data[2 * start : 2 * stop].decode("utf-16-le", "surrogatepass")


def leaves(nodes: tuple[TreeBranch | TreeLeaf, ...]) -> list[TreeLeaf]:
    out: list[TreeLeaf] = []
    for node in nodes:
        out += [node] if isinstance(node, TreeLeaf) else leaves(node.children)
    return out


def test_ramps_and_units() -> None:
    assert ramps([]) == []
    assert ramps([3, 3, 3, 4, 5, 9]) == [3, 0, 3, 4, 1, 2, 9, 0, 1]
    assert units("a👍é") == 4


@given(st.lists(st.integers(-3, 3)))
def test_ramps_lose_nothing(values: list[int]) -> None:
    found = ramps(values)
    back = [
        first + step * index
        for first, step, count in zip(found[::3], found[1::3], found[2::3], strict=True)
        for index in range(count)
    ]
    assert back == values


@given(st.text())
def test_words_add_up(text: str) -> None:
    space, found = words(text)
    assert space + "".join(found) == text
    assert len(found) == count_words(text)


@given(documents(gen=False))
def test_a_document_in_words(document: Document) -> None:
    pages = lay_words(document)
    texts = [each.text for each in document.walk(mvspec.Text)]
    assert [in_units(pages.text, *leaf) for leaf in leaves(pages.tree)] == texts
    assert sum(pages.widths) == units(pages.text)
    assert sum(run.size for run in pages.runs) == len(pages.widths)
    view = RecordView("a", "a", "document", runs=pages.runs, threads=pages.threads)
    metrics = measure(document, count_words)
    prompts = sum(count_words(t.text) for m in document.messages if m.role != "assistant"
                  for t in m.body if isinstance(t, mvspec.Text))  # fmt: skip
    assert view.law()[0] == metrics
    blank = bool(pages.text) and not pages.text.strip() and not metrics.tokens
    assert sum(run.size for run in pages.runs if not run.author) == prompts + blank
    labels = [path.label for path in document.walk(mvspec.Path)]
    assert sorted(labels) == sorted(thread.label for thread in pages.threads[1:])


@given(message=turns(max_depth=3))
def test_a_document_in_tokens_is_its_layout(message: Message) -> None:
    document = mvspec.document(message)
    layout = compile_document(document, TOKENIZER)
    pages = lay_tokens(document, VOCABULARY)
    threads, authors, positions = expanded(pages.runs)
    assert positions == layout.position_ids.tolist()
    assert list(pages.ids) == layout.input_ids.tolist()
    assert np.array_equal(mask(pages.threads, pages.runs), dense_mask(layout))
    free = [AUTHORS[author] == "model" for author in authors]
    assert free[1:] == layout.loss_mask.tolist()[1:]
    assert pages.text == mvspec.render(message)
    assert [in_units(pages.text, *leaf) for leaf in leaves(pages.tree)] == [
        text.text for text in message.walk(mvspec.Text)
    ]
    in_words = lay_words(document)
    assert in_words.text == pages.text
    assert in_words.tree == pages.tree
    # Paths get their numbers when they fork, or as they come: names tell them apart here.
    names = [[thread.label for thread in each.threads] for each in (pages, in_words)]
    assert sorted(names[0]) == sorted(names[1])
    assert set(threads) <= set(range(len(pages.threads)))


def test_a_chat_in_tokens() -> None:
    block = mvspec.parallel(mvspec.branch("a", "One."), mvspec.branch("b", "Two."))
    document = mvspec.document(
        mvspec.system("Hm"), mvspec.user("Hm"), mvspec.assistant("Hm\n", block), mvspec.user("é?")
    )
    pages = lay_tokens(document, VOCABULARY)
    layout = compile_document(document, TOKENIZER)
    assert expanded(pages.runs)[2] == layout.position_ids.tolist()
    roles = [node.title for node in pages.tree if isinstance(node, TreeBranch)]
    assert roles == ["system", "user", "assistant", "user"]
    assert [in_units(pages.text, *leaf) for leaf in leaves(pages.tree)] == [
        "Hm", "Hm", "Hm\n", "One.", "Two.", "é?",
    ]  # fmt: skip


def test_holes_are_counted_in_words() -> None:
    document = mvspec.document(mvspec.assistant("A ", mvspec.gen("x")))
    record = Record("a", document.to_json(), "json")
    view = view_of(record, lay=lambda each: lay_tokens(each, VOCABULARY))
    assert view.unit == "words"
    (message,) = view.tree
    assert isinstance(message, TreeBranch)
    hole = message.children[1]
    assert isinstance(hole, TreeBranch)
    assert (hole.kind, hole.title, hole.text) == ("gen", "x", "at most 256 tokens")


@pytest.mark.parametrize(
    "kind", ["static, untagged", "turns", "out of budget", "adaptive, cut", "adaptive, loose"]
)
def test_a_trace_is_its_layout(kind: str) -> None:
    engine, document, options = RUNS[kind]
    trace = engine.run(document, options).trace
    row = json.loads(trace.model_dump_json(exclude_none=True))
    view = trace_view("a", "a:1", row)
    threads, authors, positions = expanded(view.runs)
    assert threads == list(trace.thread_ids)
    assert [AUTHORS[author] for author in authors] == list(trace.authors)
    assert positions == list(trace.position_ids)
    assert view.text == "".join(trace.token_texts)
    assert view.widths == [units(text) for text in trace.token_texts]
    assert np.array_equal(mask(view.threads, view.runs), dense_mask(trace.layout))
    assert view.law()[0] == trace.metrics
    kept = "".join(in_units(view.text, *leaf) for leaf in leaves(view.tree))
    if "untagged" in kind:  # by its threads, everything
        assert kept == view.text
    elif view.verdict == "ok" and trace.document:
        for message in trace.document.messages:
            if message.role == "assistant":
                assert "".join(text.text for text in message.walk(mvspec.Text)) in kept


def test_a_run_that_shared_says_that_its_mask_is_another() -> None:
    facts = dict(trace_view("a", "a:1", row(share=3)).facts)
    assert facts["share"] == "paths read each other every 3 tokens: not in the mask"
    assert "share" not in dict(trace_view("a", "a:1", row(share=0)).facts)


def row(**more: Any) -> dict[str, Any]:
    """A trace of two tokens, with changes."""
    value: dict[str, Any] = {
        "token_texts": ["Hi", "."], "thread_ids": [0, 0], "position_ids": [0, 1],
        "authors": ["model", "model"], "logprobs": [-0.5, None], "forward_ids": [0, 1],
        "forward_seconds": [0.1, 0.2], "forward_tokens": [1, 1], "ids": [5, 6],
        "threads": [{"id": 0}],
    }  # fmt: skip
    return {**value, **more}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"token_texts": ["Hi", 1]}, "token_texts"),
        ({"thread_ids": [0, 1]}, "thread_ids"),
        ({"thread_ids": [0, True]}, "thread_ids"),
        ({"position_ids": [0]}, "position_ids"),
        ({"authors": ["model", "me"]}, "authors"),
        ({"authors": ["model", ["model"]]}, "authors"),
        ({"forward_ids": [0, 2]}, "forward_ids"),
        ({"logprobs": [0.0]}, "logprobs"),
        ({"logprobs": ["x", None]}, "logprobs"),
        ({"forward_seconds": [None, 1]}, "forward_seconds"),
        ({"threads": []}, "thread"),
        ({"threads": [{"id": 1}]}, "threads[0]"),
        ({"threads": [{"id": 0}, {"id": 1, "parent": 1}]}, "threads[1]"),
        ({"threads": [{"id": 0, "label": 3}]}, "threads[0]"),
        ({"ids": [1]}, "2 of 1 tokens"),
        ({"ids": [1, 2**40]}, "ids"),
        ({"position_ids": [0, -(10**400)]}, "position_ids"),
        ({"forward_seconds": [0.1, float("inf")]}, "forward_seconds"),
        ({"logprobs": {"a": 1, "b": 2}}, "logprobs"),
    ],
)
def test_what_is_no_trace_says_where(change: dict[str, Any], where: str) -> None:
    with pytest.raises(VerifyError) as error:
        trace_view("a", "a:1", row(**change))
    assert where in str(error.value)
    record = Record("a:1", row(**change), "value")
    view = view_of(record)
    assert (view.verdict, view.diagnostics[0].code) == ("unread", "not-a-trace")
    assert where in view.diagnostics[0].message
    assert json.loads(view.source or "") == row(**change)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([10**400, "prompt", "engine", "interrupted", "untagged", "curator-plan"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from([*row(), "model", "seconds", "finish", "form", "share"]), JSON)
)
def test_no_trace_stops_the_viewer(changes: dict[str, Any]) -> None:
    value = row(**changes)
    view = view_of(Record("a:1", value, "value"))
    for line in view.lines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    json.dumps(view.index(), allow_nan=False)


def test_threads_that_nest_too_deep_are_no_trace() -> None:
    threads = [{"id": n, "parent": n - 1, "block": n} if n else {"id": 0} for n in range(5000)]
    view = view_of(Record("a:1", row(threads=threads), "value"))
    assert "threads[33]: blocks nest deeper than 32" in view.diagnostics[0].message


def test_a_trace_by_its_threads() -> None:
    threads = [{"id": 0}, *({"id": n, "parent": 0, "block": 0, "label": str(n)} for n in (1, 2)),
               {"id": 3, "parent": 2, "block": 1, "label": "2.1"},
               {"id": 4, "parent": 0, "block": 2, "label": "1"}]  # fmt: skip
    owners = [0, 1, 2, 3, 2, 4, 0]
    view = trace_view("a", "a:1", {
        **row(threads=threads, thread_ids=owners, form="untagged"),
        "token_texts": list("abcdefg"),
        "position_ids": [0, 1, 1, 2, 3, 4, 5], "authors": ["model"] * 7,
        "logprobs": [None] * 7, "ids": [0] * 7,
        "forward_ids": list(range(7)), "forward_seconds": [0.1 * n for n in range(7)],
        "forward_tokens": [1] * 7,
    })  # fmt: skip

    def told(node: TreeBranch | TreeLeaf) -> Any:
        if isinstance(node, TreeLeaf):
            return view.text[node.start : node.stop]
        return [node.title or node.kind, view.text[node.start : node.stop],
                *map(told, node.children)]  # fmt: skip

    assert [told(node) for node in view.tree] == [
        "a",
        ["parallel", "bcde", ["1", "b", "b"],
         ["2", "cde", "c", ["parallel", "d", ["2.1", "d", "d"]], "e"]],
        ["parallel", "f", ["1", "f", "f"]],
        "g",
    ]  # fmt: skip


def test_turns_of_a_trace_share_their_diagnostics() -> None:
    texts = ["<Path>x", "Well?\n", "Hm\n<Think>\ny"]
    value = row(token_texts=texts, thread_ids=[0] * 3, position_ids=[0, 1, 2], ids=[0] * 3,
                logprobs=[None] * 3, authors=["model", "prompt", "model"],
                forward_ids=[0, -1, 1])  # fmt: skip
    view = trace_view("a", "a:1", value)
    assert view.verdict == "malformed"
    assert view.source == texts[0] + texts[2]
    assert {d.line for d in view.diagnostics} > {1, 2}
    for each in view.diagnostics:
        assert view.source[each.offset : each.end] == each.dropped


def test_a_logprob_that_is_no_number_is_left_out() -> None:
    view = trace_view("a", "a:1", row(logprobs=[float("-inf"), float("nan")]))
    assert list(view.logprobs) == [None, None]
    assert "logprobs" not in json.loads(view.lines()[1])


def test_a_field_may_be_nested_deep() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = {"a": deep}
    view = view_of(Record("a", {"output": "Hi", "deep": deep}, "value"))
    assert view.fields[0][0] == "deep"
    assert json.loads(view.lines()[0])[0] == "Hi"


@given(mutated())
def test_any_text_has_a_view(text: str) -> None:
    view = view_of(Record("a.txt", text))
    searched, rest = view.lines()
    assert searched.isascii()
    assert "\n" not in searched + rest
    # Halves of a surrogate pair that meet in JSON are one character.
    assert in_units(text, 0, units(text)) in json.loads(searched)
    if any(each.code == "other-form" for each in view.diagnostics):
        return  # a text of another form is named, and not repaired as this one
    repaired = apply(text, tuple(d for d in view.diagnostics if d.severity == "error"))
    if view.verdict == "ok":  # what white space stands at its tags is a variant of the form
        repaired = mvspec.render(mvspec.parse(text).messages[0])
    assert view.text == repaired
    assert len(view.places) == len(view.diagnostics)
    for place, each in zip(view.places, view.diagnostics, strict=True):
        if each.severity == "error":
            width = units(each.inserted)
            assert in_units(repaired, place, place + width) == each.inserted


@pytest.mark.parametrize("each", TRACES, ids=lambda each: each.name)
def test_repairs_are_shown(each: Any) -> None:
    view = view_of(Record(each.name, each.text))
    variant = {*each.codes} <= {"separator", "missing-newline"}
    codes = () if variant else each.codes
    assert tuple(d.code for d in view.diagnostics if d.severity == "error") == codes
    assert view.text == each.repaired
    assert view.verdict == ("ok" if not codes else "cut" if codes == ("cut",) else "malformed")


@given(st.lists(nasty(), min_size=3, max_size=3))
def test_views_of_nasty_texts(texts: list[str]) -> None:
    value = row(token_texts=texts[:2], threads=[{"id": 0, "title": texts[2]}], model=texts[2])
    view = trace_view(texts[0], texts[1], value)
    searched, rest = view.lines()
    assert json.loads(searched)[0] == texts[0] + texts[1]
    assert (searched + rest).isascii()


def test_rows_are_what_they_hold(tmp_path: Path) -> None:
    block = mvspec.document(mvspec.user("Q"), mvspec.assistant("A"))
    rows: list[Any] = [
        {"settings": {"model": "m"}},
        CANONICAL,
        json.loads(block.to_json()),
        row(),
        {"id": "p1", "sample": 2, "group": "aime", "output": "Answer: 4", "score": 1.0,
         "extracted": "4"},
        {"id": "p2", "output": "<Think>\nHm", "correct": False, "question": "Why?"},
        {"id": "p3", "trace": row(), "correct": True, "task": "own"},
        {"id": "p4", "document": json.loads(block.to_json())},
        {"id": "p5", "strange": 1},
        7,
    ]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n", "utf-8")
    views = [view_of(record) for record in read(file).checked(heads=True)]
    assert [view.kind for view in views] == [
        "settings", "text", "document", "trace", "sample", "sample", "sample", "sample",
        "text", "text", "text",
    ]  # fmt: skip
    assert [view.verdict for view in views] == [
        "", *["ok"] * 4, "cut", "ok", "ok", "unread", "unread", "unread",
    ]  # fmt: skip
    assert [view.right for view in views[3:8]] == [None, True, False, True, None]
    assert [view.asked for view in views[4:8]] == [
        [("extracted", "4")],
        [("question", "Why?")],
        [],
        [],
    ]
    assert views[3].fields == []
    assert [view.label for view in views[4:7]] == ["aime", "", "own"]
    assert views[4].name == "p1 sample 2"
    assert views[5].lead == "Why?"
    assert dict(views[4].fields)["extracted"] == "4"
    assert views[3].name == "rows.jsonl:4"
    assert "strange" in (views[8].source or "")
    assert views[10].diagnostics[0].code == "invalid-json"
    for view in views:
        assert json.loads(view.lines()[1])["place"].startswith(str(file))


@pytest.mark.parametrize("form", ["threadweaver", "multiverse-prompt", "curator"])
def test_other_forms_keep_their_text(form: str) -> None:
    block = mvspec.parallel(mvspec.branch("a", "One."), mvspec.branch("b", "Two."),
                            conclusion="Both.")  # fmt: skip
    think = [mvspec.think(block)] if form == "curator" else [block]
    text = mvspec.render(mvspec.assistant(*think), form)
    view = view_of(Record("a", text, fields=Fields(form)))
    assert view.verdict == "ok"
    assert text in (view.text, view.source)
    assert [thread.label for thread in view.threads] == ["", "1", "2"]


def test_nasty_names_and_fields() -> None:
    for text in NASTY:
        record = Record(text, {"id": text, text: text, "output": "Answer"}, "value")
        view = view_of(record)
        assert (text, text) in view.fields
