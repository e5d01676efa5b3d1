"""The machine: what it expects, how it refuses, how it closes, and what its limits do."""

from __future__ import annotations

import pytest

import mvspec
from mvspec.law.automaton import TagAutomaton
from mvspec.law.limits import Limits
from mvspec.law.tags import Tag

# Tokens of the fixed texts in Qwen2.5's vocabulary.
QWEN = {"\n": 1, "\n\n": 1, "\n1: \n": 4, "\n1:": 3, " \n": 1}

BLOCK = [
    *(Tag.PARALLEL, "\n", Tag.GOAL, "\n", Tag.OUTLINE, "\n1: a\n", Tag.END_OUTLINE, "\n"),
    *(Tag.OUTLINE, "\n2: b\n", Tag.END_OUTLINE, "\n", Tag.END_GOAL),
]


def machine(limits: Limits | None = None) -> TagAutomaton:
    return TagAutomaton(limits=limits, tokens=QWEN.__getitem__)


def forked() -> TagAutomaton:
    out = TagAutomaton()
    for event in BLOCK:
        out.feed(event)
    return out


def test_what_may_come_in_a_turn() -> None:
    expect = machine().expect(0)
    assert expect.tags == {Tag.THINK, Tag.PARALLEL}
    assert expect.free
    assert expect.end
    assert not expect.fixed


def test_the_goal_is_dictated_up_to_its_text() -> None:
    out = machine()
    out.feed(Tag.PARALLEL)
    assert out.expect(0).fixed == "\n"
    out.feed("\n")
    assert out.expect(0).tags == {Tag.GOAL}
    for event in (Tag.GOAL, "\n", Tag.OUTLINE, "\n"):
        out.feed(event)
    assert out.expect(0).fixed == "1: "
    out.feed("1: ")
    expect = out.expect(0)
    assert expect.free
    assert expect.one_line
    assert not expect.tags
    out.feed("a line\n")
    assert out.expect(0).tags == {Tag.END_OUTLINE}


def test_a_fork_starts_every_path_at_one_position() -> None:
    out = forked()
    assert out.live == (1, 2)
    assert [out.threads[i].position for i in out.live] == [len(BLOCK)] * 2
    assert out.expect(1).fixed == "\n"
    for event in ("\n", Tag.PATH, "\n", "1:"):
        out.push(1, event)
    assert out.expect(1).lead == " "
    with pytest.raises(mvspec.VerifyError, match="starts with ' '"):
        out.push(1, "x")


def test_the_join_waits_for_the_longest_path_in_any_order() -> None:
    out = forked()
    for event in ("\n", Tag.PATH, "\n", "2:", " short\n"):
        out.push(2, event)
    assert out.push(2, Tag.END_PATH).joined is None
    for event in ("\n", Tag.PATH, "\n", "1:", " a", " longer", " path\n"):
        out.push(1, event)
    step = out.push(1, Tag.END_PATH)
    assert step.joined == 0
    join = out.push(0, "\n")
    assert join.position == step.position + 1
    assert join.parent == -1


@pytest.mark.parametrize(
    ("events", "refused", "why"),
    [
        ([], Tag.PATH, "<Parallel> or <Think>"),
        (["text"], Tag.PARALLEL, "text and a newline"),
        (["\n"], Tag.PARALLEL, "text and a newline"),
        ([Tag.PARALLEL], "x", "'\\\\n'"),
        ([Tag.PARALLEL, "\n"], "text", "a tag"),
        (["a</Thi"], "nk>", "</Think> in plain characters"),
        ([Tag.THINK, "\n"], Tag.THINK, "</Think> or <Parallel>"),
        (BLOCK[:6][:-1], "\n7: a\n", "'1: '"),
    ],
)
def test_refusals_say_what_was_expected(
    events: list[Tag | str], refused: Tag | str, why: str
) -> None:
    out = TagAutomaton()
    for event in events:
        out.feed(event)
    with pytest.raises(mvspec.VerifyError, match=why):
        out.feed(refused)


def test_an_unknown_thread_is_refused() -> None:
    with pytest.raises(mvspec.VerifyError, match="no such thread"):
        TagAutomaton().push(3, "x")


@pytest.mark.parametrize("limit", ["max_tokens", "max_position"])
def test_the_shortest_block_is_27_tokens_of_qwens(limit: str) -> None:
    assert not machine(Limits.model_validate({limit: 26})).allows(0, Tag.PARALLEL)
    assert machine(Limits.model_validate({limit: 27})).allows(0, Tag.PARALLEL)


def test_a_thread_without_budget_is_told_how_to_close() -> None:
    out = TagAutomaton(limits=Limits(max_tokens=6))
    out.feed(Tag.THINK)
    out.feed("\n")
    out.feed("a")
    assert out.expect(0).closing == ("\n", Tag.END_THINK, "\n\n")
    with pytest.raises(mvspec.LimitExceeded, match="cannot be closed within the budget"):
        out.feed("b")
    for event in out.closing(0):
        out.feed(event)
    assert out.expect(0).end
    assert out.count == 6


def test_depth_and_paths_are_limited() -> None:
    with pytest.raises(mvspec.LimitExceeded, match="nest deeper than 0"):
        TagAutomaton(limits=Limits(max_depth=0)).feed(Tag.PARALLEL)
    out = TagAutomaton(limits=Limits(max_paths=1))
    for event in BLOCK[:8]:
        out.feed(event)
    assert out.expect(0).tags == {Tag.END_GOAL}
    with pytest.raises(mvspec.LimitExceeded, match="more than 1 paths"):
        out.feed(Tag.OUTLINE)


def test_a_prompt_longer_than_the_budget_is_refused() -> None:
    with pytest.raises(mvspec.LimitExceeded, match="prompt alone"):
        TagAutomaton(limits=Limits(max_position=5), position=6)


def test_tags_that_are_not_written_take_no_position() -> None:
    out = TagAutomaton(strict=False)
    out.feed("a")
    for tag in (Tag.PARALLEL, Tag.GOAL, Tag.OUTLINE, Tag.END_OUTLINE, Tag.END_GOAL, Tag.PATH):
        step = out.feed(tag, width=0)
    assert step.position == 1
    assert out.count == 1
    assert out.feed("b", width=3)[1:4] == (1, 1, 0)


def test_there_is_no_limit_of_paths_unless_one_is_set() -> None:
    out = TagAutomaton(strict=False)
    out.feed(Tag.PARALLEL)
    out.feed(Tag.GOAL)
    for _ in range(1000):
        out.feed(Tag.OUTLINE)
        out.feed(Tag.END_OUTLINE)
    assert len(out.feed(Tag.END_GOAL).forked) == 1000
