"""A tokenizer as a runtime needs it: what may be drawn, and what ends a text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvspec.compiler.token_rules import TokenRules
from mvspec.compiler.tokens import turn_end
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.law.automaton import TagAutomaton, TagOrText
from mvspec.law.tags import Tag
from mvspec.runtime.constraint import Constraints
from mvspec.runtime.thread_state import AllowedTokens

_KEPT = 128
"""Masks of structures that are remembered, as many as the rules remember."""


class _TokenTexts(dict[int, str]):
    """Texts of tokens by id, decoded when they are first asked for."""

    def __init__(self, backend: Any) -> None:
        super().__init__()
        self._backend = backend

    def __missing__(self, id: int) -> str:
        text: str = self._backend.decode([id], skip_special_tokens=False)
        self[id] = text
        return text


class Lexicon:
    """The tokenizer of an engine.

    Args:
        vocabulary: checked; with the tags where the form is tagged.
        size: the width of the model's logits.
        ends: ids that end a turn.
        lead: what the chat template writes between an answer and the end of its turn.
    """

    @classmethod
    def of_chat(cls, vocabulary: Vocabulary, size: int, ends: Collection[int]) -> Lexicon:
        """Return that of a model which ends its turns as its chat template does, too."""
        end = turn_end(vocabulary)
        return cls(vocabulary, size, ends) if end is None else cls(
            vocabulary, size, {*ends, end.id}, end.lead
        )  # fmt: skip

    def __init__(
        self, vocabulary: Vocabulary, size: int, ends: Collection[int], lead: str = ""
    ) -> None:
        self.vocabulary = vocabulary
        self.lead = lead
        self.backend: Any = vocabulary.backend
        self.size = size
        self.ends = frozenset(ends)
        added = self.backend.get_added_tokens_decoder()
        self.control = frozenset(id for id, token in added.items() if token.special) | self.ends
        """Ids that are no text: tags, ends of turns, and the like."""
        closing = [tag for tag in vocabulary.tag_ids if tag.closes]
        self.closes = frozenset(vocabulary.tag_ids[tag] for tag in closing)
        """Ids of the closing tags."""
        self.ends_hole = self.ends | self.closes
        """Ids that end a hole without a constraint."""
        self.texts = _TokenTexts(self.backend)
        """What each token says alone; U+FFFD ends it where it ends inside a character."""
        self._masks: OrderedDict[int, tuple[NDArray[np.bool_], Tensor]] = OrderedDict()
        self._encode = lru_cache(maxsize=1024)(lambda text: tuple(vocabulary.encode(text)))
        self._starts = lru_cache(maxsize=16)(self._starting)

    @cached_property
    def rules(self) -> TokenRules:
        """What may come next in a structure, as ids."""
        return TokenRules(self.vocabulary, self.ends)

    @cached_property
    def constraints(self) -> Constraints:
        """The compiler of holes' constraints."""
        return Constraints(self.vocabulary, self.size, self.ends)

    def in_structure(self, machine: TagAutomaton, thread: int) -> Tensor:
        """Return what a thread of a structure may take next: bool [vocabulary], not to be changed.

        The same object comes again for the same tokens, as long as few others were asked for.
        """
        mask = self.rules.allowed(machine, thread)
        held = self._masks.get(id(mask))
        if held is None:
            held = self._masks[id(mask)] = mask, torch.tensor(mask)
            if len(self._masks) > _KEPT:
                self._masks.popitem(last=False)
        return held[1]

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text that the engine writes; short ones are remembered."""
        return self._encode(text) if len(text) < 64 else tuple(self.vocabulary.encode(text))

    def encode_event(self, event: TagOrText) -> tuple[int, ...]:
        """Return the ids of a tag or of a text that the engine writes."""
        if isinstance(event, Tag):
            return (self.vocabulary.tag_ids[event],)
        return self.encode(event)

    def width(self, text: str) -> int:
        """Return how many tokens a text takes."""
        return len(self.encode(text))

    @cached_property
    def known(self) -> Tensor | None:
        """Ids that the tokenizer has: bool [size]; None for all, where logits are not padded."""
        out = torch.zeros(self.size, dtype=torch.bool)
        table = self.backend.get_vocab(with_added_tokens=True).values()
        out[[id for id in table if id < self.size]] = True
        return None if bool(out.all()) else out

    def starting(self, lead: str) -> AllowedTokens:
        """Return what may stand in a free hole.

        Args:
            lead: what the token begins with; "" for any text. Ends of turns and closing tags
                are allowed in either case: they end the hole.
        """
        return self._starts(lead)

    def _starting(self, lead: str) -> AllowedTokens:
        out = torch.zeros(self.size, dtype=torch.bool)
        table = self.backend.get_vocab(with_added_tokens=True).values()
        ids = sorted(id for id in table if id < self.size and id not in self.control)
        if lead:
            texts = self.backend.decode_batch([[id] for id in ids], skip_special_tokens=False)
            ids = [id for id, text in zip(ids, texts, strict=True) if text.startswith(lead)]
        out[ids] = True
        out[sorted(id for id in self.ends_hole if id < self.size)] = True
        return AllowedTokens(out, lasting=True)
