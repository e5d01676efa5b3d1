"""A causal language model as a Lightning module. It sees layouts, and knows no block."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from mvspec.compiler.tokenizer import load_tokenizer
from mvspec.errors import VerifyError
from mvspec.training.batch import Batch
from mvspec.training.checkpoint import WholeCheckpoints
from mvspec.training.faults import NotFinite
from mvspec.training.gradients import gradient_norm, scale_gradients
from mvspec.training.network import Network
from mvspec.training.optimizer import Optimizer
from mvspec.training.tags import extend_tokenizer
from mvspec.training.weights import Lora, build_model, torch_dtype

__all__ = ["LanguageModel"]


class LanguageModel(LightningModule):
    """Trains a transformers causal language model on layouts.

    The loss is the sum over all tokens with loss, of all ranks and all batches of a step, divided
    by their number: it does not depend on how rows fall on ranks, batches or accumulation.

    Args:
        model: a folder or hub name; or a config, as {"model_type": "llama", ...}, for weights
            from scratch; or a transformers model.
        tokenizer: a folder, file or hub name, or a tokenizer; by default the model's folder.
        add_tags: extend a tokenizer that lacks tags; their embeddings start as the mean of the
            words that they name.
        dtype: of the weights, as "float32".
        attention: "flex_attention" (a GPU's default), "sdpa" (a CPU's) or "eager".
        kernel_options: for FlexAttention, such as {"BACKEND": "FLASH"}.
        loss: "chunked" or "liger".
        chunk: tokens whose logits exist at once.
        gradient_checkpointing: compute activations again in the backward pass.
        compile: compile the decoder's layers.
        lora: train adapters, and the new tags' embeddings, instead of all weights.
        optimizer: AdamW's settings and the learning rate's schedule.
        seed: of fresh weights and of dropout.

    Raises:
        Unsupported: the model's attention is not the mask's, or the tokenizer lacks tags.
        VerifyError: the loss or a gradient is not finite; the message names the documents.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        add_tags: bool = False,
        dtype: str = "float32",
        attention: str | None = None,
        kernel_options: dict[str, Any] | None = None,
        loss: str = "chunked",
        chunk: int | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        lora: Lora | None = None,
        optimizer: Optimizer | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.source = model
        self._given_tokenizer = tokenizer
        if tokenizer is None and isinstance(model, str | os.PathLike):
            tokenizer = os.fspath(model)
        if tokenizer is None:
            raise VerifyError("tokenizer", "give the one that the data was compiled with")
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = load_tokenizer(os.fspath(tokenizer))
        self.tokenizer = tokenizer
        self.new_tags = extend_tokenizer(tokenizer, add=add_tags)
        self.weights_dtype = dtype
        self.attention = attention
        self.kernel_options = kernel_options
        self.loss, self.chunk = loss, chunk
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_layers = compile
        self.lora = lora
        self.optimizer = optimizer or Optimizer()
        self.seed = seed
        self.network: Network | None = None
        self._window: list[tuple[Batch, Tensor]] = []
        self._evaluated: list[tuple[Tensor, int]] = []
        fields = (str, os.PathLike, Mapping)
        if isinstance(model, fields) and isinstance(self._given_tokenizer, (*fields, type(None))):
            self.save_hyperparameters()

    # Building

    def setup(self, stage: str) -> None:
        """Let checkpoints appear whole or not at all; Lightning calls it."""
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = WholeCheckpoints()

    def configure_model(self) -> None:
        """Build the network where it is used; Lightning calls it."""
        if self.network is not None:
            return
        attention = self.attention or (
            "flex_attention" if self._root_device().type == "cuda" else "sdpa"
        )
        model = build_model(
            self.source,
            self.tokenizer,
            self.new_tags,
            dtype=torch_dtype(self.weights_dtype),
            attention=attention,
            lora=self.lora,
            seed=self.seed,
        )
        network = Network(
            model, loss=self.loss, chunk=self.chunk, kernel_options=self.kernel_options
        )
        network.train()
        if self.gradient_checkpointing:
            network.base.gradient_checkpointing_enable({"use_reentrant": False})
            if self.lora:
                network.base.enable_input_require_grads()
        if self.compile_layers:
            network.compile_layers()
        self.network = network

    def _root_device(self) -> torch.device:
        attached = self._trainer is not None
        return self.trainer.strategy.root_device if attached else torch.device("cpu")

    def built(self) -> Network:
        """Return the network, and build it where there is no trainer to do so."""
        self.configure_model()
        assert self.network is not None
        return self.network

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule; Lightning calls it."""
        fused = self._root_device().type == "cuda"
        network = self.built()
        optimizer = self.optimizer.build(
            network.parameters(), fused=fused, inner=network.layers.parameters()
        )
        rates = self.optimizer.rates(optimizer, self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": rates, "interval": "step"},
        }

    # Steps

    def losses(self, batch: Batch) -> Tensor:
        """Return the summed loss of a batch."""
        network = self.built()
        device = next(network.parameters()).device
        kind = device.type
        dtype = network.base.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        loss: Tensor = network(batch.inputs(device, flex=network.flex, dtype=dtype))
        return loss

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let dropout depend on seed, rank and step alone, so that a resumed run draws the same."""
        rank, _ = self.data_share()
        words = [self.seed, rank, self.current_epoch, batch_idx]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the summed loss of a batch; `on_before_optimizer_step` divides."""
        loss = self.losses(batch)
        self._window.append((batch, loss.detach()))
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Divide gradients of summed losses by the tokens of all ranks and batches; clip them.

        Raises:
            NotFinite: the loss or the gradient is not; no weight has changed.
        """
        window, self._window = self._window, []
        losses = [loss for _, loss in window]
        count = sum(batch.loss_tokens for batch, _ in window)
        total = self._added_up(torch.stack(losses).sum(), count)
        _, ranks = self.data_share()
        # The trainer has divided by its batches, and the ranks have taken their mean.
        factor = ranks * self.trainer.accumulate_grad_batches / total[1].clamp(min=1)
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = gradient_norm(gradients).double() * factor
        loss = total[0] / total[1].clamp(min=1)
        values = torch.stack([loss, norm, total[1]]).tolist()
        if not all(map(math.isfinite, values)):
            self._stop(window, "loss" if not math.isfinite(values[0]) else "gradient")
        clip = self.optimizer.clip
        if clip is not None and values[1] > clip:
            factor = factor * (clip / values[1])
        scale_gradients(gradients, factor)
        self.log_dict(
            {"train/loss": values[0], "train/gradient_norm": values[1]}, rank_zero_only=True
        )
        self.log("loss", values[0], prog_bar=True, logger=False, rank_zero_only=True)

    def _stop(self, window: list[tuple[Batch, Tensor]], what: str) -> None:
        """Raise `NotFinite` on every rank, with the names that all of them know."""
        bad = [batch for batch, loss in window if not bool(torch.isfinite(loss))]
        some = bad if what == "loss" else [batch for batch, _ in window]
        names = [name for batch in some for row in batch.names for name in row]
        if self.trainer.world_size > 1:
            of_all: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(of_all, names)
            names = [name for each in of_all for name in each]
        raise NotFinite(self.trainer.global_step, what, names)

    def data_share(self) -> tuple[int, int]:
        """Return this rank's number in the group that shares the data, and the group's size."""
        if self._trainer is None or self.trainer.world_size == 1:
            return 0, 1
        strategy: Any = self.trainer.strategy
        kwargs = strategy.distributed_sampler_kwargs
        return int(kwargs["rank"]), int(kwargs["num_replicas"])

    def _added_up(self, loss: Tensor, count: int) -> Tensor:
        """Return loss and count summed over the ranks that share the data: float64 [2]."""
        total = torch.stack([loss.double(), loss.new_tensor(count, dtype=torch.float64)])
        if self.data_share()[1] > 1:
            mesh = getattr(self.trainer.strategy, "_device_mesh", None)
            group = None if mesh is None else mesh["data_parallel"].get_group()
            torch.distributed.all_reduce(total, group=group)
        return total

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up a batch's loss."""
        self._evaluated.append((self.losses(batch), batch.loss_tokens))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up a batch's loss."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss of a token of validation."""
        self._log_evaluated("validation")

    def on_test_epoch_end(self) -> None:
        """Log the mean loss of a token of the test."""
        self._log_evaluated("test")

    def _log_evaluated(self, split: str) -> None:
        sums, self._evaluated = self._evaluated, []
        if sums:
            loss, count = torch.stack([sum_ for sum_, _ in sums]).sum(), sum(n for _, n in sums)
            total = self._added_up(loss, count)
            mean = float(total[0] / total[1].clamp(min=1))
            self.log(f"{split}/loss", mean, prog_bar=True, rank_zero_only=True)
            self.log(f"{split}/perplexity", math.exp(min(mean, 700.0)), rank_zero_only=True)
