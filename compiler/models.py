"""Models that would silently be other ones: by their attention, or by weights that lack."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

from mvspec.data.columns import listed
from mvspec.errors import Unsupported, VerifyError

# Layers that see what the mask shows and nothing else.
_FULL = {"full_attention", "attention"}
# By model type, what no other field of the config tells.
_NAMED = {
    **dict.fromkeys((
        "bamba", "falcon_h1", "falcon_mamba", "jamba", "lfm2", "lfm2_moe", "mamba", "mamba2",
        "minimax", "nemotron_h", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
    ), "its layers keep a recurrent state"),
    **dict.fromkeys(("bloom", "mpt"), "its ALiBi ignores position_ids"),
    **dict.fromkeys((
        "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta",
        "xlm-roberta-xl", "xmod",
    ), "its positions are counted from the padding token's id"),
    "blt": "it reads patches of several tokens",
}  # fmt: skip
_ENCODERS = {
    "bert", "bert-generation", "big_bird", "electra", "ernie", "megatron-bert", "rembert",
    "roc_bert",
}  # fmt: skip
# Fields of a config that, where they are set, say what its attention does beyond the mask.
_FIELDS = {
    "alibi": "its ALiBi ignores position_ids",
    "attention_chunk_size": "its attention is chunked",
    "index_topk": "its attention picks the tokens that it sees",
    "linear_attn_config": "its attention is linear",
    "ssm_cfg": "its layers keep a recurrent state",
}
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
_WITHOUT_MASKS = ("flash_attention", "flash_mla", "paged|")


def check_model(model_or_config: Any) -> None:
    """Refuse a model whose attention is not decided by a mask and position ids alone.

    What its config says is read; a built model is asked as well, once: two forwards of a few
    tokens show whether paths read each other, and whether a path reads as the text that it is.

    Args:
        model_or_config: a transformers model or its config.

    Raises:
        Unsupported: sliding windows, chunked, sparse or linear attention, a recurrent state,
            ALiBi, no position ids, RoPE whose frequencies depend on the length, kernels that
            take no mask, a model that is not causal, or any other that reads a small fork
            otherwise; the message names the model and why.

    >>> from transformers import LlamaConfig
    >>> check_model(LlamaConfig())
    """
    config = _text_config(model_or_config)
    if not hasattr(config, "model_type"):
        raise Unsupported(f"{type(config).__name__} is neither a transformers model nor a config")
    why = next(_reasons(config), None) or _misread(model_or_config)
    if why:
        kind = str(getattr(config, "model_type", "this model"))
        raise Unsupported(f"model type {kind!r}: {why}, so a custom mask would be silently wrong")


def position_limit(model_or_config: Any) -> int | None:
    """Return how many positions a model has, or was trained for; None if its config does not say.

    >>> from transformers import GPT2Config
    >>> position_limit(GPT2Config(n_positions=512))
    512
    """
    found: int | None = getattr(_text_config(model_or_config), "max_position_embeddings", None)
    return found


def _text_config(model_or_config: Any) -> Any:
    config = getattr(model_or_config, "config", model_or_config)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _reasons(config: Any) -> Iterator[str]:
    kind = getattr(config, "model_type", "")
    if kind in _NAMED:
        yield _NAMED[kind]
    if kind in _ENCODERS and not getattr(config, "is_decoder", False):
        yield "it is not causal (is_decoder=False)"
    for field, why in _FIELDS.items():
        if getattr(config, field, None):
            yield f"{why} ({field})"
    layers = set(getattr(config, "layer_types", None) or ())
    other = sorted(layers - _FULL)
    if other:
        yield f"it has layers of type {', '.join(other)}"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        yield "it has layers of local attention"
    window = getattr(config, "sliding_window", None)
    if window and not layers and getattr(config, "use_sliding_window", True):
        yield f"it attends within a sliding window of {window} tokens"
    for scheme in _rope_types(config):
        if scheme in _LENGTH_DEPENDENT_ROPE:
            yield f"its RoPE ({scheme}) depends on the length of the text"
    if not _reads_position_ids(config):
        yield "it takes no position_ids"
    attention = str(getattr(config, "_attn_implementation", None) or "")
    if attention.startswith(_WITHOUT_MASKS):
        yield (
            f"attn_implementation={attention!r} takes no mask (load it with "
            "'flex_attention', 'sdpa' or 'eager')"
        )


def _rope_types(config: Any) -> Iterator[str]:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # One scheme for all layers, or one for each type of layer.
    for each in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        yield str(each.get("rope_type", each.get("type", "default")))


def _reads_position_ids(config: Any) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        return True  # not transformers' own: nothing is known
    model = found[0] if isinstance(found, tuple) else found
    return "position_ids" in inspect.signature(model.forward).parameters


# Weights

_AGAIN = "fetch the model again, or name another"
_FLOATS = ("F64", "F32", "F16", "BF16")
_LAYER = re.compile(r"(.*\b(?:layers|h|blocks))\.(\d+)\.")
_OTHER_SENSES = re.compile(r"vision|visual|audio|image|multi_modal|mm_|\bmtp\b|rotary_emb")
"""Weights that the text's model does without."""


