"""Timelines: bars where the tokens were, nothing wider than its room, text that stays text."""

from __future__ import annotations

import sys
import time
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from mvspec.errors import MvspecError, Unsupported
from mvspec.trace import Trace, TracedThread
from mvspec.view.timeline import timeline_svg, timeline_text, write_timeline

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "<script>alert(1)</script> & \x1b[31m\r\x00 {x} ]]> [bold]"

Token = tuple[int, str, int]  # thread, author, step
Finish = Literal["end", "interrupted"]


def trace_of(
    tokens: Iterable[Token], threads: Iterable[TracedThread] = (), finish: Finish = "end"
) -> Trace:
    """A trace of forwards of 0.1 s, whose tokens stand in the order of the surface form."""
    rows = list(tokens)
    forwards = max((step for _, _, step in rows), default=-1) + 1
    return Trace.model_validate(
        {
            "threads": (TracedThread(id=0), *threads),
            "ids": (0,) * len(rows),
            "token_texts": ("a ",) * len(rows),
            "thread_ids": tuple(owner for owner, _, _ in rows),
            "position_ids": tuple(range(len(rows))),
            "authors": tuple(author for _, author, _ in rows),
            "logprobs": (None,) * len(rows),
            "forward_ids": tuple(step for _, _, step in rows),
            "forward_seconds": tuple(0.1 * (step + 1) for step in range(forwards)),
            "forward_tokens": (1,) * forwards,
            "finish": finish,
        }
    )


def written(thread: int, start: int, stop: int) -> list[Token]:
    return [(thread, "model", step) for step in range(start, stop)]


def forced(thread: int, step: int, count: int = 3) -> list[Token]:
    return [(thread, "engine", step)] * count


def path(id: int, label: str, title: str = "", parent: int = 0, block: int = 0) -> TracedThread:
    return TracedThread(id=id, label=label, title=title, parent=parent, block=block)


def fork(first: str = "Hiking", second: str = "Fishing") -> Trace:
    """Forwards 0 to 3, a fork into two paths of 2 and of 6, forwards 10 and 11."""
    tokens = [(0, "prompt", -1)] * 2 + written(0, 0, 4)
    tokens += forced(1, 3) + written(1, 4, 6) + forced(2, 3) + written(2, 4, 10)
    tokens += forced(0, 9) + written(0, 10, 12)
    return trace_of(tokens, (path(1, "1", first), path(2, "2", second)))


