"""What marks a request of SGLang as a strand's, and the rows of a batch that are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mvspec.syntax import Tag

if TYPE_CHECKING:
    from mvspec.runtime.serving.strand import Strand

__all__ = [
    "grammar_of",
    "has_tags",
    "is_strand",
    "put_logprobs",
    "strand_rows",
    "without_strands",
]


def has_tags(tokenizer: Any) -> bool:
    """Whether a tokenizer of transformers has all twelve tags."""
    held = tokenizer.get_vocab()
    return all(tag.value in held for tag in Tag)


def grammar_of(strand: Strand, given: Callable[[Strand, int, float | None, Any], None]) -> Any:
    """Return what SGLang takes for the grammar of a strand's next request.

    A request with a grammar is sampled after the results of the step before are known, and its
    grammar is told of every token that was sampled for it: all that the plugin needs.
    """
    from sglang.srt.constrained.base_grammar_backend import BaseGrammarObject

    class StrandGrammar(BaseGrammarObject):  # type: ignore[misc]
        req: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.strand = strand

        def accept_token(self, token: int) -> None:
            req = self.req
            if self.strand.req is not req:
                return  # it was sampled for a request that has left since
            logprob: float | None = None
            top: Any = ()
            if req.return_logprob:
                held = req.logprob
                logprob = held.output_token_logprobs_val[-1]
                if held.top_logprobs_num > 0:
                    top = tuple(
                        zip(
                            held.output_top_logprobs_idx[-1],
                            held.output_top_logprobs_val[-1],
                            strict=True,
                        )
                    )
            given(self.strand, int(token), logprob, top)

        def is_terminated(self) -> bool:
            return False

        def copy(self) -> Any:
            return self

    return StrandGrammar()


def is_strand(req: Any) -> bool:
    """Whether a request of SGLang is, or was, a strand's."""
    return hasattr(req.grammar, "strand")


def strand_rows(grammars: Any) -> list[tuple[int, Strand]]:
    """Return the rows of a batch that are strands' which are still in."""
    return [
        (row, grammar.strand)
        for row, grammar in enumerate(grammars or ())
        if hasattr(grammar, "strand") and grammar.strand.req is grammar.req
    ]


@contextmanager
def without_strands(info: Any) -> Iterator[None]:
    """Let SGLang mask only the requests whose grammar is its own."""
    before = info.grammars
    if before is None:
        yield
        return
    own = [None if hasattr(grammar, "strand") else grammar for grammar in before]
    info.grammars = own if any(grammar is not None for grammar in own) else None
    try:
        yield
    finally:
        info.grammars = before


def put_logprobs(logits: Any, rows: Sequence[int], index: Tensor, raw: Tensor, ids: Tensor) -> None:
    """Replace the logprobs of rows by those under the model itself.

    Args:
        logits: what SGLang answers with.
        index: the same rows, on the device.
        raw: float [rows, vocabulary]: the model's own logits.
        ids: what was sampled for the whole batch.
    """
    if logits.next_token_logprobs is None:
        return
    logprobs = torch.log_softmax(raw, dim=-1)
    chosen = logprobs.gather(1, ids[index].to(torch.int64)[:, None])[:, 0]
    logits.next_token_logprobs[index] = chosen.to(logits.next_token_logprobs.dtype)
    values = logits.next_token_top_logprobs_val
    for at, row in enumerate(rows):
        count = len(values[row]) if values else 0
        if count:
            top = logprobs[at].topk(count)
            values[row] = top.values
            logits.next_token_top_logprobs_idx[row] = top.indices
