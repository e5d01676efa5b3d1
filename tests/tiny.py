"""Engines over tiny random models in float64, for laws that hold to the last bits."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from bpe import CHATML, copy, small_tokenizer
from torch import Tensor, nn

from mvspec.law.tags import Tag
from mvspec.runtime import TorchEngine
from mvspec.runtime.engine.model import EngineModel

__all__ = ["FORKING", "KINDS", "Biased", "chat", "tiny_engine", "tiny_model"]

KINDS = ("Llama", "Qwen2", "Qwen3")


@cache
def tiny_model(kind: str, vocabulary: int, context: int = 4096) -> Any:
    """Return a float64 model with random weights, large enough to prefer some tokens."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=context,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        # Eager attention takes its softmax in float32 whatever the model's type.
        attn_implementation="sdpa",
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.float64).eval()
    # So do these models' norms, which turns a last bit of float64 into one of float32.
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                width = child.weight.shape[0]
                norm = nn.RMSNorm(width, eps=config.rms_norm_eps, dtype=torch.float64)
                setattr(module, name, norm)
    return model


class Biased(EngineModel):
    """A model that likes some tokens more than its weights say; so it forks."""

    def __init__(self, model: Any, bias: Tensor) -> None:
        super().__init__(model)
        self.bias = bias

    def forward(self, chunks: Any) -> Tensor:
        return super().forward(chunks) + self.bias


def chat(tokenizer: Any = None) -> Any:
    """Return the small tokenizer as transformers has it, with tags and a chat template."""
    load: Any = transformers.PreTrainedTokenizerFast
    made = load(tokenizer_object=copy(tokenizer or small_tokenizer()), eos_token="<|im_end|>")
    made.chat_template = CHATML
    return made


def tiny_engine(
    kind: str = "Llama", tokenizer: Any = None, bias: dict[int, float] | None = None, **more: Any
) -> TorchEngine:
    """Return an engine over a tiny model.

    Args:
        bias: added to the logits of some ids.
    """
    tokenizer = tokenizer or chat()
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    size = backend.get_vocab_size(with_added_tokens=True)
    model = tiny_model(kind, size)
    if bias is None:
        return TorchEngine(model, tokenizer, **more)
    added = torch.zeros(size, dtype=torch.float64)
    for id, value in bias.items():
        added[id] = value
    return TorchEngine(Biased(model, added), tokenizer, **more)


def _forking() -> dict[int, float]:
    tokenizer = chat()
    likes = {
        Tag.PARALLEL: 9.0,
        Tag.END_GOAL: 4.0,
        Tag.END_PATH: 6.0,
        Tag.END_CONCLUSION: 7.0,
        Tag.THINK: 3.0,
        Tag.END_THINK: 6.0,
    }
    newline = tokenizer.encode("\n", add_special_tokens=False)
    return {
        **{tokenizer.convert_tokens_to_ids(tag.value): like for tag, like in likes.items()},
        **dict.fromkeys(newline, 5.0),
        tokenizer.eos_token_id: 4.0,
    }


FORKING = _forking()
"""Likes that make a random model of the small tokenizer fork, close and end now and then."""
