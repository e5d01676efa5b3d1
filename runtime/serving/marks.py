"""What marks a request of SGLang as a strand's, and the rows of a batch that are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mvspec.law.tags import Tag
from mvspec.runtime.sampling import Draw

if TYPE_CHECKING:
    from mvspec.runtime.serving.strand import Strand

__all__ = [
    "classes",
    "drawn",
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


@cache
def classes() -> tuple[type[Any], type[Any]]:
    """Return the classes of a strand's request of SGLang's, and of what it has for a grammar."""
    from sglang.srt.constrained.base_grammar_backend import BaseGrammarObject
    from sglang.srt.managers.schedule_batch import Req

    class StrandReq(Req):  # type: ignore[misc]
        """A request whose family says what becomes of it, and answers its client."""

        strand: Strand
        shift = 0

        def update_finish_state(self, new_accepted_len: int = 1) -> None:
            """It ends when its run says so."""

        def next_output_finishes_by_length(self) -> bool:
            """Its budget is only what admission counts on: 0.5.23 drops what it says will end."""
            return False

    class StrandGrammar(BaseGrammarObject):  # type: ignore[misc]
        """Lets its request be sampled after the results of the step before are known."""

        def __init__(self, req: Any) -> None:
            super().__init__()
            self.req = req

        def accept_token(self, token: int) -> None:
            """`Families.take` takes the tokens of all strands at once."""

        def is_terminated(self) -> bool:
            return False

        def copy(self) -> Any:
            return self

    return StrandReq, StrandGrammar


def is_strand(req: Any) -> bool:
    """Whether a request of SGLang is, or was, a strand's."""
    return hasattr(req, "strand")


def strand_rows(grammars: Any) -> list[tuple[int, Strand]]:
    """Return the rows of a batch that are strands' which are still in."""
    made = classes()[1]
    return [
        (row, grammar.req.strand)
        for row, grammar in enumerate(grammars or ())
        if type(grammar) is made and grammar.req.strand.req is grammar.req
    ]


def drawn(reqs: Iterable[Any]) -> Iterator[tuple[Strand, Draw]]:
    """Yield the strands of a batch that have drawn a token there, with its logprob."""
    for req in reqs:
        strand = getattr(req, "strand", None)
        if strand is None or strand.req is not req or not strand.drawing:
            continue  # it was sampled for a request that has left since, or does not count
        logprob: float | None = None
        top: Any = ()
        if req.return_logprob:
            held = req.logprob
            logprob = held.output_token_logprobs_val[-1]
            if held.top_logprobs_num > 0:
                indices, values = held.output_top_logprobs_idx, held.output_top_logprobs_val
                top = tuple(zip(indices[-1], values[-1], strict=True))
        yield strand, Draw(req.output_ids[-1], logprob, top)


@contextmanager
def without_strands(info: Any) -> Iterator[None]:
    """Let SGLang mask only the requests whose grammar is its own."""
    before = info.grammars
    if before is None:
        yield
        return
    made = classes()[1]
    own = [None if type(grammar) is made else grammar for grammar in before]
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
