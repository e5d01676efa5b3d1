"""Checkpoints as Hugging Face folders, which both engines serve."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from mvspec.compiler.tokenizer import load_tokenizer, save_tokenizer
from mvspec.training.checkpoint import is_whole
from mvspec.training.faults import CheckpointError
from mvspec.training.weights import Lora, build_model, save_model, torch_dtype

__all__ = ["EXPORTED", "export", "recipe"]

EXPORTED = "mvspec"
"""The key of a checkpoint under which `recipe` is kept."""

_PREFIX = "network.model."


def recipe(
    model: Any, tokenizer: Any, *, source: Any, lora: Lora | None, new_tags: list[int]
) -> dict[str, Any]:
    """Return what a folder needs beside the weights, as plain values."""
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    known = isinstance(source, str | os.PathLike)
    generation = getattr(model, "generation_config", None)
    return {
        "config": model.config.to_dict(),
        "generation": None if generation is None else generation.to_dict(),
        "tokenizer": files,
        "source": os.fspath(source) if known else None,
        "lora": asdict(lora) if lora else None,
        "new_tags": list(new_tags),
    }


def export(
    checkpoint: str | os.PathLike[str], folder: str | os.PathLike[str], dtype: str | None = None
) -> None:
    """Write a checkpoint as a Hugging Face folder; adapters are merged into their base model.

    Args:
        checkpoint: a file, or a folder of shards.
        folder: made where it is not there.
        dtype: of the weights; by default what they were trained in.

    Raises:
        CheckpointError: it is no checkpoint of this room.
    """
    loaded = _read(Path(checkpoint))
    kept = loaded.get(EXPORTED)
    if not isinstance(kept, Mapping):
        raise CheckpointError(f"{checkpoint}: no checkpoint of mvspec train")
    state = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in loaded["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    with tempfile.TemporaryDirectory() as written:
        for name, data in kept["tokenizer"].items():
            Path(written, name).write_bytes(data)
        tokenizer = load_tokenizer.__wrapped__(written)
    model = _adapted(kept, tokenizer, state) if kept["lora"] else _whole(kept, state)
    if kept["generation"]:
        model.generation_config = GenerationConfig.from_dict(kept["generation"])
    save_model(model.to(torch_dtype(dtype)) if dtype else model, tokenizer, folder)


def _whole(kept: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    config = AutoConfig.for_model(**kept["config"])
    dtype = next(iter(state.values())).dtype
    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):  # the checkpoint has every weight
        model = make(config, dtype=dtype)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def _adapted(kept: Mapping[str, Any], tokenizer: Any, state: Mapping[str, Any]) -> Any:
    if kept["source"] is None:
        raise CheckpointError(
            "the checkpoint holds adapters of a model that was given in memory: "
            "call LanguageModel.export instead"
        )
    model = build_model(
        kept["source"],
        tokenizer,
        kept["new_tags"],
        dtype=torch_dtype(str(kept["config"]["dtype"])),
        attention="sdpa",
        lora=Lora(**kept["lora"]),
    )
    unknown = model.load_state_dict(dict(state), strict=False).unexpected_keys
    if unknown:
        raise CheckpointError(
            f"{kept['source']} is not the adapters' model: it has no {unknown[0]}"
        )
    return model


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.is_dir():
            from lightning.fabric.utilities.load import _load_distributed_checkpoint

            if not is_whole(path):
                raise CheckpointError(f"{path}: there is no whole checkpoint in it")
            found: dict[str, Any] = _load_distributed_checkpoint(path)
            return found
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except CheckpointError:
        raise
    except (Exception, CheckpointException) as error:  # torch raises several kinds
        raise CheckpointError.unread(path, error) from None
    return found
