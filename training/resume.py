"""Settings of a run, kept in its checkpoints and compared where it goes on.

Every setting of trainer, model and data stands in one of three tables; docs/training.md holds the
same, and a test holds both complete.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from typing import Any

from mvspec.errors import VerifyError
from mvspec.training.errors import CheckpointError
from mvspec.training.weights import LoraAdapters

CHANGEABLE = {
    "counts from the next step on; the optimizer's moments stay": (
        "model.optimizer.lr", "model.optimizer.muon", "model.optimizer.weight_decay",
        "model.optimizer.betas", "model.optimizer.clip", "trainer.gradient_clip_val",
        "trainer.gradient_clip_algorithm",
    ),
    "the schedule is drawn anew over all steps, those made and those to come, and goes on at the "
    "step where it stands: the rate may jump, and a line says from what to what": (
        "model.optimizer.schedule", "model.optimizer.warmup", "model.optimizer.final",
        "trainer.max_epochs", "trainer.max_steps", "trainer.limit_train_batches",
        "trainer.overfit_batches", "trainer.accumulate_grad_batches",
    ),
    "the epoch that was begun starts over, with the new rows; steps made stay made, and the "
    "schedule is drawn anew": (
        "data.train", "data.stages", "data.batch_size", "data.length", "data.pack",
        "data.too_long", "data.seed", "data.shuffle",
    ),
    "weights and moments are converted, or go on as they are": (
        "model.model", "model.dtype", "trainer.precision", "model.lora.alpha",
        "model.lora.dropout",
    ),
    "dropout is drawn from it from here on": ("model.seed",),
}  # fmt: skip
"""What a change on purpose does, and the settings that it does it to."""

FIXED = ("model.tokenizer", "model.add_tags", "model.lora.rank", "model.lora.targets")
"""Settings that weights are made for: with others a run starts from the exported folder."""

FREE = {
    "losses differ by rounding, or in what dropout draws": (
        "model.attention", "model.kernel_options", "model.loss", "model.chunk",
        "model.gradient_checkpointing", "model.compile", "trainer.accelerator",
        "trainer.strategy", "trainer.devices", "trainer.num_nodes", "trainer.deterministic",
        "trainer.benchmark", "trainer.plugins", "trainer.sync_batchnorm",
    ),
    "it ends a run, and changes no step of it": (
        "trainer.min_epochs", "trainer.min_steps", "trainer.max_time", "trainer.fast_dev_run",
    ),
    "no weight depends on it": (
        "data.validation", "data.test", "data.workers", "seed_everything", "ckpt_path",
        "weights_only", "resume_changing", "model.resume_changing", "model.chat_template_kwargs",
        "trainer.logger",
        "trainer.callbacks", "trainer.limit_val_batches", "trainer.limit_test_batches",
        "trainer.limit_predict_batches", "trainer.val_check_interval",
        "trainer.check_val_every_n_epoch", "trainer.num_sanity_val_steps",
        "trainer.log_every_n_steps", "trainer.enable_checkpointing",
        "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.inference_mode",
        "trainer.use_distributed_sampler", "trainer.profiler", "trainer.detect_anomaly",
        "trainer.barebones", "trainer.reload_dataloaders_every_n_epochs",
        "trainer.default_root_dir", "trainer.enable_autolog_hparams", "trainer.model_registry",
    ),
}  # fmt: skip
"""Why a setting is free to change, and the settings."""

COMPARED = (*FIXED, *(name for names in CHANGEABLE.values() for name in names))

_LENGTH = ("trainer.max_epochs", "trainer.max_steps")
_OF_THE_MODEL = ("model.model", "model.tokenizer", "model.lora")
_SHOWN = 72


def run_settings(trainer: Any, module: Any) -> dict[str, Any]:
    """Return what a run trains with, as plain values by name: all of `COMPARED` that it has.

    Data and frozen weights are a digest of what they hold, wherever they lie; a batch is the rows
    of all ranks.
    """
    lora = (
        asdict(module.lora)
        if module.lora
        else dict.fromkeys(each.name for each in fields(LoraAdapters))
    )
    found = {
        "model.tokenizer": module.tokenizer_key,
        "model.model": module.frozen_key,
        "model.add_tags": module.new_tags,
        "model.dtype": module.weights_dtype,
        "model.seed": module.seed,
        **_flat("model.lora", lora),
        **_flat("model.optimizer", asdict(module.optimizer)),
    }
    for name in COMPARED:
        room, _, field = name.partition(".")
        if room == "trainer":
            found[name] = getattr(trainer, field)
    data: Any = getattr(trainer, "datamodule", None)
    if hasattr(data, "settings"):
        found |= _flat("data", data.settings())
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def config_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a model's config that change what it computes, by name."""
    apart = ("transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")
    kept = {key: each for key, each in config.items() if key[0] != "_" and key not in apart}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return _flat("model.model", plain)


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    return {
        key: each
        for field, some in value.items()
        for key, each in _flat(f"{name}.{field}", some).items()
    }


