"""A transformers model as the engine needs it: one forward over tokens of many threads."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import AutoTokenizer

from mvspec.compiler.models import check_model, check_weights, load_weights
from mvspec.errors import LimitExceeded, Unsupported, VerifyError
from mvspec.runtime.engine.attention import (
    ATTENTION,
    KVReader,
    SlicedAttention,
    TokenChunk,
    kept_tokens,
)
from mvspec.runtime.engine.default_model import ModelError, default_model, quiet
from mvspec.runtime.engine.graphs import CudaGraphs
from mvspec.runtime.engine.kv_cache import KVCache, is_out_of_memory
from mvspec.runtime.sampling import sent

__all__ = ["EngineModel", "TokenChunk", "load_model"]


_LOCKS: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
"""For each model: several engines may hold it, and its attention is changed while one reads."""


class EngineModel:
    """A causal language model with full attention.

    Args:
        model: of transformers, in eval mode; it is used as it is and left unchanged.
        graphs: launch small steps on a GPU as CUDA graphs; see `CudaGraphs` for what that asks of
            the model. Without effect on a CPU.

    Raises:
        Unsupported: it cannot honour the mask or the positions.
    """

    def __init__(self, model: Any, *, graphs: bool = True) -> None:
        check_model(model)
        name = type(model).__name__
        taken = inspect.signature(model.forward).parameters
        for argument in ("position_ids", "logits_to_keep"):
            if argument not in taken:
                raise Unsupported(f"{name} takes no {argument}: use a model with rotary attention")
        if not getattr(model, "_supports_attention_backend", False):
            raise Unsupported(
                f"{name} does not read transformers' attention interface: use a model that does, "
                "such as Llama, Qwen2, Qwen3, Mistral or OLMo2"
            )
        self.model = model
        self._own_attention: str | None = model.config._attn_implementation
        self._lock = _LOCKS.setdefault(model, threading.Lock())
        self.name = os.path.basename(str(getattr(model.config, "_name_or_path", "") or name))
        text = model.config.get_text_config()
        self.context: int | None = getattr(text, "max_position_embeddings", None)
        """How many positions the model was made for."""
        self.size: int = text.vocab_size
        """The width of its logits."""
        self.graphs = (
            CudaGraphs(model, self._read) if graphs and self.device.type == "cuda" else None
        )

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = self.model.device
        return device

    @property
    def ends(self) -> frozenset[int]:
        """The ids that its generation config ends a text with."""
        config = getattr(self.model, "generation_config", None)
        found = getattr(config, "eos_token_id", None)
        return frozenset([found] if isinstance(found, int) else found or ())

    def cache(self) -> KVCache:
        """Return an empty KV cache for a request."""
        return KVCache(self.device)

    def forward(self, chunks: Sequence[TokenChunk]) -> Tensor:
        """Read new tokens of several requests.

        Returns:
            The logits of the tokens in each chunk's `keep`, one chunk after the other:
            [kept, vocabulary].

        Raises:
            LimitExceeded: there is not enough memory; the message has the numbers.
        """
        try:
            with torch.inference_mode():
                return self.graphs.run(chunks, self._apart) if self.graphs else self._apart(chunks)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            count = sum(len(chunk.ids) for chunk in chunks)
            held = sum(chunk.cache.nbytes for chunk in chunks)
            reason = str(error).strip().splitlines()[0]
            raise LimitExceeded(
                f"out of memory while {count} tokens of {len(chunks)} requests were read, with "
                f"{held / 1e6:.0f} MB of keys and values ({reason}): run fewer requests at once, "
                "lower max_batched_tokens, or shorten the text"
            ) from None

    def _apart(self, chunks: Sequence[TokenChunk]) -> Tensor:
        """Read the chunks, each with an attention of its own."""
        device = self.device
        ids = [id for chunk in chunks for id in chunk.ids]
        positions = [position for chunk in chunks for position in chunk.positions]
        spare = _fast_rows(len(ids), device) - len(ids)
        ids += ids[-1:] * spare
        positions += positions[-1:] * spare
        return self._read(
            sent(torch.tensor([ids]), device),
            sent(torch.tensor([positions]), device),
            sent(torch.tensor(kept_tokens(chunks), dtype=torch.int64), device),
            SlicedAttention(chunks, self.model.dtype, device),
        )

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights into the model's own, where they lie: CUDA graphs read them from there.

        Args:
            weights: as of `model.state_dict()`; those that are not named stay.

        Raises:
            VerifyError: a name or a shape is not the model's; nothing has changed.
        """
        own = self.model.state_dict()
        for name, weight in weights.items():
            if name not in own:
                raise VerifyError(f"weights[{name!r}]", "the model has no weight of this name")
            if own[name].shape != weight.shape:
                wrong = f"shape {tuple(weight.shape)}, and the model's is {tuple(own[name].shape)}"
                raise VerifyError(f"weights[{name!r}]", wrong)
        with torch.no_grad(), self._lock:
            for name, weight in weights.items():
                own[name].copy_(weight)

    def _read(self, ids: Tensor, positions: Tensor, keep: Tensor | int, reader: KVReader) -> Tensor:
        """Return logits [kept, vocabulary] of ids and positions [1, new]."""
        config = self.model.config
        with self._lock:
            if config._attn_implementation != ATTENTION:  # else an interrupt has left it there
                self._own_attention = config._attn_implementation
            try:
                config._attn_implementation = ATTENTION
                out = self.model(
                    input_ids=ids,
                    position_ids=positions,
                    logits_to_keep=keep,
                    use_cache=False,
                    reader=reader,
                )
            finally:
                config._attn_implementation = self._own_attention
        logits: Tensor = out.logits[0]
        return logits


def _fast_rows(count: int, device: torch.device) -> int:
    # Matrix products of 2 to 4 rows take longer than of 5 on CPUs, and those of 7 longer than
    # of 8 (docs/benchmarks.md): rows that nobody reads are put behind them.
    if device.type != "cpu":
        return count
    return 5 if 1 < count < 5 else 8 if count == 7 else count


def load_model(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[Any, Any]:
    """Return a transformers model in eval mode, and its tokenizer.

    Args:
        model: a folder or a hub name; by default SmolLM2-135M-Instruct, fetched once.
        device: by default the GPU where there is one, else the CPU.
        dtype: as "float32"; by default float32 on the CPU, bfloat16 on a GPU.

    Raises:
        ModelError: it cannot be fetched or loaded.
    """
    name = default_model() if model is None else os.fspath(model)
    if model is not None and not os.path.isdir(name) and _looks_local(os.fspath(name)):
        raise ModelError(f"the model {name} cannot be loaded: there is no such folder")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = getattr(torch, dtype or ("float32" if device == "cpu" else "bfloat16"), None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ModelError(f"dtype {dtype!r} is none: use float32, bfloat16 or float64")
    what = "its tokenizer"
    try:
        with quiet():
            if os.path.isdir(name):
                check_weights(Path(name))
            tokenizer = AutoTokenizer.from_pretrained(name)
            what = "it"
            loaded: Any = load_weights(name, dtype=kind, attn_implementation="sdpa")
        loaded = loaded.to(device)
    except VerifyError as error:
        raise ModelError(f"the model {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # of tokenizers, which has no class of its own
        reason = " ".join(str(error).split())
        raise ModelError(f"the model {name}: {what} cannot be loaded: {reason}") from error
    return loaded.eval(), tokenizer


def _looks_local(name: str) -> bool:
    """Whether a model's name can only be a folder's: hub names are NAME or OWNER/NAME."""
    return os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1
