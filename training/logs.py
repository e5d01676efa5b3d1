"""Logs of training: metrics.csv, throughput, and what the model generates by itself."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_only

from mvspec.data.records import InputError
from mvspec.disk import append_line, naming
from mvspec.errors import VerifyError
from mvspec.law.limits import Limits
from mvspec.runtime import Options, Result, Sampling
from mvspec.training.batch import Batch
from mvspec.training.module import LanguageModel
from mvspec.training.network import LossNetwork
from mvspec.training.parallel import DataRanks
from mvspec.tree.builder import document, user
from mvspec.view.terminal import tree_text


class MetricsLogger(Logger):
    """Writes `metrics.csv`, a row a step, and carries it on where a run is resumed.

    Lightning's own logger deletes what an earlier run wrote. Here rows up to the step at which
    the run goes on stay, so the file is that of an uninterrupted run.

    Args:
        save_dir: the folder.
    """

    name = version = ""  # no folder below `save_dir`
    save_dir = log_dir = ""

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self._folder = Path(save_dir)
        self.save_dir = self.log_dir = str(self._folder)
        self._columns: list[str] = ["step"]
        self._row: dict[str, Any] = {}
        self._at = 0  # where its line begins
        self._started = False

    @property
    def path(self) -> Path:
        """The file."""
        return self._folder / "metrics.csv"

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Leave them to `config.yaml`, which the command line writes beside the metrics."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write metrics into their step's row, which is the last one.

        Raises:
            OSError: the disk is full, for example; it names the file.
        """
        try:
            self._log(metrics, 0 if step is None else step)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def _log(self, metrics: dict[str, float], step: int) -> None:
        if not self._started:
            self._resume(step)
        if self._row.get("step") != step:
            self._row = {"step": step}
            self._at = self.path.stat().st_size if self.path.exists() else 0
        self._row |= metrics
        new = [name for name in self._row if name not in self._columns]
        if new or not self._at:
            rows = [row for row in _rows(self.path) if _step(row) < step]
            self._columns += sorted(new)
            self._rewrite(rows)
            self._at = self.path.stat().st_size
        with naming(self.path), self.path.open("r+", newline="", encoding="utf-8") as file:
            file.truncate(self._at)
            file.seek(self._at)
            csv.DictWriter(file, self._columns).writerow(self._row)

    def _resume(self, step: int) -> None:
        """Drop what an earlier run wrote of steps that come again; keep what it wrote of this."""
        self._started = True
        rows = [row for row in _rows(self.path) if _step(row) <= step]
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        self._columns = list(rows[0])
        if _step(rows[-1]) == step:
            self._row = {key: value for key, value in rows.pop().items() if value}
            self._row["step"] = step
        self._rewrite(rows)
        self._at = self.path.stat().st_size

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".csv.tmp")
        with naming(temporary), temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    # A kill may have cut the last line off, and lines may be longer than an old header.
    return [{k: v or "" for k, v in row.items() if k} for row in found if row.get("step")]


def _step(row: dict[str, str]) -> int:
    return int(row["step"]) if row["step"].isdigit() else 1 << 62


def step_flops(network: LossNetwork, tokens: int, targets: int, pairs: int) -> float:
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
            self.tokens += int(DataRanks.of(trainer).summed([batch.tokens], pl_module.device)[0])
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
        summed = DataRanks.of(trainer).summed(self._sums.values(), module.device)
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


Checker = Callable[[str, str], bool]
"""Whether an assistant's text, the first argument, gives the answer, the second."""


@dataclass(frozen=True)
class _Prompt:
    text: str
    answer: str | None


