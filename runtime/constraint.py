"""Constraints of holes: each as a mask over the next token, one matcher for each hole."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from pydantic import BaseModel, ValidationError
from tokenizers import pre_tokenizers
from torch import Tensor

from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import LimitExceeded, Unsupported, VerifyError
from mvspec.law.tags import TAG
from mvspec.runtime.grammar import grammar_of
from mvspec.tree.ir import Gen

_KEPT = 128
"""Compiled grammars that wait for the next hole with the same constraint."""


class Constraints:
    """Compiles the constraints of holes for one tokenizer.

    Args:
        vocabulary: of the model.
        size: the width of the model's logits; ids past the vocabulary are never allowed.
        ends: ids that end a turn, never allowed either.

    Raises:
        Unsupported: the vocabulary has ids that the logits lack.

    >>> from tokenizers import Tokenizer, decoders, models
    >>> pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "te"]
    >>> ids = {piece: id for id, piece in enumerate(pieces)}
    >>> tokenizer = Tokenizer(models.BPE(ids, [("t", "e")]))
    >>> tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    >>> tokenizer.decoder = decoders.ByteLevel()
    >>> constraints = Constraints(Vocabulary(tokenizer, tagged=False), size=260, ends=())
    >>> drink = constraints.open(Gen(name="drink", choices=("tea", "ten")))
    >>> [pieces[id] for id in drink.allowed().nonzero()]
    ['t', 'te']
    >>> drink.accept(ids["te"])
    >>> drink.accept(ids["a"])
    >>> drink.complete, drink.ended
    (True, True)
    """

    def __init__(self, vocabulary: Vocabulary, size: int, ends: Collection[int]) -> None:
        if size < vocabulary.size:
            raise Unsupported(
                f"the model has logits for {size} tokens, and tokenizer {vocabulary.name} has ids "
                f"up to {vocabulary.size - 1}: call model.resize_token_embeddings"
            )
        self.vocabulary = vocabulary
        self.size = size
        self.ends = frozenset(ends)
        self._kept: OrderedDict[tuple[object, ...], _Compiled] = OrderedDict()

    def check(self, hole: Gen, lead: str = "") -> None:
        """Refuse a hole that no text can fill; one without a constraint passes.

        Args:
            hole: what is to be filled.
            lead: text that its tokens write before the value.

        Raises:
            Unsupported: the constraint asks for what the grammar library lacks.
            LimitExceeded: a choice is longer than the hole.
            VerifyError: a choice holds a tag.
        """
        if (hole.regex, hole.choices, hole.json_schema) != (None, None, None):
            self._compile(hole, lead)

    def open(self, hole: Gen, lead: str = "") -> Constraint:
        """Return the constraint before its first token; what `check` raises is raised here too."""
        return Constraint(hole, self._compile(hole, lead).matcher.deep_copy(), self.size)

    def _compile(self, hole: Gen, lead: str) -> _Compiled:
        key = (hole.regex, hole.choices, hole.json_schema, lead)
        made = self._kept.get(key)
        if made is None:
            made = self._kept[key] = self._new(hole, lead)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        if made.tokens > hole.max_tokens:
            raise LimitExceeded(
                f"hole {hole.name!r}: the choice {made.choice!r} is {made.tokens} tokens and "
                f"max_tokens is {hole.max_tokens}: raise it"
            )
        return made

    def _new(self, hole: Gen, lead: str) -> _Compiled:
        for choice in hole.choices or ():
            if TAG.search(choice):
                raise VerifyError(f"hole {hole.name!r}", f"the choice {choice!r} holds a tag")
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._tokenizer, grammar_of(hole, lead), log_level=0, limits=limits)
        # The first mask shows whether anything matches, and is ready for every copy.
        Constraint(hole, matcher, self.size).allowed()
        lengths = [(len(self.vocabulary.encode_outside(lead + c)), c) for c in hole.choices or ()]
        return _Compiled(matcher, *max(lengths, default=(0, "")))

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(_Tokens(self)))


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A matcher before its first token, and the choice that takes the most tokens."""

    matcher: LLMatcher
    tokens: int
    choice: str


