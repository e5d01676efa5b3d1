"""Weights that are damaged, incomplete or another model's: one line that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from tiny import chat, tiny_model  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.compiler.models import check_weights, load_weights  # noqa: E402
from mvspec.runtime import ModelError, TorchEngine  # noqa: E402

FILE = "model.safetensors"
INDEX = f"{FILE}.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    chat().save_pretrained(tmp_path)
    tiny = tiny_model("Llama", len(chat()))
    model = transformers.LlamaForCausalLM(tiny.config)
    model.save_pretrained(tmp_path)
    return tmp_path


def weights(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / FILE)
        change(tensors)
        save_file(tensors, folder / FILE, {"format": "pt"})

    return changed


def bytes_of(change: Callable[[bytes], bytes], name: str = FILE) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return changed


def without(*words: str) -> Callable[[Path], None]:
    def lost(tensors: dict[str, Any]) -> None:
        for key in [key for key in tensors if any(word in key for word in words)]:
            del tensors[key]

    return weights(lost)


def sharded(*, lose: str = "", name: str = "", index: str | None = None) -> Callable[[Path], None]:
    def split(folder: Path) -> None:
        tensors = load_file(folder / FILE)
        (folder / FILE).unlink()
        halves = {"model-1.safetensors": "embed|lm_head|norm", "model-2.safetensors": "layers"}
        held = {key: "model-2.safetensors" if "layers" in key else "model-1.safetensors"
                for key in tensors}  # fmt: skip
        for shard in halves:
            own = {key: value for key, value in tensors.items() if held[key] == shard}
            save_file({k: v for k, v in own.items() if k != name}, folder / shard, {"format": "pt"})
        text = json.dumps({"metadata": {}, "weight_map": held})
        (folder / INDEX).write_text(text if index is None else index, "utf-8")
        if lose:
            (folder / lose).unlink()

    return split


def pop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({"model.layers.9.x.weight": tensors.pop(key)})


NORM = "model.layers.1.input_layernorm.weight"
HEAD = 300
DAMAGED = {
    "cut": (bytes_of(lambda data: data[:-100]), "its header says"),
    "longer": (bytes_of(lambda data: data + b"x"), "its header says"),
    "cut in its header": (bytes_of(lambda data: data[:HEAD]), "damaged"),
    "empty": (bytes_of(lambda data: b""), "is empty"),
    "zeros": (bytes_of(lambda data: bytes(len(data))), "damaged"),
    "flipped header": (bytes_of(lambda data: b"\xff" * 16 + data[16:]), "damaged"),
    "noise": (bytes_of(lambda data: b"noise" * 99), "damaged"),
    "a page": (bytes_of(lambda data: b"\n<!doctype html>404"), "is a web page"),
    "a pointer": (
        bytes_of(lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "git lfs pull",
    ),
    "a config that is a page": (bytes_of(lambda data: b"<html>", "config.json"), "web page"),
    "a config that is cut": (bytes_of(lambda data: data[:90], "config.json"), "not JSON"),
    "a tokenizer that is cut": (
        bytes_of(lambda data: data[:90], "tokenizer.json"),
        "its tokenizer",
    ),
    "a lost layer": (without("layers.0."), "lacks model.layers.0"),
    "the last layer": (without("layers.1."), "holds 1 layers, and its config.json says 2"),
    "a lost norm": (without(NORM), "lacks weights of the model"),
    "a lost head": (without("lm_head"), "lacks weights of the model"),
    "another name": (weights(pop(NORM)), "lacks model.layers.2"),
    "one more": (
        weights(lambda t: t.update({"model.layers.1.adapter.weight": torch.ones(2)})),
        "config.json does not know",
    ),
    "a shape": (weights(lambda t: t.update({NORM: torch.ones(3)})), "cannot be loaded"),
    "a type": (
        weights(lambda t: t.update({NORM: torch.ones(32, dtype=torch.int32)})),
        "of type I32",
    ),
    "a lost shard": (sharded(lose="model-2.safetensors"), "lacks model-2.safetensors"),
    "a shard without a weight": (sharded(name=NORM), "lacks weights that its index names"),
    "an index that is cut": (sharded(index='{"weight_map": '), "index is damaged"),
    "an index of nothing": (sharded(index="[]"), "index is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_weights_are_one_line(kind: str, folder: Path) -> None:
    damage, reason = DAMAGED[kind]
    damage(folder)
    with pytest.raises(ModelError) as told:
        TorchEngine.load(folder)
    assert reason in str(told.value)
    assert "\n" not in str(told.value)
    if "tokenizer" not in kind:
        with pytest.raises(mv.VerifyError, match=reason):
            load_weights(folder)


@pytest.mark.parametrize("split", [None, sharded()])
@pytest.mark.parametrize("tied", [False, True])
def test_whole_weights_are_loaded(
    split: Callable[[Path], None] | None, tied: bool, folder: Path
) -> None:
    if tied:
        without("lm_head")(folder)
        config = json.loads((folder / "config.json").read_bytes())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    tensors = load_file(folder / FILE)
    if split is not None:
        split(folder)
    check_weights(folder)
    state = load_weights(folder).state_dict()
    assert all(torch.equal(state[key], value) for key, value in tensors.items())
