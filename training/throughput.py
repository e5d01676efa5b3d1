"""How fast training goes, and what of it is padding."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer

from mvspec.training.batch import Batch
from mvspec.training.module import LanguageModel
from mvspec.training.network import Network
from mvspec.training.ranks import Ranks

__all__ = ["Throughput", "step_flops"]


def step_flops(network: Network, tokens: int, targets: int, pairs: int) -> float:
    """Return the floating-point operations that training on some tokens asks for.

    6 x tokens x parameters of the decoder's matrices (a multiplication and an addition, forward
    and twice backward; 4 where they are frozen) + 6 x targets x parameters of the head
    + 12 x layers x heads x head width x pairs of a token and a key that it sees. Recomputed
    activations, the optimizer and padding are not counted. Source: PaLM (arXiv 2204.02311),
    appendix B, with the mask's own pairs instead of all.

    Args:
        tokens: padding not counted.
        targets: tokens with loss.
        pairs: as `Batch.pairs`.
    """
    decoder, head = network.base.get_decoder(), network.base.get_output_embeddings()
    table = network.base.get_input_embeddings().weight
    matrices = [p for p in decoder.parameters() if p.ndim > 1 and p is not table]
    config = network.base.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    body = sum((6 if p.requires_grad else 4) * p.numel() for p in matrices)
    top = (6 if head.weight.requires_grad else 4) * head.weight.numel()
    attention = 12.0 * config.num_hidden_layers * heads * width
    return float(tokens * body + targets * top + pairs * attention)


@dataclass
class _Sums:
    seconds: float = 0.0
    tokens: int = 0
    size: int = 0
    targets: int = 0
    pairs: int = 0
    documents: int = 0
    degrees: float = 0.0

    def add(self, batch: Batch) -> None:
        self.tokens += batch.tokens
        self.size += batch.size
        self.targets += batch.loss_tokens
        self.pairs += batch.pairs
        degrees = batch.degrees
        self.documents += len(degrees)
        self.degrees += sum(degrees)

    def values(self) -> list[float]:
        return [float(getattr(self, name)) for name in self.__dataclass_fields__]


class Throughput(Callback):
    """Logs, every `log_every_n_steps` steps, over all ranks and the steps since the last time:

    - `speed/tokens_per_second`: padding not counted
    - `speed/mfu`: `step_flops` over what the devices could do in that time
    - `data/padding`: the share of padding in all tokens
    - `data/parallelism`: the mean degree of parallelism of the documents
    - `data/tokens`: tokens of training so far, resumed runs included

    Args:
        peak_flops: of one device, in operations a second; by default the data sheet's for its
            kind and the type of the matrices, and no `speed/mfu` where it is not known.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops
        self.tokens = 0
        self._sums = _Sums()
        self._last: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the tokens so far, for the checkpoint."""
        return {"tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.tokens = state_dict["tokens"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the time before training."""
        self._sums, self._last = _Sums(), None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Count a batch, and log where it is time."""
        assert isinstance(pl_module, LanguageModel)
        now = time.perf_counter()
        if self._last is None:  # the first batch compiles and allocates
            self._last = now
            self.tokens += int(Ranks.of(trainer).summed([batch.tokens], pl_module.device)[0])
            return
        self._sums.add(batch)
        if trainer.fit_loop._should_accumulate():
            return
        self._sums.seconds += now - self._last
        self._last = now
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step % every == 0:
            self._log(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave validation out of the time."""
        if self._last is not None:
            self._last = time.perf_counter()

    def _log(self, trainer: Trainer, module: LanguageModel) -> None:
        seconds = self._sums.seconds
        summed = Ranks.of(trainer).summed(self._sums.values(), module.device)
        sums = _Sums(*summed)  # type: ignore[arg-type]
        self._sums = _Sums()
        self.tokens += int(sums.tokens)
        found = {
            "speed/tokens_per_second": sums.tokens / seconds,
            "data/padding": 1 - sums.tokens / sums.size,
            "data/tokens": float(self.tokens),
        }
        if sums.documents:
            found["data/parallelism"] = sums.degrees / sums.documents
        peak = self.peak_flops or self._known_peak(trainer, module)
        if peak:
            flops = step_flops(module.built(), int(sums.tokens), int(sums.targets), int(sums.pairs))
            found["speed/mfu"] = flops / (seconds * peak * trainer.world_size)
        module.log_dict(found)

    def _known_peak(self, trainer: Trainer, module: LanguageModel) -> float | None:
        device = module.device
        if device.type != "cuda":
            return None
        mixed = str(trainer.precision).startswith("bf16")
        dtype = torch.bfloat16 if mixed else next(module.parameters()).dtype
        return get_available_flops(device, dtype)
