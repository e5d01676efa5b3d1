"""A run that goes on: with its own settings, each difference named, and stopped without a loss."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import yaml
from lightning.pytorch import Callback
from test_training import CONFIG, PROCESSES, TOKENIZER, compiled, config, documents, steps, trainer
from typer.testing import CliRunner

from mvspec.cli import app
from mvspec.cli.training_cli import main
from mvspec.errors import VerifyError
from mvspec.training import (
    CheckpointError,
    Checkpoints,
    LanguageModel,
    LayoutData,
    LoraAdapters,
    MixtureStage,
    Optimizer,
)
from mvspec.training import precision as machine
from mvspec.training.progress import ProgressLines
from mvspec.training.resume import CHANGEABLE, COMPARED, FIXED, FREE

__all__ = ["compiled"]  # a fixture

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
LAYOUTS = documents()
OPTIMIZER = Optimizer(lr=0.01, warmup=2.0)
LORA = LoraAdapters(rank=2, dropout=0.1)


class Steps(Callback):
    """Keeps the loss and the learning rate of each step, from the checkpoint on."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []
        self._rate = 0.0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            self.rows.append((pl_module.last_loss, self._rate))


def fit(
    root: Path,
    *,
    layouts: Any = None,
    ckpt: Path | None = None,
    changing: str = "",
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **more: Any,
) -> Steps:
    """Train 12 documents for two epochs of 6 steps, or go on; checkpoints at each fourth step."""
    kept = Steps()
    callbacks = [kept, Checkpoints(str(root), every=4, keep="all")]
    settings: dict[str, Any] = {"model": CONFIG, "optimizer": OPTIMIZER} | (model or {})
    source = settings.pop("model")
    run = trainer(
        root, **({"enable_checkpointing": True, "max_epochs": 2, "callbacks": callbacks} | more)
    )
    module = LanguageModel(source, TOKENIZER, resume_changing=changing, **settings)
    rows = LayoutData(layouts or LAYOUTS, **({"batch_size": 2} | (data or {})))
    run.fit(module, rows, ckpt_path=ckpt)
    return kept


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Steps]:
    """A run that was not stopped; step=4.ckpt is in the middle of its first epoch."""
    root = tmp_path_factory.mktemp("whole")
    return root, fit(root)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model, for adapters."""
    root = tmp_path_factory.mktemp("base")
    LanguageModel(CONFIG, TOKENIZER).export(root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapted")
    fit(root, model={"model": str(base), "lora": LORA})
    return root


def names_of_the_command(capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    with pytest.raises(SystemExit):
        main(["fit", "--config", "tiny", "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)
    nested = {"model.optimizer": Optimizer, "model.lora": LoraAdapters}
    for name, value in found.items():
        if name not in ("trainer", "model", "data"):
            yield name
            continue
        for field in value:
            inner: Any = nested.get(f"{name}.{field}")
            if inner is None:
                yield f"{name}.{field}"
            else:
                yield from (f"{name}.{field}.{each.name}" for each in fields(inner))


def test_every_setting_is_compared_or_free_and_docs_say_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    free = [name for names in FREE.values() for name in names]
    known = {*COMPARED, *free}
    assert len(known) == len(COMPARED) + len(free)
    # The command line hands it on, so it shows one of the two.
    assert known - {"model.resume_changing"} == set(names_of_the_command(capsys))
    page = DOCS.read_text("utf-8")
    told = CHANGEABLE | {"cannot change in a run: export, and start from the folder": FIXED}
    for effect, names in (told | {f"free: {why}": names for why, names in FREE.items()}).items():
        assert f"| {', '.join(f'`{name}`' for name in names)} | {effect} |" in page


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "model.model": ({"model": {"model": CONFIG | {"rms_norm_eps": 1e-3}}},
                    r"was 1e-06, is 0\.001"),
    "model.dtype": ({"model": {"dtype": "float64"}}, "was float32, is float64"),
    "model.seed": ({"model": {"seed": 3}}, "was 0, is 3"),
    "model.optimizer.lr": ({"lr": 0.02}, r"was 0\.01, is 0\.02"),
    "model.optimizer.muon": ({"muon": 0.01}, r"was null, is 0\.01"),
    "model.optimizer.weight_decay": ({"weight_decay": 0.5}, r"was 0\.01, is 0\.5"),
    "model.optimizer.betas": ({"betas": (0.5, 0.9)}, r"was \[0\.9, 0\.95\], is \[0\.5, 0\.9\]"),
    "model.optimizer.clip": ({"clip": None}, r"was 1\.0, is null"),
    "model.optimizer.schedule": ({"schedule": "linear"}, "was cosine, is linear"),
    "model.optimizer.warmup": ({"warmup": 5.0}, r"was 2\.0, is 5\.0"),
    "model.optimizer.final": ({"final": 0.1}, r"was 0\.0, is 0\.1"),
    "trainer.precision": ({"precision": "bf16-mixed"}, "was 32-true, is bf16-mixed"),
    "trainer.accumulate_grad_batches": ({"accumulate_grad_batches": 2}, "was 1, is 2"),
    "trainer.max_epochs": ({"max_epochs": 3}, "was 2, is 3"),
    "trainer.max_steps": ({"max_steps": 9}, "was -1, is 9"),
    "trainer.limit_train_batches": ({"limit_train_batches": 5}, r"was 1\.0, is [56]"),
    "trainer.overfit_batches": ({"overfit_batches": 6}, r"was 0(\.0)?, is 6"),
    "trainer.gradient_clip_val": ({"gradient_clip_val": 0.5}, r"was null, is 0\.5"),
    "trainer.gradient_clip_algorithm": (
        {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}, "was null, is value"),
    "data.train": ({"layouts": documents(14)},
                   r"was 12 rows, sha256 \w{16}, is 14 rows, sha256 \w{16}"),
    "data.stages": ({"data": {"stages": [MixtureStage(passes=2)]}}, r"was \[\], is \[\{.*\}\]"),
    "data.batch_size": ({"data": {"batch_size": 3}}, "was 2, is 3"),
    "data.length": ({"data": {"length": 100}}, "was null, is [19]00"),
    "data.pack": ({"data": {"length": 900, "pack": True}}, "was false, is true"),
    "data.too_long": ({"data": {"too_long": "drop"}}, "was truncate, is drop"),
    "data.seed": ({"data": {"seed": 2}}, "was 0, is 2"),
    "data.shuffle": ({"data": {"shuffle": False}}, "was true, is false"),
}  # fmt: skip
ADAPTERS = {
    "model.lora.rank": (4, "was 2, is 4"),
    "model.lora.alpha": (8, "was 32, is 8"),
    "model.lora.dropout": (0.0, r"was 0\.1, is 0\.0"),
    "model.lora.targets": (["q_proj"], r'was all-linear, is \["q_proj"\]'),
}


def together(names: Iterable[str]) -> dict[str, Any]:
    """Return the settings of a run with all of these changes."""
    found: dict[str, Any] = {"model": {"optimizer": OPTIMIZER}, "data": {}}
    for name in names:
        for key, value in CHANGES[name][0].items():
            if hasattr(OPTIMIZER, key):
                found["model"]["optimizer"] = replace(found["model"]["optimizer"], **{key: value})
            else:
                found[key] = found[key] | value if key in ("model", "data") else value
    return found


def test_every_difference_is_named_in_one_line(whole: tuple[Path, Steps], tmp_path: Path) -> None:
    assert {*CHANGES, *ADAPTERS, "model.tokenizer", "model.add_tags"} == set(COMPARED)
    with pytest.raises(CheckpointError) as caught:
        fit(tmp_path, ckpt=whole[0] / "step=4.ckpt", **together(CHANGES))
    said = str(caught.value)
    assert "\n" not in said
    start, _, changing = said.partition(" change them on purpose: --resume_changing ")
    for name, (_, says) in CHANGES.items():
        assert re.search(rf"[:;] {re.escape(name)}[\w.]* {says}[;.] ", start), name
        assert name in changing
    # A part of them is not all of them, and a group is all of its own.
    with pytest.raises(CheckpointError) as caught:
        fit(tmp_path, ckpt=whole[0] / "step=4.ckpt", changing="model, data.seed",
            **together(CHANGES))  # fmt: skip
    start = str(caught.value).partition("Give")[0]
    assert "model." not in start.partition("settings: ")[2]
    assert "data.seed" not in start
    assert "data.train was 12 rows" in start
    with pytest.raises(VerifyError, match=r"there is no setting 'lr': model\.optimizer\.lr\?"):
        LanguageModel(CONFIG, TOKENIZER, resume_changing="lr")


@pytest.mark.parametrize(
    "names",
    [
        ("model.model", "model.dtype", "model.seed", "trainer.gradient_clip_val"),
        ("model.optimizer.clip", "model.optimizer.weight_decay", "trainer.precision"),
        ("trainer.accumulate_grad_batches", "trainer.max_steps"),
        ("trainer.limit_train_batches", "trainer.max_epochs", "model.optimizer.final"),
        ("data.stages", "data.batch_size", "data.length", "data.shuffle"),
        ("data.pack", "data.length", "data.seed", "data.train"),
    ],
    ids=lambda names: names[0],
)
def test_what_differs_is_changed_on_purpose(
    names: tuple[str, ...], whole: tuple[Path, Steps], tmp_path: Path
) -> None:
    found = fit(
        tmp_path, ckpt=whole[0] / "step=4.ckpt", changing=",".join(names), **together(names)
    ).rows
    assert all(math.isfinite(loss) for loss, _ in found)
    steps = {"data.stages": 8 * 2, "data.pack": 2 * len(found) // 2, "model.model": 8,
             "model.optimizer.clip": 8, "trainer.accumulate_grad_batches": 4,
             "trainer.limit_train_batches": 11}[names[0]]  # fmt: skip
    assert len(found) == steps
    # The last step has the last rate of a schedule that ends there.
    last = together(names)["model"]["optimizer"].rate(4 + steps)
    assert found[-1][1] == pytest.approx(0.01 * last(3 + steps), rel=1e-12)


def test_adapters_are_compared(base: Path, adapted: Path, tmp_path: Path) -> None:
    def go(changing: str, **given: Any) -> Steps:
        model = {"model": str(base), "lora": replace(LORA, **given)}
        return fit(tmp_path, ckpt=adapted / "step=4.ckpt", model=model, changing=changing)

    changes = {name.rpartition(".")[2]: value for name, (value, _) in ADAPTERS.items()}
    with pytest.raises(CheckpointError) as caught:
        go("model.lora", **changes)  # some of them cannot be changed
    said = str(caught.value)
    for name, (_, says) in ADAPTERS.items():
        assert bool(re.search(rf"{name} {says}[;.]", said)) == (name in FIXED)
    assert "model.lora.rank, model.lora.targets cannot change in a run: export it" in said
    changes = {name: value for name, value in changes.items() if f"model.lora.{name}" not in FIXED}
    with pytest.raises(CheckpointError, match=r"model\.lora\.alpha was 32, is 8"):
        go("model.lora.dropout", **changes)
    assert len(go("model.lora", **changes).rows) == 8


def test_adapters_stay_with_the_weights_that_they_were_made_for(
    base: Path, adapted: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    found = fit(tmp_path / "a", ckpt=adapted / "step=4.ckpt", model={"model": moved, "lora": LORA})
    assert len(found.rows) == 8
    LanguageModel(CONFIG, TOKENIZER, seed=1).export(base.parent / "other")
    with pytest.raises(CheckpointError, match=r"model\.model was frozen weights of sha256"):
        fit(tmp_path / "b", ckpt=adapted / "step=4.ckpt",
            model={"model": base.parent / "other", "lora": LORA})  # fmt: skip


def test_a_changed_rate_is_the_one_of_its_step(
    whole: tuple[Path, Steps], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, uninterrupted = whole
    again = fit(tmp_path / "same", ckpt=root / "step=4.ckpt")
    assert again.rows == uninterrupted.rows[4:]
    other = Optimizer(lr=0.03, schedule="linear", warmup=3.0, weight_decay=0.1, betas=(0.8, 0.9))
    seen: list[dict[str, Any]] = []

    class Groups(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.on_train_start()
            seen.extend(trainer.optimizers[0].param_groups)

    caplog.set_level(logging.INFO, logger="lightning.pytorch")
    found = fit(
        tmp_path / "other", ckpt=root / "step=4.ckpt", model={"optimizer": other},
        changing="model.optimizer", callbacks=[kept := Steps(), Groups()],
    )  # fmt: skip
    del found
    wanted = [0.03 * other.rate(12)(step) for step in range(4, 12)]
    assert [rate for _, rate in kept.rows] == pytest.approx(wanted, rel=1e-12)
    assert {tuple(group["betas"]) for group in seen} == {(0.8, 0.9)}
    assert {group["weight_decay"] for group in seen} == {0.1, 0.0}
    assert "step 4 of 12: the learning rate goes on at 0.02667, where it was" in caplog.text


def test_a_finished_run_is_made_longer_on_purpose(
    whole: tuple[Path, Steps], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, _ = whole
    caplog.set_level(logging.INFO, logger="lightning.pytorch")
    with pytest.raises(CheckpointError, match=r"trainer\.max_epochs was 2, is 4"):
        fit(tmp_path, ckpt=root / "step=12.ckpt", max_epochs=4)
    longer = fit(tmp_path, ckpt=root / "step=12.ckpt", max_epochs=4, changing="trainer.max_epochs")
    wanted = [0.01 * OPTIMIZER.rate(24)(step) for step in range(12, 24)]
    assert [rate for _, rate in longer.rows] == pytest.approx(wanted, rel=1e-12)
    assert "step 12 of 24: the learning rate goes on at 0.005" in caplog.text
    # Where the rate does not depend on the end there is nothing to name, and nothing changes.
    constant = {"optimizer": Optimizer(lr=0.01, schedule="constant", warmup=2.0)}
    fit(tmp_path / "one", model=constant, max_epochs=1)
    two = fit(tmp_path / "on", model=constant, ckpt=tmp_path / "one" / "step=6.ckpt")
    whole_run = fit(tmp_path / "two", model=constant)
    assert two.rows == whole_run.rows[6:]
    # The rest of an epoch that `max_steps` ended comes as well.
    fit(tmp_path / "three", model=constant, max_steps=3)
    rest = fit(tmp_path / "rest", model=constant, ckpt=tmp_path / "three" / "step=3.ckpt")
    assert rest.rows == whole_run.rows[3:]


def test_data_is_what_it_holds_not_where_it_lies(compiled: Path, tmp_path: Path) -> None:
    def go(root: Path, folder: Path, **more: Any) -> Steps:
        return fit(root, layouts=folder, max_epochs=1, data={"batch_size": 8}, **more)

    one = go(tmp_path / "one", compiled / "set")
    shutil.copytree(compiled / "set", tmp_path / "elsewhere")
    os.utime(tmp_path / "elsewhere" / "manifest.json", (1, 1))
    moved = go(tmp_path / "two", tmp_path / "elsewhere", ckpt=tmp_path / "one" / "step=4.ckpt")
    assert moved.rows == one.rows[4:]
    # Other documents, as many and as long, at the path of before.
    shutil.rmtree(tmp_path / "elsewhere")
    rows = (compiled / "rows.jsonl").read_text().replace("What", "That")
    (tmp_path / "rows.jsonl").write_text(rows)
    result = CliRunner().invoke(
        app,
        ["compile", str(tmp_path / "rows.jsonl"), "--tokenizer", str(compiled / "tokenizer"),
         "--prompt-field", "question", "--field", "output", "-o", str(tmp_path / "elsewhere"),
         "--shard", "16"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    with pytest.raises(CheckpointError, match=r"data\.train was 40 rows of multiverse, sha256"):
        go(tmp_path / "three", tmp_path / "elsewhere", ckpt=tmp_path / "one" / "step=4.ckpt")
    # On purpose: all of its rows, and a schedule that ends where they do.
    other = go(
        tmp_path / "four", tmp_path / "elsewhere", ckpt=tmp_path / "one" / "step=4.ckpt",
        changing="data",
    )  # fmt: skip
    assert len(other.rows) == 5
    wanted = [0.01 * OPTIMIZER.rate(9)(step) for step in range(4, 9)]
    assert [rate for _, rate in other.rows] == pytest.approx(wanted, rel=1e-12)
    # Killed once more and going on, without a word on what was changed before.
    on = go(tmp_path / "five", tmp_path / "elsewhere", ckpt=tmp_path / "four" / "step=8.ckpt")
    assert on.rows == other.rows[4:]


def test_a_checkpoint_that_keeps_no_settings_goes_on_and_says_so(
    whole: tuple[Path, Steps], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lightning.pytorch")
    old = torch.load(whole[0] / "step=4.ckpt", weights_only=True)
    del old["mvspec"]["settings"]
    torch.save(old, tmp_path / "old.ckpt")
    assert fit(tmp_path, ckpt=tmp_path / "old.ckpt").rows == whole[1].rows[4:]
    assert "kept no settings: none is compared" in caplog.text


def test_validation_takes_the_model_that_was_trained(
    whole: tuple[Path, Steps], tmp_path: Path
) -> None:
    other = LanguageModel(CONFIG | {"rope_theta": 5e5}, TOKENIZER, optimizer=Optimizer(lr=1.0))
    with pytest.raises(CheckpointError, match=r"rope_theta was 10000\.0, is 500000\.0"):
        trainer(tmp_path).validate(
            other, LayoutData(validation=documents(2)), ckpt_path=whole[0] / "step=4.ckpt"
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on(
    compiled: Path, tmp_path: Path, number: signal.Signals
) -> None:
    settings = {"trainer__max_epochs": 1, "data__batch_size": 1,
                "trainer__accumulate_grad_batches": 4}  # fmt: skip
    main(["fit", "--config", str(config(compiled, tmp_path / "whole", **settings))])
    path = config(compiled, tmp_path / "stopped", **settings)
    run = PROCESSES.Process(
        target=ranks.run, args=(["fit", "--config", str(path)], tmp_path / "said")
    )
    run.start()
    metrics = tmp_path / "stopped" / "metrics.csv"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert run.is_alive()
        time.sleep(0.005)
    assert run.pid is not None
    os.kill(run.pid, number)
    run.join(60)
    said = (tmp_path / "said").read_text("utf-8")
    assert run.exitcode == 128 + number, said
    assert "Traceback" not in said
    [line] = [line for line in said.splitlines() if line.startswith("stopped by")]
    found = re.fullmatch(
        rf"stopped by {number.name} after step (\d+): (.*)/step=(\d+)\.ckpt has everything; the "
        r"same command goes on there, with --ckpt_path last",
        line,
    )
    assert found is not None, line
    assert int(found[1]) == int(found[3]) < 10
    # Without a terminal: lines, and no bar.
    assert re.search(r"^step \d+ of 10, loss \d+\.\d{4}, [\d,]+ tokens/s", said, re.MULTILINE)
    main(["fit", "--config", str(path)])
    assert steps(tmp_path / "stopped") == steps(tmp_path / "whole")
    kept = [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()]
    assert kept == ["step=10.ckpt"]


def test_lines_come_in_time_whatever_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ProgressLines, "seconds", 0.05)
    caplog.set_level(logging.INFO, logger="lightning.pytorch")

    class Slow(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            time.sleep(0.12)

        def on_validation_batch_start(self, *args: Any) -> None:
            time.sleep(0.12)

    module = LanguageModel(CONFIG, TOKENIZER)
    run = trainer(tmp_path, callbacks=[Slow()], num_sanity_val_steps=0, enable_progress_bar=True)
    run.fit(module, LayoutData(documents(3), documents(2)))
    lines = [line for line in caplog.messages if line.startswith("step ")]
    assert lines[0] == "step 0 of 3"  # before anything is trained
    middle = r"step [12] of 3, loss \d\.\d{4}, [\d,]+ tokens/s, 0:00:0\d left"
    assert any(re.fullmatch(middle, line) for line in lines)
    assert any("step 3 of 3" in line and "validating" in line for line in lines)
    assert lines[-1].startswith("step 3 of 3, loss")
    bar: Any = run.progress_bar_callback
    assert bar.is_disabled


def test_metrics_begin_with_the_first_step(compiled: Path, tmp_path: Path) -> None:
    path = config(compiled, tmp_path, trainer__log_every_n_steps=50, trainer__max_epochs=1,
                  data__batch_size=20)  # fmt: skip
    main(["fit", "--config", str(path)])
    assert [row[0] for row in steps(tmp_path)] == ["0"]


@pytest.mark.parametrize("names", [set(), {"avx512_bf16"}, {"amx_bf16"}, {"bf16"}])
def test_precision_is_the_machines(
    names: set[str],
    compiled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="lightning.pytorch")
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True), raising=False
    )
    path = str(config(compiled, tmp_path, trainer__max_steps=1))
    main(["fit", "--config", path])
    told = [line for line in caplog.messages if "precision " in line]
    assert len(told) == 1
    assert told[0].startswith("precision 32-true: float32")
    assert ("AVX512-BF16 or AMX" in told[0]) == (not names)
    caplog.clear()
    main(["fit", "--config", path, "--trainer.precision", "bf16-mixed", "--ckpt_path", "null"])
    told = [line for line in caplog.messages if "precision " in line]
    assert told == ([] if names else [f"precision bf16-mixed as asked, but {machine.SLOW}: "
                                      "float32 is faster"])  # fmt: skip
