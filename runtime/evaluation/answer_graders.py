"""Checks of an answer: mathematics, options, instructions, and a user's own function."""

from __future__ import annotations

import logging
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from itertools import pairwise
from string import ascii_uppercase
from typing import Any

from mvspec.data.records import InputError
from mvspec.runtime.evaluation.grader_process import GraderVerdict
from mvspec.runtime.evaluation.plain_answers import plain_latex, same_plainly


def grade_mathematics(payload: Mapping[str, Any], text: str) -> GraderVerdict:
    """Compare the last answer in a text, a `\\boxed{...}` before all others, with the reference.

    Args:
        payload: `answer`, as LaTeX or plain.
        text: what was written.

    Raises:
        ValueError: the reference is no mathematics.

    >>> grade_mathematics({"answer": "\\\\frac{1}{2}"}, "So it is \\\\boxed{0.5}.").score
    1.0
    >>> grade_mathematics({"answer": "4"}, "\\\\boxed{3}. Wait, no: \\\\boxed{4}").score
    1.0
    >>> grade_mathematics({"answer": "025"}, "The final answer is 26.").score
    0.0
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    # Its own limits of time work by signals and take an answer that was stopped for a wrong one:
    # here whoever asks keeps the time, which math-verify warns of once.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    config = LatexExtractionConfig(boxed_match_priority=0)

    def read(answer: str) -> list[Any]:
        boxed_answer = f"$\\boxed{{{_legible(answer)}}}$"
        found: list[Any] = parse(boxed_answer, [config], parsing_timeout=None)
        return found

    def same(one: list[Any], other: list[Any]) -> bool:
        return bool(verify(one, other, timeout_seconds=None))

    answer = str(payload["answer"])
    boxes = list(boxed(text))
    last = boxes[-1][2] if boxes else _tail(text)
    known = same_plainly(answer, last, lambda one, other: same(read(one), read(other)))
    if known is not None:
        return GraderVerdict(float(known), extracted=last)
    gold = read(answer)
    if not gold:
        raise ValueError(f"the reference answer {answer!r} cannot be read")
    found = read(last) if boxes else parse(
        text, [config, ExprExtractionConfig()], parsing_timeout=None
    )  # fmt: skip
    if not found:
        return GraderVerdict(0.0, note="no answer")
    right = same(gold, found) or _same_set(gold[0], found[0])
    if not right and len(boxes) > 1 and "," in answer:
        # Several answers in a box each, with nothing but commas between them.
        found = read(_row(text, boxes))
        right = bool(found) and same(gold, found)
    return GraderVerdict(float(right), extracted=str(found[-1]) if found else last)


_GROUPED = re.compile(r"(?<=\d)(?:\\[,; !]|[~\u00a0\u2009\u202f]|\{,\})(?=\d{3}(?!\d))")
_SUM = re.compile(r"(?:^|(?<=[=,;]))\s*([^=,;\\:]*[\w)}\]]\s*[-+][^=,;\\:]*[\d}\s][a-z]{1,2})\s*$")


def _legible(answer: str) -> str:
    """Return an answer so that math-verify reads all of it: `h + 2g` has no grams at its end.

    >>> _legible("h+2g"), _legible(r"1\\,000"), _legible("5 g")
    ('(h+2g)', '1000', '5 g')
    """
    answer = _GROUPED.sub("", answer).replace("\\varnothing", "\\emptyset")
    return _SUM.sub(r"(\1)", answer)


_BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")


def boxed(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and content of every closed `\\boxed{...}` that is not empty.

    >>> [content for _, _, content in boxed("\\\\boxed{\\\\boxed{1}} or \\\\fbox{2}, \\\\boxed{3")]
    ['\\\\boxed{1}', '2']
    """
    at = 0
    while found := _BOX.search(text, at):
        at = found.end()
        depth, index = 1, at
        while depth and index < len(text):
            escaped = text[index] == "\\"
            depth += 0 if escaped else {"{": 1, "}": -1}.get(text[index], 0)
            index += 1 + escaped
        if not depth:
            if text[at : index - 1].strip():
                yield found.start(), index, text[at : index - 1].strip()
            at = index


