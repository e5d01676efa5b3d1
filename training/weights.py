"""Models from a folder or a config, with tags and adapters; and back into a folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)

from mvspec.compiler.chat_template import asking
from mvspec.compiler.models import check_model, load_weights
from mvspec.compiler.tokens import turn_end
from mvspec.compiler.vocabulary import Vocabulary, add_tags, load_tokenizer, save_tokenizer
from mvspec.data.records import InputError
from mvspec.errors import Unsupported, VerifyError
from mvspec.law.tags import Tag
from mvspec.training.errors import CheckpointError


def tag_words(tag: Tag) -> str:
    """Return the words that a tag names, as plain text.

    >>> tag_words(Tag.PARALLEL), tag_words(Tag.END_PATH)
    ('Parallel', ' end Path')
    """
    name = re.sub(r"[</>]", "", tag.value)
    return f" end {name}" if tag.value.startswith("</") else name


def own_copy(tokenizer: Any, source: Any) -> Any:
    """Return the tokenizer of a model; a copy where it is loaded, since others hold that too.

    Args:
        tokenizer: a folder, file or hub name, or a tokenizer; None for the source's.
        source: of the model, as a folder or hub name, or else without a tokenizer.

    Raises:
        VerifyError: there is none.
    """
    if tokenizer is None and isinstance(source, str | os.PathLike):
        tokenizer = source
    if tokenizer is None:
        raise VerifyError("tokenizer", "give the one that the data was compiled with")
    if isinstance(tokenizer, str | os.PathLike):
        return deepcopy(load_tokenizer(os.fspath(tokenizer)))
    return tokenizer


def extend_tokenizer(tokenizer: Any, source: Any, *, add: bool) -> list[int]:
    """Return the ids of the tags that a model has to learn anew.

    Args:
        tokenizer: that the model is to be trained with; extended in place where tags are missing.
        source: of the model: a folder or hub name, whose own tokenizer says which tags it knows.
        add: whether tags may be new to the tokenizer and the model.

    Raises:
        Unsupported: tags are new and may not be, or the compiler cannot use the tokenizer.
    """
    missing = _missing(tokenizer)
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if missing and not add:
        raise Unsupported(
            f"tokenizer {name} has no token for {', '.join(missing)}: give the tokenizer that the "
            "data was compiled with, which stands beside the shards where it got tags, or "
            "set add_tags: true"
        )
    if missing:
        add_tags(tokenizer)
    ids = Vocabulary.of(tokenizer).tag_ids
    own = _own_tokenizer(source)
    unknown = (list(Tag) if add else []) if own is None else _missing(own)
    if unknown and not add:
        raise Unsupported(
            f"{', '.join(unknown)} are new to the model {source}, whose embeddings of them were "
            "never trained: set add_tags: true"
        )
    return [ids[tag] for tag in unknown]


def _missing(tokenizer: Any) -> list[Tag]:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return [tag for tag in Tag if backend.token_to_id(tag.value) is None]


def _own_tokenizer(source: Any) -> Any:
    if not isinstance(source, str | os.PathLike):
        return None
    try:
        return load_tokenizer(os.fspath(source))
    except InputError:
        return None  # a folder of weights alone


def initialise_tags(model: Any, tokenizer: Any, ids: list[int]) -> None:
    """Give rows of a model's embeddings and head the mean of those of the words they name.

    A tied head needs no more; an untied one gets the mean of its own rows. Biases too.

    Args:
        model: of transformers; its embeddings grow to the tokenizer's size where they are smaller.
        tokenizer: with the tags.
        ids: of the tags that are new to the model.
    """
    vocabulary = Vocabulary.of(tokenizer)
    if model.get_input_embeddings().weight.shape[0] < vocabulary.size:
        model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    head = model.get_output_embeddings()
    tables: list[Tensor] = [model.get_input_embeddings().weight]
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    if head is not None and getattr(head, "bias", None) is not None:
        tables.append(head.bias)
    names = {vocabulary.tag_ids[tag]: vocabulary.encode_outside(tag_words(tag)) for tag in Tag}
    with torch.no_grad():
        for table in tables:
            for id in ids:
                table[id] = table[names[id]].mean(0)


@dataclass(frozen=True)
class LoraAdapters:
    """Low-rank adapters, through peft.

    Args:
        rank, alpha, dropout: of the adapters.
        targets: names of the layers that get one; "all-linear" is every linear layer but the head
            and the routers of experts.
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
    lora: LoraAdapters | None = None,
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
    config = load_config(source, tokenizer)
    check_model(config)
    with _loading(source):
        if isinstance(source, Mapping):
            check_served(config, tokenizer)
            make: Any = AutoModelForCausalLM.from_config
            return make(config, attn_implementation=attention, dtype=dtype)
        return load_weights(source, attn_implementation=attention, dtype=dtype)


