"""The Lightning module: a step from a batch to changed weights."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NoReturn

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from mvspec.compiler.chat_template import asking
from mvspec.compiler.models import position_limit
from mvspec.compiler.vocabulary import fingerprint
from mvspec.errors import Unsupported, VerifyError
from mvspec.runtime import TorchEngine
from mvspec.training.batch import Batch
from mvspec.training.checkpoint import EXPORTED, WholeCheckpoints, kept_recipe, recipe
from mvspec.training.errors import NotFinite
from mvspec.training.loss import check_loss
from mvspec.training.network import ATTENTIONS, LossNetwork
from mvspec.training.optimizer import Optimizer
from mvspec.training.parallel import DataRanks, gradient_norm, parallelize, scale_gradients
from mvspec.training.precision import SLOW, has_bfloat16
from mvspec.training.progress import ProgressLines
from mvspec.training.resume import (
    all_steps,
    begin_epoch,
    changed_settings,
    check_names,
    config_settings,
    open_epoch,
    restart_epoch,
    run_settings,
)
from mvspec.training.weights import (
    LoraAdapters,
    attentions,
    build_model,
    extend_tokenizer,
    frozen_digest,
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
        resume_changing: names of settings, such as "model.optimizer.lr" or "data", in which the
            run may differ from the one whose checkpoint it goes on with.
        chat_template_kwargs: the chat template's own arguments, as {"enable_thinking": False},
            for layouts in memory; compiled sets bring theirs.

    Raises:
        CheckpointError: the run goes on with a checkpoint of other settings, or one that is not
            known here.
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
        resume_changing: str | Sequence[str] = (),
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.source = model
        self.tokenizer = own_copy(tokenizer, model)
        self.new_tags = extend_tokenizer(self.tokenizer, model, add=add_tags)
        self.tokenizer = asking(self.tokenizer, chat_template_kwargs)
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
        self.resume_changing = check_names(resume_changing)
        self.tokenizer_key = fingerprint(self.tokenizer)
        self.frozen_key: str | None = None
        self.last_loss = math.nan
        self.steps: float = math.inf
        """Of the whole run, those that were made and those to come."""
        self._changed: set[str] | None = None  # of a run that goes on
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
        self._changed = None
        strategy = self.trainer.strategy
        precision = str(self.trainer.precision)
        if (
            strategy.root_device.type == "cpu"
            and (precision.startswith("bf16") or self.weights_dtype == "bfloat16")
            and not has_bfloat16("cpu")
        ):
            what = f"precision {precision}" if precision.startswith("bf16") else "dtype bfloat16"
            rank_zero_info(f"{what} as asked, but {SLOW}: float32 is faster")
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = WholeCheckpoints()

    def configure_callbacks(self) -> list[Callback]:
        """Return what says how far training is, where no bar can; Lightning calls it."""
        return [ProgressLines()] if ProgressLines.needed() else []

    def configure_model(self) -> None:
        """Build the network where it is used; Lightning calls it."""
        if self.network is not None:
            return
        model = build_model(
            self.source,
            self.tokenizer,
            self.new_tags,
            dtype=torch_dtype(self.weights_dtype),
            attention=ATTENTIONS[self._chosen_attention()],
            lora=self.lora,
            seed=self.seed,
        )
        network = LossNetwork(
            model, loss=self.loss, chunk=self.chunk, kernel_options=self.kernel_options
        )
        if not self.lora:  # adapters stay in float32 beside weights in half precision
            network.to(torch_dtype(self.weights_dtype))
        else:
            self.frozen_key = frozen_digest(network)
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

    def _chosen_attention(self) -> str:
        """Return the attention that was asked for, or the fastest that model and device have."""
        config = load_config(self.source, self.tokenizer)
        had = attentions(config)
        fast = [each for each in had if each != "flex" or self._root_device().type == "cuda"]
        chosen = self.attention or fast[0]
        if chosen not in had:
            raise Unsupported(
                f"model type {config.model_type!r} has no attention {chosen!r}: "
                f"use {' or '.join(had)}"
            )
        return chosen

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
        self._groups = [
            {name: group[name] for name in ("lr", "weight_decay", "betas") if name in group}
            for group in optimizer.param_groups
        ]
        self.steps = self.trainer.estimated_stepping_batches
        rates = self.optimizer.rates(optimizer, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": rates, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Let a run that goes on have its own settings, not the checkpoint's; Lightning calls it.

        The rate of a step is a function of settings, step and the steps of the whole run.
        """
        if self._changed is None:
            return
        if any(name.startswith("data.") for name in self._changed):
            restart_epoch(self.trainer)
        self.steps = all_steps(self.trainer)
        scheduler: Any = self.trainer.lr_scheduler_configs[0].scheduler
        rate = self.optimizer.rate(self.steps)
        groups = self.trainer.optimizers[0].param_groups
        before = [group["lr"] for group in groups]
        for group, own in zip(groups, self._groups, strict=True):
            group |= own | {"initial_lr": own["lr"], "lr": own["lr"] * rate(scheduler.last_epoch)}
        scheduler.base_lrs = [own["lr"] for own in self._groups]
        scheduler.lr_lambdas = [rate] * len(groups)
        scheduler._last_lr = [group["lr"] for group in groups]
        for old, new in zip(before, scheduler._last_lr, strict=True):
            if old != new:
                rank_zero_info(
                    f"step {self.trainer.global_step:,} of {self.steps:,}: the learning rate goes "
                    f"on at {new:.4g}, where it was {old:.4g}"
                )
                break

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
        self.last_loss = loss
        found = {
            "train/loss": loss,
            "train/gradient_norm": norm,
            "train/learning_rate": optimizer.param_groups[0]["lr"],
        }
        self.log_dict(found, logger=False)
        self.log("loss", loss, prog_bar=True, logger=False)
        # Lightning itself would log after the step's checkpoint, and a kill lose the row.
        step = trainer.global_step
        if step == 0 or (step + 1) % trainer.log_every_n_steps == 0:
            for logger in trainer.loggers:
                logger.log_metrics(found, step=step)

    # Checkpoints and use

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep with the weights what `export` makes a folder of; Lightning calls it."""
        network = self.built()
        open_epoch(checkpoint, self.trainer.num_training_batches)
        checkpoint[EXPORTED] = recipe(
            network.base,
            self.tokenizer,
            source=self.source,
            lora=self.lora,
            new_tags=self.new_tags,
            settings=run_settings(self.trainer, self),
        )
        if self.lora:
            trained = {name for name, p in self.named_parameters() if p.requires_grad}
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: state[name] for name in state if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare its run with this one, and take weights of adapters alone; Lightning calls it.

        Raises:
            CheckpointError: it is of a format that is not known here, or of a run with other
                settings, each of which is named.
        """
        if EXPORTED in checkpoint and self._trainer is not None:
            kept = kept_recipe(checkpoint)
            fitting = self.trainer.state.fn == "fit"
            self._changed = self._differences(kept, fitting=fitting)
            if any(name.startswith("data.") for name in self._changed):
                begin_epoch(checkpoint)
        self.strict_loading = not self.lora

    def _differences(self, kept: Mapping[str, Any], *, fitting: bool) -> set[str]:
        path = self.trainer.ckpt_path or "the checkpoint"
        if "settings" not in kept:
            rank_zero_info(
                f"{path} is of an older mvspec, which kept no settings: none is compared"
            )
            return set()
        configs = kept["config"], self.built().base.config.to_dict()
        old, new = (
            config_settings(config) | {"transformers": config.get("transformers_version")} | own
            for config, own in zip(
                configs, (kept["settings"], run_settings(self.trainer, self)), strict=True
            )
        )
        return changed_settings(old, new, self.resume_changing, checkpoint=path, training=fitting)

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
