"""The prompting test: can a model that was never taught the tags be told to write blocks?

Run it with `python examples/studies/prompting.py`; docs/studies/prompting.md has what came out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from problems import Problem, problems
from rich.progress import track
from study import Records, mean_error, publish, start, table

import mvspec as mv
from mvspec.curation.questions import instructions
from mvspec.curation.tasks import prompting_counts, prompting_verdict
from mvspec.runtime import Options, Sampling, TorchEngine

CONDITIONS = ("plain", "zero-shot", "few-shot")
PLAIN = "Solve the problem, step by step. End with a line that begins with `Answer: `."
SHOTS = 100_000
"""Seed of the examples' problems: none of them is asked."""

NUMBER = re.compile(r"-?\d+")


def asked(
    problem: Problem, condition: str, shots: Sequence[Problem], max_tokens: int
) -> mv.Document:
    """Return the conversation that asks for a solution, with a hole for it.

    Args:
        condition: "plain" (no word of blocks), "zero-shot" (the instructions of `mvspec curate
            --task prompting`) or "few-shot" (and solved examples).
    """
    parts = [PLAIN if condition == "plain" else instructions("prompting")]
    if condition == "few-shot":
        # In the question, since tags in a turn of the assistant's would be structure.
        parts += [
            f"Problem: {shot.question}\n\n{mv.render(shot.solution, form='multiverse-prompt')}"
            for shot in shots
        ]
    parts.append(f"Problem: {problem.question}")
    return mv.document(mv.user("\n\n".join(parts)), mv.assistant(mv.gen("solution", max_tokens)))


def is_right(text: str, problem: Problem) -> bool:
    """Whether the numbers behind the last `Answer:` are the problem's.

    >>> is_right("Answer: 4 and 5.", problems(1)[0])
    False
    """
    _, found, answer = text.rpartition("Answer:")
    return bool(found) and NUMBER.findall(answer) == NUMBER.findall(problem.answer)


def main(
    model: str | None = None,
    device: str = "cpu",
    count: int = 16,
    shots: int = 2,
    max_tokens: int = 192,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 8,
    output: Path = Path("build/studies/prompting"),
    page: Path | None = None,
) -> None:
    """Prompt a model for blocks, and count what it writes. A killed run goes on.

    Args:
        model: a folder or a hub name; by default SmolLM2-135M-Instruct.
        device: where it runs.
        count: problems.
        shots: examples of the few-shot condition.
        max_tokens: of a solution.
        temperature: 0 takes the likeliest token.
        seed: of draws.
        batch: problems at once.
        output: the folder for answers.jsonl.
        page: a Markdown page whose results are renewed.
    """
    settings = {
        "model": model, "count": count, "shots": shots, "max_tokens": max_tokens,
        "temperature": temperature, "seed": seed,
    }  # fmt: skip
    records = Records(output / "answers.jsonl", settings)
    some, examples = problems(count), problems(shots, SHOTS)
    waiting = [
        (f"{condition}/{index}", condition, problem)
        for condition in CONDITIONS
        for index, problem in enumerate(some)
        if f"{condition}/{index}" not in records
    ]
    if waiting:
        engine = TorchEngine.load(model, device=device)
        options = Options(sampling=Sampling(temperature=temperature, seed=seed))
        groups = [waiting[at : at + batch] for at in range(0, len(waiting), batch)]
        for group in track(groups, "asking"):
            documents = [
                asked(problem, condition, examples, max_tokens) for _, condition, problem in group
            ]
            results = engine.run_many(documents, options)
            for (name, condition, problem), result in zip(group, results, strict=True):
                text = result.texts.get("solution", "")
                cut = sum(author == "model" for author in result.trace.authors) >= max_tokens
                verdict = prompting_verdict(text, cut=cut)
                row = {"condition": condition, "code": "", "text": text, "verdict": verdict}
                records.add(name, row | {"right": is_right(text, problem)})
    rows = list(records.rows.values())
    publish("prompting", report(rows), page, plot(rows), output)


def report(rows: Iterable[dict[str, Any]]) -> str:
    """Return the counts as a table."""
    some = list(rows)
    lines = []
    for condition in CONDITIONS:
        mine = [row for row in some if row["condition"] == condition]
        counts = prompting_counts(mine)
        lines.append([
            condition, counts["responses"], counts["with_a_block"],
            counts["well_formed_with_a_block"], counts["cut"],
            _number(counts["parallelism_with_blocks"]), _share([row["right"] for row in mine]),
            ", ".join(f"{code} {n}" for code, n in counts["violations"].items()) or "-",
        ])  # fmt: skip
    head = ["Condition", "Texts", "With a block", "well-formed", "Cut", "# parallel of blocks",
            "Right", "First violations"]  # fmt: skip
    return table(head, lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(values: Sequence[bool]) -> str:
    mean, error = mean_error([100 * value for value in values])
    return f"{mean:.0f} ± {error:.0f} %"


def plot(rows: Sequence[dict[str, Any]]) -> Any:
    """Draw the share of texts with a block, of well-formed ones with a block, and of right ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 2.8), layout="constrained")
    axes = figure.subplots()
    parts: dict[str, Callable[[dict[str, Any]], bool]] = {
        "with a block": lambda row: row["verdict"]["blocks"] > 0,
        "well-formed, with a block": lambda row: row["verdict"]["blocks"] and row["verdict"]["ok"],
        "right": lambda row: row["right"],
    }
    for number, (name, test) in enumerate(parts.items()):
        pairs = [
            mean_error([float(test(row)) for row in rows if row["condition"] == condition])
            for condition in CONDITIONS
        ]
        means, errors = zip(*pairs, strict=True)
        at = [place + 0.26 * (number - 1) for place in range(len(CONDITIONS))]
        axes.bar(at, means, 0.24, yerr=errors, capsize=2, label=name)
    axes.set_xticks(range(len(CONDITIONS)), CONDITIONS)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of texts")
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    start(main)
