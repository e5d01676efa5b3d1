"""Tokens to tell apart in texts, and what the layers of a model hold at them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from problems import CONNECTIVES
from reading import read_layouts
from rich.progress import track
from study import sequential_reading

import mvspec
from mvspec import Document, Message
from mvspec.compiler import Layout, Vocabulary
from mvspec.compiler.stages import compile_stages
from mvspec.law.tags import Tag

__all__ = ["LEAST", "SETS", "Examples", "Marked", "collect", "marked_document", "marked_text",
           "read_corpus"]  # fmt: skip

SETS = {
    "matched": "before a block against before a chain, where the words are the same",
    "line ends": "the end of the line before a block against all other line ends",
    "any token": "the last token before a block against all other tokens, as in the paper",
}

PART = 16
"""Texts that are read between two writes to disk."""

LEAST = 12
"""Tokens of each kind that a set needs."""


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
    for record in mvspec.read(corpus, field=name):
        document = record.read().document
        if document is not None:  # else it is cut or malformed
            yield (record.row or {}).get("question", ""), document.messages[-1]


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
    most = np.finfo(np.float16).max  # a few dimensions of large models pass it
    states = np.concatenate(parts, axis=1).clip(-most, most).astype(np.float16)
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
