"""Tokenizers: loading and saving them, and the checked view that the compiler has of one.

Tags are single special tokens there, and text from outside is plain text.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tokenizers import AddedToken, Tokenizer

from mvspec.compiler.chat_template import TemplateSettings, asking, bare_template, with_settings
from mvspec.data.records import InputError
from mvspec.errors import MvspecError, Unsupported
from mvspec.law.tags import Tag

TAGS = tuple(Tag)

# The characters of a fork header before its colon.
_LABEL = "0123456789.\n"

# Strings that show how a tokenizer treats the edges of a segment.
_PROBES = ("a", " a", "\n", "1:", " b\n", "Answer", "\n\n")


def add_tags(tokenizer: Any) -> int:
    """Add the twelve tags to a tokenizer as special tokens; return how many were new.

    Special, because a tag must be out of reach for text from outside. Resize the model's
    embeddings afterwards (`model.resize_token_embeddings(len(tokenizer))`).

    >>> from tokenizers import Tokenizer, models
    >>> add_tags(Tokenizer(models.BPE()))
    12
    """
    tags = [AddedToken(tag.value, special=True, normalized=False) for tag in Tag]
    if isinstance(tokenizer, Tokenizer):
        return int(tokenizer.add_special_tokens(tags))
    return int(tokenizer.add_tokens(tags, special_tokens=True))


def has_tags(tokenizer: Any) -> bool:
    """Whether a tokenizer knows all twelve tags; without them documents run untagged.

    >>> from tokenizers import Tokenizer, models
    >>> has_tags(Tokenizer(models.BPE()))
    False
    """
    held = tokenizer.get_vocab()
    return all(tag.value in held for tag in Tag)


class Vocabulary:
    """A checked view of a tokenizer; `Vocabulary.of` keeps one for each tokenizer.

    Args:
        tokenizer: a transformers fast tokenizer or a `tokenizers.Tokenizer`.
        tagged: whether the twelve tags must be there (not for the `untagged` form).

    Raises:
        Unsupported: a tag is missing, is several tokens, is not special or strips white space;
            or the tokenizer changes text at the edges of a segment.
    """

    _recent: ClassVar[deque[Vocabulary]] = deque(maxlen=8)

    @classmethod
    def of(cls, tokenizer: Any, *, tagged: bool = True) -> Vocabulary:
        """Return the vocabulary of a tokenizer, checked once."""
        if isinstance(tokenizer, Vocabulary):
            return tokenizer
        for known in cls._recent:
            if known.source is tokenizer and known.tagged == tagged:
                if len(known.backend.get_added_tokens_decoder()) != known._added:
                    known.grow()
                return known
        made = cls(tokenizer, tagged=tagged)
        cls._recent.append(made)
        return made

    def __init__(self, tokenizer: Any, *, tagged: bool = True) -> None:
        self.source = tokenizer
        self.tagged = tagged
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not isinstance(backend, Tokenizer):
            raise Unsupported(
                f"{type(tokenizer).__name__} is no fast tokenizer: load one with "
                "AutoTokenizer.from_pretrained(..., use_fast=True), or pass a tokenizers.Tokenizer"
            )
        self.backend = backend
        self.grow()
        self._check_edges()
        self.tag_ids: dict[Tag, int] = self._tag_ids() if tagged else {}

    @property
    def name(self) -> str:
        """What errors call this tokenizer."""
        return str(getattr(self.source, "name_or_path", "") or type(self.source).__name__)

    @property
    def fingerprint(self) -> str:
        """Its size, and a digest of its tokens by id: what a trace says of its ids."""
        return self._fingerprint(self.size)

    def holds(self, fingerprint: str) -> bool:
        """Whether every id of the vocabulary with this fingerprint is the same token here.

        So it is where tokens were added since, such as the tags.
        """
        size = fingerprint.partition(":")[0]
        usable = size.isdecimal() and len(size) < 10 and int(size) <= self.size
        return usable and self._fingerprint(int(size)) == fingerprint

    def _fingerprint(self, size: int) -> str:
        if size not in self._fingerprints:
            table = self.backend.get_vocab(with_added_tokens=True).items()
            tokens = sorted((id, token) for token, id in table if id < size)
            digest = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]
            self._fingerprints[size] = f"{size}:{digest}"
        return self._fingerprints[size]

    @cached_property
    def _fingerprints(self) -> dict[int, str]:
        return {}

    def asking(self, arguments: Mapping[str, Any] | None) -> Vocabulary:
        """Return it with a tokenizer whose chat template is rendered with these arguments.

        Raises:
            Unsupported: the template knows no such argument, or names others.
        """
        source = asking(self.source, arguments)
        if source is self.source:
            return self
        made = copy(self)
        made.source = source
        return made

    def grow(self) -> None:
        """Read the size again, after tokens were added to the tokenizer."""
        self._added = len(self.backend.get_added_tokens_decoder())
        # Ids may have gaps, so the size is not how many there are.
        ids = self.backend.get_vocab(with_added_tokens=True).values()
        self.size = max(ids, default=-1) + 1
        for name in [name for name, value in vars(type(self)).items()
                     if isinstance(value, cached_property)]:  # fmt: skip
            self.__dict__.pop(name, None)

    # Checks

    def _check_edges(self) -> None:
        for left in _PROBES:
            for right in _PROBES:
                ids = self.encode(left) + self.encode(right)
                text = self.backend.decode(ids, skip_special_tokens=False)
                if text != left + right:
                    raise Unsupported(
                        f"tokenizer {self.name}: segments {left!r} and {right!r} come back as "
                        f"{text!r}; a tokenizer that adds or strips white space at the edge of "
                        "a segment cannot keep training and inference equal"
                    )

    def _tag_ids(self) -> dict[Tag, int]:
        added = self.backend.get_added_tokens_decoder()
        out: dict[Tag, int] = {}
        missing = [tag for tag in Tag if self.backend.token_to_id(tag.value) is None]
        if missing:
            raise Unsupported(
                f"tokenizer {self.name} has no token for {', '.join(missing)} "
                f"({missing[0]} is {len(self.encode(missing[0].value))} tokens): "
                "call mvspec.compiler.add_tags(tokenizer)"
            )
        for tag in Tag:
            index = self.backend.token_to_id(tag.value)
            token = added.get(index)
            if token is None or not token.special:
                raise Unsupported(
                    f"tokenizer {self.name}: {tag} is not a special token, so text from outside "
                    "could fork threads: call mvspec.compiler.add_tags(tokenizer)"
                )
            if token.lstrip or token.rstrip or token.single_word:
                raise Unsupported(
                    f"tokenizer {self.name}: {tag} strips the white space around it, or needs "
                    "it: add it with lstrip=False, rstrip=False, single_word=False"
                )
            ids = self.encode(tag.value)
            if ids != [index]:
                raise Unsupported(f"tokenizer {self.name}: {tag} is {len(ids)} tokens, not one")
            out[tag] = index
        return out

    # Text to tokens

    @property
    def live(self) -> Tokenizer:
        """The tokenizer in which tags and control tokens are live, and nothing is cut or padded.

        A call of a transformers tokenizer with `truncation`, `padding` or `split_special_tokens`
        leaves them switched on behind it, for every later call.
        """
        backend = self.backend
        if backend.truncation or backend.padding or backend.encode_special_tokens:
            return self._bare
        return backend

    @cached_property
    def _bare(self) -> Tokenizer:
        return self._copy(literal=False)

    @cached_property
    def _literal(self) -> Tokenizer:
        return self._copy(literal=True)

    def _copy(self, *, literal: bool) -> Tokenizer:
        # A copy, since the switch would belong to every thread that uses the tokenizer.
        copy: Tokenizer = Tokenizer.from_str(self.backend.to_str())
        copy.no_truncation()
        copy.no_padding()
        copy.encode_special_tokens = literal
        return copy

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text in which tags and control tokens are live."""
        ids: list[int] = self.live.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of several texts, each tokenised on its own."""
        encodings = self.live.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_outside(self, text: str) -> list[int]:
        """Return the ids of text from outside: tags and control tokens are plain characters."""
        ids = self.encode(text)
        if self._added_ids.isdisjoint(ids):
            return ids
        ids = []
        parts = [text]
        while parts:
            part = parts.pop()
            encoding = self._literal.encode(part, add_special_tokens=False)
            # Added tokens that are not special stay live: cut the text inside each of them.
            cuts = [
                start + 1
                for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
                if index in self._added_ids and end - start > 1
            ]
            if cuts:
                parts += reversed([part[i:j] for i, j in pairwise((0, *cuts, len(part)))])
            else:
                ids += encoding.ids
        return ids

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        return frozenset(self.backend.get_added_tokens_decoder())

    def decode(self, ids: Any) -> str:
        """Return the text of ids, tags and control tokens included."""
        text: str = self.backend.decode([int(i) for i in ids], skip_special_tokens=False)
        return text

    # Tokens to structure

    @cached_property
    def tag_of_id(self) -> np.ndarray[Any, np.dtype[np.int8]]:
        """[size]: the number of an id's tag in `TAGS`, -1 for every other token."""
        table = np.full(self.size, -1, dtype=np.int8)
        for number, tag in enumerate(TAGS):
            table[self.tag_ids[tag]] = number
        return table

    @cached_property
    def label_end_ids(self) -> frozenset[int]:
        """The ids of tokens that end a fork header: a label's colon, and the label's
        characters if they are one token with it."""
        return frozenset(
            self._ids_where(lambda text: text[-1:] == ":" and not text[:-1].strip(_LABEL))
        )

    @cached_property
    def label_ids(self) -> frozenset[int]:
        """The ids of tokens that can stand in a fork header before its end."""
        return frozenset(self._ids_where(lambda text: bool(text) and not text.strip(_LABEL)))

    @cached_property
    def newline_ids(self) -> frozenset[int]:
        """The ids of the tokens that make up one newline."""
        return frozenset(self.encode("\n"))

    def _ids_where(self, test: Callable[[str], bool]) -> list[int]:
        single = [[index] for index in range(self.size)]
        texts = self.backend.decode_batch(single, skip_special_tokens=False)
        return [index for index, text in enumerate(texts) if test(text)]


