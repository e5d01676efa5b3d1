"""Law 10 by the million, in the nightly profile: made-up damage of every form, and atheris."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from dialects import READABLE
from fuzz_front_end import one, text_of
from test_law10_forms import check
from traces import CANONICAL, TRACES

import mvspec
from mvspec.forms import FORMS
from mvspec.forms.tagged import WINDOW
from mvspec.law.tags import TAG

NIGHTLY = os.environ.get("MVSPEC_PROFILE") == "nightly"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("form", READABLE)
def test_rows_of_tags(form: str) -> None:
    rng = random.Random(form)
    for _ in range(1_000_000 // len(READABLE) if NIGHTLY else 200):
        data = rng.randbytes(rng.randint(0, 40))
        check(text_of(data, form), form)


def test_traces_with_tags_lost_doubled_and_moved() -> None:
    rng = random.Random(0)
    for _ in range(1_000_000 if NIGHTLY else 300):
        parts = TAG.split(rng.choice(TRACES).text)
        tags = TAG.findall(CANONICAL)
        text = "".join(
            part + (rng.choice(tags) + rng.choice(["\n", "", " "])) * rng.choice([0, 1, 1, 1, 2])
            for part in parts
        )
        check(text, "multiverse")


def test_the_fuzzer_holds_the_law_on_an_input() -> None:
    for index in range(len(READABLE)):
        one(bytes([index]) + b"\x00\x80\x81a<\n\xff")


@pytest.mark.skipif(not NIGHTLY, reason="a minute of the nightly profile")
def test_atheris(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("needs atheris")
    path = os.pathsep.join(str(ROOT / each) for each in (".", "tests", "tests/laws"))
    command = [sys.executable, "tests/fuzz_front_end.py", "-max_total_time=60", "-max_len=400"]
    paths = os.pathsep.join(filter(None, (path, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*command, f"-artifact_prefix={tmp_path}/", str(tmp_path)], cwd=ROOT, check=False,
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


GOAL = "<Parallel>\n<Goal>\n"
BLOCK = GOAL + "<Outline>\n1: a\n</Outline>\n</Goal>\n<Path>\n1: b\n"
PLAN = "Parallel groups:\nParallel execution plan:\n"
CALLS = '{"main_calls": ["'
INSIDE: dict[str, tuple[tuple[str, str], ...]] = {
    "multiverse": ((GOAL, "1: a\n"), (GOAL, "<Outline>\n1: a\n</Outline>\n"), ("", BLOCK),
                   (BLOCK, "</Path>\n<Path>\n1: a\n"), (BLOCK, "text\n</Path>\n"),
                   (BLOCK + "</Path>\n", "<Conclusion>\nx\n")),
    "multiverse-prompt": (("<Parallel>\n", "<Goal 1>\na\n</Goal 1>\n"),
                          ("<Parallel>\n<Goal 1>\na\n</Goal 1>\n", "<Path 1>\nb\n</Path 1>\n")),
    "threadweaver": (("<Parallel>\n<Outlines>\n", "<Outline>1: a</Outline>\n"),
                     ("<Parallel>\n", "<Thread>\n1: b\n</Thread>")),
    "npr": (("<guideline>\n", "<plan>1: a</plan>\n"), ("", "<guideline>\n<plan>1: a</plan>\n"),
            ("<guideline>\n<plan>1: a</plan>\n</guideline>\n", "<step>\n1: b\n</step> ")),
    "parallel-r1": (("<Parallel>\n", "<Path>b</Path> "), ("", "<Parallel><Path>a</Path>"),
                    ("<Parallel><Path>a</Path>", "</Parallel>\n"), ("", "</Parallel> a <Summary>")),
    "curator": (("<Parallel>\n\n<Goal>\n\n", "Path: a\n\n"),
                ("<Parallel>\n", "<Path>\nb\n</Path>\n")),
    "curator-summary": (("<parallel>\n", "S1: a\n"), ("", "<parallel>\nS1: a\n"),
                        ("", "<parallel>\n</parallel>\n"), ("<parallel>\n", "text\n"),
                        ("<parallel>\nS1: a\n", "\t<parallel>\n\tS1.1: b\n\t</parallel>\n")),
    "curator-plan": ((PLAN + "P1:\n", "  S1: a\n"), ("Parallel groups:\n", "P1: [S1]\n"),
                     (PLAN, "P1:\n"), (PLAN, "P1:\n  S1: a\n"), ("", "P1: [S1, S2]\n")),
    "apr": ((CALLS, "a<Sub Searches>\\nb<End Sub Searches>\\n"), (CALLS, 'a", "'), (CALLS, "\\n"),
            (CALLS, "<Start Sub Search 0 at level 1> a\\n"), ('{"sub_calls": [', '[["a"]], '),
            (CALLS + 'a"], "sub_calls": [[', '{"main_calls": ["a"], "sub_calls": []}, ')),
}  # fmt: skip


@pytest.mark.parametrize("form", READABLE)
def test_time_grows_as_the_text(form: str) -> None:
    # Ten times the text may take thirty times as long on a busy machine, and no hundred times.
    tags = [FORMS[form].syntax.written(tag, "1") for tag in mvspec.law.tags.Tag]
    units = {*filter(None, tags), "<Path>\n", "<Pa<Path>th>", "1: a\n", "S1: a\n", '["'}
    for start, unit in (*INSIDE[form], *(("", unit) for unit in sorted(units))):
        few, many = (fastest(start + unit * size, form) for size in (100, 1000))
        assert many < 50 * max(few, 0.002), (start, unit)


@pytest.mark.parametrize("form", [form for form in READABLE if FORMS[form].syntax.ordered])
def test_a_refusal_takes_the_time_of_its_place(form: str) -> None:
    # Of 8 MB of stray tags a strict parse reads the beginning; all of them would be seconds.
    text = (FORMS[form].syntax.written(mvspec.law.tags.Tag.END_PATH, "1") + "\n") * 1_000_000
    start = time.process_time()
    with pytest.raises(mvspec.ParseError) as caught:
        mvspec.parse(text, form)
    assert caught.value.diagnostic.offset == 0
    assert time.process_time() - start < 2


@pytest.mark.parametrize("form", [form for form in READABLE if FORMS[form].syntax.ordered])
def test_a_violation_far_into_a_text_is_found(form: str) -> None:
    title = "" if form == "parallel-r1" else "a"
    block = mvspec.parallel(mvspec.branch(title, "A" * 100), conclusion="so")
    parts: list[str | mvspec.Parallel] = ["text", block]
    good = mvspec.render(mvspec.assistant(*parts * 2_000), form)
    bad = good + "wrong </Conclusion> here"
    with pytest.raises(mvspec.ParseError) as caught:
        mvspec.parse(bad, form)
    first = mvspec.parse(bad, form, recover=True)[1][0]
    assert len(good) > 4 * WINDOW
    assert (caught.value.diagnostic, caught.value.cut) == (first, False)
    with pytest.raises(mvspec.ParseError) as caught:
        mvspec.parse(good[:-8], form)
    assert caught.value.cut


def fastest(text: str, form: str, recover: bool = True) -> float:
    """Seconds of the fastest of three readings; a collection of garbage may fall into one."""
    times = []
    for _ in range(3):
        start = time.process_time()
        with suppress(mvspec.ParseError):
            mvspec.parse(text, form, recover=recover)  # type: ignore[call-overload]
        times.append(time.process_time() - start)
    return min(times)


def test_a_beginning_that_ends_inside_a_tag_is_read_once() -> None:
    # Each tag that it can be the beginning of was tried, though the text goes on behind it.
    text = ("a\n</Thread>\n" * WINDOW)[: WINDOW - 1] + "<" + "x" * 4000
    with pytest.raises(mvspec.ParseError):
        mvspec.parse(text, "threadweaver")
    strict, recovering = (fastest(text, "threadweaver", recover) for recover in (False, True))
    assert strict < 4 * recovering
