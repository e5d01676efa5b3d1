"""Does a layer know that a parallel block comes? A linear probe for each, held against controls.

Run it with `python examples/studies/probing.py`; docs/studies/probing.md has what came out.
"""

from __future__ import annotations

import json
import warnings
import zlib
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from marking import (
    LEAST,
    SETS,
    Examples,
    Marked,
    collect,
    marked_document,
    marked_text,
    read_corpus,
)
from numpy.typing import NDArray
from problems import problems
from rich.progress import track
from study import Records, mean_error, publish, read_documents, start, table

from mvspec import MvspecError
from mvspec.runtime.engine.model import load_model

STRENGTHS = (0.001, 0.01, 0.1)
"""Inverse regularisation, chosen on validation documents."""

SURFACE = 1024
"""Hashed features of the surface baseline."""


def surface(examples: Examples) -> NDArray[np.float32]:
    """Return what the last eight tokens and the place in the text say, without a model."""
    features = np.zeros((len(examples.labels), SURFACE + 1), dtype=np.float32)
    for row, (context, place) in enumerate(zip(examples.contexts, examples.places, strict=True)):
        for back, token in enumerate(reversed(context)):
            for name in (f"{back}:{token}", f"any:{token}"):
                features[row, zlib.crc32(name.encode()) % SURFACE] = 1
        features[row, SURFACE] = place
    return features


def control_labels(examples: Examples, seed: int) -> NDArray[np.bool_]:
    """Return labels at random that only depend on the last tokens (Hewitt and Liang, 2019)."""
    return np.array(
        [bool(zlib.crc32(repr((seed, context[-4:])).encode()) & 1) for context in examples.contexts]
    )


