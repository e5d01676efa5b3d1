"""Training: equal however rows fall, on every way from a compiled set to weights."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from bpe import chat_tokenizer
from lightning.pytorch import Trainer
from tiny import tiny_model
from torch import Tensor
from traces import CANONICAL

import mvspec
from mvspec.compiler import Layout, compile_document
from mvspec.training import LanguageModel, LayoutData, Optimizer

TOKENIZER = chat_tokenizer()
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.1,
}


def documents(count: int = 12) -> list[Layout]:
    texts = (
        CANONICAL.replace("Let me see.", "Let me see. " + "So " * (i * 7 % 31))
        for i in range(count)
    )
    return [compile_document(mvspec.parse(text), TOKENIZER) for text in texts]


def trainer(root: Path, **more: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1,
    }  # fmt: skip
    return Trainer(default_root_dir=root, **(settings | more))


def gradients(tmp_path: Path, **data: Any) -> tuple[float, list[Tensor]]:
    """One step on all documents: its loss and gradients."""
    # Its norms are in float64 too: transformers' own compute in float32.
    model = deepcopy(tiny_model("Llama", len(TOKENIZER)))
    module = LanguageModel(model, TOKENIZER, dtype="float64", optimizer=Optimizer(clip=None))
    kept: list[Tensor] = []
    step = module.on_before_optimizer_step

    def keep(optimizer: Any) -> None:
        step(optimizer)
        kept.extend(p.grad.clone() for p in module.parameters() if p.grad is not None)

    module.on_before_optimizer_step = keep  # type: ignore[method-assign]
    accumulate = data.pop("accumulate", 1)
    run = trainer(tmp_path, max_steps=1, accumulate_grad_batches=accumulate)
    run.fit(module, LayoutData(documents(), **data))
    return float(run.callback_metrics["train/loss"]), kept


@pytest.mark.parametrize(
    "how",
    [
        {"batch_size": 1, "accumulate": 12},  # each alone
        {"batch_size": 5, "accumulate": 3},  # padded; the last batch is smaller
        {"batch_size": 12, "pack": True, "length": 700},
        {"batch_size": 1, "pack": True, "length": 1024, "accumulate": 3, "workers": 1},
    ],
)
def test_loss_and_gradients_do_not_depend_on_how_rows_fall(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    loss, found = gradients(tmp_path, **how)
    whole, wanted = gradients(tmp_path, batch_size=12)
    assert loss == pytest.approx(whole, rel=1e-6)
    assert len(found) == len(wanted) > 0
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
