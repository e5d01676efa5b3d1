"""Ask a model held-out problems, with nothing that holds it to the grammar.

python examples/arithmetic/evaluate.py [FOLDER] --count 400
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from mvspec.runtime import TorchEngine
from mvspec.runtime.arithmetic import TINY, arithmetic_model, problems
from mvspec.runtime.examination import examine, means


def main() -> None:
    """Print the share that is right, well-formed and forked, and how parallel answers are."""
    parser = argparse.ArgumentParser(description="Ask a model held-out problems.")
    parser.add_argument("model", type=Path, nargs="?", default=arithmetic_model())
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    asked = list(islice(problems("test", given.seed, TINY), given.count))
    engine = TorchEngine.load(given.model)
    found = means(mark for mark, _ in examine(engine, asked))
    for name, value in found.items():
        print(f"{name:15} {value:.3f}")


if __name__ == "__main__":
    main()
