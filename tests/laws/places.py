"""The definition over all pairs, for the tokens of a tokenizer instead of single characters.

Between two tags all characters stand in one place, so tokens find their places by the tags alone.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from bpe import loose_tokenizer, small_tokenizer
from definition import Place, tokens, visible
from numpy.typing import NDArray
from qwen import qwen_tokenizer
from tokenizers import Tokenizer

from mvspec.compiler import Tokens, Vocabulary
from mvspec.law.tags import Tag
from mvspec.tree.ir import Message

__all__ = ["TOKENIZERS", "Block", "blocks", "nfc", "pairs", "place_tokens", "tag_at"]

TOKENIZERS: tuple[Callable[[], Tokenizer], ...] = (
    small_tokenizer,
    loose_tokenizer,
    qwen_tokenizer,
)


def nfc(text: str, tokenizer: Tokenizer) -> str:
    """What a tokenizer makes of a text before it cuts it: NFC under Qwen's."""
    return unicodedata.normalize("NFC", text) if tokenizer.normalizer else text


def tag_at(tokens: Tokens) -> dict[int, Tag]:
    """The tag at each index that has one."""
    order = tuple(Tag)
    return {
        end - 1: order[number]
        for number, end in zip(tokens.tags.tolist(), tokens.ends.tolist(), strict=True)
    }


def place_tokens(message: Message, lowered: Tokens, tokenizer: Tokenizer) -> list[Place]:
    """The place of every token; on the way, the texts of what is forced and free are compared."""
    characters = tokens(message)
    vocabulary = Vocabulary.of(tokenizer)
    tags = tag_at(lowered)
    ids = lowered.ids.tolist()
    places: list[Place] = []
    for is_tag, run in groupby(characters, key=lambda token: isinstance(token.event, Tag)):
        if is_tag:
            for token in run:
                assert tags[len(places)] is token.event
                assert bool(lowered.forced[len(places)]) == token.forced
                places.append(token.place)
            continue
        between = list(run)
        start = end = len(places)
        while end < len(ids) and end not in tags:
            end += 1
        assert len({token.place for token in between}) == 1
        for forced in (True, False):
            said = "".join(token.event for token in between if token.forced == forced)
            chosen = [i for i in range(start, end) if bool(lowered.forced[i]) == forced]
            got = vocabulary.decode([ids[i] for i in chosen])
            assert got == nfc(said, tokenizer)
        places += [between[0].place] * (end - start)
    assert len(places) == len(ids)
    return places


def pairs(places: list[Place]) -> NDArray[np.bool_]:
    """[n, n]: the definition's answer for every pair, asked once for each pair of places."""
    index = {place: number for number, place in enumerate(dict.fromkeys(places))}
    table = np.array([[visible([k, q])[1][0] for k in index] for q in index], dtype=np.bool_)
    rows = np.array([index[place] for place in places], dtype=np.int64)
    if not len(rows):
        return np.zeros((0, 0), dtype=np.bool_)
    return np.tril(table[rows[:, None], rows[None, :]])


@dataclass
class Block:
    """Where a block's tags stand: `</Goal>`, each (`<Path>`, `</Path>`), `<Conclusion>`."""

    fork: int = -1
    paths: list[tuple[int, int]] = field(default_factory=list)
    conclusion: int = -1


def blocks(tags: dict[int, Tag]) -> list[Block]:
    """Every block of a whole document, in the order of the openings."""
    found: list[Block] = []
    stack: list[Block] = []
    for index, tag in sorted(tags.items()):
        if tag is Tag.PARALLEL:
            found.append(Block())
            stack.append(found[-1])
        elif tag is Tag.END_GOAL:
            stack[-1].fork = index
        elif tag is Tag.PATH:
            stack[-1].paths.append((index, -1))
        elif tag is Tag.END_PATH:
            stack[-1].paths[-1] = (stack[-1].paths[-1][0], index)
        elif tag is Tag.CONCLUSION:
            stack[-1].conclusion = index
        elif tag is Tag.END_PARALLEL:
            stack.pop()
    return found
