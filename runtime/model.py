"""A transformers model as the engine needs it: one forward over tokens of many threads.

The linear layers see all new tokens as one row; only attention looks at whose they are. It
reads the store of each request in place, so neither fork, join nor batching copies any keys.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.masking_utils import AttentionMaskInterface

from mvspec.compiler.models import check_model
from mvspec.errors import LimitExceeded, Unsupported
from mvspec.runtime.default_model import ModelError, default_model, quiet
from mvspec.runtime.store import Store, is_out_of_memory

__all__ = ["Model", "Part", "load"]

ATTENTION = "mvspec"
"""The name of `attend` in transformers' attention interface."""


@dataclass(slots=True)
class Part:
    """New tokens of one request.

    Args:
        store: what they see.
        ids, positions: of the tokens.
        rows: each token's row in the store.
        start: column of the first; the others follow it.
        keep: numbers of the tokens whose logits are wanted.
    """

    store: Store
    ids: list[int]
    positions: list[int]
    rows: list[int]
    start: int
    keep: list[int]


@dataclass(slots=True)
class _Slice:
    """What attention needs of one part: its tokens' place among all, and what they see.

    The mask is [new, used] until the first layer has repeated it for its query heads.
    """

    store: Store
    begin: int
    end: int
    columns: Tensor
    mask: Tensor


class Model:
    """A causal language model with full attention.

    Args:
        model: of transformers, in eval mode; it is used as it is and left unchanged.

    Raises:
        Unsupported: it cannot honour the mask or the positions.
    """

    def __init__(self, model: Any) -> None:
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
        self.name = os.path.basename(str(getattr(model.config, "_name_or_path", "") or name))
        text = model.config.get_text_config()
        self.context: int | None = getattr(text, "max_position_embeddings", None)
        """How many positions the model was made for."""
        self.size: int = text.vocab_size
        """The width of its logits."""

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

    def store(self) -> Store:
        """Return an empty store for a request."""
        return Store(self.device)

    def forward(self, parts: Sequence[Part]) -> list[Tensor]:
        """Read new tokens of several requests.

        Returns:
            For each part the logits of the tokens in its `keep`: [kept, vocabulary].

        Raises:
            LimitExceeded: there is not enough memory; the message has the numbers.
        """
        count = sum(len(part.ids) for part in parts)
        try:
            with torch.inference_mode():
                return self._forward(parts, count)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            held = sum(part.store.nbytes for part in parts)
            reason = str(error).strip().splitlines()[0]
            raise LimitExceeded(
                f"out of memory while {count} tokens of {len(parts)} requests were read, with "
                f"{held / 1e6:.0f} MB of keys and values ({reason}): run fewer requests at once, "
                "lower max_rows, or shorten the text"
            ) from None

    def _forward(self, parts: Sequence[Part], count: int) -> list[Tensor]:
        device = self.device
        ids = [id for part in parts for id in part.ids]
        positions = [position for part in parts for position in part.positions]
        slices: list[_Slice] = []
        keep: list[int] = []
        at = 0
        for part in parts:
            columns = torch.arange(part.start, part.start + len(part.ids), device=device)
            seen = part.store.mask(torch.tensor(part.rows, device=device), part.start)
            # The lowest number and not minus infinity: kernels give NaN for a block of columns
            # that a row does not see at all. Its softmax is exactly 0 all the same.
            mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=device)
            mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
            slices.append(_Slice(part.store, at, at + len(part.ids), columns, mask))
            keep += [at + index for index in part.keep]
            at += len(part.ids)
        spare = _fast_rows(count, device) - count
        ids += ids[-1:] * spare
        positions += positions[-1:] * spare
        config = self.model.config
        before = config._attn_implementation
        config._attn_implementation = ATTENTION
        try:
            out = self.model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                logits_to_keep=torch.tensor(keep, dtype=torch.int64, device=device),
                use_cache=False,
                slices=slices,
            )
        finally:
            config._attn_implementation = before
        return list(out.logits[0].split([len(part.keep) for part in parts]))


def _fast_rows(count: int, device: torch.device) -> int:
    # Matrix products of 2 to 4 rows take longer than of 5 on CPUs, and those of 7 longer than
    # of 8 (docs/benchmarks.md): rows that nobody reads are put behind them.
    if device.type != "cpu":
        return count
    return 5 if 1 < count < 5 else 8 if count == 7 else count


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    slices: Sequence[_Slice] = (),
    **rest: Any,
) -> tuple[Tensor, None]:
    """Let each request's new tokens attend to its own store; transformers calls it.

    Args:
        query: [1, heads, new, dim]; key, value: [1, key-value heads, new, dim].

    Returns:
        [1, new, heads, dim], zeros for rows of no request.
    """
    unknown = [name for name in ("softcap", "s_aux") if rest.get(name) is not None]
    if unknown:
        raise Unsupported(f"{type(module).__name__} uses {unknown[0]} in its attention")
    heads, count = query.shape[1], query.shape[2]
    groups = key.shape[1]
    out = query.new_zeros(1, heads, count, value.shape[3])
    layer = module.layer_idx
    for part in slices:
        rows = slice(part.begin, part.end)
        store, width = part.store, part.end - part.begin
        store.write(layer, key[:, :, rows], value[:, :, rows], part.columns)
        used = part.mask.shape[1]
        # Query heads that share a key head stand as rows of one product: no key is repeated.
        if len(part.mask) == width:
            part.mask = part.mask.repeat(heads // groups, 1)
        shared = query[:, :, rows].reshape(1, groups, heads // groups * width, -1)
        found = scaled_dot_product_attention(
            shared,
            store.keys[layer][:, :, :used],
            store.values[layer][:, :, :used],
            attn_mask=part.mask,
            scale=scaling,
        )
        out[:, :, rows] = found.reshape(1, heads, width, -1)
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)


def load(
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
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(name)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name, dtype=kind, attn_implementation="sdpa"
            )
        loaded = loaded.to(device)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError(f"the model {name} cannot be loaded: {error}") from error
    return loaded.eval(), tokenizer


def _looks_local(name: str) -> bool:
    """Whether a model's name can only be a folder's: hub names are NAME or OWNER/NAME."""
    return os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1
