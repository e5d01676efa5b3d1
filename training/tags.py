"""The tags in a tokenizer and a model: rows of its embeddings start as the words they name."""

from __future__ import annotations

import os
import re
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from mvspec.compiler.tokenizer import load_tokenizer
from mvspec.compiler.vocabulary import Vocabulary, add_tags
from mvspec.data.records import InputError
from mvspec.errors import Unsupported, VerifyError
from mvspec.law.tags import Tag

__all__ = ["extend_tokenizer", "initialise_tags", "own_copy", "tag_words"]


def tag_words(tag: Tag) -> str:
    """Return the words that a tag names, as plain text.

    >>> tag_words(Tag.PARALLEL), tag_words(Tag.END_PATH)
    ('Parallel', ' end Path')
    """
    name = re.sub(r"[</>]", "", tag.value)
    return f" end {name}" if tag.value.startswith("</") else name


def own_copy(tokenizer: Any, source: Any) -> Any:
    """Return the tokenizer of a model; a copy where it is loaded, since others hold that too.

    Args:
        tokenizer: a folder, file or hub name, or a tokenizer; None for the source's.
        source: of the model, as a folder or hub name, or else without a tokenizer.

    Raises:
        VerifyError: there is none.
    """
    if tokenizer is None and isinstance(source, str | os.PathLike):
        tokenizer = source
    if tokenizer is None:
        raise VerifyError("tokenizer", "give the one that the data was compiled with")
    if isinstance(tokenizer, str | os.PathLike):
        return deepcopy(load_tokenizer(os.fspath(tokenizer)))
    return tokenizer


def extend_tokenizer(tokenizer: Any, source: Any, *, add: bool) -> list[int]:
    """Return the ids of the tags that a model has to learn anew.

    Args:
        tokenizer: that the model is to be trained with; extended in place where tags are missing.
        source: of the model: a folder or hub name, whose own tokenizer says which tags it knows.
        add: whether tags may be new to the tokenizer and the model.

    Raises:
        Unsupported: tags are new and may not be, or the compiler cannot use the tokenizer.
    """
    missing = _missing(tokenizer)
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if missing and not add:
        raise Unsupported(
            f"tokenizer {name} has no token for {', '.join(missing)}: give the tokenizer that the "
            "data was compiled with (mvspec compile --add-tags saves it beside the shards), or "
            "set add_tags: true"
        )
    if missing:
        add_tags(tokenizer)
    ids = Vocabulary.of(tokenizer).tag_ids
    own = _own_tokenizer(source)
    unknown = (list(Tag) if add else []) if own is None else _missing(own)
    if unknown and not add:
        raise Unsupported(
            f"{', '.join(unknown)} are new to the model {source}, whose embeddings of them were "
            "never trained: set add_tags: true"
        )
    return [ids[tag] for tag in unknown]


def _missing(tokenizer: Any) -> list[Tag]:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return [tag for tag in Tag if backend.token_to_id(tag.value) is None]


def _own_tokenizer(source: Any) -> Any:
    if not isinstance(source, str | os.PathLike):
        return None
    try:
        return load_tokenizer(os.fspath(source))
    except InputError:
        return None  # a folder of weights alone


def initialise_tags(model: Any, tokenizer: Any, ids: list[int]) -> None:
    """Give rows of a model's embeddings and head the mean of those of the words they name.

    A tied head needs no more; an untied one gets the mean of its own rows. Biases too.

    Args:
        model: of transformers; its embeddings grow to the tokenizer's size where they are smaller.
        tokenizer: with the tags.
        ids: of the tags that are new to the model.
    """
    vocabulary = Vocabulary.of(tokenizer)
    if model.get_input_embeddings().weight.shape[0] < vocabulary.size:
        model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    head = model.get_output_embeddings()
    tables: list[Tensor] = [model.get_input_embeddings().weight]
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    if head is not None and getattr(head, "bias", None) is not None:
        tables.append(head.bias)
    names = {vocabulary.tag_ids[tag]: vocabulary.encode_outside(tag_words(tag)) for tag in Tag}
    with torch.no_grad():
        for table in tables:
            for id in ids:
                table[id] = table[names[id]].mean(0)
