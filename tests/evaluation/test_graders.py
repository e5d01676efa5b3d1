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
from mvspec.runtime.evaluation.problem import BadProblem, ProblemColumns
from mvspec.runtime.evaluation.tasks import task_of

ROOM = "mvspec.runtime.evaluation"


@pytest.fixture(scope="module")
def pool() -> Iterator[Graders]:
    with graders(1, 20.0) as made:
        yield made


PAIRS = [
    # Letters behind a number that are no unit.
    ("2g+h", "\\boxed{h+2g}", 1.0),
    ("h+2g", "\\boxed{2g+h}", 1.0),
    ("h+2g", "\\boxed{h+2}", 0.0),
    ("3m+2s", "\\boxed{2s + 3m}", 1.0),
    ("a + m", "\\boxed{m + a}", 1.0),
    ("3+2m", "\\boxed{2m+3}", 1.0),
    ("3+2m", "\\boxed{5}", 0.0),
    ("y = k - 5m", "\\boxed{y = -5m + k}", 1.0),
    ("-5 m", "\\boxed{-5}", 1.0),
    ("x = 5 cm", "\\boxed{5}", 1.0),
    ("2 \\cdot 10^{-3} m", "\\boxed{0.002}", 1.0),
    ("1011_2", "\\boxed{1011_{2}}", 1.0),
    ("1011_2", "\\boxed{1011_3}", 0.0),
    ("4343_6", "\\boxed{4343_{6}}", 1.0),
    ("1011_2", "\\boxed{1101_2}", 0.0),
    ("1000000", "\\boxed{1\\,000\\,000}", 1.0),
    ("1000000", "\\boxed{1\\,000\\,001}", 0.0),
    ("\\emptyset", "\\boxed{\\varnothing}", 1.0),
    ("4", "\\boxed{3}. Wait, no: \\boxed{4}", 1.0),
    ("3", "\\boxed{3}. Wait, no: \\boxed{4}", 0.0),
    ("4", "\\boxed{3}, \\boxed{4}", 1.0),
    ("6:30 \\text{ a.m.}", "\\boxed{6:30 \\text{ p.m.}}", 0.0),
    ("6:30 \\text{ a.m.}", "\\boxed{6:30 \\text{ a.m.}}", 1.0),
    ("6:30 a.m.", "\\boxed{6:30 p.m.}", 0.0),
    ("6:30 a.m.", "\\boxed{6:30\\text{ AM}}", 1.0),
    ("6:30 p.m.", "\\boxed{18:30}", 1.0),
    ("6:30", "\\boxed{7:30}", 0.0),
    ("6:30", "\\boxed{6:30}", 1.0),
    ("6:30", "\\boxed{6.5}", 0.0),
    ("12:00 a.m.", "\\boxed{12:00 p.m.}", 0.0),
    ("3:4", "\\boxed{\\frac{3}{4}}", 1.0),
    ("3:4", "\\boxed{3:4}", 1.0),
    ("3:4", "\\boxed{6:8}", 1.0),
    ("3:4", "\\boxed{4:3}", 0.0),
    ("5\\text{ cm}", "\\boxed{5}", 1.0),
    ("5\\text{ cm}", "\\boxed{5 \\text{ cm}}", 1.0),
    ("5\\text{ cm}", "\\boxed{5 cm}", 1.0),
    ("5\\text{ cm}", "\\boxed{5 \\text{ m}}", 0.0),
    ("5 m/s", "\\boxed{5 \\text{ m/s}}", 1.0),
    ("5 m/s", "\\boxed{6 \\text{ m/s}}", 0.0),
    ("\\$12.50", "\\boxed{12.5}", 1.0),
    ("\\$12.50", "\\boxed{\\$12.50}", 1.0),
    ("12.50", "\\boxed{\\$12.50}", 1.0),
    ("1,000", "\\boxed{1000}", 1.0),
    ("1{,}000", "\\boxed{1000}", 1.0),
    ("1000", "\\boxed{1,000}", 1.0),
    ("1,234,567", "\\boxed{1234567}", 1.0),
    ("-5", "\\boxed{5}", 0.0),
    ("5", "\\boxed{-5}", 0.0),
    ("-5", "\\boxed{-5}", 1.0),
    ("-5", "\\boxed{\u22125}", 1.0),
    ("+5", "\\boxed{5}", 1.0),
    ("\\pm 2", "\\boxed{2}", 0.0),
    ("\\pm 2", "\\boxed{\\pm 2}", 1.0),
    ("\\pm 2", "\\boxed{2, -2}", 1.0),
    ("50\\%", "\\boxed{50\\%}", 1.0),
    ("50\\%", "\\boxed{50}", 1.0),
    ("50\\%", "\\boxed{0.5}", 1.0),
    ("50\\%", "\\boxed{5\\%}", 0.0),
    ("50", "\\boxed{50\\%}", 1.0),
    ("0.5", "\\boxed{50\\%}", 1.0),
    ("[0,1]", "\\boxed{[0,1]}", 1.0),
    ("[0,1]", "\\boxed{(0,1)}", 0.0),
    ("[0,1)", "\\boxed{(0,1]}", 0.0),
    ("(0,1)", "\\boxed{(0,1)}", 1.0),
    ("(1,2)", "\\boxed{(2,1)}", 0.0),
    ("(1,2)", "\\boxed{\\left(1,2\\right)}", 1.0),
    ("(1,2,3)", "\\boxed{(1,2)}", 0.0),
    ("\\{1,2\\}", "\\boxed{\\{2,1\\}}", 1.0),
    ("1,2", "\\boxed{2,1}", 1.0),
    ("1,2", "\\boxed{1}", 0.0),
    ("1", "\\boxed{1,2}", 0.0),
    ("(-\\infty, 3]", "\\boxed{(-\\infty,3]}", 1.0),
    ("(-\\infty, 3]", "\\boxed{(-\\infty,3)}", 0.0),
    ("(-\\infty, 3]", "\\boxed{x \\le 3}", 1.0),
    ("[0,1] \\cup [2,3]", "\\boxed{[0,1]\\cup[2,3]}", 1.0),
    ("[0,1] \\cup [2,3]", "\\boxed{[0,1]}", 0.0),
    ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}", 1.0),
    ("\\text{Evelyn}", "\\boxed{Evelyn}", 1.0),
    ("\\text{Evelyn}", "\\boxed{\\text{Carla}}", 0.0),
    ("\\text{east}", "\\boxed{\\text{west}}", 0.0),
    ("\\text{even}", "\\boxed{\\text{odd}}", 0.0),
    ("\\text{Yes}", "\\boxed{\\text{No}}", 0.0),
    ("yes", "\\boxed{Yes}", 1.0),
    ("yes", "\\boxed{no}", 0.0),
    ("True", "\\boxed{False}", 0.0),
    ("True", "\\boxed{\\text{True}}", 1.0),
    ("Tuesday", "\\boxed{\\text{Tuesday}}", 1.0),
    ("Tuesday", "\\boxed{\\text{Thursday}}", 0.0),
    ("A", "\\boxed{A}", 1.0),
    ("A", "\\boxed{B}", 0.0),
    ("A", "\\boxed{\\text{(A)}}", 1.0),
    ("\\text{(C)}", "\\boxed{C}", 1.0),
    ("\\text{(C)}", "\\boxed{D}", 0.0),
    ("B", "\\boxed{\\textbf{(B)} 12}", 1.0),
    ("July 4", "\\boxed{\\text{July 4}}", 1.0),
    ("July 4", "\\boxed{\\text{July 14}}", 0.0),
    ("July 4", "\\boxed{\\text{June 4}}", 0.0),
    ("July 4", "\\boxed{\\text{4 July}}", 1.0),
    ("2024-01-02", "\\boxed{2024-01-03}", 0.0),
    ("2024-01-02", "\\boxed{2024-01-02}", 1.0),
    ("1/2", "\\boxed{0.5}", 1.0),
    ("\\frac{2}{4}", "\\boxed{\\frac12}", 1.0),
    ("1 \\frac{1}{2}", "\\boxed{1.5}", 1.0),
    ("1\\frac{1}{2}", "\\boxed{\\frac{3}{2}}", 1.0),
    ("\\frac{1}{3}", "\\boxed{0.333}", 0.0),
    ("3.14", "\\boxed{\\pi}", 0.0),
    ("\\pi", "\\boxed{\\pi}", 1.0),
    ("2\\pi", "\\boxed{6.28}", 0.0),
    ("\\sqrt{8}", "\\boxed{2\\sqrt{2}}", 1.0),
    ("x=5", "\\boxed{5}", 1.0),
    ("5", "\\boxed{x=5}", 1.0),
    ("x^2+1", "\\boxed{1+x^2}", 1.0),
    ("x^2+1", "\\boxed{x^2-1}", 0.0),
    ("y=2x+1", "\\boxed{y = 2x + 1}", 1.0),
    ("y=2x+1", "\\boxed{y = 2x - 1}", 0.0),
    ("45^\\circ", "\\boxed{45}", 1.0),
    ("45^\\circ", "\\boxed{45^\\circ}", 1.0),
    ("45^\\circ", "\\boxed{54^\\circ}", 0.0),
    ("10^6", "\\boxed{1000000}", 1.0),
    ("1.5 \\times 10^3", "\\boxed{1500}", 1.0),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}", 1.0),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\boxed{\\begin{pmatrix}2\\\\1\\end{pmatrix}}", 0.0),
    ("2+3i", "\\boxed{3i+2}", 1.0),
    ("2+3i", "\\boxed{2-3i}", 0.0),
    ("no solution", "\\boxed{\\text{No solution}}", 1.0),
    ("no solution", "\\boxed{0}", 0.0),
    ("\\emptyset", "\\boxed{\\emptyset}", 1.0),
    ("\\text{ellipse}", "\\boxed{\\text{hyperbola}}", 0.0),
    ("5 hours", "\\boxed{5}", 1.0),
    ("5 hours", "\\boxed{5 \\text{ minutes}}", 0.0),
    ("2 hours 30 minutes", "\\boxed{2 \\text{ hours } 30 \\text{ minutes}}", 1.0),
    ("2 hours 30 minutes", "\\boxed{2 \\text{ hours } 20 \\text{ minutes}}", 0.0),
    ("4", "The answer is 3. Wait, no, the answer is 4.", 1.0),
    ("3", "The answer is 3. Wait, no, the answer is 4.", 0.0),
    ("4", "\\boxed{4} because of 7", 1.0),
    ("7", "\\boxed{\\boxed{7}}", 1.0),
    ("4", "$\\boxed{3}$ and $\\boxed{4}$", 1.0),
    ("3", "$\\boxed{3}$ and $\\boxed{4}$", 0.0),
    ("4", "\\fbox{4}", 1.0),
    ("7:05 p.m.", "\\boxed{19:05}", 1.0),
    ("7:05 p.m.", "\\boxed{7:05 AM}", 0.0),
    ("noon", "\\boxed{12:00 p.m.}", 1.0),
    ("8 a.m.", "\\boxed{8:00 \\text{ AM}}", 1.0),
    ("8 a.m.", "\\boxed{8 \\text{ p.m.}}", 0.0),
    ("10:15 \\text{ PM}", "The answer is 10:15 p.m.", 1.0),
    ("10:15 \\text{ PM}", "The answer is 10:15 a.m.", 0.0),
    ("March 3rd", "\\boxed{\\text{3 March}}", 1.0),
    ("March 3, 2021", "\\boxed{2021-03-03}", 1.0),
    ("March 3, 2021", "\\boxed{\\text{March 3, 2020}}", 0.0),
    ("Friday", "\\boxed{\\text{Friday}}", 1.0),
    ("90\\text{ minutes}", "\\boxed{1.5 \\text{ hours}}", 1.0),
    ("90\\text{ minutes}", "\\boxed{1 \\text{ hour } 30 \\text{ min}}", 1.0),
    ("90\\text{ minutes}", "\\boxed{90 \\text{ hours}}", 0.0),
    ("3\\text{ km}", "\\boxed{3000\\text{ m}}", 1.0),
    ("3\\text{ km}", "\\boxed{3000\\text{ cm}}", 0.0),
    ("36 km/h", "\\boxed{10 \\text{ m/s}}", 1.0),
    ("36 km/h", "\\boxed{36}", 1.0),
    ("36 km/h", "\\boxed{36 \\text{ m/s}}", 0.0),
    ("25\\text{ cm}^2", "\\boxed{25 \\text{ cm}^2}", 1.0),
    ("25\\text{ cm}^2", "\\boxed{25 \\text{ cm}}", 0.0),
    ("25\\text{ square inches}", "\\boxed{25 \\text{ in}^2}", 1.0),
    ("2\\sqrt{3}\\text{ cm}", "\\boxed{\\sqrt{12} \\text{ cm}}", 1.0),
    ("2\\sqrt{3}\\text{ cm}", "\\boxed{\\sqrt{12} \\text{ m}}", 0.0),
    ("\\$0.50", "\\boxed{50 \\text{ cents}}", 1.0),
    ("\\$0.50", "\\boxed{0.5 \\text{ dollars}}", 1.0),
    ("\\$0.50", "\\boxed{5 \\text{ cents}}", 0.0),
    ("\\frac{3}{4} \\text{ hour}", "\\boxed{45 \\text{ minutes}}", 1.0),
    ("12\\text{ apples}", "\\boxed{12}", 1.0),
    ("3x", "\\boxed{3y}", 0.0),
    ("3m", "\\boxed{3m}", 1.0),
    ("B", "\\boxed{(B)\\ 12}", 1.0),
    ("B", "\\boxed{(C)\\ 12}", 0.0),
    ("(D)", "The answer is (D).", 1.0),
    ("1,2,3", "so \\boxed{1}, \\boxed{2} and \\boxed{3}", 1.0),
    ("3,4", "\\boxed{3}. Wait, no: \\boxed{4}", 0.0),
    ("x>2", "\\boxed{(2,\\infty)}", 1.0),
    ("x>2", "\\boxed{[2,\\infty)}", 0.0),
    ("4", "\\boxed{4}, as one writes \\boxed{} around it", 1.0),
    ("4", "\\boxed{4} and cut \\boxed{5", 1.0),
    ("\\{1\\}", "\\boxed{\\{1\\}}", 1.0),
]
"""Reference, answer, score: units, signs, intervals, tuples, percentages, words, times, dates."""


