"""What graders say of answers, and what becomes of those that hang, crash or lie."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from mvspec.data.records import InputError
from mvspec.runtime.evaluation import answer_graders
from mvspec.runtime.evaluation.grader_process import Graders, graders

ROOM = "mvspec.runtime.evaluation"


@pytest.fixture(scope="module")
def pool() -> Iterator[Graders]:
    with graders(1, 20.0) as made:
        yield made


@pytest.mark.parametrize(
    ("answer", "text", "score"),
    [
        (r"\frac{1}{2}", r"so \boxed{0.5}", 1.0),
        ("30^\\circ", r"\(\boxed{30}\) degrees", 1.0),
        ("025", "The final answer is 25.", 1.0),
        ("4210_{5}", r"\boxed{4210_5}", 1.0),
        ("p - q", r"\boxed{-q + p}", 1.0),
        ("(3, \\frac{\\pi}{2})", r"\boxed{(3, \pi/2)}", 1.0),
        ("12", r"\boxed{5} and \boxed{2}", 0.0),
        ("5", r"First \boxed{5}, but no: \boxed{6}", 0.0),
        ("5", "I do not know", 0.0),
        ("5", "", 0.0),
    ],
)
def test_maths(answer: str, text: str, score: float) -> None:
    assert answer_graders.grade_mathematics({"answer": answer}, text).score == score


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B", "B"),
        ("A looks right. **Answer:** (C)", "C"),
        (r"The answer is $\boxed{\text{D}}$", "D"),
        ("The final answer is **A**.", "A"),
        ("answer: b", ""),
        ("Hence\n\n(C)", "C"),
        ("It must be\ngreen", "B"),
        ("Answer: A. No, wait. Answer: D", "D"),
        ("Answer: E", ""),
        ("An apple", ""),
    ],
)
def test_letters(text: str, letter: str) -> None:
    assert answer_graders.letter_of(text, ["red", "green", "blue", "black"]) == letter


def test_a_grader_that_hangs_or_dies_costs_its_answer_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checks.py").write_text(
        "import os, time\n"
        "def check(row, text):\n"
        "    if text == 'hang':\n"
        "        while True: pass\n"
        "    if text == 'die': os._exit(7)\n"
        "    if text == 'raise': raise ValueError('odd')\n"
        "    if text == 'odd': return 'yes'\n"
        "    return text == row['want']\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    payload = {"checker": "checks:check", "row": {"want": "good"}}
    found = {}

    def work() -> None:  # not the main thread: a limit by signals could not work
        with graders(1, 1.0) as pool:
            for text in ("good", "hang", "bad", "die", "raise", "odd", "good"):
                found[text] = pool.grade(f"{ROOM}.answer_graders:grade_own", payload, text)

    thread = Thread(target=work)
    thread.start()
    thread.join(60)
    assert found["good"].score == 1.0
    assert found["bad"].score == 0.0
    assert [found[text].score for text in ("hang", "die", "raise", "odd")] == [None] * 4
    assert "more than 1 s" in found["hang"].note
    assert "exit status 7" in found["die"].note
    assert "ValueError: odd (check, line 6)" in found["raise"].note
    assert "returned 'yes'" in found["odd"].note


def test_sympy_is_stopped_from_outside(pool: Graders) -> None:
    start = time.monotonic()
    pool.seconds = 1.0
    found = pool.grade(
        f"{ROOM}.answer_graders:grade_mathematics",
        {"answer": "9^{9^{9^{9}}}"},
        r"\boxed{9^{9^{9^{8}}}}",
    )
    pool.seconds = 20.0
    assert time.monotonic() - start < 60
    assert found.score in (0.0, None)
    assert pool.grade(f"{ROOM}.answer_graders:grade_mathematics", {"answer": "2"}, "2").score == 1.0


# Instructions


def test_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    payload: dict[str, Any] = {
        "prompt": "Name a fruit.",
        "instructions": ["punctuation:no_comma", "keywords:existence"],
        "kwargs": [{}, {"keywords": ["pear"], "num_words": None}],
    }
    answer_graders.check_instructions(payload["instructions"])
    assert answer_graders.grade_instructions(payload, "A pear is one.").score == 1.0
    missed = answer_graders.grade_instructions(payload, "A pear, for one.")
    assert missed.score == 0.0
    assert missed.note == "not followed: punctuation:no_comma"
    assert missed.details["followed"] == [False, True]
    with pytest.raises(InputError, match=r"no check for .* made:up"):
        answer_graders.check_instructions(["made:up"])
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(InputError, match=r"number_sentences .* nltk\.downloader punkt_tab"):
        answer_graders.check_instructions(["length_constraints:number_sentences"])