def accuracy(
    features: NDArray[np.float32],
    labels: NDArray[np.bool_],
    documents: NDArray[np.int64],
    seed: int,
    *,
    mlp: bool = False,
) -> float:
    """Return the balanced accuracy of a probe on documents that it has not seen.

    Three fifths of the documents train it, one fifth chooses its regularisation, one tests it.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = np.random.default_rng(seed).permutation(np.unique(documents))
    parts = np.split(names, [int(len(names) * 0.6), int(len(names) * 0.8)])
    train, choose, test = (np.isin(documents, part) for part in parts)
    if mlp:  # it has no weights for classes
        rare = train & labels if labels[train].mean() < 0.5 else train & ~labels
        other = np.flatnonzero(train & ~rare)
        some = np.random.default_rng(seed).choice(other, min(int(rare.sum()), len(other)), False)
        train = rare.copy()
        train[some] = True
    if len(set(labels[train].tolist())) < 2:
        return float("nan")  # one wording has one random label: no control
    best, chosen = -1.0, None
    for strength in STRENGTHS:
        probe = (
            MLPClassifier((64,), alpha=1 / (1000 * strength), max_iter=200, random_state=seed)
            if mlp
            else LogisticRegression(C=strength, class_weight="balanced", max_iter=200)
        )
        made = make_pipeline(StandardScaler(), probe)
        with warnings.catch_warnings():  # an end before convergence is regularisation too
            warnings.simplefilter("ignore")
            made.fit(features[train], labels[train])
        score = balanced_accuracy_score(labels[choose], made.predict(features[choose]))
        if score > best:
            best, chosen = score, made
    assert chosen is not None
    return float(balanced_accuracy_score(labels[test], chosen.predict(features[test])))


def measure(examples: Examples, name: str, seeds: int, stride: int, most: int) -> dict[str, Any]:
    """Probe every `stride`-th layer, and the baselines, on one set of tokens."""
    at = examples.select(name, most)
    labels = np.array(examples.labels)[at]
    documents = np.array(examples.documents)[at]
    plain = surface(examples)[at]
    last = len(examples.hidden) - 1
    layers = sorted({*range(0, last, stride), last})
    result: dict[str, Any] = {
        "tokens": len(at),
        "positive": int(labels.sum()),
        "surface": [accuracy(plain, labels, documents, seed) for seed in range(seeds)],
        "mlp": [
            accuracy(examples.hidden[last][at], labels, documents, seed, mlp=True)
            for seed in range(seeds)
        ],
        "layers": {},
    }
    for layer in track(layers, f"probing, {name}"):
        hidden = examples.hidden[layer][at]
        result["layers"][str(layer)] = {
            "probe": [accuracy(hidden, labels, documents, seed) for seed in range(seeds)],
            "control": [
                accuracy(hidden, control_labels(examples, seed)[at], documents, seed)
                for seed in range(seeds)
            ],
        }
    return result


def main(
    model: str | None = None,
    device: str = "cpu",
    documents: int = 600,
    max_tokens: int = 2048,
    source: Literal["problems", "corpus", "law"] = "problems",
    corpus: Path | None = None,
    field: str = "output",
    seeds: int = 5,
    stride: int = 3,
    most: int = 1500,
    output: Path = Path("build/studies/probing"),
    page: Path | None = None,
) -> None:
    """Probe a model. A killed run goes on.

    Args:
        model: a folder or a hub name; by default SmolLM2-135M-Instruct.
        device: where it runs.
        documents: how many texts are read.
        max_tokens: of a text; the rest of it is not read.
        source: "problems" (made up, read sequentially); "corpus" (outputs in the form multiverse,
            read sequentially; malformed ones are left out); "law" (a corpus of documents as JSON,
            read with their blocks under the law, by a model that knows the tags).
        corpus: JSONL.
        field: of the corpus, that has the text or the document.
        seeds: splits of the documents.
        stride: every so many layers are probed, and the last.
        most: tokens of a set.
        output: the folder for results.json and the plot.
        page: a Markdown page whose results are renewed.
    """
    if source != "problems" and corpus is None:
        raise MvspecError(f"--source {source} needs --corpus FILE.jsonl")
    loaded, words = load_model(model, device=device)
    given: list[Marked]
    if corpus is None:
        some = [(each.question, each.solution) for each in problems(documents)]
        given = [marked_text(words, f"Question: {q}\nSolution:\n", t, max_tokens) for q, t in some]
    elif source == "law":
        turns = islice(read_documents(corpus, field), documents)
        given = [marked_document(words, document) for document in turns]
    else:
        some = list(islice(read_corpus(corpus, field), documents))
        given = [marked_text(words, f"Question: {q}\nSolution:\n", t, max_tokens) for q, t in some]
    settings = [model, documents, max_tokens, source, corpus, field]
    Records(output / "settings.jsonl", {"read": [str(each) for each in settings]})
    examples = collect(loaded, given, output)
    names = [name for name in SETS if examples.probeable(name)]
    if not names:
        raise MvspecError(f"no set has {LEAST} tokens of each kind: read more documents")
    results = {name: measure(examples, name, seeds, stride, most) for name in names}
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    name = "probing" if source == "problems" else f"probing-{source}"
    publish(name, report(results), page, plot(results), output)


def report(results: dict[str, Any]) -> str:
    """Return the results as a table."""

    def shown(values: list[float]) -> str:
        mean, error = mean_error([100 * value for value in values])
        return "-" if np.isnan(mean) else f"{mean:.1f} ± {error:.1f}"

    rows = []
    for name, result in results.items():
        best = max(result["layers"], key=lambda layer: np.mean(result["layers"][layer]["probe"]))
        last = list(result["layers"])[-1]
        probe, control = result["layers"][best]["probe"], result["layers"][best]["control"]
        rows.append([
            name, f"{result['positive']} of {result['tokens']}", shown(result["surface"]),
            shown(result["layers"]["0"]["probe"]), f"{shown(probe)} (layer {best})",
            shown(result["layers"][last]["probe"]), shown(result["mlp"]), shown(control),
            shown([a - b for a, b in zip(probe, control, strict=True)]),
        ])  # fmt: skip
    head = ["Set", "Before a block", "Surface", "Embeddings", "Best layer", "Last layer",
            "Last, MLP", "Control", "Selectivity"]  # fmt: skip
    return table(head, rows)


def plot(results: dict[str, Any]) -> Any:
    """Draw accuracy over layers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(results) + 0.6, 3.1), layout="constrained")
    for axes, (name, result) in zip(
        np.atleast_1d(figure.subplots(1, len(results), sharey=True)), results.items(), strict=True
    ):
        layers = [int(layer) for layer in result["layers"]]
        for kind, colour in (("probe", "#2f6fb7"), ("control", "#b4712b")):
            pairs = [mean_error(each[kind]) for each in result["layers"].values()]
            means, errors = zip(*pairs, strict=True)
            axes.errorbar(layers, means, errors, label=kind, color=colour, capsize=2)
        axes.axhline(mean_error(result["surface"])[0], color="#4b8b57", ls="--", label="surface")
        axes.axhline(0.5, color="#999999", ls=":", label="chance")
        axes.set_title(name, size=10)
        axes.set_xlabel("layer")
    figure.axes[0].set_ylabel("balanced accuracy")
    figure.axes[0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    start(main)