def check_names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of settings that a resumed run changes on purpose.

    Args:
        given: a list, or one text with commas; `data` is all of `data.`.

    Raises:
        VerifyError: there is no such setting.

    >>> check_names("model.optimizer.lr, data")
    ('model.optimizer.lr', 'data')
    """
    some = given.split(",") if isinstance(given, str) else given
    names = tuple(name for each in some if (name := each.strip()))
    known = (*COMPARED, *(name for names in FREE.values() for name in names))
    for name in names:
        if not any(_within(each, name) or _within(name, each) for each in known):
            near = [each for each in known if name in each] or get_close_matches(
                name, known, 3, 0.5
            )
            meant = f"{' or '.join(near)}?" if near else "docs/training.md lists them"
            raise VerifyError("resume_changing", f"there is no setting {name!r}: {meant}")
    return names


def _within(name: str, group: str) -> bool:
    return name == group or name.startswith(f"{group}.")


def changed_settings(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    changing: Sequence[str],
    *,
    checkpoint: object,
    training: bool = True,
) -> set[str]:
    """Return the settings in which a run differs from the one that it goes on with.

    Args:
        old, new: of the checkpoint and of this run.
        changing: names of those that are changed on purpose.
        checkpoint: its name.
        training: whether the run trains; otherwise only the model counts.

    Raises:
        CheckpointError: some differ that are not named, or cannot change in a run; it names each
            with both values.
    """
    # Another transformers knows other fields of a config.
    same = old.get("transformers") == new.get("transformers")
    names = list(dict.fromkeys([*old, *new])) if same else [name for name in old if name in new]
    ending = any(map(_has_an_end, (old, new)))
    found = [
        name
        for name in names
        if old.get(name) != new.get(name)
        and name != "transformers"
        and (ending or name not in _LENGTH)
        and (training or any(_within(name, group) for group in _OF_THE_MODEL))
    ]
    fixed = [name for name in found if any(_within(name, each) for each in FIXED)]
    wrong = [name for name in found if not any(_within(name, each) for each in changing)]
    if fixed or wrong:
        told = (name for name in found if name in {*fixed, *wrong})
        said = "; ".join(
            f"{name} was {_shown(old.get(name))}, is {_shown(new.get(name))}" for name in told
        )
        free = ",".join(dict.fromkeys(name for name in found if name not in fixed))
        raise CheckpointError(
            f"{checkpoint} is of a run with other settings: {said}. Give those of before"
            + (f", or change them on purpose: --resume_changing {free}" * bool(free))
            + (f"; {', '.join(fixed)} cannot change in a run: export it, and start from the "
               "folder with another dirpath of checkpoints" * bool(fixed))
        )  # fmt: skip
    return set(found)


def open_epoch(checkpoint: dict[str, Any], batches: float) -> None:
    """Let a checkpoint that is to be saved stand inside an epoch whose batches were not all read.

    Lightning counts an epoch that `max_steps` ends as done, and would leave out its rest.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epoch = loops["epoch_progress"]
    read = loops["epoch_loop.batch_progress"]["current"]["ready"]
    if 0 < read < batches and epoch["total"]["processed"] == epoch["total"]["ready"]:
        for counts in epoch["total"], epoch["current"]:
            counts["processed"] -= 1
            counts["completed"] = counts["processed"]


def begin_epoch(checkpoint: dict[str, Any]) -> None:
    """Let the data of a checkpoint that was read stand at the start of its epoch."""
    loop = checkpoint["loops"]["fit_loop"]["state_dict"]
    states = [*loop.get("combined_loader", ()), *checkpoint.get("LayoutData", {}).values()]
    for state in states:
        if state and "handed" in state:
            state["handed"] = 0


def restart_epoch(trainer: Any) -> None:
    """Let a trainer that goes on, and has not begun, start its epoch over; steps made count."""
    loop = trainer.fit_loop.epoch_loop
    loop.restarting = False
    progress = loop.batch_progress
    progress.total.completed = progress.total.processed
    progress.current.reset()
    loop._batches_that_stepped = trainer.global_step


def all_steps(trainer: Any) -> float:
    """Return the steps that a trainer has made and those that it is to make."""
    batches, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches
    loop = trainer.fit_loop
    read = loop.epoch_loop.batch_progress.current.processed
    steps = math.inf
    if trainer.max_epochs != -1 and math.isfinite(batches):
        epochs = trainer.max_epochs - loop.epoch_progress.current.processed
        steps = trainer.global_step + epochs * math.ceil(batches / accumulated)
        steps -= read // accumulated if read < batches else 0
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def _has_an_end(settings: Mapping[str, Any]) -> bool:
    """Return whether a run's rate depends on how many steps it has."""
    warmup = settings.get("model.optimizer.warmup") or 0
    return settings.get("model.optimizer.schedule") != "constant" or 0 < warmup < 1


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