class Constraint:
    """The matcher of one open hole; `Constraints.open` makes it."""

    def __init__(self, hole: Gen, matcher: LLMatcher, size: int) -> None:
        self._hole = hole
        self._matcher = matcher
        self._size = size
        self._mask: Tensor | None = None

    def allowed(self) -> Tensor:
        """Return the tokens that may come next: bool [size] on the CPU, yours to change.

        Raises:
            Unsupported: no token can go on, or the grammar has grown too large to say.
        """
        if self._mask is None:
            bias = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)
            self._check()
            self._mask = torch.from_numpy(bias[: self._size] != 0)
        return self._mask.clone()

    def accept(self, id: int) -> None:
        """Move on by one token.

        Raises:
            VerifyError: it is not allowed here; nothing has changed.
        """
        if not 0 <= id < self._size or not self._matcher.try_consume_tokens([id]):
            self._check()
            raise VerifyError(
                f"hole {self._hole.name!r}", f"its constraint does not allow token {id} here"
            )
        self._mask = None

    @property
    def complete(self) -> bool:
        """Whether the tokens so far are a whole match."""
        return self._matcher.is_accepting()

    @property
    def ended(self) -> bool:
        """Whether they are one that nothing can continue."""
        return self.complete and (self._matcher.is_stopped() or not bool(self.allowed().any()))

    def _check(self) -> None:
        if self._matcher.is_error():
            hole = self._hole
            kind = "json_schema" if hole.json_schema else "choices" if hole.choices else "regex"
            raise Unsupported(
                f"hole {hole.name!r}: this engine cannot keep to its {kind}: "
                f"{_reason(self._matcher.get_error())}: write a simpler {kind}, without that"
            )


class _Tokens:
    """The tokenizer as llguidance reads it: what each token writes, and a private end."""

    bos_token_id: int | None = None

    def __init__(self, constraints: Constraints) -> None:
        size = constraints.size
        self._vocabulary = constraints.vocabulary
        backend = self._vocabulary.backend
        texts = backend.decode_batch([[id] for id in range(size)], skip_special_tokens=False)
        self.tokens = [_written(backend.id_to_token(id), text) for id, text in enumerate(texts)]
        added = backend.get_added_tokens_decoder()
        # Some control tokens are not special (Qwen's <tool_call>): their form gives them away.
        control = {i for i, t in added.items() if t.special or re.fullmatch("<.*>", t.content)}
        for id in control | constraints.ends:
            self.tokens[id] = b""  # a token that writes nothing is never allowed
        # A private id may end what is constrained, so the masks need no care for the model's own.
        self.tokens.append(b"<end>")
        self.eos_token_id = size
        self.special_token_ids = [size]

    def __call__(self, text: bytes | str) -> list[int]:
        """Never asked while nothing is forced, but llguidance wants it."""
        return self._vocabulary.encode_outside(text if isinstance(text, str) else text.decode())


@cache
def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2)."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    plain = {chr(byte): byte for byte in range(256) if chr(byte) in alphabet}
    others = [byte for byte in range(256) if byte not in plain.values()]
    return plain | {chr(256 + index): byte for index, byte in enumerate(others)}


def _written(token: str | None, text: str) -> bytes:
    """Return the bytes of a token that decodes, alone, to `text`; b"" for a gap.

    Only a token with part of a character is read from its name, as byte-level and byte-fallback
    (<0x0A>) vocabularies write it; b"" where they do not explain what it decodes to.
    """
    if token is None or "\ufffd" not in text:
        return text.encode() if token is not None else b""
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        out = bytes([int(token[3:5], 16)])
    else:
        out = bytes(_byte_of().get(character, 0) for character in token)
    return out if out.decode(errors="replace") == text else b""


def _reason(error: str) -> str:
    """Return what a message of llguidance says, in one line."""
    lines = error.partition("\n<")[0].splitlines() or ["it gives no reason"]
    told = [line for line in lines if line.startswith("error: ")] or lines
    line = told[0].removeprefix("error: ").rpartition("(in regex): ")[2]
    line = re.sub(r"^at \d+\(\d+\): |failed to compile JSON schema: |\. Enable .*", "", line)
    if line == "NoExtensionBias":
        return "nothing matches it that the tokenizer can write"
    return line if len(line) <= 200 else line[:199] + "…"


def value_of(hole: Gen, text: str, model: type[BaseModel] | None) -> Any:
    """Return what a hole's text says: for a schema what the JSON holds, for others the text.

    Args:
        hole: what was filled.
        text: its value, the lead left out.
        model: the Pydantic class of the schema, where it is known; the value is its instance.

    Raises:
        VerifyError: the text is no JSON, or the class refuses it.

    >>> value_of(Gen(name="cup", json_schema="{}"), '{"size": 3}', None)
    {'size': 3}
    """
    if hole.json_schema is None:
        return text
    try:
        return json.loads(text) if model is None else model.model_validate_json(text)
    except ValidationError as error:
        first, *rest = error.errors(include_url=False, include_input=False)
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        reason += f" (and {len(rest)} more)" if rest else ""
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise VerifyError(
        f"hole {hole.name!r}",
        f"its text does not validate: {reason}; a longer max_tokens or a tighter schema may help",
    )
