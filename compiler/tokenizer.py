"""A tokenizer from a file, a folder or the hub, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mvspec.compiler.vocabulary import Vocabulary, add_tags
from mvspec.data.records import InputError
from mvspec.errors import Unsupported

__all__ = ["fingerprint", "load_tokenizer", "load_vocabulary", "pad_id", "save_tokenizer"]


@cache
def load_tokenizer(name: str, *, tags: bool = False) -> Any:
    """Load a tokenizer once in a process.

    Args:
        name: a tokenizer.json, a folder that holds one, or a name on the Hugging Face hub.
        tags: whether to add the twelve tags where they are missing.

    Returns:
        a transformers tokenizer, with its chat template, where there is a
        tokenizer_config.json; else a `tokenizers.Tokenizer`.

    Raises:
        InputError: there is none, or it cannot be read.
    """
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
            raise InputError(f"--tokenizer {name}: not a tokenizer: {error}") from None
    if path.is_dir() and not configured:
        raise InputError(f"--tokenizer {name}: no tokenizer.json in this folder")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"--tokenizer {name}: not a tokenizer.json, its folder, or a name on the hub "
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
    """Write a tokenizer so that `load_tokenizer(folder)` reads it back."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        tokenizer.save_pretrained(str(folder))


def fingerprint(tokenizer: Any) -> str:
    """Return the sha256 of a tokenizer's serialised JSON.

    Padding and truncation are settings of a call and do not count; the chat template does.

    >>> from tokenizers import models
    >>> len(fingerprint(Tokenizer(models.BPE())))
    64
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if backend.padding or backend.truncation:
        backend = deepcopy(backend)
        backend.no_padding()
        backend.no_truncation()
    template = json.dumps(getattr(tokenizer, "chat_template", None))
    return hashlib.sha256((backend.to_str() + template).encode()).hexdigest()


def pad_id(tokenizer: Any) -> int:
    """Return the id that fills a row up; 0 where the tokenizer names none."""
    padding = getattr(tokenizer, "pad_token_id", None)
    return 0 if padding is None else int(padding)