@pytest.mark.parametrize(("answer", "text", "score"), PAIRS)
def test_equal_values_are_judged_equal_and_others_different(
    answer: str, text: str, score: float
) -> None:
    assert answer_graders.grade_mathematics({"answer": answer}, text).score == score


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


INLINE = "Which gas is it? (A) argon (B) neon (C) xenon (D) radon"
LINES = "Which gas (A) is it? \n\nA. argon\nB. neon, see (A)\nC. xenon\nD. radon"


@pytest.mark.parametrize("question", [INLINE, LINES, LINES.replace(".", ")"), f"{INLINE}\n\nSo?"])
@pytest.mark.parametrize("answer", ["C", "(C)", "c", "C.", "\\boxed{C}", 2])
def test_options_that_stand_in_the_question(question: str, answer: object) -> None:
    row = {"question": question, "answer": answer}
    asked, payload = task_of("gpqa-diamond").read(ProblemColumns(row))
    assert asked.startswith(question)  # as it is
    assert len(payload["options"]) == 4
    assert answer_graders.grade_choice(payload, "So it is (C).\nAnswer: C").score == 1.0
    assert answer_graders.grade_choice(payload, "Answer: B").score == 0.0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Which gas is it?", "answer": "C"}, "no column choices or options"),
        ({"question": INLINE, "answer": "E"}, "'E' is none of the 4 options"),
        ({"question": INLINE}, "no column answer"),
    ],
)
def test_a_choice_without_options_is_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadProblem, match=said):
        task_of("gpqa-diamond").read(ProblemColumns(row))


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
