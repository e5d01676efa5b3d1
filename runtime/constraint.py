"""What a hole may say: its constraint as a mask over the next token, one matcher for each hole."""

from __future__ import annotations

import importlib
import json
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from pydantic import BaseModel, ValidationError
from tokenizers import pre_tokenizers
from torch import Tensor

from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import LimitExceeded, Unsupported, VerifyError
from mvspec.ir import TAG, Gen

__all__ = ["Constraint", "Constraints", "value_of"]

_KEPT = 128
"""Compiled grammars that wait for the next hole with the same constraint."""

# Unless told so, llguidance leaves one tokenisation of what can be written in one way only.
_HEADER = '%llguidance {"no_forcing": true}\nstart: '

# One-line JSON as Python writes it; in free white space small models go in circles.
_JSON = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}

# The parser that `re` itself uses; since Python 3.11 it has no public name.
_parse: Any = importlib.import_module("re._parser").parse

# Its nodes that a grammar cannot hold: they look around, look back, or forbid to try again.
_LACKING = {
    "ASSERT": "look-around",
    "ASSERT_NOT": "look-around",
    "FAILURE": "look-around",
    "GROUPREF": "back references",
    "GROUPREF_EXISTS": "back references",
    "ATOMIC_GROUP": "atomic groups",
    "POSSESSIVE_REPEAT": "possessive repeats",
    "AT": "anchors inside a regex",
}

_TYPES = re.ASCII | re.UNICODE | re.LOCALE

# Keywords of a JSON schema that hold schemas, and those that hold them by name.
_SCHEMAS = ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")


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
        grammar = _HEADER + _grammar(hole, lead)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
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
    """What one hole may still say; `Constraints.open` makes it."""

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


def _grammar(hole: Gen, lead: str) -> str:
    """Return the right side of a Lark rule for the lead and the value.

    Raises:
        Unsupported: the regex asks for what is no regular language.
    """
    if hole.json_schema is not None:
        schema = json.loads(hole.json_schema)
        if isinstance(schema, bool):  # one allows everything, the other nothing
            schema = {} if schema else {"enum": []}
        _close(schema)
        text = "%json " + json.dumps(schema | {"x-guidance": _JSON})
        return f"/{_literal(lead)}/ {text}" if lead else text
    if hole.choices is not None:
        value = "|".join(map(_literal, hole.choices))
    else:
        try:
            tree = _parse(r"(?s:.*)" if hole.regex is None else hole.regex)
            value = _regular(list(tree), tree.state.flags, True, True)
        except _Lacks as lacks:
            raise Unsupported(
                f"hole {hole.name!r}: this engine lacks the capability {str(lacks)!r}: "
                f"write the regex {hole.regex!r} without it, or use choices or a schema"
            ) from None
    return f"/{_literal(lead)}(?:{value})/"


def _close(schema: dict[str, Any]) -> None:
    """Forbid properties without a name, where a schema names some and leaves the rest open.

    What it forbids is junk to whoever wrote the schema, and small models write it without end.
    """
    nodes = list(_schemas(schema))
    for node in nodes:
        # Schemas that hold together must allow each other's properties.
        if "allOf" in node or ("properties" in node and node.keys() & {"$ref", "anyOf", "oneOf"}):
            return
    for node in nodes:
        if "properties" in node and "patternProperties" not in node:
            node.setdefault("additionalProperties", False)


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and those in it."""
    if isinstance(schema, list):
        for each in schema:
            yield from _schemas(each)
    elif isinstance(schema, dict):
        yield schema
        for key in _SCHEMAS:
            yield from _schemas(schema.get(key))
        for key in _NAMED:
            named = schema.get(key)
            yield from _schemas([*named.values()] if isinstance(named, dict) else None)


class _Lacks(Exception):
    """A regex asks for a capability; its name is the message."""


def _literal(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else f"\\u{{{ord(c):x}}}" for c in text)


def _regular(items: list[Any], flags: int, starts: bool, ends: bool) -> str:
    """Write a tree of Python's regex parser as a regex without flags or character names.

    llguidance reads Rust's syntax, in which the same text can mean something else: `\\w` there
    holds other characters, `[a&&b]` is an intersection.

    Args:
        items: nodes in a row.
        flags: that hold for them.
        starts, ends: whether the first stands where the value starts, the last where it ends.
    """
    out = []
    for index, (kind, value) in enumerate(items):
        first, last = starts and index == 0, ends and index == len(items) - 1
        match kind.name:
            case "LITERAL" if not flags & re.IGNORECASE:
                out.append(_literal(chr(value)))
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                out.append(_characters(_atom(kind.name, value), flags & ~re.VERBOSE & ~re.DEBUG))
            case "BRANCH":
                # Each branch once: llguidance 1.9.1 fails on some with two equal ones.
                branches = {_regular(list(each), flags, first, last): 0 for each in value[1]}
                out.append(f"(?:{'|'.join(branches)})")
            case "SUBPATTERN":
                _, added, dropped, inner = value
                kept = flags & ~_TYPES if added & _TYPES else flags
                inner = _regular(list(inner), (kept | added) & ~dropped, first, last)
                out.append(f"(?:{inner})")
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, inner = value
                inner = _regular(list(inner), flags, False, False)
                bound = "" if str(most) == "MAXREPEAT" else most
                out.append(f"(?:{inner}){{{least},{bound}}}")
            case "AT" if (first and value.name in ("AT_BEGINNING", "AT_BEGINNING_STRING")) or (
                last and value.name in ("AT_END", "AT_END_STRING")
            ):
                pass  # a full match starts and ends there anyway
            case _:
                raise _Lacks(_LACKING.get(kind.name, kind.name.lower()))
    return "".join(out)


def _atom(kind: str, value: Any) -> str:
    """Write a node that matches one character in Python's syntax."""
    if kind == "ANY":
        return "."
    if kind == "IN":
        inside = ""
        for each, what in value:
            match each.name:
                case "NEGATE":
                    inside += "^"
                case "RANGE":
                    inside += f"\\U{what[0]:08x}-\\U{what[1]:08x}"
                case "CATEGORY":
                    letter = what.name.removeprefix("CATEGORY_")
                    inside += "\\" + (letter[4] if letter.startswith("NOT_") else letter[0].lower())
                case _:
                    inside += f"\\U{what:08x}"
        return f"[{inside}]"
    return f"[{'^' if kind == 'NOT_LITERAL' else ''}\\U{value:08x}]"


@lru_cache(maxsize=256)
def _characters(atom: str, flags: int) -> str:
    """Return the class of the characters that an atom matches: Python is asked about each."""
    codes = np.r_[:0xD800, 0xE000:0x110000]  # all but halves of surrogate pairs
    every = codes.astype("<u4").tobytes().decode("utf-32-le")
    runs = (match.span() for match in re.finditer(f"(?:{atom})+", every, flags))
    ranges = [f"\\u{{{ord(every[i]):x}}}-\\u{{{ord(every[j - 1]):x}}}" for i, j in runs]
    return "[" + "".join(ranges or [r"^\u{0}-\u{10ffff}"]) + "]"


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