def load_tokenizer(name: str, *, tags: bool = False) -> Any:
    """Load a tokenizer, once in a process while its files stay as they are.

    Args:
        name: a tokenizer.json, a folder that holds one, or a name on the Hugging Face hub.
        tags: whether to add the twelve tags where they are missing.

    Returns:
        a transformers tokenizer, with its chat template, where there is a
        tokenizer_config.json; else a `tokenizers.Tokenizer`.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    return _kept(*_named(name), tags)


def load_asking(name: str, settings: str, *, tags: bool = False) -> Any:
    """Load a tokenizer as `load_tokenizer` does, with a chat template that names settings.

    Args:
        name, tags: as of `load_tokenizer`.
        settings: a `TemplateSettings` as JSON.
    """
    return _kept(*_named(name), tags, settings)


def _named(name: str) -> tuple[str, tuple[object, ...]]:
    """Return a name, and where and how the files are that it names."""
    path = Path(name)
    files = [path] if path.is_file() else sorted(path.glob("*token*")) if path.is_dir() else []
    files += [*path.glob("chat_template*")] if path.is_dir() else []
    stats = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return name, (str(path.absolute()), *stats) if stats else ()


@lru_cache(maxsize=32)
def _kept(name: str, files: tuple[object, ...], tags: bool, settings: str = "") -> Any:
    if settings:
        return with_settings(_kept(name, files, tags), TemplateSettings(**json.loads(settings)))
    tokenizer = _load(name)
    if tags:
        add_tags(tokenizer)
    return tokenizer


def _load(name: str) -> Any:
    path = Path(name)
    file = path if path.is_file() else path / "tokenizer.json"
    configured = path.is_dir() and (path / "tokenizer_config.json").is_file()
    if file.is_file() and not configured:
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises no narrower class
            raise InputError(f"tokenizer {name}: not a tokenizer: {error}") from None
    if path.is_dir() and not configured:
        raise InputError(f"tokenizer {name}: no tokenizer.json in this folder")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"tokenizer {name}: not a tokenizer.json, its folder, or a name on the hub "
            f"that can be reached ({reason})"
        ) from None


def load_vocabulary(name: str, *, tags: bool = False) -> Vocabulary:
    """Load a tokenizer and check it.

    Raises:
        InputError: it cannot be read, or the compiler cannot use it; the message says what to do.
    """
    tokenizer = load_tokenizer(name, tags=tags)
    try:
        return Vocabulary.of(tokenizer)
    except Unsupported as error:
        hint = "" if tags else "; --add-tags adds what is missing"
        raise InputError(f"--tokenizer {name}: {error}{hint}") from None


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer so that `load_tokenizer(folder)` reads it back.

    Raises:
        MvspecError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(tokenizer, Tokenizer):
            tokenizer.save(str(folder / "tokenizer.json"))
        else:
            tokenizer.save_pretrained(str(folder))
    except Exception as error:  # of tokenizers, which has no class of its own
        raise MvspecError(f"{folder}: the tokenizer was not written: {error}") from error


def fingerprint(tokenizer: Any) -> str:
    """Return the sha256 of a tokenizer's serialised JSON.

    Padding and truncation are settings of a call and do not count; the chat template does, but
    for the line that names its arguments.

    >>> from tokenizers import models
    >>> len(fingerprint(Tokenizer(models.BPE())))
    64
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if backend.padding or backend.truncation:
        backend = deepcopy(backend)
        backend.no_padding()
        backend.no_truncation()
    template = json.dumps(bare_template(tokenizer))
    return hashlib.sha256((backend.to_str() + template).encode()).hexdigest()


def pad_id(tokenizer: Any) -> int:
    """Return the id that fills a row up; 0 where the tokenizer names none."""
    padding = getattr(tokenizer, "pad_token_id", None)
    return 0 if padding is None else int(padding)
