"""Does a path need the tokens of its siblings? The same documents under several layouts, scored.

Run it with `python examples/studies/sharing.py`; docs/studies/sharing.md has what came out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from problems import problems
from reading import read_layouts
from rich.progress import track
from study import Records, mean_error, publish, read_documents, start, table

from mvspec import Document, Parallel
from mvspec.compiler import Layout, Vocabulary
from mvspec.compiler.stages import compile_stages
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.forms.untagged import UNTAGGED
from mvspec.runtime.engine.model import load_model

LOWERINGS = ("multiverse", "shared(1)", "shared(8)", "shared(64)", "sequential")


@dataclass(frozen=True)
class Scored:
    """A document under one lowering, and which of its tokens are compared.

    Args:
        layout: what the model reads.
        first, later: bool [n]; tokens of first paths and of the paths after them that the model
            chooses, the tag that ends a path left out.
    """

    layout: Layout
    first: NDArray[np.bool_]
    later: NDArray[np.bool_]


def scored(document: Document, tokenizer: Any, lowering: str, syntax: Syntax) -> Scored:
    """Compile a document; find the tokens of its paths wherever the lowering puts them."""
    law = compile_stages(document, tokenizer, "multiverse", syntax=syntax)
    paths = law.threads()
    numbers = np.array([int(path.split(".")[-1]) if path else 0 for path in paths])
    free = law.tokens.free & (numbers > 0)
    stages = compile_stages(document, tokenizer, lowering, syntax=syntax)
    order = np.arange(len(paths))
    if stages.reordered:
        order = rounds_order(law.layout, stages.layout)
    return Scored(stages.layout, (free & (numbers == 1))[order], (free & (numbers > 1))[order])


def rounds_order(law: Layout, shared: Layout) -> NDArray[np.int64]:
    """Return for each token of a `shared` layout its index in the order of the text.

    Both give a token the same position; in the order of the text those of one position are its
    paths' in turn, and so they are in rounds.
    """
    ours = np.lexsort((np.arange(len(law)), law.position_ids))
    theirs = np.lexsort((np.arange(len(shared)), shared.position_ids))
    order = np.empty(len(law), dtype=np.int64)
    order[theirs] = ours
    return order


def main(
    model: str | None = None,
    device: str = "cpu",
    documents: int = 40,
    corpus: Path | None = None,
    field: str = "document",
    batch: int = 4,
    output: Path = Path("build/studies/sharing"),
    page: Path | None = None,
) -> None:
    """Score paths with and without their siblings' tokens. A killed run goes on.

    Args:
        model: a folder or a hub name; by default SmolLM2-135M-Instruct. One whose tokenizer has
            the tags reads the multiverse form, any other the prose that plans run on.
        device: where it runs.
        documents: how many are scored; all have a block.
        corpus: JSONL of documents as JSON to score instead of made-up problems.
        field: of the corpus, that has the document; "." for the row itself.
        batch: documents that are read at once.
        output: the folder for losses.jsonl and the plot.
        page: a Markdown page whose results are renewed.
    """
    settings = {"model": model, "documents": documents, "corpus": corpus}
    records = Records(output / "losses.jsonl", settings)
    made = (each.document for each in problems(3 * documents))
    given = read_documents(corpus, field) if corpus else made
    some = list(islice((each for each in given if any(each.walk(Parallel))), documents))
    names = [f"{lowering}/{index}" for lowering in LOWERINGS for index in range(len(some))]
    if any(name not in records for name in names):
        loaded, tokenizer = load_model(model, device=device)
        syntax = syntax_of(tokenizer)
        for lowering in LOWERINGS:
            waiting = [i for i in range(len(some)) if f"{lowering}/{i}" not in records]
            parts = [scored(some[i], tokenizer, lowering, syntax) for i in waiting]
            read = read_layouts(loaded, [part.layout for part in parts], batch=batch)
            for index, part, reading in track(
                zip(waiting, parts, read, strict=True), lowering, total=len(waiting)
            ):
                losses = reading.losses
                row = {
                    "first": float(losses[part.first].mean()),
                    "later": float(losses[part.later].mean()),
                    "tokens": int(part.later.sum()),
                }
                records.add(f"{lowering}/{index}", {"lowering": lowering, **row})
    rows = list(records.rows.values())
    name = "sharing-corpus" if corpus else "sharing"
    publish(name, report(rows), page, plot(rows), output)


def syntax_of(tokenizer: Any) -> Syntax:
    """Return the form that a tokenizer can write."""
    vocabulary = Vocabulary.of(tokenizer, tagged=False)
    return MULTIVERSE if vocabulary.backend.token_to_id("<Parallel>") is not None else UNTAGGED


def differences(rows: Iterable[dict[str, Any]], lowering: str, what: str) -> list[float]:
    """Return for each document its loss under a lowering minus that under the law."""
    losses = {row["id"]: row[what] for row in rows}
    return [
        value - losses[f"multiverse/{name.split('/')[1]}"]
        for name, value in losses.items()
        if name.startswith(f"{lowering}/")
    ]


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Return the losses as a table."""

    def shown(values: Sequence[float], sign: str = "") -> str:
        mean, error = mean_error(values)
        return f"{mean:{sign}.3f} ± {error:.3f}"

    lines = []
    for lowering in LOWERINGS:
        mine = [row for row in rows if row["lowering"] == lowering]
        lines.append([
            f"`{lowering}`", len(mine), sum(row["tokens"] for row in mine),
            shown([row["first"] for row in mine]), shown([row["later"] for row in mine]),
            shown(differences(rows, lowering, "first"), "+"),
            shown(differences(rows, lowering, "later"), "+"),
        ])  # fmt: skip
    head = ["Layout", "Documents", "Tokens of later paths", "Loss, first path", "Loss, later paths",
            "Against the law, first", "Against the law, later"]  # fmt: skip
    return table(head, lines)


def plot(rows: Sequence[dict[str, Any]]) -> Any:
    """Draw the difference to the law, first and later paths."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 2.8), layout="constrained")
    axes = figure.subplots()
    others = LOWERINGS[1:]
    for number, (what, colour) in enumerate((("first", "#8fa3c7"), ("later", "#2f6fb7"))):
        pairs = [mean_error(differences(rows, lowering, what)) for lowering in others]
        means, errors = zip(*pairs, strict=True)
        at = [place + 0.36 * (number - 0.5) for place in range(len(others))]
        axes.bar(at, means, 0.34, yerr=errors, capsize=2, color=colour, label=f"{what} paths")
    axes.axhline(0, color="#444444", lw=0.8)
    axes.set_xticks(range(len(others)), others)
    axes.set_ylabel("loss a token, minus the law's")
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    start(main)
