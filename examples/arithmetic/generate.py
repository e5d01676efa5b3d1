"""Write worked problems as documents, for `mvspec compile`.

    python examples/arithmetic/generate.py train.jsonl --count 20000
    python examples/arithmetic/generate.py test.jsonl --split test --questions
    python examples/arithmetic/generate.py train.jsonl --task countdown --numbers 3 4
    mvspec compile train.jsonl --tokenizer FOLDER -o train

A seed gives the same problems always. A problem's split follows from its content, so no file of
one split holds a problem of another, whatever their seeds and difficulties.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mvspec.errors import MvspecError
from mvspec.runtime.tasks import TASKS
from mvspec.runtime.tasks.problem import (
    PARALLEL,
    SPLITS,
    STEPWISE,
    TaskProblem,
    problems,
    question_of,
    solve,
)

PROMPTS = {"parallel": PARALLEL, "stepwise": STEPWISE}


def record(name: str, problem: TaskProblem, prompt: str, *, question: bool) -> str:
    """Return a line: the document and its name, or the question and its answer alone."""
    if question:
        row = {"id": name, "question": question_of(problem, prompt), "answer": problem.answer}
    else:
        row = {"id": name, **json.loads(solve(problem, prompt).to_json())}
    return json.dumps(row)


def add_difficulty(parser: argparse.ArgumentParser, tiny: Any) -> None:
    """Add an option for each field of a task's difficulty."""
    for field in fields(tiny):
        value = getattr(tiny, field.name)
        if isinstance(value, tuple):
            parser.add_argument(f"--{field.name}", type=int, nargs=2, default=value)
        else:
            parser.add_argument(f"--{field.name}", type=type(value), default=value)


def whole(text: str) -> int:
    """Return the number from 0 up that a text says.

    Raises:
        ValueError: it says none.
    """
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def main() -> None:
    """Write a file of one split; it appears whole or not at all."""
    task = argparse.ArgumentParser(add_help=False)
    task.add_argument("--task", choices=TASKS, default="arithmetic", help="what is learnt")
    tiny: Any = TASKS[task.parse_known_args()[0].task]
    parser = argparse.ArgumentParser(
        description="Write worked problems as documents; --task T --help lists T's difficulty.",
        parents=[task],
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=whole, default=1000)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt", choices=PROMPTS, default="parallel")
    parser.add_argument("--questions", action="store_true", help="questions and answers alone")
    add_difficulty(parser, tiny)
    given = parser.parse_args()
    chosen = {field.name: getattr(given, field.name) for field in fields(tiny)}
    try:
        difficulty = replace(
            tiny, **{k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
        )
    except MvspecError as error:
        parser.error(f"--{error}")
    found = islice(problems(given.split, given.seed, difficulty), given.count)
    given.file.parent.mkdir(parents=True, exist_ok=True)
    part = given.file.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for index, problem in enumerate(found):
            name = f"{given.split}-{given.seed}-{index}"
            line = record(name, problem, PROMPTS[given.prompt], question=given.questions)
            file.write(line + "\n")
    part.replace(given.file)


if __name__ == "__main__":
    main()
