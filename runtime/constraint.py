"""Constraints of holes: what may come next, what only can, and the cheapest way out.

A schema or a regex is a matcher of llguidance over bytes, so that its tokens may be spelled in any
way; choices are a trie of the ids that the tokenizer writes them with.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray
from tokenizers import pre_tokenizers
from torch import Tensor

from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import LimitExceeded, Unsupported, VerifyError
from mvspec.law.tags import TAG
from mvspec.runtime.grammar import grammar_of, unsupported_part
from mvspec.tree.ir import Gen

_KEPT = 128
"""Compiled grammars that wait for the next hole with the same constraint."""

REVOCABLE = 8
"""How many of a hole's last tokens are spelled again where what is forced joins them."""

_FEW = 64
"""Allowed tokens up to which each is looked at."""

_ENDING = b'}]"aA,0123456789ntf{[-: .@/~\n\t\r'
"""What ends JSON soonest, in this order: closings, fillers of a text, the next part, values."""

_QUOTE, _TEXT = b'"~'
"""What ends a text, and what stands in JSON inside a text alone."""

_BEAM = 12
"""States of a constraint that are looked at side by side for its cheapest ending."""


class Constraint(Protocol):
    """The constraint of one open hole; `Constraints.open` makes it."""

    @property
    def complete(self) -> bool:
        """Whether the tokens so far are a whole match."""

    @property
    def ended(self) -> bool:
        """Whether they are one that nothing can continue."""

    def allowed(self) -> Tensor:
        """Return the tokens that may come next: bool [size] on the CPU, yours to change.

        Raises:
            Unsupported: no token can go on, or the grammar has grown too large to say.
        """

    def accept(self, id: int) -> None:
        """Move on by one token.

        Raises:
            VerifyError: it is not allowed here; nothing has changed.
        """

    def forced(self) -> Spelling:
        """Return what only can come next; nothing where there is a choice, or it may end."""

    def ending(self) -> Spelling | None:
        """Return a cheap way to a whole match; None where none was found."""

    def respell(self, spelling: Spelling) -> None:
        """Move on by tokens that `forced` or `ending` returned, and take back what they replace."""

    def undo(self) -> None:
        """Take the last token back."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """Tokens that are written.

    Args:
        ids: to write.
        back: how many tokens before them they replace: those that join what comes next.
    """

    ids: Sequence[int] = ()
    back: int = 0

    @property
    def cost(self) -> int:
        """How many tokens more there are then."""
        return len(self.ids) - self.back


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
    ['te']
    >>> drink.accept(ids["te"])
    >>> [pieces[id] for id in drink.allowed().nonzero()]
    ['a', 'n']
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
        self._kept: OrderedDict[tuple[object, ...], LLMatcher | _Branch] = OrderedDict()

    def check(self, hole: Gen, lead: str = "") -> None:
        """Refuse a hole that no text can fill; one without a constraint passes.

        Args:
            hole: what is to be filled.
            lead: text that its tokens write before the value.

        Raises:
            Unsupported: the constraint asks for what the grammar library lacks.
            LimitExceeded: a choice is longer than the hole.
            VerifyError: it leaves nothing to write but tags or control tokens.
        """
        if hole.constraint:
            self._compile(hole, lead)

    def open(self, hole: Gen, lead: str = "", *, revocable: bool = True) -> Constraint:
        """Return the constraint before its first token; what `check` raises is raised here too.

        Args:
            revocable: whether tokens that were drawn may be spelled again.
        """
        made = self._compile(hole, lead)
        if isinstance(made, _Branch):
            return ChoiceConstraint(hole, made, self.size)
        matcher = made.deep_copy()
        return GrammarConstraint(hole, matcher, self.size, self._tokens, revocable=revocable)

    def _compile(self, hole: Gen, lead: str) -> LLMatcher | _Branch:
        key = (hole.regex, hole.choices, hole.json_schema, lead)
        made = self._kept.get(key)
        if made is None:
            made = self._kept[key] = (
                self._trie(hole, lead) if hole.choices else self._new(hole, lead)
            )
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        if isinstance(made, _Branch) and made.most > hole.max_tokens:
            raise LimitExceeded(
                f"hole {hole.name!r}: the choice {made.choice!r} is {made.most} tokens and "
                f"max_tokens is {hole.max_tokens}: raise it"
            )
        return made

    def _trie(self, hole: Gen, lead: str) -> _Branch:
        root = _Branch()
        for choice in hole.choices or ():
            if control := self._control(choice):
                raise VerifyError(f"hole {hole.name!r}", f"the choice {choice!r} holds {control}")
            ids = self._spelled(lead + choice)
            if not ids:
                raise VerifyError(
                    f"hole {hole.name!r}", f"the tokenizer cannot write the choice {choice!r}"
                )
            if len(ids) > root.most:
                root.most, root.choice = len(ids), choice
            at = root
            for left, id in zip(range(len(ids), 0, -1), ids, strict=True):
                at.least = min(at.least, left)
                at = at.following.setdefault(id, _Branch())
            at.least = 0
        return root

    def _spelled(self, text: str) -> list[int]:
        """Return the ids of a text as the tokenizer spells it, unless they write another text.

        They do where an added token has the name of one that is part of a character.
        """
        tokens, said = self._tokens.tokens, text.encode(errors="replace")
        for ids in (self.vocabulary.encode_outside(text), self._tokenizer.greedy_tokenize(text)):
            if b"".join(tokens[id] for id in ids) == said:
                return list(ids)
        return []

    def _control(self, text: str) -> str:
        """Return what of a text is no text but structure, with its kind; "" for nothing."""
        if tag := TAG.search(text):
            return f"a tag ({tag.group()})" if tag.group() != text else "a tag"
        found = next((token for token in self._tokens.control_texts if token in text), "")
        return f"the control token {found}" if found else ""

    def _new(self, hole: Gen, lead: str) -> LLMatcher:
        matcher = self._matcher(grammar_of(hole, lead))
        constraint = GrammarConstraint(hole, matcher.deep_copy(), self.size, self._tokens)
        try:
            constraint.allowed()  # shows whether anything matches
        except Unsupported as error:
            part = unsupported_part(hole, lambda text: not self._matcher(text).is_error())
            raise Unsupported(f"{error}{part}") from None
        if only := self._only_control(matcher, lead):
            kind = hole.constraint
            raise VerifyError(
                f"hole {hole.name!r}", f"its {kind} can only write {only}: let it match a text"
            )
        matcher.compute_logit_bias()  # the first mask is ready for every copy
        return matcher

    def _matcher(self, grammar: str) -> LLMatcher:
        limits = LLParserLimits(verbose_errors=False)
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)

    def _only_control(self, matcher: LLMatcher, lead: str) -> str:
        """Return what a grammar can only write, where that is nothing or no text; else ""."""
        only = "nothing"
        waiting = [(matcher.deep_copy(), b"")]
        seen: set[bytes] = set()
        while waiting and len(seen) < 256:
            at, found = waiting.pop()
            text = found.decode(errors="replace")[len(lead) :]
            if control := self._control(text):
                only = control
                continue
            if text and at.is_accepting():
                return ""
            ids = np.flatnonzero(np.frombuffer(at.compute_logit_bias(), np.uint8)[: self.size])
            if len(ids) > _FEW:
                return ""
            for id in ids.tolist():
                after = found + self._tokens.tokens[id]
                if after not in seen:
                    seen.add(after)
                    waiting.append((copy := at.deep_copy(), after))
                    copy.consume_token(id)
        return "" if waiting else only

    @cached_property
    def _tokens(self) -> _Tokens:
        return _Tokens(self)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(self._tokens))


@dataclass(slots=True)
class _Branch:
    """One place in the trie of choices.

    Args:
        following: what goes on from here, by id.
        least: how many tokens more the cheapest choice takes.
        most, choice: at the root: those of the longest one.
    """

    following: dict[int, _Branch] = field(default_factory=dict)
    least: int = 1 << 30
    most: int = 0
    choice: str = ""


class ChoiceConstraint:
    """Choices, each spelled as the tokenizer spells it; see `Constraint`.

    Args:
        hole: with the choices.
        root: of their trie.
        size: the width of the model's logits.
    """

    def __init__(self, hole: Gen, root: _Branch, size: int) -> None:
        self._hole = hole
        self._size = size
        self._way = [root]

    @property
    def complete(self) -> bool:
        """See `Constraint`."""
        return self._way[-1].least == 0

    @property
    def ended(self) -> bool:
        """See `Constraint`."""
        return not self._way[-1].following

    def allowed(self) -> Tensor:
        """See `Constraint`."""
        out = torch.zeros(self._size, dtype=torch.bool)
        out[[*self._way[-1].following]] = True
        return out

    def accept(self, id: int) -> None:
        """See `Constraint`."""
        after = self._way[-1].following.get(id)
        if after is None:
            raise _not_allowed(self._hole, id)
        self._way.append(after)

    def forced(self) -> Spelling:
        """See `Constraint`."""
        return Spelling(list(self._ids(lambda at: at.least == 0 or len(at.following) != 1)))

    def ending(self) -> Spelling:
        """See `Constraint`."""
        return Spelling(list(self._ids(lambda at: at.least == 0)))

    def _ids(self, ends: Callable[[_Branch], bool]) -> Iterator[int]:
        at = self._way[-1]
        while not ends(at):
            id, at = min(at.following.items(), key=lambda each: each[1].least)
            yield id

    def respell(self, spelling: Spelling) -> None:
        """See `Constraint`."""
        for id in spelling.ids:
            self.accept(id)

    def undo(self) -> None:
        """See `Constraint`."""
        self._way.pop()


class GrammarConstraint:
    """A regex or a schema as a matcher of bytes; see `Constraint`.

    Args:
        hole: with the constraint.
        matcher: before its first token.
        size: the width of the model's logits.
        tokens: what each token writes.
        revocable: whether tokens that were drawn may be spelled again.
    """

    def __init__(
        self,
        hole: Gen,
        matcher: LLMatcher,
        size: int,
        tokens: _Tokens,
        *,
        revocable: bool = True,
    ) -> None:
        self._hole = hole
        self._matcher = matcher
        self._size = size
        self._tokens = tokens
        self._revocable = revocable
        self._mask: Tensor | None = None
        self._drawn: list[int] = []
        """Its last tokens, back to those that were forced."""

    @property
    def complete(self) -> bool:
        """See `Constraint`."""
        return self._matcher.is_accepting()

    @property
    def ended(self) -> bool:
        """See `Constraint`."""
        return self.complete and (self._matcher.is_stopped() or not bool(self._bias().any()))

    def _bias(self) -> NDArray[np.bool_]:
        bias = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)
        self._check()
        return bias[: self._size].astype(np.bool_)

    def allowed(self) -> Tensor:
        """See `Constraint`; where few may come, those alone that join nothing forced after them."""
        if self._mask is None:
            mask = self._bias()
            ids = np.flatnonzero(mask)
            if 1 < len(ids) <= _FEW and not self.complete:
                joining = [id for id in ids.tolist() if self._joins(id)]
                if len(joining) < len(ids):
                    mask[joining] = False
            self._mask = torch.from_numpy(mask)
        return self._mask.clone()

    def _joins(self, id: int) -> bool:
        """Whether a token would be another one, as the tokenizer spells it with what follows."""
        if not self._matcher.try_consume_tokens([id]):
            return False
        following: list[bytes] = []
        if not self.complete:
            following = [text] if (text := self._matcher.compute_ff_bytes()) else []
            if not following and not self._tokens.tokens[id].strip():
                found = np.flatnonzero(self._bias())[: _FEW + 1].tolist()
                following = [self._tokens.tokens[each] for each in found if len(found) <= _FEW]
        self._matcher.rollback(1)
        drawn = (*self._drawn[1 - REVOCABLE :], id)
        return bool(following) and all(self._spell(drawn, text).back for text in following)

    def accept(self, id: int) -> None:
        """See `Constraint`."""
        if not 0 <= id < self._size or not self._matcher.try_consume_tokens([id]):
            self._check()
            raise _not_allowed(self._hole, id)
        self._mask = None
        self._drawn.append(id)

    def undo(self) -> None:
        """See `Constraint`."""
        self._matcher.rollback(1)
        self._mask = None
        self._drawn.pop()

    # What is written

    def forced(self) -> Spelling:
        """See `Constraint`; a word or white space at its end that may go on is left to the draw."""
        text = b"" if self.complete else self._matcher.compute_ff_bytes()
        if not text:
            return Spelling()
        drawn = self._drawn[-REVOCABLE:] if self._revocable else ()
        spelling = self._spell(drawn, text)
        ids = list(spelling.ids)
        matcher = self._matcher.deep_copy()
        matcher.rollback(spelling.back)
        while ids:
            matcher.try_consume_tokens(ids[:-1])
            longer = self._tokens.longer(ids[-1])
            bias = np.frombuffer(matcher.compute_logit_bias(), np.uint8)
            if not self._tokens.open_ended(ids[-1]) or not bias[longer].any():
                break
            matcher.rollback(len(ids) - 1)
            ids.pop()
        return Spelling(ids, spelling.back) if len(ids) > spelling.back else Spelling()

    def ending(self) -> Spelling | None:
        """See `Constraint`."""
        if self.complete:
            return Spelling()
        wide = self._hole.regex is not None
        text = self._cheapest(_BEAM) if wide else self._cheapest(1) or self._cheapest(_BEAM)
        if text is None:
            return None
        of_byte, tokens = self._tokens.of_byte, self._tokens.tokens
        drawn = self._drawn[-REVOCABLE:] if self._revocable else ()
        spelling = self._spell(drawn, text)
        written = sum(len(tokens[id]) for id in spelling.ids)
        taken = sum(len(tokens[id]) for id in drawn[len(drawn) - spelling.back :])
        if written - taken == len(text):
            return spelling
        # It begins inside a character, which bytes alone can end.
        return Spelling([of_byte[byte] for byte in text]) if {*text} <= of_byte.keys() else None

    def _cheapest(self, beam: int) -> bytes | None:
        """Return what ends it, looking at so many states at a time; None where nothing was found.

        States after as many bytes that allow the same tokens count as one.
        """
        of_byte = self._tokens.of_byte
        literal = (self._hole.regex or "").encode()
        candidates = [of_byte[byte] for byte in dict.fromkeys(literal + _ENDING) if byte in of_byte]
        states = [(self._matcher.deep_copy(), b"")]
        for _ in range(min(self._hole.max_tokens, 512)):
            after: dict[bytes, tuple[LLMatcher, bytes]] = {}
            for matcher, text in states:
                if not matcher.is_accepting() and (more := matcher.compute_ff_bytes()):
                    ids = [of_byte[byte] for byte in more if byte in of_byte]
                    if len(ids) < len(more) or not matcher.consume_tokens(ids):
                        continue
                    text += more
                if TAG.search(text.decode(errors="ignore")):
                    continue
                if matcher.is_accepting():
                    return text
                fits = [id for id in candidates if matcher.validate_tokens([id])]
                if of_byte.get(_TEXT) in fits and of_byte.get(_QUOTE) in fits:
                    fits.insert(0, of_byte[_QUOTE])  # inside a text a bracket ends nothing
                if not fits:
                    bias = np.frombuffer(matcher.compute_logit_bias(), np.uint8)[: self._size]
                    fits = np.flatnonzero(bias)[:1].tolist()
                for id in fits[: None if beam > 1 else 1]:
                    copy = matcher.deep_copy()
                    if copy.consume_token(id):
                        key = copy.compute_bitmask() + bytes([copy.is_accepting()])
                        after.setdefault(key, (copy, text + self._tokens.tokens[id]))
            states = list(after.values())[:beam]
        return None

    def _spell(self, drawn: Sequence[int], text: bytes) -> Spelling:
        """Return the tokens of bytes as the tokenizer writes them behind those that were drawn.

        Where it has a token that holds some of both, the drawn ones that it holds are replaced.
        What ends inside a character is left out.
        """
        tokens = self._tokens.tokens
        whole = b"".join(tokens[id] for id in drawn) + text
        at = len(whole) - len(text)
        try:
            said = whole.decode()
        except UnicodeDecodeError as error:
            if error.start < at:  # what was drawn begins, or ends, inside a character
                return self._spell((), text) if drawn else Spelling()
            said = whole[: error.start].decode()
        ids = self._tokens(said)
        ends = [0, *accumulate(len(tokens[id]) for id in ids)]
        if ends[-1] != len(said.encode()):  # a tokenizer that writes something else
            return Spelling()
        back = 0
        while at not in ends:
            back += 1
            at -= len(tokens[drawn[-back]])
        return Spelling(ids[ends.index(at) :], back)

    def respell(self, spelling: Spelling) -> None:
        """See `Constraint`."""
        self._matcher.rollback(spelling.back)
        self._matcher.try_consume_tokens(list(spelling.ids))
        self._check()
        self._mask = None
        self._drawn.clear()

    def _check(self) -> None:
        if self._matcher.is_error():
            kind = self._hole.constraint
            raise Unsupported(
                f"hole {self._hole.name!r}: this engine cannot keep to its {kind}: "
                f"{_reason(self._matcher.get_error())}: write a simpler {kind}, without that"
            )


def _not_allowed(hole: Gen, id: int) -> VerifyError:
    return VerifyError(f"hole {hole.name!r}", f"its constraint does not allow token {id} here")


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
        self.control_texts = sorted(
            added[id].content for id in control if added[id].content.strip()
        )
        """What a text must not hold, written as characters."""
        for id in control | constraints.ends:
            self.tokens[id] = b""  # a token that writes nothing is never allowed
        order = sorted(range(size), key=self.tokens.__getitem__)
        self._order = np.array(order)
        self._sorted = [self.tokens[id] for id in order]
        self.of_byte = {text[0]: id for id, text in enumerate(self.tokens) if len(text) == 1}
        # A private id may end what is constrained, so the masks need no care for the model's own.
        self.tokens.append(b"<end>")
        self.eos_token_id = size
        self.special_token_ids = [size]

    def longer(self, id: int) -> NDArray[np.int64]:
        """Return the tokens that begin with a token and write more."""
        text = self.tokens[id]
        first, last = bisect_right(self._sorted, text), bisect_left(self._sorted, text + b"\xff")
        return self._order[first:last]

    def open_ended(self, id: int) -> bool:
        """Whether a token ends in white space, or inside a word that may go on."""
        text = self.tokens[id].decode(errors="replace")
        return text[-1:].isspace() or text[-1:].isalnum() or text[-1:] == "\ufffd"

    def __call__(self, text: bytes | str) -> list[int]:
        """Return the ids of a text; of bytes where llguidance asks, which it does not."""
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
