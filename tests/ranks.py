"""What training tests do in processes of their own: a rank of several, a run to be killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from mvspec.cli import training_cli
from mvspec.training import Checkpoints, LanguageModel, LayoutData, Optimizer
from mvspec.training.checkpoint import newest_checkpoint

STEPS = 6
CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1,
    "tie_word_embeddings": True,
}  # fmt: skip


class Losses(Callback):
    """Keeps each step's loss and gradient norm."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        metrics = trainer.callback_metrics
        if not trainer.fit_loop._should_accumulate():
            self.rows.append([float(metrics["train/loss"]), float(metrics["train/gradient_norm"])])


def fit(
    folder: Path, batch_size: int, checkpoints: Path | None, ckpt: Any = None, **more: Any
) -> list[list[float]]:
    """Train some steps of two batches; return loss and norm of each."""
    losses = Losses()
    callbacks: list[Callback] = [losses]
    if checkpoints is not None:
        callbacks.append(Checkpoints(str(checkpoints), every=3, keep="all"))
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=checkpoints is not None, callbacks=callbacks, max_steps=STEPS,
        max_epochs=-1, accumulate_grad_batches=2, num_sanity_val_steps=0,
        default_root_dir=str(folder), **more,
    )  # fmt: skip
    # A clip that bites, so that every rank has to have the same norm.
    module = LanguageModel(
        CONFIG, str(folder / "tokenizer"), optimizer=Optimizer(lr=0.01, clip=0.5)
    )
    data = LayoutData(folder / "set", folder / "set", batch_size=batch_size)
    trainer.fit(module, data, ckpt_path=ckpt)
    [found] = trainer.validate(module, data, verbose=False)
    return [*losses.rows, [found["validation/loss"], 0.0]]


def run(arguments: list[str], said: Path | None = None) -> None:
    """Run `mvspec train`; what it says goes to a file, where one is given."""
    if said is not None:
        file = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
    training_cli.main(arguments)


def rank(folder: Path, number: int, ports: list[int]) -> None:
    """Be one rank of two, with one strategy after the other.

    Args:
        folder: has the compiled set and the tokenizer; the losses of every strategy go to
            STRATEGY-RANK.json.
        ports: one for each strategy.
    """
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": str(number), "NODE_RANK": "0", "WORLD_SIZE": "2",
    }  # fmt: skip
    sharded: dict[str, Any] = {"data_parallel_size": 2, "tensor_parallel_size": 1}
    split: dict[str, Any] = {"data_parallel_size": 1, "tensor_parallel_size": 2}
    runs: dict[str, tuple[Strategy, int, str]] = {
        "ddp": (DDPStrategy(), 1, ""),
        "fsdp": (ModelParallelStrategy(**sharded), 1, ""),
        "resumed": (ModelParallelStrategy(**sharded), 1, "fsdp"),
        "tensor": (ModelParallelStrategy(**split), 2, ""),
    }
    for port, (name, (strategy, batch_size, resumed)) in zip(ports, runs.items(), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        ckpt = folder / resumed / "step=3.ckpt" if resumed else None
        checkpoints = folder / name if name == "fsdp" else None
        rows = fit(folder, batch_size, checkpoints, ckpt, strategy=strategy, devices=2)
        (folder / f"{name}-{number}.json").write_text(json.dumps(rows))
        torch.distributed.destroy_process_group()
    assert newest_checkpoint(folder / "fsdp") == folder / "fsdp" / "step=6.ckpt"
