"""Tasks by name: how rows of their data become problems, and what grades an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from mvspec.data.columns import COLUMNS
from mvspec.data.records import InputError
from mvspec.runtime.evaluation.answer_graders import END, boxed, listed, options_in, shuffled
from mvspec.runtime.evaluation.problem import BadProblem, ProblemColumns
from mvspec.runtime.evaluation.sandbox import call_of, unpacked_tests

_ROOM = "mvspec.runtime.evaluation"

QUESTION = COLUMNS["question"]
ANSWER = COLUMNS["answer"]

Read = Callable[[ProblemColumns], tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class EvaluationTask:
    """A kind of problem.

    Args:
        name: as the command takes it.
        read: gives question and payload of a row.
        grader: `module:function`, run in a process of its own.
        whole: grade the whole output, thoughts included, where the answer marks itself; else
            what stands behind `</Think>`.
        seconds: that grading an answer may take.
        runs_code: whether grading runs what a model wrote.
    """

    name: str
    read: Read
    grader: str
    whole: bool = False
    seconds: float = 30.0
    runs_code: bool = False


def read_maths(columns: ProblemColumns) -> tuple[str, dict[str, Any]]:
    """Return a question and its `answer`; without one, what its worked solution boxes last."""
    question = columns.text(*QUESTION)
    if columns.find(*ANSWER) is not None:
        return question, {"answer": columns.text(*ANSWER).strip()}
    solution = columns.text(*ANSWER, "solution")
    found = [content for _, _, content in boxed(solution)]
    if not found and len(solution) >= 40:
        raise BadProblem("column solution boxes no answer: add a column answer")
    return question, {"answer": found[-1] if found else solution.strip()}  # short: its own answer


def read_aime(columns: ProblemColumns) -> tuple[str, dict[str, Any]]:
    """Return a question of maths whose answer is a whole number from 0 to 999."""
    question, payload = read_maths(columns)
    if not re.fullmatch(r"\d{1,3}", payload["answer"]):
        raise BadProblem(f"the answer {payload['answer']!r} is no whole number from 0 to 999")
    return question, payload


def read_choice(columns: ProblemColumns) -> tuple[str, dict[str, Any]]:
    """Return a question with shuffled options, and the right one's `letter`.

    The options are those of `choices` or `options`, with `answer` the right one's letter, number
    (from 0) or text; or `Correct Answer` and `Incorrect Answer 1` to `3`. Where none of these
    columns is there, they stand in the question, which stays as it is.
    """
    question = columns.text("question", "problem")
    if columns.find("correct answer") is not None:
        wrong = [columns.find(f"incorrect answer {number}") for number in range(1, 26)]
        options = [columns.text("correct answer")]
        options += [str(each) for each in wrong if each is not None]
        right = 0
    elif columns.find("choices", "options") is None and (options := options_in(question)):
        letter = ascii_uppercase[_right(columns.need(*ANSWER, "answer_index", "label"), options)]
        return f"{question.strip()}\n\n{END}", {"options": options, "letter": letter}
    else:
        options = [str(each) for each in columns.items("choices", "options")]
        right = _right(columns.need(*ANSWER, "answer_index", "label"), options)
    options = [option.strip() for option in options]
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise BadProblem(f"{len(options)} options: expected 2 to {len(ascii_uppercase)}")
    options, right = shuffled(options, right, question)
    payload = {"options": options, "letter": ascii_uppercase[right]}
    return listed(question, options), payload


def _right(answer: Any, options: list[str]) -> int:
    """Return the number of the right option."""
    if isinstance(answer, bool):
        answer = str(answer)
    if isinstance(answer, int):
        number = answer
    elif answer in options:
        number = options.index(answer)
    else:
        letter = str(answer).strip().strip("()[].:$ ").upper()
        letter = re.sub(r"^(?:ANSWER:? ?\(?|\\(?:BOXED|TEXT)\{)|\}$", "", letter)
        number = ascii_uppercase.find(letter) if len(letter) == 1 else -1
    if not 0 <= number < len(options):
        raise BadProblem(f"the answer {answer!r} is none of the {len(options)} options")
    return number


def read_instructions(columns: ProblemColumns) -> tuple[str, dict[str, Any]]:
    """Return a prompt with its `instructions` and `kwargs`."""
    prompt = columns.text("prompt", "question", "problem")
    names = [str(each) for each in columns.items("instruction_id_list", "instructions")]
    given = columns.items("kwargs")
    if len(given) != len(names):
        raise BadProblem(f"{len(names)} instructions and kwargs for {len(given)}")
    if not all(isinstance(each, dict) for each in given):
        raise BadProblem("column kwargs holds something that is no object")
    return prompt, {"prompt": prompt, "instructions": names, "kwargs": given}


def read_code(columns: ProblemColumns) -> tuple[str, dict[str, Any]]:
    """Return a problem of programming with its `tests`, public and private."""
    question = columns.text("question_content", "question", "problem", "prompt").strip()
    starter = columns.find("starter_code") or ""
    tests: list[Any] = []
    packed = ("public_test_cases", "private_test_cases")
    names = [name for name in packed if columns.find(name) is not None]
    if columns.find("tests") is not None or not names:
        names = ["tests"]
    for name in names:
        try:
            tests += unpacked_tests(columns.need(name))
        except ValueError as error:
            raise BadProblem(f"column {name}: {error}") from None
    if not tests or not all(
        isinstance(test, dict) and {"input", "output"} <= set(test) for test in tests
    ):
        raise BadProblem("a test is no object with input and output, or there is none")
    metadata = columns.find("metadata")
    if isinstance(metadata, str):
        metadata = _decoded(metadata)
    function = columns.find("function", "func_name", "fn_name") or ""
    if isinstance(metadata, Mapping) and not function:
        function = metadata.get("func_name") or ""
    if starter and not function:
        found = re.findall(r"def\s+(\w+)\s*\(", str(starter))
        function = found[-1] if found else ""
    kept = [{"input": test["input"], "output": test["output"]} for test in tests]
    for number, test in enumerate(kept if function else (), 1):
        try:
            call_of(test)
        except ValueError as error:
            raise BadProblem(
                f"test {number} of the function {function}: input (a line an argument) and output "
                f"are JSON ({error})"
            ) from None
    how = (
        f"Complete this code:\n\n```python\n{str(starter).rstrip()}\n```"
        if function
        else "Write a program that reads standard input and writes standard output."
    )
    question = f"{question}\n\n{how}\n\nEnd with the whole program in one ```python block."
    return question, {"tests": kept, "function": str(function), "seconds": 6.0, "megabytes": 1024}


def _decoded(text: str) -> Any:
    """Return what JSON text holds, None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def read_own(columns: ProblemColumns) -> tuple[str, dict[str, Any]]:
    """Return a question; its checker gets the whole row."""
    return columns.text(*QUESTION), {"row": dict(columns.row)}