@contextmanager
def _loading(source: Any) -> Iterator[None]:
    try:
        yield
    except VerifyError as error:
        raise VerifyError("model", str(error)) from None
    except (OSError, ValueError, ImportError, KeyError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise VerifyError("model", f"{source} cannot be loaded: {reason}") from None


def load_config(source: Any, tokenizer: Any) -> Any:
    """Return the config of a model that `build_model` would build; no weight is read.

    Raises:
        VerifyError: there is none.
    """
    if not isinstance(source, str | os.PathLike | Mapping):
        return source.config
    with _loading(source):
        if isinstance(source, Mapping):
            return _config(source, tokenizer)
        return AutoConfig.from_pretrained(os.fspath(source))


def attentions(config: Any) -> list[str]:
    """Return how models of a config can attend, the fastest on a GPU first.

    >>> from transformers import GPTJConfig
    >>> attentions(GPTJConfig())
    ['eager']
    """
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    flags = {"flex": "_supports_attention_backend", "sdpa": "_supports_sdpa"}
    # Of one that is not transformers' own nothing is known.
    found = [name for name, flag in flags.items() if kind is None or getattr(kind, flag, False)]
    return [*found, "eager"]


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


_ROUTER = re.compile(r"(^|\.)(\w*router\w*|gate|wg|classifier|shared_expert_gate)(\.|$)")
"""What transformers calls the layers that draw experts; `gate_proj` is none."""


def _adapted(model: Any, lora: LoraAdapters, new_tags: list[int]) -> Any:
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
    fields = model.config.get_text_config().to_dict()
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise Unsupported(f"lora: {str(error).partition(chr(10))[0]}") from None
    if lora.targets == "all-linear" and any("expert" in field for field in fields):
        for name, parameter in adapted.named_parameters():
            if _ROUTER.search(name):  # peft adapts them, also where they are no linear layers
                parameter.requires_grad_(False)
    return adapted


def frozen_digest(model: nn.Module) -> str:
    """Return a digest of the weights that are not trained, from up to 512 numbers of each.

    The same in float32 and in bfloat16.
    """
    digest = hashlib.sha256()
    for each in model.parameters():
        if not each.requires_grad:
            some = each.detach().flatten()[:: max(1, each.numel() // 512)]
            digest.update(some.to(torch.bfloat16).float().numpy().tobytes())
    return f"frozen weights of sha256 {digest.hexdigest()[:16]}"


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
    end = turn_end(Vocabulary.of(tokenizer))
    generation = getattr(model, "generation_config", None)
    if end is not None and generation is not None:  # what it was taught to end a turn with
        ends = generation.eos_token_id
        known = [ends] if isinstance(ends, int) else list(ends or ())
        if end.id not in known:
            generation.eos_token_id = [*known, end.id]
    with suppress(Unsupported):  # a clock that nobody stopped before now stops
        tokenizer = asking(tokenizer, None, freeze=True)
    save_tokenizer(tokenizer, target)
    try:
        model.save_pretrained(target)
    except SafetensorError as error:  # its own for a full disk
        raise CheckpointError(
            f"{target}: the weights were not written ({error}): free space there, or write "
            "elsewhere, and do it again"
        ) from None


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
        save_tokenizer(tokenizer, Path(written))
        found = AutoTokenizer.from_pretrained(written)
    if _parts(found) != _parts(tokenizer):
        raise Unsupported(
            f"transformers loads this tokenizer as {type(found).__name__} from the folder of a "
            f"{config.model_type!r} model, and it is another one then: use the model type that it "
            "was made for, or llama"
        )