def _row(text: str, boxes: Sequence[tuple[int, int, str]]) -> str:
    """Return the last boxes that only a comma or `and` stands between, as one answer."""
    row = [boxes[-1][2]]
    for before, after in reversed(list(pairwise(boxes))):
        if not re.fullmatch(
            r"[\s,;$]*(?:and|or)?[\s,;$]*", plain_latex(text[before[1] : after[0]])
        ):
            break
        row.insert(0, before[2])
    return ", ".join(row)


def _tail(text: str) -> str:
    """Return what stands behind the last "answer is", or the last line."""
    tail = re.split(r"(?i)\banswer\**\s*(?:is|:)\**:?", text[-2000:])[-1].strip()
    return tail.splitlines()[-1].strip(" $*.") if tail else ""


def _same_set(one: Any, other: Any) -> bool:
    """Whether an interval and an inequality of one unknown are the same numbers."""
    import sympy

    if isinstance(one, sympy.Set) == isinstance(other, sympy.Set):
        return False
    inner, relation = (one, other) if isinstance(one, sympy.Set) else (other, one)
    try:
        return bool(relation.free_symbols and relation.as_set() == inner)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return False


_OPTION = r"\(?([A-Z])[).:]\s*(?=\S)"
_OPTIONS = (re.compile(rf"(?m)^[ \t]*{_OPTION}"), re.compile(rf"(?:^|(?<=\s)){_OPTION}"))


def options_in(question: str) -> list[str]:
    """Return the options that stand in a question behind A), B), ...; [] for none.

    >>> options_in("Which one? (A) this (B) that")
    ['this', 'that']
    """
    for form in _OPTIONS:  # a line for each, else anywhere
        marks = list(form.finditer(question))
        for first in reversed([n for n, mark in enumerate(marks) if mark[1] == "A"]):
            row = [marks[first]]
            for mark in marks[first + 1 :]:
                if mark[1] == ascii_uppercase[len(row)]:
                    row.append(mark)
            if len(row) > 1:
                ends = [*(mark.start() for mark in row[1:]), len(question)]
                return [question[m.end() : end].strip() for m, end in zip(row, ends, strict=True)]
    return []


_LETTER = r"[\s*({\[]*(?:\\(?:text|textbf|mathbf|mathrm|boxed)\{\s*)?[({\[]*([A-Z])(?![\w'])"
_FORMS = (
    re.compile(r"\\boxed\{" + _LETTER),
    re.compile(r"(?i:answer\**\s*(?:is|:)\**\s*(?:option|choice)?)[:\s]*\$?" + _LETTER),
)
_ALONE = re.compile(r"^[\s*($]*([A-Z])[\s*).:$]*$")


END = 'End with a line "Answer: X", where X is the letter of the right option.'


def shuffled(options: Sequence[str], right: int, seed: str) -> tuple[list[str], int]:
    """Return options in an order that depends on `seed` alone, and where the right one went.

    >>> shuffled(["a", "b", "c", "d"], 0, "q1") == shuffled(["a", "b", "c", "d"], 0, "q1")
    True
    """
    order = list(range(len(options)))
    random.Random(f"mvspec:{seed}").shuffle(order)
    return [options[index] for index in order], order.index(right)


