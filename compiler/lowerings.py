"""What one document becomes: the layout of the law, and those of other systems to compare with.

Each lowering is a pure function from tokens to a `Layout`. Only `multiverse` and `shared` are
served by this project's engines; the others are what other trainers and engines see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvspec.compiler.layout import Layout, lay_out, structural_runs
from mvspec.compiler.lower import Tokens, lower, tokens_of_ids
from mvspec.compiler.official import official
from mvspec.compiler.sequential import flatten, sequential
from mvspec.compiler.shared import shared
from mvspec.compiler.tree import tree
from mvspec.errors import Unsupported
from mvspec.ir import Document, Message
from mvspec.syntax import MULTIVERSE, Syntax

__all__ = ["LOWERINGS", "compile_document", "layout_from_ids"]


def multiverse(tokens: Tokens, *, forced_loss: bool = False) -> Layout:
    """Lay tokens out by the structural law."""
    runs = structural_runs(tokens.tags, tokens.ends)
    return lay_out(tokens.ids, tokens.free, tokens.forced, runs, forced_loss=forced_loss)


LOWERINGS: dict[str, Callable[[Tokens], Layout]] = {
    "multiverse": multiverse,
    "autoregressive": sequential,
    "sequential": sequential,
    "tree": tree,
    "official": official,
}
"""By name; "shared(k)" as well, for any k. All but `autoregressive` keep the document's text."""

# Those in which a model writes the whole text by itself: nothing is forced.
_UNFORCED = ("autoregressive", "sequential", "official")


def compile_document(
    document: Document | Message,
    tokenizer: Any,
    lowering: str = "multiverse",
    *,
    syntax: Syntax = MULTIVERSE,
    template: bool | None = None,
    forced_loss: bool = False,
) -> Layout:
    """Compile a document to its layout.

    Args:
        document: without holes; or one assistant turn.
        tokenizer: a transformers fast tokenizer or a `tokenizers.Tokenizer`, with the tags.
        lowering: a name in `LOWERINGS`, or "shared(k)".
        syntax: the surface form.
        template: whether to render the chat template; by default where the document has a
            message that is not the assistant's.
        forced_loss: let forced tokens carry loss where their flat predecessor is their parent
            (`multiverse` only).

    Raises:
        Unsupported: the tokenizer, the template or a hole stands in the way.

    >>> import mvspec
    >>> from mvspec.compiler import add_tags
    >>> from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    >>> tokenizer = Tokenizer(models.BPE(
    ...     vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
    ...     merges=[]))
    >>> tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    >>> tokenizer.decoder = decoders.ByteLevel()
    >>> _ = add_tags(tokenizer)
    >>> block = mvspec.parallel(mvspec.branch("a", "x"), mvspec.branch("b", "yy"))
    >>> layout = compile_document(mvspec.assistant(block), tokenizer)
    >>> len(layout), int(layout.position_ids.max()) + 1
    (50, 41)
    """
    function = find_lowering(lowering)
    if lowering == "autoregressive":
        document = flatten(document)
    tokens = lower(
        document, tokenizer, syntax=syntax, template=template, forced=lowering not in _UNFORCED
    )
    if forced_loss:
        if lowering != "multiverse":
            raise Unsupported(f"lowering {lowering!r} has no loss on forced tokens")
        return multiverse(tokens, forced_loss=True)
    return function(tokens)


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
