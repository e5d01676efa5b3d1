"""Constrained holes of several tokenizers: walks over the tokens that are allowed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from bpe import CONTROL, copy, loose_tokenizer, small_tokenizer
from qwen import byte_characters
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from mvspec.compiler import Vocabulary
from mvspec.errors import Unsupported, VerifyError
from mvspec.runtime.constraint import Constraint, Constraints
from mvspec.tree.ir import Gen

__all__ = [
    "KINDS",
    "WIDER",
    "constraints",
    "fillable",
    "follow",
    "ids_of",
    "state",
    "values",
    "walk",
    "written",
]

WIDER = 37
"""How many logits stand past the vocabulary."""


def gappy_tokenizer() -> Tokenizer:
    """The small tokenizer with ids that are no token's."""
    data = json.loads(small_tokenizer().to_str())
    added = {token["content"]: token["id"] for token in data["added_tokens"]}
    ids = data["model"]["vocab"] | added
    data["model"]["vocab"] = {token: id if id < 300 else id + 30 for token, id in ids.items()}
    for token in data["added_tokens"]:
        token["id"] += 30
    return Tokenizer.from_str(json.dumps(data))


def added_tokenizer() -> Tokenizer:
    """The small tokenizer with tokens added as plain text, some of several bytes a character."""
    tokenizer = copy(small_tokenizer())
    texts = ("tea pot", "    ", "茶", " 一杯茶", "é", "🍵🍵")
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    tokenizer.add_special_tokens([AddedToken("[INST]", normalized=False)])
    return tokenizer


def fallback_tokenizer() -> Tokenizer:
    """As Gemma has it: spaces are ▁, and what is no token is spelled in bytes (<0x0A>)."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [chr(code) for code in range(33, 127)] + ["▁", "▁t", "▁te", "ea", "茶", "▁▁"]
    merges = [("▁", "t"), ("▁t", "e"), ("e", "a"), ("▁", "▁")]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "small": small_tokenizer,
    "loose": loose_tokenizer,
    "gappy": gappy_tokenizer,
    "added": added_tokenizer,
    "fallback": fallback_tokenizer,
}


@cache
def constraints(kind: str = "small") -> Constraints:
    vocabulary = Vocabulary.of(KINDS[kind](), tagged=kind != "fallback")
    end = vocabulary.backend.token_to_id("<|im_end|>")
    return Constraints(vocabulary, vocabulary.size + WIDER, {end})


@cache
def written(kind: str) -> dict[int, bytes]:
    """What each token writes, found from longer texts than the token alone."""
    backend = constraints(kind).vocabulary.backend
    characters = {character: byte for byte, character in byte_characters().items()}
    out: dict[int, bytes] = {}
    for token, id in backend.get_vocab(with_added_tokens=True).items():
        if kind == "fallback":
            match = re.fullmatch("<0x(..)>", token)
            out[id] = bytes.fromhex(match[1]) if match else token.replace("▁", " ").encode()
        elif all(character in characters for character in token):
            out[id] = bytes(characters[character] for character in token)
        else:
            out[id] = token.encode()
    return out


def ids_of(allowed: Any) -> list[int]:
    return [int(id) for id in allowed.nonzero()[:, 0]]


def follow(constraint: Constraint, ids: list[int]) -> Constraint:
    for id in ids:
        constraint.accept(id)
    return constraint


def state(constraint: Constraint) -> tuple[bool, bool]:
    return constraint.complete, constraint.ended


def walk(hole: Gen, seed: int, kind: str = "small", lead: str = "", most: int = 300) -> str | None:
    """Take allowed tokens at random, those that close something more often; None if too many."""
    within = constraints(kind)
    vocabulary = within.vocabulary
    draw = random.Random(seed)
    constraint = within.open(hole, lead)
    closing = {id for id, text in written(kind).items() if text in (b'"', b"}", b"]", b",", b", ")}
    ids: list[int] = []
    while True:
        choices = ids_of(constraint.allowed())
        assert constraint.ended == (not choices)
        if constraint.complete and (constraint.ended or draw.random() < 0.4):
            break
        if len(ids) == most:
            return None
        closers = [id for id in choices if id in closing]
        ids.append(draw.choice(closers if closers and draw.random() < 0.6 else choices))
        constraint.accept(ids[-1])
    text = vocabulary.decode(ids)
    assert text.encode() == b"".join(written(kind)[id] for id in ids)
    assert text.startswith(lead)
    return text[len(lead) :]


def values(hole: Gen, kind: str = "small", lead: str = "") -> set[bytes]:
    """Everything that allowed tokens can write where the constraint is complete."""
    within = constraints(kind)
    bytes_of = written(kind)
    found: set[bytes] = set()
    seen: set[bytes] = set()
    waiting: list[list[int]] = [[]]
    while waiting:
        ids = waiting.pop()
        constraint = follow(within.open(hole, lead), ids)
        text = b"".join(bytes_of[id] for id in ids)
        if constraint.complete:
            found.add(text)
        choices = ids_of(constraint.allowed())
        assert constraint.ended == (constraint.complete and not choices)
        assert constraint.complete or choices
        for id in choices:
            # The text so far decides what may come next, however it was tokenised.
            if (after := text + bytes_of[id]) not in seen:
                seen.add(after)
                waiting.append([*ids, id])
    return found


def fillable(hole: Gen, lead: str = "", kind: str = "small") -> bool:
    try:
        constraints(kind).check(hole, lead)
    except (Unsupported, VerifyError) as error:
        assert re.search("nothing matches|can only write nothing", str(error))  # noqa: PT017
        return False
    return True