OWN = "own"

_MATHS = EvaluationTask("math", read_maths, f"{_ROOM}.answer_graders:grade_mathematics", whole=True)
_AIME = replace(_MATHS, read=read_aime)

TASKS: dict[str, EvaluationTask] = {
    "math": _MATHS,
    "aime24": replace(_AIME, name="aime24"),
    "aime25": replace(_AIME, name="aime25"),
    "math500": replace(_MATHS, name="math500"),
    "gpqa-diamond": EvaluationTask(
        "gpqa-diamond", read_choice, f"{_ROOM}.answer_graders:grade_choice", whole=True
    ),
    "ifeval": EvaluationTask(
        "ifeval", read_instructions, f"{_ROOM}.answer_graders:grade_instructions"
    ),
    "livecodebench": EvaluationTask(
        "livecodebench", read_code, f"{_ROOM}.sandbox:grade_code", seconds=300.0, runs_code=True
    ),
    OWN: EvaluationTask(OWN, read_own, f"{_ROOM}.answer_graders:grade_own"),
}
"""Every task by name."""


def task_of(name: str, checker: str | None = None, *, allow_code: bool = False) -> EvaluationTask:
    """Return a task, ready to grade.

    Args:
        name: one of `TASKS`.
        checker: of the task `own`, as `module:function`.
        allow_code: whether what a model wrote may be run.

    Raises:
        InputError: there is no such task, or it lacks what it needs.

    >>> task_of("aime24").grader
    'mvspec.runtime.evaluation.answer_graders:grade_mathematics'
    """
    task = TASKS.get(name.lower())
    if task is None:
        raise InputError(f"{name!r} is no task: use {', '.join(TASKS)}")
    if task.runs_code and not allow_code:
        raise InputError(
            f"{task.name} runs code that a model wrote, in a sandbox (docs/evaluation.md says "
            "what it holds back): add --allow-code"
        )
    if (task.name == OWN) != (checker is not None):
        which = "needs" if task.name == OWN else "takes no"
        raise InputError(f"the task {task.name} {which} --checker module:function")
    if checker is None:
        return task

    def read(columns: ProblemColumns) -> tuple[str, dict[str, Any]]:
        question, payload = read_own(columns)
        return question, {**payload, "checker": checker}

    return replace(task, read=read)
