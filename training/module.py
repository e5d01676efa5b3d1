"""The Lightning module: a step from a batch to changed weights."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NoReturn

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from mvspec.compiler.models import position_limit
from mvspec.errors import VerifyError
from mvspec.runtime import TorchEngine
from mvspec.training.batch import Batch
from mvspec.training.checkpoint import EXPORTED, WholeCheckpoints, kept_recipe, recipe
from mvspec.training.errors import NotFinite
from mvspec.training.loss import check_loss
from mvspec.training.network import ATTENTIONS, LossNetwork
from mvspec.training.optimizer import Optimizer
from mvspec.training.parallel import DataRanks, gradient_norm, parallelize, scale_gradients
from mvspec.training.weights import (
    LoraAdapters,
    build_model,
    extend_tokenizer,
    load_config,
    own_copy,
    save_model,
    torch_dtype,
)


class StepLoss:
    """Sums the losses of batches; at its end their gradients are divided by all their tokens."""

    def __init__(self) -> None:
        self._read: list[tuple[Batch, Tensor]] = []

    def add(self, batch: Batch, loss: Tensor) -> None:
        """Add a batch and its summed loss, whose gradient is taken elsewhere."""
        self._read.append((batch, loss.detach()))

    def end(
        self,
        gradients: Sequence[Tensor],
        ranks: DataRanks,
        *,
        batches: int,
        clip: float | None,
        number: int,
    ) -> tuple[float, float]:
        """Make gradients those of the mean over the tokens of all ranks and batches; clip them.

        Args:
            gradients: of summed losses, divided by `batches` and meant over the ranks.
            ranks: that share the data.
            batches: by whose number the trainer has divided.
            clip: the most that the norm may be; None is no limit.
            number: of the step, for messages.

        Returns:
            The loss of a token, and the norm before it was clipped.

        Raises:
            NotFinite: the loss or the gradient is not; gradients are as they were.
        """
        total = torch.stack([loss for _, loss in self._read]).sum()
        tokens = sum(batch.loss_tokens for batch, _ in self._read)
        share = gradient_norm(gradients) / ranks.count  # every rank has the whole norm
        # Numbers meet the host once a step, here.
        loss, count, norm = ranks.summed([total, tokens, share], total.device)
        loss /= max(count, 1)
        factor = ranks.count * batches / max(count, 1)
        norm *= factor
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._stop("gradient" if math.isfinite(loss) else "loss", number)
        if clip is not None and norm > clip:
            factor *= clip / norm
        scale_gradients(gradients, factor)
        return loss, norm

    def _stop(self, what: str, number: int) -> NoReturn:
        """Raise `NotFinite` on every rank, with the names that all of them know."""
        bad = [batch for batch, loss in self._read if not bool(torch.isfinite(loss))]
        some = bad if what == "loss" else [batch for batch, _ in self._read]
        names = [name for batch in some for row in batch.names for name in row]
        if torch.distributed.is_initialized():
            of_all: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(of_all, names)
            names = [name for each in of_all for name in each]
        raise NotFinite(number, what, names)


_ADAMW = Optimizer()


class LanguageModel(LightningModule):
    """Trains a transformers causal language model on layouts.

    The loss is the sum over all tokens with loss, of all ranks and all batches of a step, divided
    by their number: it does not depend on how rows fall on ranks, batches or accumulation.

    Args:
        model: a folder or hub name; or a config, as {"model_type": "llama", ...}, for weights
            from scratch; or a transformers model.
        tokenizer: a folder, file or hub name, or a tokenizer; by default the model's folder.
        add_tags: let tags be new to the model: a tokenizer that lacks them is extended, and
            their embeddings start as the mean of the words that they name.
        dtype: of the weights, as "float32".
        attention: "flex" (a GPU's default), "sdpa" (a CPU's) or "eager".
        kernel_options: for FlexAttention, such as {"BACKEND": "FLASH"}.
        loss: "chunked" or "liger".
        chunk: tokens whose logits exist at once.
        gradient_checkpointing: compute activations again in the backward pass.
        compile: compile the decoder's layers.
        lora: train adapters, and the new tags' embeddings, instead of all weights.
        optimizer: its settings, and the learning rate's schedule.
        seed: of fresh weights and of dropout.

    Raises:
        Unsupported: the model's attention is not the mask's, the tokenizer lacks tags, or the
            loss is not installed.
        NotFinite: the loss or a gradient is not finite; the message names the documents.
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
        lora: LoraAdapters | None = None,
        optimizer: Optimizer = _ADAMW,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.source = model
        self.tokenizer = own_copy(tokenizer, model)
        self.new_tags = extend_tokenizer(self.tokenizer, model, add=add_tags)
        self.weights_dtype = dtype
        if attention is not None and attention not in ATTENTIONS:
            raise VerifyError("attention", f"{attention!r} is not one of {', '.join(ATTENTIONS)}")
        check_loss(loss)
        torch_dtype(dtype)
        self.attention = attention
        self.kernel_options = kernel_options
        self.loss, self.chunk = loss, chunk
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_layers = compile
        self.lora = lora
        self.optimizer = optimizer
        self.seed = seed
        self.network: LossNetwork | None = None
        self._step = StepLoss()
        self._evaluated: list[tuple[Tensor, int]] = []

    # Building

    @property
    def positions(self) -> int | None:
        """How many positions the model has, read from its config."""
        return position_limit(load_config(self.source, self.tokenizer))

    def setup(self, stage: str) -> None:
        """Let checkpoints appear whole or not at all; Lightning calls it."""
        self._step = StepLoss()
        self._evaluated.clear()
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = WholeCheckpoints()

    def configure_model(self) -> None:
        """Build the network where it is used; Lightning calls it."""
        if self.network is not None:
            return
        attention = self.attention or ("flex" if self._root_device().type == "cuda" else "sdpa")
        model = build_model(
            self.source,
            self.tokenizer,
            self.new_tags,
            dtype=torch_dtype(self.weights_dtype),
            attention=ATTENTIONS[attention],
            lora=self.lora,
            seed=self.seed,
        )
        network = LossNetwork(
            model, loss=self.loss, chunk=self.chunk, kernel_options=self.kernel_options
        )
        if not self.lora:  # adapters stay in float32 beside weights in half precision
            network.to(torch_dtype(self.weights_dtype))
        network.train()
        if self.gradient_checkpointing:
            network.base.gradient_checkpointing_enable({"use_reentrant": False})
            if self.lora:
                network.base.enable_input_require_grads()
        if self.compile_layers:
            network.compile_layers()
        if self._device_mesh is not None:
            mixed = "mixed" in str(self.trainer.precision)
            parallelize(network, self._device_mesh, torch.bfloat16 if mixed else None)
        self.network = network

    def _root_device(self) -> torch.device:
        attached = self._trainer is not None
        return self.trainer.strategy.root_device if attached else torch.device("cpu")

    def built(self) -> LossNetwork:
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

    def mask(self, batch: Batch) -> Any:
        """Return the mask of a batch that the model's attention takes."""
        network = self.built()
        dtype = network.base.dtype
        if torch.is_autocast_enabled(self.device.type):
            dtype = torch.get_autocast_dtype(self.device.type)
        return batch.mask(self.device, flex=network.flex, dtype=dtype)

    def losses(self, batch: Batch) -> Tensor:
        """Return the summed loss of a batch."""
        loss: Tensor = self.built()(batch.inputs(self.device, self.mask(batch)))
        return loss

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let dropout depend on seed, rank and step alone, so that a resumed run draws the same."""
        words = [self.seed, DataRanks.of(self._trainer).rank, self.current_epoch, batch_idx]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the summed loss of a batch; `on_before_optimizer_step` divides."""
        loss = self.losses(batch)
        self._step.add(batch, loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Make the gradients those of the mean loss of all ranks and batches, and log.

        Raises:
            NotFinite: the loss or the gradient is not; no weight has changed.
        """
        trainer: Any = self.trainer
        ended, self._step = self._step, StepLoss()
        loss, norm = ended.end(
            [p.grad for p in self.parameters() if p.grad is not None],
            DataRanks.of(trainer),
            batches=trainer.accumulate_grad_batches,
            clip=self.optimizer.clip,
            number=trainer.global_step,
        )
        found = {
            "train/loss": loss,
            "train/gradient_norm": norm,
            "train/learning_rate": optimizer.param_groups[0]["lr"],
        }
        self.log_dict(found, logger=False)
        self.log("loss", loss, prog_bar=True, logger=False)
        # Lightning itself would log after the step's checkpoint, and a kill lose the row.
        step = trainer.global_step
        if (step + 1) % trainer.log_every_n_steps == 0:
            for logger in trainer.loggers:
                logger.log_metrics(found, step=step)

    # Checkpoints and use

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep with the weights what `export` makes a folder of; Lightning calls it."""
        network = self.built()
        checkpoint[EXPORTED] = recipe(
            network.base,
            self.tokenizer,
            source=self.source,
            lora=self.lora,
            new_tags=self.new_tags,
        )
        if self.lora:
            trained = {name for name, p in self.named_parameters() if p.requires_grad}
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: state[name] for name in state if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the weights of adapters alone, where only they are kept; Lightning calls it.

        Raises:
            CheckpointError: it is of a format that is not known here.
        """
        if EXPORTED in checkpoint:
            kept_recipe(checkpoint)
        self.strict_loading = not self.lora

    @contextmanager
    def engine(self, **options: Any) -> Iterator[TorchEngine]:
        """Give an engine over the weights as they are, in eval mode; they train on afterwards.

        Args:
            options: of `TorchEngine`.
        """
        network = self.built()
        training = network.training
        network.eval()
        try:
            with network.uncompiled():  # what is compiled is so for training's attention
                yield TorchEngine(network.base, self.tokenizer, graphs=False, **options)
        finally:
            network.train(training)

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Write the weights as they are as a Hugging Face folder, which both engines serve.

        Args:
            folder: made where it is not there; adapters are merged into a copy.
        """
        with self.built().uncompiled():
            save_model(deepcopy(self.built().model), self.tokenizer, folder)

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
            losses, counts = zip(*sums, strict=True)
            total = [torch.stack(losses).sum(), sum(counts)]
            loss, count = DataRanks.of(self._trainer).summed(total, self.device)
            mean = loss / max(count, 1)
            self.log(f"{split}/loss", mean, prog_bar=True)
            self.log(f"{split}/perplexity", math.exp(min(mean, 700.0)))
