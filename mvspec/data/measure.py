"""Documents counted in characters, words or tokens, in the surface form of the assistant's turns.

The law (mvspec/law/threads.py) makes of the counts a critical path and a degree of parallelism.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

from mvspec.errors import Unsupported
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.law.automaton import TagReader
from mvspec.law.metrics import Metrics
from mvspec.law.tags import Tag
from mvspec.tree.ir import Document, Message

Counter = Callable[[str], int]
"""Counts a run of text. A tag comes alone, as it is one token where a tokenizer knows it."""


def measure(
    document: Document,
    count: Counter = len,
    syntax: Syntax = MULTIVERSE,
    *,
    answers: bool | None = None,
) -> Metrics:
    """Return the metrics of a document's assistant turns.

    Text is counted run by run: a run ends at a tag and where a runtime takes over from the
    model or gives back, which is where tokens end too. A turn that answers somebody ends with one
    token more, its end: what a chat template lets the model write there.

    Args:
        count: the counter; `len` for characters, `count_words`, or `token_counter(tokenizer)`.
        syntax: the surface form that is counted.
        answers: whether its turns answer somebody; by default where it says whom.

    Raises:
        Unsupported: the document has a hole, whose length is not known.

    >>> import mvspec
    >>> block = mvspec.parallel(mvspec.branch("A", "x y"), mvspec.branch("B", "z"))
    >>> metrics = measure(mvspec.document(mvspec.assistant(block)), count_words)
    >>> metrics.tokens, metrics.critical_path, metrics.paths_per_block
    (23, 19, 2.0)
    """
    for hole in document.holes:
        raise Unsupported(f"the hole {hole.name!r} has no length yet: fill it first")
    reader = TagReader()
    law = reader.law
    answers = has_prompt(document) if answers is None else answers
    for message in document.messages:
        if message.role != "assistant":
            continue
        for text, tag, _ in author_runs(message, syntax):
            if text:
                law.tokens(count(text))
            if tag is not None:
                reader.take(tag)
        law.tokens(answers)
    return law.metrics


def has_prompt(document: Document) -> bool:
    """Whether a document's turns answer somebody, so that each ends with an end of turn."""
    return any(message.role != "assistant" for message in document.messages)


def author_runs(message: Message, syntax: Syntax) -> Iterator[tuple[str, Tag | None, bool]]:
    """Yield the tags of an assistant's turn, and the texts of one author between them.

    Returns:
        The characters, the tag that they are, and whether a runtime writes them. What has its
        tokens apart stands apart.
    """
    text, forced = "", False
    for piece in syntax.pieces(message):
        if text and (piece.tag is not None or piece.forced != forced):
            yield text, None, forced
            text = ""
        if piece.tag is not None:
            yield piece.text, piece.tag, piece.forced
            continue
        text += piece.text
        forced = piece.forced
    if text:
        yield text, None, forced


def count_words(text: str) -> int:
    """Return the number of runs between white space; a tag is one word.

    >>> count_words("two words")
    2
    """
    return len(text.split())


def token_counter(tokenizer: Any) -> Counter:
    """Return a counter of a tokenizer's tokens.

    A tag is one token where the vocabulary has it. In all other text, control tokens are plain
    characters: what reads like `<|im_end|>` in a text is not one.

    Args:
        tokenizer: a transformers fast tokenizer or a `tokenizers.Tokenizer`; it is copied.

    Raises:
        Unsupported: it is neither.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "encode_special_tokens"):
        raise Unsupported(
            f"{type(tokenizer).__name__} is no fast tokenizer: "
            "give a transformers fast tokenizer or a tokenizers.Tokenizer"
        )
    backend = deepcopy(backend)
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    tags = {str(tag) for tag in Tag if backend.token_to_id(str(tag)) is not None}

    def count(text: str) -> int:
        return 1 if text in tags else len(backend.encode(text, add_special_tokens=False).ids)

    return count
