"""The in-process engine: a transformers model, and every live thread's tokens in one forward."""

from __future__ import annotations

import inspect
import os
import time
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from mvspec.compiler.models import check_model as check_attention
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import LimitExceeded, Unsupported
from mvspec.ir import Document
from mvspec.runtime.default_model import ModelError, default_model, quiet
from mvspec.runtime.hole import Sampling, check_hole
from mvspec.runtime.plan import fills, plan_untagged, span
from mvspec.runtime.request import Chunk, Forward, Line, Request, additive_mask
from mvspec.runtime.trace import Result

__all__ = ["TorchEngine"]


class TorchEngine:
    """Runs documents on a transformers causal language model.

    Args:
        model: a causal language model with full attention, in eval mode.
        tokenizer: its fast tokenizer.

    Raises:
        Unsupported: the model cannot honour the mask or the positions.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        check_model(model)
        self.model = model
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary.of(tokenizer, tagged=False)
        ends = model.generation_config.eos_token_id if model.can_generate() else None
        ends = tokenizer.eos_token_id if ends is None else ends
        self.ends = frozenset([ends] if isinstance(ends, int) else ends or ())

    @classmethod
    def load(cls, model: str | os.PathLike[str] | None = None) -> TorchEngine:
        """Load a model onto the CPU in float32.

        Args:
            model: a folder or a hub name; by default SmolLM2-135M-Instruct, fetched once.

        Raises:
            ModelError: it cannot be fetched or loaded.
        """
        name = default_model() if model is None else os.fspath(model)
        if model is not None and not os.path.isdir(name) and looks_local(os.fspath(name)):
            raise ModelError(f"the model {name} cannot be loaded: there is no such folder")
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(name)
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    name, dtype=torch.float32, attn_implementation="sdpa"
                )
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"the model {name} cannot be loaded: {error}") from error
        return cls(loaded.eval(), tokenizer)

    def run(self, document: Document, sampling: Sampling | None = None) -> Result:
        """Fill a document's holes; paths advance together.

        Args:
            document: a conversation that ends with an assistant's turn.
            sampling: how tokens are drawn; by default the likeliest.

        Raises:
            VerifyError: the document gives the model nothing to go on from.
            Unsupported: a hole has a constraint that this engine lacks, or the chat template
                cannot hold the document.
            LimitExceeded: the longest path may pass the model's context.
        """
        ops = plan_untagged(document, self.tokenizer)
        for fill in fills(ops):
            check_hole(fill, self.vocabulary)
        longest = span(ops)
        context = getattr(self.model.config, "max_position_embeddings", None)
        if context is not None and longest > context:
            raise LimitExceeded(
                f"the document takes up to {longest} positions, its holes' max_tokens included, "
                f"and the model has {context}: shorten the text or lower max_tokens"
            )
        start = time.perf_counter()
        request = Request(
            ops, self.vocabulary, self.ends, sampling or Sampling(), self._forward(DynamicCache())
        )
        with torch.inference_mode():
            request.finish()
        seconds = time.perf_counter() - start
        values = {hole.name: request.values[hole.name] for hole in document.holes}
        trace = tuple(request.root.tokens())
        return Result(document.fill(values), values, trace, seconds)

    def _forward(self, cache: DynamicCache) -> Forward:
        """Return the function that runs new tokens over `cache`."""
        device, dtype = self.model.device, self.model.dtype

        def forward(chunks: list[Chunk], columns: int) -> dict[Line, Tensor]:
            records = [record for chunk in chunks for record in chunk.records]
            rows: dict[Line, int] = {}
            row = 0
            for chunk in chunks:
                row += len(chunk.records)
                rows[chunk.line] = row - 1
            keep = torch.tensor(list(rows.values()), device=device)
            out = self.model(
                input_ids=torch.tensor([[record.id for record in records]], device=device),
                position_ids=torch.tensor([[r.position for r in records]], device=device),
                attention_mask=additive_mask(chunks, columns, dtype)[None, None].to(device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep,
            )
            return dict(zip(rows, out.logits[0], strict=True))

        return forward


def check_model(model: Any) -> None:
    """Refuse models whose attention is not full, or not told positions and masks.

    Raises:
        Unsupported: the capability is named.
    """
    check_attention(model)
    name = type(model).__name__
    taken = inspect.signature(model.forward).parameters
    for argument in ("position_ids", "logits_to_keep"):
        if argument not in taken:
            raise Unsupported(f"{name} takes no {argument}: use a model with rotary attention")
    attention = model.config._attn_implementation
    if attention not in ("eager", "sdpa"):
        raise Unsupported(
            f"{name} has {attention} attention, which takes no dense mask: load it with "
            "attn_implementation='sdpa'"
        )


def looks_local(name: str) -> bool:
    """Whether a model's name can only be a folder's: hub names are NAME or OWNER/NAME."""
    return os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1
