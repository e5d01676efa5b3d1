"""Models from a folder or a config, with tags and adapters; and back into a folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from mvspec.compiler.models import check_model
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import Unsupported, VerifyError
from mvspec.training.faults import CheckpointError
from mvspec.training.tags import initialise_tags

__all__ = ["Lora", "build_model", "save_model", "torch_dtype"]


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters, through peft.

    Args:
        rank, alpha, dropout: of the adapters.
        targets: names of the layers that get one; "all-linear" is every linear layer but the head.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"


def torch_dtype(name: str) -> torch.dtype:
    """Return the floating-point type of that name.

    >>> torch_dtype("bfloat16")
    torch.bfloat16
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise VerifyError("dtype", f"{name!r} is none: use float32, bfloat16 or float64")
    return found


def build_model(
    source: Any,
    tokenizer: Any,
    new_tags: list[int],
    *,
    dtype: torch.dtype,
    attention: str,
    lora: Lora | None = None,
    seed: int = 0,
) -> Any:
    """Return a transformers model whose embeddings have the tokenizer's tags.

    Args:
        source: a folder or hub name, a config as a mapping, or a model, which is used itself.
        tokenizer: with the tags.
        new_tags: ids of tags whose embeddings are to start as the words that they name.
        dtype, attention: of the model.
        lora: adapters to put around it.
        seed: of fresh weights.

    Raises:
        VerifyError: the source cannot be loaded, or its vocabulary does not hold the tokenizer's.
    """
    # A strategy may make tensors on its device, whose random numbers are others: a seed means the
    # same weights under all of them.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        model = _load(source, tokenizer, dtype, attention)
        rows = model.get_input_embeddings().weight.shape[0]
        size = Vocabulary.of(tokenizer).size
        if rows < size and not new_tags:
            raise VerifyError(
                "model", f"its embeddings have {rows} rows, the tokenizer's ids need {size}: "
                "give the model's own tokenizer and add_tags: true"
            )  # fmt: skip
        if new_tags:
            initialise_tags(model, tokenizer, new_tags)
        return _adapted(model, lora, new_tags) if lora else model


def _load(source: Any, tokenizer: Any, dtype: torch.dtype, attention: str) -> Any:
    if not isinstance(source, str | os.PathLike | Mapping):
        check_model(source)
        if source.config._attn_implementation != attention:
            source.set_attn_implementation(attention)
        return source
    try:
        if isinstance(source, Mapping):
            config = _config(source, tokenizer)
            check_served(config, tokenizer)
        else:
            config = AutoConfig.from_pretrained(os.fspath(source))
        check_model(config)
        if isinstance(source, Mapping):
            make: Any = AutoModelForCausalLM.from_config
            model: Any = make(config, attn_implementation=attention, dtype=dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                os.fspath(source), attn_implementation=attention, dtype=dtype
            )
    except (OSError, ValueError, ImportError, KeyError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise VerifyError("model", f"{source} cannot be loaded: {reason}") from None
    return model


def _config(fields: Mapping[str, Any], tokenizer: Any) -> Any:
    given = dict(fields)
    kind = given.pop("model_type", None)
    if kind is None:
        raise VerifyError("model", "a config needs a model_type, such as llama or qwen3")
    eos = getattr(tokenizer, "eos_token_id", None)
    given = {
        "vocab_size": Vocabulary.of(tokenizer).size,
        "bos_token_id": None,
        "eos_token_id": eos,
    } | given
    return AutoConfig.for_model(kind, **given)


def _adapted(model: Any, lora: Lora, new_tags: list[int]) -> Any:
    from peft import LoraConfig, get_peft_model

    tokens: dict[str, list[int]] | None = None
    if new_tags:
        tokens = {_name(model, model.get_input_embeddings()): new_tags}
        head = model.get_output_embeddings()
        if head.weight is not model.get_input_embeddings().weight:
            tokens[_name(model, head)] = new_tags
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        trainable_token_indices=tokens,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise Unsupported(f"lora: {str(error).partition(chr(10))[0]}") from None


def _name(model: Any, module: Any) -> str:
    name: str = next(name for name, each in model.named_modules() if each is module)
    return name.rpartition(".")[2]


def save_model(model: Any, tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Write a model and its tokenizer as a Hugging Face folder; adapters are merged.

    Args:
        model: of transformers, or peft's around one, which is changed.
        folder: made where it is not there.

    Raises:
        Unsupported: the tokenizer would come back changed.
        CheckpointError: the weights cannot be written.
    """
    target = Path(folder)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    check_served(model.config, tokenizer)
    target.mkdir(parents=True, exist_ok=True)
    _save_tokenizer(tokenizer, target)
    try:
        model.save_pretrained(target)
    except SafetensorError as error:  # its own for a full disk
        raise CheckpointError(
            f"{target}: the weights were not written ({error}): free space there, or write "
            "elsewhere, and do it again"
        ) from None


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    if not hasattr(tokenizer, "save_pretrained"):
        load: Any = PreTrainedTokenizerFast
        tokenizer = load(tokenizer_object=tokenizer)
    tokenizer.save_pretrained(folder)


def _parts(tokenizer: Any) -> list[Any]:
    """Return what decides how a text becomes ids; what is put around it does not count."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    fields = json.loads(backend.to_str())
    names = ("normalizer", "pre_tokenizer", "added_tokens", "decoder")
    return [*(fields[name] for name in names), fields["model"]["vocab"]]


def check_served(config: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that whoever loads the exported folder would not get.

    Beside the config of a Qwen2, for example, transformers gives every tokenizer Qwen2's own way
    of cutting words, and says nothing.

    Raises:
        Unsupported: it comes back changed.
    """
    with tempfile.TemporaryDirectory() as written:
        config.save_pretrained(written)
        _save_tokenizer(tokenizer, Path(written))
        found = AutoTokenizer.from_pretrained(written)
    if _parts(found) != _parts(tokenizer):
        raise Unsupported(
            f"transformers loads this tokenizer as {type(found).__name__} from the folder of a "
            f"{config.model_type!r} model, and it is another one then: use the model type that it "
            "was made for, or llama"
        )
