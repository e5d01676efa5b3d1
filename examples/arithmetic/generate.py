"""Write worked problems as documents, for `mvspec compile`.

    python examples/arithmetic/generate.py train.jsonl --count 20000
    python examples/arithmetic/generate.py test.jsonl --split test --questions
    mvspec compile train.jsonl --tokenizer FOLDER -o train

A seed gives the same problems always. A problem's split follows from its content, so no file of
one split holds a problem of another, whatever their seeds and difficulties.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

from mvspec.runtime.arithmetic import (
    PARALLEL,
    SPLITS,
    STEPWISE,
    TINY,
    Difficulty,
    Problem,
    problems,
    question_of,
    solve,
)

PROMPTS = {"parallel": PARALLEL, "stepwise": STEPWISE}


def record(name: str, problem: Problem, prompt: str, *, question: bool) -> str:
    """Return a line: the document and its name, or the question and its answer alone."""
    if question:
        row = {"id": name, "question": question_of(problem, prompt), "answer": problem.value}
    else:
        row = {"id": name, **json.loads(solve(problem, prompt).to_json())}
    return json.dumps(row)


def main() -> None:
    """Write a file of one split; it appears whole or not at all."""
    parser = argparse.ArgumentParser(description="Write worked problems as documents.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt", choices=PROMPTS, default="parallel")
    parser.add_argument("--questions", action="store_true", help="questions and answers alone")
    for name in ("digits", "operands", "parts"):
        least, most = getattr(TINY, name)
        parser.add_argument(f"--{name}", type=int, nargs=2, default=(least, most))
    for name in ("plain", "nested", "products"):
        parser.add_argument(f"--{name}", type=float, default=getattr(TINY, name))
    parser.add_argument("--depth", type=int, default=TINY.depth)
    given = parser.parse_args()
    difficulty = Difficulty(
        tuple(given.digits), tuple(given.operands), tuple(given.parts),
        given.plain, given.nested, given.depth, given.products,
    )  # fmt: skip
    found = islice(problems(given.split, given.seed, difficulty), given.count)
    part = given.file.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for index, problem in enumerate(found):
            name = f"{given.split}-{given.seed}-{index}"
            line = record(name, problem, PROMPTS[given.prompt], question=given.questions)
            file.write(line + "\n")
    part.replace(given.file)


if __name__ == "__main__":
    main()
