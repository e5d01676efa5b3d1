"""The tags in a model: rows of its embeddings that start as the words they name."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from mvspec.compiler.vocabulary import Vocabulary, add_tags
from mvspec.errors import Unsupported
from mvspec.syntax import Tag

__all__ = ["extend_tokenizer", "initialise_tags", "tag_words"]


def tag_words(tag: Tag) -> str:
    """Return the words that a tag names, as plain text.

    >>> tag_words(Tag.PARALLEL), tag_words(Tag.END_PATH)
    ('Parallel', ' end Path')
    """
    name = re.sub(r"[</>]", "", tag.value)
    return f" end {name}" if tag.value.startswith("</") else name


def extend_tokenizer(tokenizer: Any, *, add: bool) -> list[int]:
    """Return the ids of tags that a tokenizer lacked and now has.

    Args:
        tokenizer: changed in place.
        add: whether it may be extended.

    Raises:
        Unsupported: it lacks tags and may not be extended, or the compiler cannot use it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    missing = [tag for tag in Tag if backend.token_to_id(tag.value) is None]
    if missing and not add:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise Unsupported(
            f"tokenizer {name} has no token for {', '.join(missing)}: give the tokenizer that the "
            "data was compiled with (mvspec compile --add-tags saves it beside the shards), or "
            "set add_tags: true"
        )
    if missing:
        add_tags(tokenizer)
    Vocabulary.of(tokenizer)
    return [backend.token_to_id(tag.value) for tag in missing]


def initialise_tags(model: Any, tokenizer: Any, ids: list[int], size: int | None = None) -> None:
    """Give rows of a model's embeddings and head the mean of those of the words they name.

    A tied head needs no more; an untied one gets the mean of its own rows. Biases too.

    Args:
        model: of transformers; its embeddings grow to the tokenizer's size where they are smaller.
        tokenizer: with the tags.
        ids: of the tags that are new to the model.
        size: rows of the embeddings; by default what the tokenizer needs, never fewer than are
            there.
    """
    vocabulary = Vocabulary.of(tokenizer)
    rows = max(vocabulary.size, size or 0)
    if model.get_input_embeddings().weight.shape[0] < rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
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