def listed(question: str, options: Sequence[str]) -> str:
    """Return a question with its options, lettered, and how to answer.

    >>> print(listed("Which?", ["this", "that"]))
    Which?
    <BLANKLINE>
    A) this
    B) that
    <BLANKLINE>
    End with a line "Answer: X", where X is the letter of the right option.
    """
    lines = [f"{letter}) {text}" for letter, text in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([question.strip(), "", *lines, "", END])


def letter_of(text: str, options: Sequence[str]) -> str:
    """Return the letter that a text comes to, "" for none.

    The last `\\boxed{X}`, "answer is X" or "Answer: X" counts; without, a last line that is a
    letter or one option's text.

    >>> letter_of("A is tempting. The answer is **(C)**.", ["w", "x", "y", "z"])
    'C'
    >>> letter_of("I cannot say.", ["w", "x"])
    ''
    """
    known = ascii_uppercase[: len(options)]
    found = [
        (match.end(1), match[1])
        for form in _FORMS
        for match in form.finditer(text)
        if match[1] in known
    ]
    if found:
        return max(found)[1]
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    alone = _ALONE.match(last)
    if alone and alone[1] in known:
        return alone[1]
    same = [
        letter
        for letter, option in zip(known, options, strict=True)
        if last.rstrip(".").casefold() == option.strip().rstrip(".").casefold()
    ]
    return same[0] if len(same) == 1 else ""


def grade_choice(payload: Mapping[str, Any], text: str) -> GraderVerdict:
    """Compare the letter that a text comes to.

    Args:
        payload: `options`, and `letter`, the right one's.
        text: what was written.

    >>> grade_choice({"options": ["x", "y"], "letter": "B"}, "Answer: B").score
    1.0
    """
    found = letter_of(text, payload["options"])
    if not found:
        return GraderVerdict(0.0, note="no letter")
    return GraderVerdict(float(found == payload["letter"]), extracted=found)


_SENTENCES = frozenset(
    {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
)
"""Instructions whose check cuts text by NLTK's models."""


@cache
def _library() -> Any:
    """Return lm-evaluation-harness's IFEval.

    Its import fetches NLTK's models unless it believes to be another rank's process; here
    nothing is fetched that nobody asked for.
    """
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        import langdetect
        from lm_eval.tasks.ifeval import utils
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before
    langdetect.DetectorFactory.seed = 0  # it guesses at random otherwise
    return utils


def check_instructions(wanted: Iterable[str]) -> None:
    """Refuse instructions that cannot be checked here.

    Args:
        wanted: their names, as `punctuation:no_comma`.

    Raises:
        InputError: the library or a model of it is missing, or does not know one of them.
    """
    try:
        known = _library().instructions_registry.INSTRUCTION_DICT
    except ImportError as error:
        raise InputError(f"ifeval needs: pip install 'mvspec[harness]' ({error})") from None
    names = set(wanted)
    strange = sorted(names - set(known))
    if strange:
        raise InputError(
            f"ifeval: no check for the instructions {', '.join(strange)}: leave their rows out"
        )
    if names & _SENTENCES and not _has_sentences():
        raise InputError(
            f"ifeval: {', '.join(sorted(names & _SENTENCES))} is checked with NLTK's models, "
            "which are not here: python -m nltk.downloader punkt_tab, or leave the rows out"
        )


def _has_sentences() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def grade_instructions(payload: Mapping[str, Any], text: str) -> GraderVerdict:
    """Check every instruction; the answer is right where it follows all of them, strictly.

    Args:
        payload: `prompt`, `instructions` (their names) and `kwargs` (one object for each).
        text: what was written.
    """
    utils = _library()
    given: Sequence[Mapping[str, Any]] = payload["kwargs"]
    example = utils.InputExample(
        key=0,
        instruction_id_list=list(payload["instructions"]),
        prompt=payload["prompt"],
        kwargs=[dict(each) for each in given],
    )
    strict = utils.test_instruction_following_strict(example, text)
    loose = utils.test_instruction_following_loose(example, text)
    pairs = zip(payload["instructions"], strict.follow_instruction_list, strict=True)
    missed = [name for name, follows in pairs if not follows]
    return GraderVerdict(
        float(strict.follow_all_instructions),
        note=f"not followed: {', '.join(missed)}" if missed else "",
        details={
            "followed": list(strict.follow_instruction_list),
            "followed_loosely": list(loose.follow_instruction_list),
        },
    )


def find_checker(name: str) -> Callable[[Mapping[str, Any], str], Any]:
    """Return the function that `module:function` names; modules of this folder count.

    Raises:
        InputError: there is none.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"--checker {name}: expected module:function, as checks:same_number")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(import_module(module), function)
    except Exception as error:  # what a user's module raises, it raises
        raise InputError(f"--checker {name}: {type(error).__name__}: {error}") from None
    if not callable(found):
        raise InputError(f"--checker {name}: a {type(found).__name__}, not a function")
    checker: Callable[[Mapping[str, Any], str], Any] = found
    return checker


def grade_own(payload: Mapping[str, Any], text: str) -> GraderVerdict:
    """Let the user's checker say.

    Args:
        payload: `checker` (`module:function`) and `row`: the data's row. The function takes the
            row and the text, and returns True or False, or a number from 0 to 1.
        text: what was written.

    Raises:
        TypeError: it returned something else.
    """
    found = find_checker(payload["checker"])(payload["row"], text)
    if isinstance(found, bool) or (isinstance(found, int | float) and 0 <= found <= 1):
        return GraderVerdict(float(found))
    raise TypeError(f"the checker returned {found!r}, not True, False, or a number from 0 to 1")