def wide(paths: int, steps: int) -> Trace:
    tokens = written(0, 0, 10)
    for thread in range(1, paths + 1):
        tokens += forced(thread, 9) + written(thread, 10, 10 + steps * thread // paths)
    tokens += forced(0, 9 + steps) + written(0, 10 + steps, 20 + steps)
    threads = [path(each, str(each), f"Case {each}") for each in range(1, paths + 1)]
    return trace_of(tokens, threads)


def deep(levels: int) -> Trace:
    """A path inside a path, as often as `levels`."""
    before = [token for each in range(levels + 1) for token in written(each, each, each + 1)]
    after = [
        token
        for each in range(levels, -1, -1)
        for token in written(each, 2 * levels + 1 - each, 2 * levels + 2 - each)
    ]
    labels = [".".join("1" * each) for each in range(1, levels + 1)]
    threads = [path(n, label, "Deep", n - 1, n - 1) for n, label in enumerate(labels, 1)]
    return trace_of(before + after, threads)


def lines(trace: Trace, width: int = 80) -> list[str]:
    return timeline_text(trace, width).plain.split("\n")


def bars(trace: Trace, width: int = 80) -> list[str]:
    """The rows without their titles: a row's bars begin where the axis does."""
    shown = lines(trace, width)
    axis = next(index for index, line in enumerate(shown) if line.startswith("forwards"))
    left = shown[axis].index("0")
    return [line[left:] for line in shown[:axis] if not line.startswith("…")]


# In a terminal


def test_bars_stand_at_the_columns_of_their_forwards() -> None:
    root, first, second = bars(fork())
    each = 5  # columns of a forward
    assert root == "░" + "█" * 19 + "├" + "─" * 28 + "┤" + "▒" + "█" * 9
    assert first == " " * 4 * each + "▒" + "█" * 9 + "·" * 4 * each
    assert second == " " * 4 * each + "▒" + "█" * 29
    shown = "\n".join(lines(fork()))
    assert "1 Hiking" in shown
    assert "2 Fishing" in shown
    assert "23 tokens (9 forced)" in shown
    assert "12 forwards in 1.2 s, 19 tokens/s" in shown.replace("\n", " ")


def test_the_axis_has_forwards_and_seconds() -> None:
    shown = lines(fork())
    forwards, seconds = (next(x for x in shown if x.startswith(n)) for n in ("forw", "sec"))
    assert forwards.split() == ["forwards", "0", "2", "4", "6", "8", "10", "12"]
    assert seconds.split()[1:] == ["0.00", "0.20", "0.40", "0.60", "0.80", "1.00", "1.20"]
    assert forwards.index("4") - forwards.index("0") == 20


def test_a_column_may_stand_for_several_forwards() -> None:
    # 400 forwards in 40 columns, and a forced run in the middle of the model's tokens.
    tokens = written(0, 0, 200) + forced(0, 199) + written(0, 200, 400)
    assert bars(trace_of(tokens), 49) == ["█" * 20 + "▓" + "█" * 19]


def test_a_thread_that_writes_nothing_is_dotted() -> None:
    tokens = written(0, 0, 2) + forced(0, 1, 900) + written(0, 5, 8)
    assert bars(trace_of(tokens), 57) == ["█" * 12 + "▒" + "·" * 17 + "█" * 18]
    # One thread takes a token at a time: the second begins when the first has ended.
    tokens = written(0, 0, 1) + written(1, 1, 4) + forced(2, 0) + written(2, 4, 6)
    _, first, second = bars(trace_of(tokens, (path(1, "1"), path(2, "2"))), 45)
    assert first == " " * 6 + "█" * 18 + "·" * 12
    assert second == " " * 6 + "▒" + "·" * 17 + "█" * 12


def test_a_prompt_covers_the_forwards_that_read_it() -> None:
    tokens = [(0, "prompt", -1)] * 900 + written(0, 3, 5)
    assert bars(trace_of(tokens), 40) == ["░" * 18 + "█" * 12]


def test_two_blocks_without_a_token_between_them_stay_apart() -> None:
    tokens = written(0, 0, 1) + written(1, 1, 3) + written(2, 3, 5) + written(0, 5, 6)
    trace = trace_of(tokens, (path(1, "1"), path(2, "1", block=1)))
    root, first, second = bars(trace, 45)
    assert root == "█" * 6 + ("├" + "─" * 10 + "┤") * 2 + "█" * 6
    assert (first, second) == (" " * 6 + "█" * 12, " " * 18 + "█" * 12)


def test_a_block_that_never_joined_stays_open() -> None:
    tokens = written(0, 0, 2) + written(1, 2, 4) + written(2, 2, 6)
    paths = path(1, "1"), path(2, "2")
    assert bars(trace_of(tokens, paths, "interrupted"), 45)[0] == "█" * 12 + "├" + "─" * 23
    assert bars(trace_of(tokens, paths, "interrupted"), 45)[1] == " " * 12 + "█" * 12
    assert bars(trace_of(tokens, paths), 45)[0].endswith("┤")
    assert bars(trace_of(tokens, paths), 45)[1] == " " * 12 + "█" * 12 + "·" * 12
    assert timeline_svg(trace_of(tokens, paths, "interrupted")).count("interrupted") == 1


def test_paths_stand_below_their_parent() -> None:
    # Threads are numbered in the order of the forks: 1, 2, then the paths of 1.
    tokens = written(0, 0, 1) + written(1, 1, 2) + written(3, 2, 4) + written(4, 2, 3)
    tokens += written(1, 4, 5) + written(2, 1, 3) + written(0, 5, 6)
    paths = path(1, "1"), path(2, "2"), path(3, "1.1", "", 1, 1), path(4, "1.2", "", 1, 1)
    trace = trace_of(tokens, paths)
    assert [line.split()[0] for line in lines(trace)[:5]] == ["root", "1", "1.1", "1.2", "2"]
    assert lines(trace)[2].startswith("    1.1")
    assert bars(trace, 60)[1] == " " * 6 + "█" * 6 + "├" + "─" * 10 + "┤" + "█" * 6


@pytest.mark.parametrize("width", [24, 40, 80, 120, 200])
def test_nothing_is_wider_than_its_room(width: int) -> None:
    traces = [fork(), fork("答案" * 40, EVIL * 9), deep(30), wide(200, 50), trace_of([])]
    for trace in [*traces, trace_of(written(0, 0, 5_000)), trace_of(forced(0, -1, 50))]:
        console = Console(width=width, color_system=None)
        with console.capture() as capture:
            console.print(timeline_text(trace, width))
        shown = capture.get().rstrip("\n")
        assert shown == timeline_text(trace, width).plain
        assert max(map(cell_len, shown.split("\n"))) <= width


def test_many_threads_are_folded_and_counted() -> None:
    trace = wide(200, 2_000)
    began = time.perf_counter()
    shown = lines(trace)
    drawn = timeline_svg(trace)
    assert time.perf_counter() - began < 10
    rows = [line for line in shown if line.lstrip()[:1].isdigit() and "Case" in line]
    assert len(rows) == 39
    left = sum(3 + 2_000 * thread // 200 for thread in range(40, 201))
    assert f"… 161 more threads with {left:,} tokens" in shown
    assert len(drawn) < 400_000
    assert all(f">{each} Case {each}<" in drawn for each in range(1, 201))
    assert "50 more threads with" in timeline_svg(wide(449, 3))


def test_the_outermost_threads_are_shown_first() -> None:
    inner = [path(number, f"1.{number - 2}", "", 1, 1) for number in range(3, 60)]
    trace = trace_of(written(0, 0, 1), (path(1, "1"), path(2, "2", "Seen"), *inner))
    assert any("2 Seen" in line for line in lines(trace))


def test_the_end_of_a_deep_label_is_kept() -> None:
    shown = lines(deep(30), 60)
    assert any(line.lstrip().startswith("….1") for line in shown)


@given(st.text(), st.text())
def test_any_title_is_shown_as_text(first: str, second: str) -> None:
    trace = fork(first, second)
    shown = timeline_text(trace).plain
    assert not {unicodedata.category(character) for character in shown} & {"Cn", "Co", "Cs"}
    assert not any(unicodedata.category(c) == "Cc" for c in shown.replace("\n", ""))
    assert len(shown.split("\n")) == len(lines(fork()))
    ElementTree.fromstring(timeline_svg(trace))


# As a picture


def shapes(trace: Trace, kind: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(timeline_svg(trace))
    return [each for each in root.iter() if each.get("class") == kind]


def test_a_drawing_has_the_bars_of_the_trace() -> None:
    # The legend's come last, but for a lone row.
    *boxes, _ = shapes(fork(), "model")
    spans = [(float(box.attrib["x"]), float(box.attrib["width"])) for box in boxes]
    left = spans[0][0] - 4  # the prompt's mark
    assert [(x - left, width) for x, width in spans] == [
        (4, 92), (244, 44), (100, 44), (100, 140)
    ]  # fmt: skip
    tops = [float(box.attrib["y"]) for box in boxes]
    assert tops[0] == tops[1] < tops[2] < tops[3]
    # A fork and a join, each from the root's row to the last path's.
    links = [each.attrib["d"] for each in shapes(fork(), "wait")]
    upright = [
        link for link in links if link[1:].split("L")[0].split()[0] == link.split("L")[1].split()[0]
    ]
    assert [float(link[1:].split()[0]) - left for link in upright] == [96, 240]


def test_a_drawing_shows_every_title_and_what_the_thread_did() -> None:
    titles = [
        each.text or ""
        for each in ElementTree.fromstring(timeline_svg(fork())).iter()
        if each.tag == f"{SVG}title"
    ]
    assert [title.split("\n")[0] for title in titles] == ["root", "1 Hiking", "2 Fishing"]
    assert "5 tokens, 3 forced\nforwards 4 to 6, 0.40 to 0.60 s" in titles[1]
    assert "a a a" in titles[1]
    for kind in ("model", "engine", "prompt", "wait", "idle"):
        assert shapes(fork(), kind)


def test_text_in_a_drawing_is_no_markup() -> None:
    drawn = timeline_svg(fork(EVIL, "{0} {name} %s")).replace("\n", " ")
    assert "<script" not in drawn
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; ␛[31m␍␀ {x} ]]&gt; [bold]" in drawn
    assert "2 {0} {name} %s" in drawn
    assert "\x1b" not in drawn


def test_a_drawing_needs_nothing_else_and_follows_dark() -> None:
    drawn = timeline_svg(fork())
    assert drawn.replace("http://www.w3.org/2000/svg", "").count("http") == 0
    assert "prefers-color-scheme:dark" in drawn
    root = ElementTree.fromstring(drawn)
    assert not [each for each in root.iter() if "href" in each.attrib or "id" in each.attrib]


def test_long_runs_stay_small_drawings() -> None:
    tokens = [token for step in range(20_000) for token in (written(0, step, step + 1))]
    mixed = [
        token
        for step in range(5_000)
        for token in (*written(0, step, step + 1), *forced(0, step, 1))
    ]
    for trace in (trace_of(tokens), trace_of(mixed), wide(40, 5_000)):
        assert len(timeline_svg(trace)) < 100_000


def test_odd_traces_are_drawn() -> None:
    replay = trace_of(forced(0, -1) + forced(1, -1) + forced(0, -1), (path(1, "1"),))
    silent = trace_of(written(0, 0, 3), (path(1, "1", "Never began"),))
    undrawn = trace_of([(0, "prompt", -1), (0, "model", -1), *written(0, 0, 1)])
    for trace in (trace_of([]), undrawn, replay, silent, deep(100)):
        ElementTree.fromstring(timeline_svg(trace))
        assert lines(trace)[0].startswith("root")
    ElementTree.fromstring(timeline_svg(Trace(threads=())))
    assert lines(Trace(threads=()))[0] == "forwards 0"
    assert any("Never began" in line for line in lines(silent))


# In files


def test_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_timeline(tmp_path / "a.svg", fork())
    assert (tmp_path / "a.svg").read_text("utf-8") == timeline_svg(fork())
    titles = ("$\\frac$ $x_1$ 答案", EVIL)
    for number, trace in enumerate((fork(*titles), trace_of([]), deep(12), wide(40, 900))):
        file = tmp_path / f"{number}.PNG"
        write_timeline(str(file), trace)
        assert file.read_bytes().startswith(b"\x89PNG")


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    for name in ("a.gif", "a", "svg"):
        with pytest.raises(Unsupported, match=r"an \.svg or a \.png"):
            write_timeline(tmp_path / name, fork())
    with pytest.raises(MvspecError, match="there is no folder"):
        write_timeline(tmp_path / "none" / "a.svg", fork())


def test_a_png_without_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Unsupported, match=r"pip install 'mvspec\[compile\]'"):
        write_timeline(tmp_path / "a.png", fork())
    assert not list(tmp_path.iterdir())
