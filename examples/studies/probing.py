"""Does a layer know that a parallel block comes? A linear probe for each, held against controls.

Run it with `python examples/studies/probing.py`; docs/studies/probing.md has what came out.
"""

from __future__ import annotations

import json
import random
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from problems import CONNECTIVES, problems
from rich.progress import track
from study import Records, mean_error, publish, read_documents, sequential_reading, start, table

import mvspec
from mvspec import Document, Message, MvspecError
from mvspec.compiler import Layout, Vocabulary
from mvspec.compiler.stages import compile_stages
from mvspec.errors import ParseError
from mvspec.runtime.model import load
from mvspec.runtime.reading import read_layouts
from mvspec.syntax import Tag

SETS = {
    "matched": "before a block against before a chain, where the words are the same",
    "line ends": "the end of the line before a block against all other line ends",
    "any token": "the last token before a block against all other tokens, as in the paper",
}
STRENGTHS = (0.001, 0.01, 0.1)
"""Inverse regularisation, chosen on validation documents."""

PART = 16
"""Texts that are read between two writes to disk."""

LEAST = 12
"""Tokens of each kind that a set needs."""

SURFACE = 1024
"""Hashed features of the surface baseline."""


@dataclass
class Examples:
    """Tokens to tell apart.

    Args:
        labels: whether a block begins after the token.
        documents: the document that each is of.
        sets: for each token the names in `SETS` that it is of.
        contexts: the ids of the last tokens up to it, its own last; what a surface shows.
        places: its index in the text.
        hidden: [layers + 1, tokens, width].
    """

    labels: list[bool] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    sets: list[set[str]] = field(default_factory=list)
    contexts: list[tuple[int, ...]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    hidden: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))

    def probeable(self, name: str) -> bool:
        """Whether a set has enough tokens of either kind."""
        found = [label for label, sets in zip(self.labels, self.sets, strict=True) if name in sets]
        return LEAST <= sum(found) <= len(found) - LEAST

    def select(self, name: str, most: int, seed: int = 0) -> NDArray[np.int64]:
        """Return the tokens of a set, at most so many."""
        found = np.array([i for i, sets in enumerate(self.sets) if name in sets], dtype=np.int64)
        if len(found) > most:
            found = np.sort(np.random.default_rng(seed).choice(found, most, replace=False))
        return found


@dataclass
class Marked:
    """A text as a model reads it, with the tokens to tell apart.

    Args:
        chosen: for each token whether a block begins after it, and the names in `SETS` that it
            is of.
    """

    layout: Layout
    chosen: dict[int, tuple[bool, set[str]]]


def marked_text(tokenizer: Any, head: str, turn: Message, max_tokens: int) -> Marked:
    """Return the sequential reading of a turn, behind what is read before it."""
    solution, starts = sequential_reading(turn)
    text, starts = head + solution, [len(head) + at for at in starts]
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    ids = encoded["input_ids"][:max_tokens]
    ends = [end for _, end in encoded["offset_mapping"][:max_tokens]]
    firsts = {int(np.searchsorted(ends, at)) for at in starts if at <= ends[-1]}
    breaks = {
        int(np.searchsorted(ends, at + 1)): text[text.rfind("\n", 0, at) + 1 : at]
        for at, letter in enumerate(text[: ends[-1]])
        if letter == "\n" and at >= len(head)
    }
    begin = int(np.searchsorted(ends, len(head) + 1))
    others = sampled(sorted(set(range(begin, len(ids))) - firsts))
    chosen = {}
    for token in sorted(firsts | set(breaks) | others):
        if token < len(ids):
            names = {"any token"} if token in firsts | others else set()
            if token in breaks or token in firsts:
                names.add("line ends")
            if breaks.get(token) in CONNECTIVES:
                names.add("matched")
            chosen[token] = (token in firsts, names)
    return Marked(plain_layout(ids), chosen)


def marked_document(tokenizer: Any, document: Document) -> Marked:
    """Return a document under the law: what comes after a token is a block where it is the tag."""
    stages = compile_stages(document, tokenizer)
    opening = Vocabulary.of(tokenizer).backend.token_to_id(Tag.PARALLEL.value)
    ids, parents = stages.layout.input_ids, stages.layout.parent
    free = np.flatnonzero(stages.tokens.free & (parents >= 0))
    firsts = {int(parents[i]) for i in free if ids[i] == opening}
    begin = int(parents[free[0]])  # the prompt's last token: the same whatever comes
    others = sampled(sorted({int(parents[i]) for i in free} - firsts))
    chosen = {}
    for token in sorted(firsts | others | {begin}):
        names = {"any token"} if token in firsts | others else set()
        chosen[token] = (token in firsts, names | ({"matched"} if token == begin else set()))
    return Marked(stages.layout, chosen)


def sampled(tokens: Sequence[int]) -> set[int]:
    """Return at most twelve of the tokens, always the same."""
    return set(random.Random(len(tokens)).sample(tokens, min(12, len(tokens))))


def read_corpus(corpus: Path, name: str) -> Iterator[tuple[str, Message]]:
    """Yield the question and the turn of each well-formed output."""
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            try:
                yield row.get("question", ""), mvspec.parse(row[name]).messages[-1]
            except ParseError:
                continue  # cut or malformed


def collect(model: Any, given: Sequence[Marked], folder: Path | None = None) -> Examples:
    """Read the texts and keep what the layers hold at the tokens to tell apart.

    Args:
        folder: keeps what has been read, so that a killed run goes on; the caller sees to it that
            it is of the same model and texts.
    """
    examples = Examples()
    for document, marked in enumerate(given):
        ids = marked.layout.input_ids.tolist()
        for token, (label, names) in marked.chosen.items():
            examples.labels.append(label)
            examples.documents.append(document)
            examples.sets.append(names)
            examples.contexts.append(tuple(ids[max(0, token - 7) : token + 1]))
            examples.places.append(token)
    states = [
        read_part(model, given[at : at + PART], folder and folder / f"states-{at:06}.npy")
        for at in track(range(0, len(given), PART), "reading")
    ]
    examples.hidden = np.concatenate(states, axis=1).astype(np.float32)
    return examples


def read_part(model: Any, given: Sequence[Marked], path: Path | None) -> NDArray[np.float16]:
    """Return the hidden states of some texts' tokens, from the file where it is there."""
    if path is not None and path.exists():
        loaded: NDArray[np.float16] = np.load(path)
        return loaded
    kept = [list(marked.chosen) for marked in given]
    read = read_layouts(model, [marked.layout for marked in given], hidden=kept, batch=4)
    parts = [reading.hidden for reading in read if reading.hidden is not None]
    states = np.concatenate(parts, axis=1).astype(np.float16)
    if path is not None:
        with path.with_suffix(".part").open("wb") as file:
            np.save(file, states)
        path.with_suffix(".part").replace(path)  # whole or not at all
    return states


def plain_layout(ids: Sequence[int]) -> Layout:
    """Return ids as plain causal text."""
    index = np.arange(len(ids), dtype=np.int32)
    none = np.zeros((0, len(ids)), dtype=np.int32)
    array = np.asarray(ids, dtype=np.int32)
    return Layout(array, index, index - 1, index > 0, np.zeros_like(index), none, none)


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
    loaded, words = load(model, device=device)
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
