"""A model that says what a test tells it to say, and what training says of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from bpe import untagged_tokenizer
from tiny import chat
from torch import Tensor

import mvspec as mv
from mvspec.compiler import additive_mask
from mvspec.runtime import Result, TorchEngine
from mvspec.runtime.engine.kv_cache import KVCache
from mvspec.runtime.engine.model import EngineModel

__all__ = ["Scripted", "ask", "scripted_engine", "tokens_of", "training_logits"]


class Scripted(EngineModel):
    """A model that answers cues: each token is likeliest that goes on with the last cue's reply.

    It reads what each thread's row of the cache shows, and nothing else. A reply that is over is
    followed by an end of turn.

    Args:
        says: reply by cue; a list of ids is said as it is, a text as it is tokenised.
    """

    def __init__(self, tokenizer: Any, says: Mapping[str, str | list[int]]) -> None:
        self.name = "scripted"
        self.context = None
        self.tokenizer = tokenizer
        self.size = len(tokenizer)
        self.end = int(tokenizer.eos_token_id)
        self.says = {
            cue: self.encode(reply) if isinstance(reply, str) else reply
            for cue, reply in says.items()
        }
        self.texts: WeakKeyDictionary[KVCache, list[int]] = WeakKeyDictionary()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def ends(self) -> frozenset[int]:
        return frozenset([self.end])

    def cache(self) -> KVCache:
        return KVCache(self.device)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, tags in it being tags."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def forward(self, chunks: Any) -> Tensor:
        out = []
        for chunk in chunks:
            ids = self.texts.setdefault(chunk.cache, [])
            ids[chunk.start :] = chunk.ids
            logits = torch.zeros(len(chunk.keep), self.size, dtype=torch.float64)
            for number, index in enumerate(chunk.keep):
                seen = chunk.cache.visible[chunk.rows[index], : chunk.start + index + 1]
                logits[number, self.next([ids[slot] for slot in seen.nonzero()[0]])] = 30.0
            out.append(logits)
        return torch.cat(out)

    def next(self, seen: list[int]) -> int:
        """Return the token that follows what a thread sees."""
        text = self.tokenizer.decode(seen)
        at, cue = max(((text.rfind(cue), cue) for cue in self.says), default=(-1, ""))
        if at < 0:
            return self.end
        said, reply = text[at + len(cue) :], self.says[cue]
        for count, id in enumerate(reply):
            if self.tokenizer.decode(reply[:count]) == said:
                return id
        return self.end


def scripted_engine(
    says: Mapping[str, str | list[int]], *, tagged: bool = True, **more: Any
) -> TorchEngine:
    """Return an engine whose model answers cues; in tagged or in plain form."""
    tokenizer = chat(None if tagged else untagged_tokenizer())
    return TorchEngine(Scripted(tokenizer, says), tokenizer, **more)


def ask(*body: Any) -> mv.Document:
    """Return a question and an assistant's turn."""
    return mv.document(mv.user("Well?"), mv.assistant(*body))


def tokens_of(result: Result, hole: str) -> list[tuple[str, str]]:
    """Return text and author of a hole's tokens."""
    trace = result.trace
    (found,) = (each for each in trace.holes if each.name == hole)
    span = slice(found.start, found.stop)
    return list(zip(trace.token_texts[span], trace.authors[span], strict=True))


def training_logits(engine: TorchEngine, result: Result) -> Tensor:
    """Return the logits of one training forward over a run's tokens: [tokens, vocabulary]."""
    layout, model = result.trace.layout, engine.model.model
    with torch.inference_mode():
        out = model(
            input_ids=torch.tensor(layout.input_ids[None], dtype=torch.int64),
            position_ids=torch.tensor(layout.position_ids[None], dtype=torch.int64),
            attention_mask=additive_mask(layout, dtype=model.dtype),
        )
    logits: Tensor = out.logits[0]
    return logits + getattr(engine.model, "bias", 0.0)
