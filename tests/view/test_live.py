"""Live columns: every thread shows, in its room, and text never reaches the terminal as control."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from rich.cells import cell_len
from rich.console import Console

from mvspec.events import (
    Event,
    Finished,
    Forked,
    HoleFilled,
    Joined,
    PathEnded,
    TakenBack,
    Written,
)
from mvspec.view.live import LiveColumns

EVIL = " \x1b[31mred\x1b]0;title\x07 [bold red]x[/] :smile: \r\x00\u202e"


def wrote(thread: int, text: str, step: int = 0, author: str = "model", run: str = "") -> Written:
    return Written(run, thread, 0, 0, text, author, None, "", step)


def forked(thread: int, paths: range, labels: list[str], step: int = 0, *titles: str) -> Forked:
    given = (*titles, *[""] * (len(labels) - len(titles)))
    return Forked("", thread, tuple(paths), tuple(labels), given, step)


def paths_of(count: int, words: int = 40) -> Iterator[Event]:
    """A goal, and so many paths that write at the same time."""
    yield wrote(0, "the prompt", -1, "prompt")
    for number in range(1, count + 1):
        yield wrote(0, f"<Outline>\n{number}: Part {number}\n</Outline>\n", number)
    numbers = [str(n) for n in range(1, count + 1)]
    yield forked(0, range(1, count + 1), numbers, count, *(f"Part {n}" for n in numbers))
    for number in range(1, count + 1):
        yield wrote(number, f"\n<Path>\n{number}:", count, "engine")
    for word in range(words):
        for number in range(1, count + 1):
            yield wrote(number, f" w{word}of{number}", count + 1 + word)


def over(run: str) -> Finished:
    return Finished(run, cast("Any", None))  # the result is not looked at


def after(events: Iterator[Event] | list[Event]) -> LiveColumns:
    """Columns that have taken the events, without a terminal."""
    live = LiveColumns(Console(file=io.StringIO(), force_terminal=False))
    for event in events:
        live.show(event)
    return live


def screen(live: LiveColumns, width: int = 80, height: int = 24) -> list[str]:
    console = Console(
        width=width, height=height, color_system=None, force_terminal=True, file=io.StringIO()
    )
    with console.capture() as capture:
        console.print(live)
    return capture.get().split("\n")[:-1]


def shown_in(lines: list[str]) -> str:
    return "\n".join(lines)


# On a terminal


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
@pytest.mark.parametrize("height", [8, 24, 50])
@pytest.mark.parametrize("count", [1, 3, 8, 200])
def test_a_screen_fits(width: int, height: int, count: int) -> None:
    live = after(paths_of(count, 12))
    began = time.perf_counter()
    lines = screen(live, width, height)
    assert time.perf_counter() - began < 1
    assert len(lines) < height
    assert max(map(cell_len, lines)) <= width


def test_eight_threads_stand_four_by_two_on_80_columns() -> None:
    lines = screen(after(paths_of(8)))
    heads = [line for line in lines if "Part" in line]
    assert [[int(n) for n in re.findall(r"(\d) Part", line)] for line in heads] == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
    ]
    # The newest word of each, in the column of its head.
    for number in range(1, 9):
        word = next(line for line in lines if f"w39of{number}" in line)
        head = next(line for line in heads if f"{number} Part" in line)
        assert 0 <= word.index(f"w39of{number}") - head.index(f"{number} Part") < 18


@pytest.mark.parametrize(("width", "across"), [(30, 1), (80, 4), (120, 4), (200, 8)])
def test_threads_stand_side_by_side_as_the_width_allows(width: int, across: int) -> None:
    heads = [line for line in screen(after(paths_of(8)), width, 60) if "Part" in line]
    assert [line.count("Part") for line in heads] == [across] * (8 // across)


def test_every_thread_shows_or_is_counted() -> None:
    text = shown_in(screen(after(paths_of(8, 3)), 120, 40))
    assert all(f"{number} Part {number}" in text for number in range(1, 9))
    lines = screen(after(paths_of(200, 3)))
    heads = len(re.findall(r"\d Pa", shown_in(lines)))
    assert f"… {200 - heads} more threads" in lines[1]
    assert heads >= 16


def test_threads_that_run_come_before_those_that_ended() -> None:
    events = [*paths_of(200, 3), *(wrote(200, f" late{step}", 210 + step) for step in range(9))]
    assert "late8" in shown_in(screen(after(events)))


def test_the_newest_lines_are_shown() -> None:
    live = after([wrote(0, f"line {number}\n", number) for number in range(100)])
    lines = screen(live)
    assert lines[0].startswith("root ─")
    assert lines[0].rstrip().endswith("100")
    assert [line.strip() for line in lines[1:]] == [f"line {number}" for number in range(84, 100)]


def test_the_prompt_and_the_header_are_not_shown() -> None:
    lines = screen(after(paths_of(2, 2)))
    assert [part.strip() for part in lines[-1].split("  ") if part] == [
        "w0of1 w1of1",
        "w0of2 w1of2",
    ]
    assert len(lines) == 3
    lines = screen(after([wrote(0, "the prompt", -1, "prompt"), wrote(0, "Yes.")]))
    assert [line.strip() for line in lines[1:]] == ["Yes."]


def test_a_header_in_prose_is_not_shown_either() -> None:
    events: list[Event] = [forked(0, range(1, 3), ["1", "2"], 0, "Time")]
    events += [wrote(1, "\n1. Time\n", 0, "engine"), wrote(1, "Short.", 1)]
    events += [wrote(2, "\n2. ", 0, "engine"), wrote(2, "1. Long.", 1)]
    lines = screen(after(events))
    assert [part.strip() for part in lines[-1].split("  ") if part.strip()] == [
        "Short.",
        "1. Long.",
    ]
    assert len(lines) == 3


def test_titles_come_with_the_fork() -> None:
    text = shown_in(screen(after([forked(0, range(1, 3), ["1", "2"], 0, "", "Time")])))
    assert "2 Time" in text
    assert re.search(r"\n1 ─", text)


def test_nested_blocks() -> None:
    events = [*paths_of(2, 2), forked(2, range(3, 5), ["2.1", "2.2"], 9)]
    events += [wrote(3, " inner", 10), wrote(4, " other", 10)]
    lines = screen(after(events))
    assert lines[0].rstrip() == "root waits for 1, 2"
    assert lines[1].rstrip() == "2 Part 2 waits for 2.1, 2.2"
    assert re.match(r"· 1 Part 1 ─+ 3 +2\.1 ─+ 1 +2\.2 ─+ 1", lines[2])
    lines = screen(after([*events, Joined("", 2, (3, 4), 11), wrote(2, " again", 11)]))
    assert re.match(r"· 1 Part 1 ─+ 3 +2 Part 2 ─+ 4", lines[1])
    assert "inner" not in shown_in(lines)
    # A label that does not say whose it is.
    lines = screen(after([*paths_of(2, 2), forked(2, range(3, 4), ["1"], 9)]))
    assert "2 › 1 ─" in shown_in(lines)


def test_a_path_that_ended_stays_until_the_join() -> None:
    events = [*paths_of(2, 5), PathEnded("", 1, 8)]
    assert re.match(r"✓ 1 Part 1 .*  2 Part 2", screen(after(events))[1])
    # One that has not ended may wait for its turn.
    events = [*paths_of(2, 5), *(wrote(2, " on", step) for step in range(8, 12))]
    assert re.match(r"· 1 Part 1 .*  2 Part 2", screen(after(events))[1])
    lines = screen(after([*events, Joined("", 0, (1, 2), 12), wrote(0, "\nDone.", 12)]))
    assert lines[0].startswith("root ─")
    assert lines[-1].strip() == "Done."


def test_several_runs_are_told_apart() -> None:
    live = after([wrote(0, "left", 0, run="a"), wrote(0, "right", 0, run="b\x1b")])
    assert re.match(r"a: root ─+ 1  b␛: root ─+ 1", screen(live)[0])
    live.show(over("a"))
    assert re.match(r"root ─+ 1$", screen(live)[0])
    live.show(over("b\x1b"))
    assert screen(live) == []


def test_much_text_is_forgotten() -> None:
    live = after([wrote(0, "a word and its space\n" * 10, step) for step in range(2_000)])
    assert len(live.runs[""].columns[0].text) < 200_000
    assert len(screen(live)) == 17


def test_a_terminal_gets_frames_and_no_control_of_the_text() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=24, color_system="truecolor")
    with LiveColumns(console) as live:
        for event in paths_of(2, 5):
            live.show(event)
        live.show(forked(1, range(3, 4), [EVIL], 9, EVIL))
        live.show(wrote(3, EVIL, 10))
        live.show(wrote(2, EVIL, 10))
        time.sleep(0.3)
    written = out.getvalue()
    assert "␛[31mred␛]0;title␇" in written
    assert "[bold red]x[/] :smile:" in written
    # rich's own codes: colours, the cursor's moves, hide and show it; never those of the text.
    codes = set(re.findall(r"\x1b(\[[0-9;?]*[A-Za-z]|.)", written))
    assert all(code == "[" or re.match(r"\[[0-9;?]*[mAKhl]", code) for code in codes)
    assert "\x1b[31m" not in written
    assert not set(written) & set("\x00\x07\u202e")
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1


def test_an_error_leaves_the_terminal_in_order() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=24)

    def stopped() -> None:
        with LiveColumns(console) as live:
            live.show(wrote(0, "text"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert "\x1b[?25h" in out.getvalue()


# Elsewhere


def log_of(events: list[Event]) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=40)
    with LiveColumns(console) as live:
        for event in events:
            live.show(event)
    return out.getvalue().split("\n")[:-1]


def test_a_pipe_gets_a_line_for_each_hole_and_each_path_as_it_ends() -> None:
    events: list[Event] = [forked(0, range(1, 4), ["1", "2", "3"], 0, "Cost")]
    events += [wrote(1, "\n<Path>\n1:", 0, "engine"), wrote(1, " Low.\nVery.", 1)]
    events += [wrote(1, "\n</Path>", 2), PathEnded("", 1, 2), wrote(2, "Fast", 1)]
    events += [HoleFilled("", 2, "speed", "Fast", "Fast", False, 1)]
    events += [HoleFilled("", 3, "rank", "1", None, True, 1), PathEnded("", 3, 1)]
    events += [PathEnded("", 2, 3), Joined("", 0, (1, 2, 3), 3), wrote(0, "Buy.", 4)]
    events += [over("")]
    assert log_of(events) == [
        "1 Cost: 3 tokens: Low.␊Very.",
        "2: speed = Fast",
        "3: rank (cut) = 1",
        "3: 0 tokens",
        "2: 1 token",
    ]


def test_a_pipe_gets_one_line_of_each_text_and_no_control_codes() -> None:
    events: list[Event] = [forked(0, range(1, 2), ["1"], 0, EVIL), wrote(1, EVIL + "\nb" * 900)]
    events += [HoleFilled("", 0, EVIL, EVIL + "\nb", None, False, 0), PathEnded("", 1, 1)]
    lines = log_of(events)
    assert len(lines) == 2
    assert not any(ord(character) < 32 for line in lines for character in line)
    assert "[bold red]x[/] :smile: ␍␀\\u202e␊b" in lines[0]
    assert "more characters)" in lines[1]


def test_paths_of_a_run_that_broke_off_are_told_too() -> None:
    events: list[Event] = [*paths_of(2, 1), PathEnded("", 2, 3), over("")]
    assert log_of(events) == ["2 Part 2: 2 tokens: w0of2", "1 Part 1: 2 tokens: w0of1"]


def test_what_was_taken_back_is_not_shown() -> None:
    events: list[Event] = [wrote(0, word, n) for n, word in enumerate(("One", " two", " st", "op"))]
    live = after([*events, TakenBack("", 0, 2, 4)])
    lines = screen(live)
    assert lines[0].rstrip().endswith(" 2")
    assert [line.strip() for line in lines[1:]] == ["One two"]
    live.show(wrote(0, ".", 4))
    assert [line.strip() for line in screen(live)[1:]] == ["One two."]