class Generations(Callback):
    """Lets the model answer prompts every so many steps, forking where it likes.

    The engine is the in-process one, on the weights that are trained. Logs
    `generate/well_formed` (the share that is, where `structure` is off), `generate/parallelism`
    (the mean degree), `generate/tokens` (the mean number), `generate/ended` (the share that no
    limit cut), and with a checker `generate/exact_match`; the
    texts and trees go to `generations.jsonl` in the folder of the logs, and to TensorBoard.

    Args:
        prompts: questions; or a JSONL file whose rows have a question and an answer.
        prompt_field, answer_field: where a row of the file keeps them.
        count: of the prompts, from the first.
        every: steps from one time to the next; 0 is at the end of each validation.
        checker: an import path, as `package.module.function`, of a function that is given the
            assistant's text and the answer.
        structure: hold the model to the grammar.
        max_tokens: of one answer, all paths together.
        temperature, seed: of the sampling.
    """

    def __init__(
        self,
        prompts: list[str] | str,
        *,
        prompt_field: str = "question",
        answer_field: str = "answer",
        count: int = 8,
        every: int = 0,
        checker: Checker | None = None,
        structure: bool = False,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        if isinstance(prompts, str):
            self.prompts = _read(Path(prompts), prompt_field, answer_field, count)
        else:
            self.prompts = [_Prompt(text, None) for text in prompts[:count]]
        if not self.prompts:
            raise VerifyError("prompts", "there is none: give questions, or a JSONL file")
        if checker is not None and any(each.answer is None for each in self.prompts):
            raise VerifyError(
                "checker", f"a prompt lacks an answer: name its field, {answer_field!r}"
            )
        self.every = every
        self.checker = checker
        self.options = Options(
            Sampling(temperature=temperature, seed=seed),
            Limits(max_tokens=max_tokens),
            structure=structure,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be generated from."""
        if hasattr(trainer.strategy, "device_mesh"):
            raise VerifyError(
                "callbacks",
                "Generations needs whole weights on each rank, and this strategy shards them: "
                "leave it out, and run the exported model",
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Generate where it is time."""
        step = trainer.global_step
        if self.every and step % self.every == 0 and not trainer.fit_loop._should_accumulate():
            found = self.generate(trainer, pl_module)
            for logger in trainer.loggers:
                # The row of the step's loss: Lightning counts steps from 0.
                logger.log_metrics(found, step=step - 1)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generate, where no number of steps is given."""
        if not self.every and not trainer.sanity_checking:
            pl_module.log_dict(self.generate(trainer, pl_module))

    def generate(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Let the model answer the prompts; return what is logged. Ranks share the prompts."""
        assert isinstance(module, LanguageModel)
        own = self.prompts[trainer.global_rank :: trainer.world_size]
        lines: list[dict[str, Any]] = []
        if own:
            with module.engine() as engine:
                texts = [document(user(prompt.text)) for prompt in own]
                results = engine.run_many(texts, self.options)
            lines = [self._line(*pair) for pair in zip(own, results, strict=True)]
        if trainer.world_size > 1:
            of_all: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(of_all, lines)
            lines = [line for each in of_all for line in each]
        found = _means(lines)
        if trainer.is_global_zero:
            self._write(trainer, lines)
        return found

    def _line(self, prompt: _Prompt, result: Result) -> dict[str, Any]:
        trace = result.trace
        line: dict[str, Any] = {
            "prompt": prompt.text,
            "text": result.text,
            "tree": "" if result.document is None else tree_text(result.document.messages[-1]),
            "well_formed": not result.diagnostics,
            "ended": trace.finish == "end",
            "parallelism": trace.parallelism,
            "tokens": trace.answer,
        }
        if self.checker is not None and prompt.answer is not None:
            line["exact_match"] = bool(self.checker(result.text, prompt.answer))
        return line

    def _write(self, trainer: Trainer, lines: Sequence[dict[str, Any]]) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for line in lines:
            append_line(
                folder / "generations.jsonl", json.dumps({"step": trainer.global_step} | line)
            )
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for index, line in enumerate(lines):
                    text = f"{line['prompt']}\n\n```\n{line['tree']}\n```"
                    logger.experiment.add_text(f"generate/{index}", text, trainer.global_step)


def _means(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    names = ("well_formed", "ended", "parallelism", "tokens", "exact_match")
    return {
        f"generate/{name}": sum(float(line[name]) for line in lines) / len(lines)
        for name in names
        if lines and name in lines[0]
    }


def _read(path: Path, prompt: str, answer: str, count: int) -> list[_Prompt]:
    found: list[_Prompt] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if len(found) == count:
                    break
                row = json.loads(line)
                text = row.get(prompt) if isinstance(row, dict) else None
                if not isinstance(text, str):
                    raise VerifyError(f"{path}:{number}", f"no text in field {prompt!r}")
                given = row.get(answer)
                found.append(_Prompt(text, None if given is None else str(given)))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise VerifyError(f"{path}:{number}", f"not JSON: {error}") from None
    return found
