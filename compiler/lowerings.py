"""Lowerings of a document: the layout of the law, and those of other systems to compare with.

Each lowering is a pure function from tokens to a `Layout`. Only `multiverse` and `shared` are
served by this project's engines; the others are what other trainers and engines see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvspec.compiler.layout import Layout, lay_out
from mvspec.compiler.published import published
from mvspec.compiler.sequential import sequential
from mvspec.compiler.shared import shared
from mvspec.compiler.tokens import Tokens, tokens_of_ids
from mvspec.compiler.tree import tree
from mvspec.errors import Unsupported

__all__ = ["LOWERINGS", "UNFORCED", "find_lowering", "layout_from_ids", "multiverse"]


def multiverse(tokens: Tokens, *, forced_loss: bool = False) -> Layout:
    """Lay tokens out by the structural law."""
    return lay_out(tokens.ids, tokens.free, tokens.forced, tokens.law, forced_loss=forced_loss)


LOWERINGS: dict[str, Callable[[Tokens], Layout]] = {
    "multiverse": multiverse,
    "autoregressive": sequential,
    "sequential": sequential,
    "tree": tree,
    "official": published,
}
"""By name; "shared(k)" as well, for any k. All but `autoregressive` keep the document's text."""

UNFORCED = ("autoregressive", "sequential", "official")
"""Those in which a model writes the whole text by itself: nothing is forced."""


def layout_from_ids(
    ids: Sequence[int] | NDArray[Any],
    tokenizer: Any,
    lowering: str = "multiverse",
    prompt: int = 0,
    forced: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> Layout:
    """Lay out token ids that a model produced, tags and all.

    Args:
        ids: [n], the prompt included; any prefix of a well-formed output will do.
        tokenizer: the tokenizer that they belong to.
        lowering: a name in `LOWERINGS` but "autoregressive", or "shared(k)".
        prompt: how many of the ids are the prompt, which carries no loss.
        forced: which tokens an engine wrote [n]; found by rule where not given.

    Raises:
        VerifyError: the tags do not nest; the address is the token's index.
        Unsupported: an id is not in the vocabulary, or the lowering changes the text.
    """
    if lowering == "autoregressive":
        raise Unsupported(
            "lowering 'autoregressive' changes the text: parse it and use compile_document"
        )
    return find_lowering(lowering)(tokens_of_ids(ids, tokenizer, prompt=prompt, forced=forced))


def find_lowering(name: str) -> Callable[[Tokens], Layout]:
    """Return the lowering of that name.

    Raises:
        Unsupported: there is none.
    """
    match = re.fullmatch(r"shared\(([0-9]+)\)", name)
    if match:
        return shared(int(match.group(1)))
    if name not in LOWERINGS:
        raise Unsupported(f"no lowering is named {name!r}: use {', '.join(LOWERINGS)}, shared(k)")
    return LOWERINGS[name]
