"""What a comparison is made of, as YAML says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from mvspec.errors import MvspecError, VerifyError
from mvspec.runtime.tasks import TASKS
from mvspec.tree.node import verify_error

__all__ = ["Evaluation", "Fit", "Settings", "load_settings"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fit(_Part):
    """One training run.

    Args:
        documents: problems, each of which comes once.
        length: tokens of a row, which is filled with documents.
        rows: of a step.
        lr, muon, weight_decay, warmup: of `mvspec.training.Optimizer`.
    """

    documents: int = Field(ge=1)
    length: int = Field(512, ge=64)
    rows: int = Field(8, ge=1)
    lr: float = 3e-3
    muon: float | None = 0.01
    weight_decay: float = 0.0
    warmup: float = 0.03


class Evaluation(_Part):
    """How an arm is measured.

    Args:
        problems: held out, asked with nothing that holds the model to the grammar.
        batch: of them that run at once.
        latency: problems that are asked one at a time, all arms in turns, for the wall clock.
        served: of them where both engines are measured.
        max_tokens: of an answer.
        alone: arms that are asked one at a time; by default all.
        zero: structured arms that are asked without "in parallel" too; by default all.
    """

    problems: int = Field(200, ge=1)
    batch: int = Field(64, ge=1)
    latency: int = Field(4, ge=1)
    served: int = Field(24, ge=1)
    max_tokens: int = Field(2048, ge=1)
    alone: tuple[str, ...] | None = None
    zero: tuple[str, ...] | None = None

    def times(self, arm: str) -> bool:
        """Return whether an arm is asked one problem at a time."""
        return self.alone is None or arm in self.alone

    def asks_zero(self, arm: str) -> bool:
        """Return whether an arm is asked without "in parallel" too."""
        return self.zero is None or arm in self.zero


class Settings(_Part):
    """The whole comparison.

    Args:
        model: a config, as {"model_type": "llama", ...}, for weights from scratch; or a folder, or
            "default": SmolLM2-135M-Instruct, as `mvspec.runtime.engine.default_model` has it.
        tokenizer: a folder; by default the model's own, with tags, and for weights from scratch
            that of the model that comes with the package.
        task: what is learnt.
        difficulty: of its problems; by default what small models learn.
        base: how the weights are trained that all arms start from, on the baseline's documents;
            without it they start from `model`.
        fit: how each arm is trained.
        arms: names of `arms.ARMS`, or `shared(k)`.
        seeds: of the order of problems; each arm is trained once for each.
        precision: of the trainer.
        compile: compile the model's layers.
        evaluation: how arms are measured.
    """

    model: dict[str, Any] | str
    tokenizer: str | None = None
    task: Literal["arithmetic", "countdown"] = "arithmetic"
    difficulty: Any = Field(None, validate_default=True)
    base: Fit | None = None
    fit: Fit
    arms: tuple[str, ...] = (
        "autoregressive", "multiverse", "sequential", "shared(1)", "shared(8)", "shared(64)",
        "official",
    )  # fmt: skip
    seeds: tuple[int, ...] = (0, 1, 2)
    precision: str = "bf16-mixed"
    compile: bool = False
    evaluation: Evaluation = Evaluation()

    @field_validator("difficulty", mode="plain")
    @classmethod
    def _of_its_task(cls, given: Any, info: ValidationInfo) -> Any:
        tiny = TASKS[info.data.get("task", "arithmetic")]
        return tiny if given is None else TypeAdapter(type(tiny)).validate_python(given)

    def smoke(self) -> Settings:
        """Return the same comparison in miniature: every stage runs, nothing is learnt."""
        small = {"documents": 12, "rows": 2, "length": 1024}
        model = self.model
        if isinstance(model, dict):
            model = model | {
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
            }  # fmt: skip
        tiny = self.evaluation.model_copy(
            update={"problems": 2, "batch": 2, "latency": 1, "served": 1, "max_tokens": 24}
        )
        return self.model_copy(
            update={
                "model": model,
                "base": self.base and self.base.model_copy(update=small),
                "fit": self.fit.model_copy(update=small),
                "seeds": self.seeds[:2],
                "evaluation": tiny,
                "compile": False,
                # Without AVX512-BF16 or AMX, bfloat16 takes ten times as long.
                "precision": "32-true",
            }
        )


def load_settings(path: Path) -> Settings:
    """Read a YAML file.

    Raises:
        MvspecError: it cannot be read, or says something that is not known; the message says
            where.
    """
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise MvspecError(f"{path}: {verify_error(error)}") from None
    except VerifyError as error:
        raise MvspecError(f"{path}: difficulty: {error}") from None
    except (OSError, yaml.YAMLError) as error:
        raise MvspecError(f"{path}: {error}") from None