def load_weights(source: str | os.PathLike[str], **arguments: Any) -> Any:
    """Return a transformers causal language model, if its files hold all of its weights.

    Args:
        source: a folder or a hub name.
        arguments: of `from_pretrained`.

    Raises:
        VerifyError: they are damaged, or lack what the model needs, or are not this model's;
            one line says what to do.
    """
    from transformers import AutoModelForCausalLM

    name = os.fspath(source)
    if os.path.isdir(name):
        check_weights(Path(name))
    try:
        load: Any = AutoModelForCausalLM.from_pretrained
        model, found = load(name, output_loading_info=True, **arguments)
    except MemoryError:
        raise
    except Exception as error:  # of safetensors, pickle, torch and the hub
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise VerifyError("", f"{name} cannot be loaded: {reason}") from error
    if missing := sorted(found["missing_keys"]):
        raise VerifyError("", f"{name} lacks weights of the model ({listed(missing, 3)}): {_AGAIN}")
    unknown = sorted(key for key in found["unexpected_keys"] if not _OTHER_SENSES.search(key))
    if unknown:
        raise VerifyError(
            "",
            f"{name} holds weights that its config.json does not know ({listed(unknown, 3)}): they "
            "are not of one model; merge an adapter first, or fetch the model again",
        )
    return model


