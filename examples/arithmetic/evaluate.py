"""Ask a model held-out problems, with nothing that holds it to the grammar.

    python examples/arithmetic/evaluate.py [FOLDER] --count 400
    python examples/arithmetic/evaluate.py build/countdown/model --task countdown
    python examples/arithmetic/evaluate.py [FOLDER] --count 400 --engine http://127.0.0.1:30000

With `--engine` a server of the same folder (`mvspec serve FOLDER`) answers too, and the tokens of
both are compared: on a CPU, in float32, they are the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from mvspec.errors import MvspecError
from mvspec.runtime import Result
from mvspec.runtime.program import engine_of
from mvspec.runtime.protocol import Engine
from mvspec.runtime.tasks import TASKS
from mvspec.runtime.tasks.arithmetic import arithmetic_model
from mvspec.runtime.tasks.examination import UNHELD, mark, means
from mvspec.runtime.tasks.problem import TaskProblem, ask, problems


def measure(engine: Engine, asked: Sequence[TaskProblem]) -> tuple[list[Result], dict[str, float]]:
    """Ask all problems at once; return the answers, and the means that are printed."""
    started = time.perf_counter()
    results = engine.run_many([ask(problem) for problem in asked], UNHELD)
    seconds = time.perf_counter() - started
    found = means(mark(*pair) for pair in zip(results, asked, strict=True))
    return results, found | {"seconds": seconds}


def main() -> None:
    """Print the share that is right, well-formed and forked, and how parallel answers are."""
    parser = argparse.ArgumentParser(description="Ask a model held-out problems.")
    parser.add_argument("model", type=Path, nargs="?", default=arithmetic_model())
    parser.add_argument("--task", choices=TASKS, default="arithmetic")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", metavar="URL", help="of a server that serves the model too")
    given = parser.parse_args()
    if given.count < 1:
        parser.error(f"--count: {given.count} is not a whole number from 1 up")
    asked = list(islice(problems("test", given.seed, TASKS[given.task]), given.count))
    try:
        engines = [engine_of(model=given.model)]
        if given.engine:
            engines.append(engine_of(given.engine))
        answers, columns = zip(*(measure(engine, asked) for engine in engines), strict=True)
    except MvspecError as error:
        sys.exit(f"evaluate: {error}")
    if given.engine:
        print(f"{'':15} {'in process':>10} {'served':>10}")
    for name in columns[0]:
        print(f"{name:15}", *(f"{column[name]:10.3f}" for column in columns))
    if given.engine:
        same = sum(a.trace.ids == b.trace.ids for a, b in zip(*answers, strict=True))
        print(f"the same tokens: {same} of {len(asked)}")


if __name__ == "__main__":
    main()
