"""A model that draws its logits at random: no trained model chooses so wildly."""

from __future__ import annotations

from typing import Any

import torch
from tiny import chat

from mvspec.law.tags import Tag
from mvspec.runtime import TorchEngine
from mvspec.runtime.engine.kv_cache import KVCache
from mvspec.runtime.engine.model import EngineModel, TokenChunk

__all__ = ["Dice", "dice_engine"]


class Dice(EngineModel):
    """Random logits; every tag and every newline is `liking` likelier than other tokens."""

    def __init__(self, size: int, liked: list[int], liking: float) -> None:
        self.name = "dice"
        self.context = None
        self.size = size
        self.liked = liked
        self.liking = liking
        self.generator = torch.Generator()

    @property
    def device(self) -> Any:
        return torch.device("cpu")

    @property
    def ends(self) -> frozenset[int]:
        return frozenset()

    def cache(self) -> KVCache:
        return KVCache(self.device)

    def forward(self, chunks: Any) -> Any:
        out = []
        for chunk in chunks:
            assert isinstance(chunk, TokenChunk)
            # By what is read and where, so that a run which fails can be run again.
            self.generator.manual_seed(hash((chunk.start, *chunk.ids[:64])) % 2**63)
            logits = torch.randn(len(chunk.keep), self.size, generator=self.generator)
            logits[:, self.liked] += self.liking
            out.append(logits)
        return torch.cat(out)


def dice_engine(tokenizer: Any, liking: float, **more: Any) -> TorchEngine:
    """Return an engine whose model likes structure that much; in plain form without the tags."""
    wrapped = chat(tokenizer)
    tags = (wrapped.backend_tokenizer.token_to_id(tag.value) for tag in Tag)
    liked = [tag for tag in tags if tag is not None]
    liked += [*wrapped.encode("\n", add_special_tokens=False), wrapped.eos_token_id]
    return TorchEngine(Dice(len(wrapped), liked, liking), wrapped, **more)