def check_weights(folder: Path) -> None:
    """Refuse a folder whose files of weights are damaged or lack some, as their headers tell.

    Raises:
        VerifyError: names the file, and what to do.
    """
    index = folder / "model.safetensors.index.json"
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.json")):
        _refuse_stand_in(path)
    wanted: Mapping[str, str] = {}
    if (folder / "model.safetensors").is_file():
        files = {"model.safetensors"}
    elif index.is_file():
        try:
            wanted = json.loads(index.read_bytes())["weight_map"]
            files = set(wanted.values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VerifyError(str(index), f"the index is damaged ({error}): {_AGAIN}") from None
    else:
        return  # other formats: loading says
    if lost := sorted(name for name in files if not (folder / name).is_file()):
        raise VerifyError(str(folder), f"lacks {listed(lost, 3)}, which its index names: {_AGAIN}")
    headers = {name: _header(folder / name) for name in sorted(files)}
    if lost := sorted(key for key, name in wanted.items() if key not in headers[name]):
        raise VerifyError(str(folder), f"lacks weights that its index names ({listed(lost, 3)})")
    config = _config(folder)
    kinds = {key: about["dtype"] for each in headers.values() for key, about in each.items()}
    odd = sorted(k for k, dtype in kinds.items() if k.endswith(".weight") and dtype not in _FLOATS)
    if odd and "quantization_config" not in config:
        reason = f"{listed(odd, 3)} is of type {kinds[odd[0]]}, and the config names no "
        raise VerifyError(str(folder), f"{reason}quantization: {_AGAIN}")
    layers: dict[str, set[int]] = {}
    for match in filter(None, map(_LAYER.match, kinds)):
        layers.setdefault(match[1], set()).add(int(match[2]))
    for prefix, numbers in layers.items():
        if lost_layers := sorted(set(range(max(numbers))) - numbers):
            reason = f"lacks {prefix}.{lost_layers[0]}, one of the model's layers: {_AGAIN}"
            raise VerifyError(str(folder), reason)
    count = config.get("num_hidden_layers")
    most = max((max(numbers) + 1 for numbers in layers.values()), default=0)
    if isinstance(count, int) and layers and most < count:
        reason = f"holds {most} layers, and its config.json says {count}: {_AGAIN}"
        raise VerifyError(str(folder), reason)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        found: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise VerifyError(str(path), f"not JSON ({error}): {_AGAIN}") from None
    except FileNotFoundError:
        raise VerifyError(str(folder), f"has no config.json: {_AGAIN}") from None
    return found if isinstance(found, dict) else {}


def _refuse_stand_in(path: Path) -> None:
    """Refuse what a download has left in the place of a file."""
    with path.open("rb") as stream:
        head = stream.read(200).lstrip()
    if head.startswith(b"version https://git-lfs"):
        reason = "is a pointer of git-lfs, not the file: run `git lfs pull` there"
    elif head[:1] == b"<":
        reason = f"is a web page, which the download has left: {_AGAIN}"
    elif not head:
        reason = f"is empty: {_AGAIN}"
    else:
        return
    raise VerifyError(str(path), reason)


def _header(path: Path) -> dict[str, Any]:
    """Return what a safetensors file says of its tensors, if it is as long as that."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            if length > size:
                raise ValueError
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((about["data_offsets"][1] for about in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            reason = f"is no safetensors file, or its beginning is damaged: {_AGAIN}"
            raise VerifyError(str(path), reason) from None
    if 8 + length + end != size:
        reason = f"has {size:,} bytes, and its header says {8 + length + end:,}: {_AGAIN}"
        raise VerifyError(str(path), reason)
    return header


_BEFORE, _FIRST, _SECOND = 4, 8, 4
"""Tokens of the small fork: before it, and of its two paths."""
_asked: WeakSet[Any] = WeakSet()


def small_fork(model: Any) -> dict[str, Any]:
    """Return the inputs of a forward that shows whether a model reads a fork as one.

    Three rows: a text of two paths; the same with other tokens in its first path; the same with
    positions that know no fork. None of its ids is the padding token's.
    """
    import torch

    config = _text_config(model)
    usable = [id for id in range(min(config.vocab_size, 512)) if id != config.pad_token_id]
    n, second = _BEFORE + _FIRST + _SECOND, _BEFORE + _FIRST
    ids = torch.tensor([usable[7 * i % len(usable)] for i in range(n)])
    other = ids.clone()
    other[_BEFORE:second] = torch.tensor([usable[(5 * i + 3) % len(usable)] for i in range(_FIRST)])
    flat = torch.arange(n)
    forked = torch.cat([flat[:second], flat[_BEFORE : _BEFORE + _SECOND]])
    seen = torch.ones(n, n).tril().bool()
    seen[second:, _BEFORE:second] = False
    dtype = _dtype(model)
    mask = torch.zeros(n, n, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return {
        "input_ids": torch.stack([ids, other, ids]),
        "position_ids": torch.stack([forked, forked, flat]),
        "attention_mask": mask.expand(3, 1, n, n),
    }


def logits_of(model: Any, **inputs: Any) -> Any:
    """Return the logits of a forward: [batch, n, vocabulary]; what else it computes is left out."""
    if hasattr(_text_config(model), "output_router_logits"):
        inputs["output_router_logits"] = False  # its loss takes no 4-D mask
    return model(**inputs, use_cache=False).logits


def _dtype(model: Any) -> Any:
    # Weights may be stored as whole numbers; a wrapper may not say what they stand for.
    return getattr(model, "dtype", None) or next(model.parameters()).dtype


@contextmanager
def reading(model: Any) -> Iterator[None]:
    """Let a model read additive masks where it is, without gradients and dropout, for a while."""
    import torch

    how, training = str(model.config._attn_implementation), model.training
    try:
        model.eval()
        if "flex" in how:  # the layers around its attention are the same
            model.set_attn_implementation("eager")
        with torch.no_grad(), torch.device(next(model.parameters()).device):
            yield
    finally:
        model.train(training)
        if "flex" in how:
            model.set_attn_implementation(how)


def _misread(model: Any) -> str:
    """Return how a built model misreads the small fork; "" if it does not, or is but a config."""
    import torch

    built = isinstance(model, torch.nn.Module) and not next(model.parameters()).is_meta
    if not built or model in _asked:
        return ""
    second = _BEFORE + _FIRST
    try:
        with reading(model):
            inputs = small_fork(model)
            ids = inputs["input_ids"][:1]
            fork, changed, moved = logits_of(model, **inputs)[:, second:].float()
            # Its second path as the plain text that it is.
            alone = torch.cat([ids[:, :_BEFORE], ids[:, second:]], 1)
            plain = logits_of(model, input_ids=alone)[0, _BEFORE:].float()
    except Exception as error:
        return f"it cannot read a 4-D mask with position_ids ({' '.join(str(error).split())[:200]})"
    size = float(plain.norm())
    half = _dtype(model).itemsize < 4
    if float((fork - changed).norm()) > (0.02 if half else 1e-3) * size:
        return "its paths read each other in spite of the mask"
    # In half precision experts may be drawn otherwise, but not where positions change nothing.
    same = bool((fork == moved).all())
    if float((fork - plain).norm()) > (1e-3 if not half else 0.02 if same else 0.2) * size:
        return "it ignores position_ids" if same else "it reads a path otherwise than as plain text"
    _asked.add(model)
    return ""
