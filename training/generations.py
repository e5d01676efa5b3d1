"""What a model writes by itself, while it is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from mvspec.data.records import InputError
from mvspec.errors import VerifyError
from mvspec.law.limits import Limits
from mvspec.runtime import Options, Result, Sampling
from mvspec.training.module import LanguageModel
from mvspec.tree.builder import document, user
from mvspec.view.terminal import tree_text

__all__ = ["Generations"]

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
        with (folder / "generations.jsonl").open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps({"step": trainer.global_step} | line) + "\n")
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
