"""Training: equal however rows fall, on every way from a compiled set to weights."""

from __future__ import annotations

import csv
import importlib.util
import json
import multiprocessing
import os
import signal
import socket
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import yaml
from bpe import chat_tokenizer
from lightning.pytorch import Trainer
from tiny import tiny_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from traces import CANONICAL
from typer.testing import CliRunner

import mvspec
from mvspec.cli import app
from mvspec.cli.training_cli import CONFIGS, main
from mvspec.compiler import Layout, compile_document
from mvspec.errors import MvspecError, VerifyError
from mvspec.runtime import TorchEngine
from mvspec.training import (
    Batch,
    BatchRow,
    LanguageModel,
    LayoutData,
    Optimizer,
    export,
)
from mvspec.training.checkpoint import WholeCheckpoints, newest_checkpoint
from mvspec.training.logs import step_flops

TOKENIZER = chat_tokenizer()
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.1,
}


# Processes that are forked from one that has imported it all, and has no thread yet.
PROCESSES = multiprocessing.get_context("forkserver")
# Python 3.11's does not hand its path on, and passes over what it cannot import.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)
PROCESSES.set_forkserver_preload(["ranks"])


def text(number: int) -> str:
    """A trace of one of many lengths."""
    return CANONICAL.replace("Let me see.", "Let me see. " + "So " * (number * 7 % 31))


def documents(count: int = 12) -> list[Layout]:
    return [compile_document(mvspec.parse(text(i)), TOKENIZER) for i in range(count)]


def trainer(root: Path, **more: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1,
    }  # fmt: skip
    return Trainer(default_root_dir=root, **(settings | more))


def gradients(tmp_path: Path, **data: Any) -> tuple[float, list[Tensor]]:
    """One step on all documents: its loss and gradients."""
    # Its norms are in float64 too: transformers' own compute in float32.
    model = deepcopy(tiny_model("Llama", len(TOKENIZER)))
    module = LanguageModel(model, TOKENIZER, dtype="float64", optimizer=Optimizer(clip=None))
    kept: list[Tensor] = []
    step = module.on_before_optimizer_step

    def keep(optimizer: Any) -> None:
        step(optimizer)
        kept.extend(p.grad.clone() for p in module.parameters() if p.grad is not None)

    module.on_before_optimizer_step = keep  # type: ignore[method-assign]
    accumulate = data.pop("accumulate", 1)
    run = trainer(tmp_path, max_steps=1, accumulate_grad_batches=accumulate)
    run.fit(module, LayoutData(documents(), **data))
    return float(run.callback_metrics["train/loss"]), kept


@pytest.mark.parametrize(
    "how",
    [
        {"batch_size": 1, "accumulate": 12},  # each alone
        {"batch_size": 5, "accumulate": 3},  # padded; the last batch is smaller
        {"batch_size": 12, "pack": True, "length": 700},
        {"batch_size": 1, "pack": True, "length": 1024, "accumulate": 3, "workers": 1},
    ],
)
def test_loss_and_gradients_do_not_depend_on_how_rows_fall(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    loss, found = gradients(tmp_path, **how)
    whole, wanted = gradients(tmp_path, batch_size=12)
    assert loss == pytest.approx(whole, rel=1e-6)
    assert len(found) == len(wanted) > 0
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def steps(folder: Path) -> list[tuple[str, ...]]:
    """Step, loss, norm and rate of every row of a run's metrics."""
    with (folder / "metrics.csv").open(newline="") as file:
        names = ("step", "train/loss", "train/gradient_norm", "train/learning_rate")
        return [tuple(row[name] for name in names) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, and a set that was compiled with it."""
    folder = tmp_path_factory.mktemp("compiled")
    chat_tokenizer().save_pretrained(folder / "tokenizer")
    rows = [{"id": f"r{i}", "question": f"What is {i}?", "output": text(i)} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = CliRunner().invoke(
        app,
        ["compile", str(folder / "rows.jsonl"), "--tokenizer", str(folder / "tokenizer"),
         "--prompt-field", "question", "--field", "output", "-o", str(folder / "set"),
         "--shard", "16"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


def config(compiled: Path, root: Path, **more: Any) -> Path:
    """A configuration of a small run, as a file."""
    settings: dict[str, Any] = {
        "ckpt_path": "last",
        "trainer": {
            "accelerator": "cpu", "max_epochs": 3, "log_every_n_steps": 1,
            "num_sanity_val_steps": 0, "enable_progress_bar": False,
            "enable_model_summary": False, "default_root_dir": str(root),
            "logger": {
                "class_path": "mvspec.training.MetricsLogger", "init_args": {"save_dir": str(root)}
            },
            "callbacks": [
                {"class_path": "mvspec.training.Checkpoints",
                 "init_args": {"dirpath": str(root / "checkpoints"), "every": 5}}
            ],
        },
        # Dropout, since what is drawn has to be drawn again.
        "model": {
            "model": CONFIG | {"attention_dropout": 0.1},
            "tokenizer": str(compiled / "tokenizer"),
            "optimizer": {"lr": 0.01},
        },
        "data": {"train": str(compiled / "set"), "batch_size": 3},
    }  # fmt: skip
    for key, value in more.items():
        name, _, field = key.partition("__")
        settings[name][field] = value
    root.mkdir(parents=True, exist_ok=True)
    path = root / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def final_weights(root: Path) -> dict[str, Tensor]:
    newest = newest_checkpoint(root / "checkpoints")
    assert newest is not None
    found: dict[str, Tensor] = torch.load(newest, weights_only=True)["state_dict"]
    return found


def test_a_killed_run_carries_on_bit_for_bit(compiled: Path, tmp_path: Path) -> None:
    main(["fit", "--config", str(config(compiled, tmp_path / "whole"))])
    path = config(compiled, tmp_path / "killed")
    checkpoints = tmp_path / "killed" / "checkpoints"
    run = PROCESSES.Process(target=ranks.run, args=(["fit", "--config", str(path)],))
    run.start()
    # Killed in the middle of an epoch, some steps after a checkpoint.
    while not list(checkpoints.glob("*step=2[05].ckpt")):
        assert run.is_alive()
        time.sleep(0.005)
    run.kill()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    before = steps(tmp_path / "killed")
    assert len(before) < 42
    main(["fit", "--config", str(path)])
    whole = steps(tmp_path / "whole")
    assert len(whole) == 42
    assert steps(tmp_path / "killed") == whole
    assert before[:20] == whole[:20]
    # The one that it was resumed from is gone, as any older one.
    assert [path.name for path in checkpoints.iterdir()] == ["step=42.ckpt"]
    for name, tensor in final_weights(tmp_path / "whole").items():
        assert torch.equal(tensor, final_weights(tmp_path / "killed")[name]), name


def test_ranks_train_as_one(compiled: Path) -> None:
    """Data-parallel, sharded, resumed from shards, and split: the same losses."""
    whole = torch.tensor(ranks.fit(compiled, 2, None, devices=1))
    sockets = [socket.socket() for _ in range(4)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    both = [
        PROCESSES.Process(target=ranks.rank, args=(compiled, number, ports)) for number in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(900)
    assert [process.exitcode for process in both] == [0, 0]
    for name, first in (("ddp", 0), ("fsdp", 0), ("resumed", 3), ("tensor", 0)):
        found = [
            torch.tensor(json.loads((compiled / f"{name}-{rank}.json").read_text()))
            for rank in range(2)
        ]
        assert torch.equal(found[0], found[1]), name
        torch.testing.assert_close(found[0], whole[first:], rtol=1e-5, atol=1e-6)
    # A folder of shards becomes one model, as a file does.
    export(compiled / "fsdp" / "step=6.ckpt", compiled / "model")
    model = TorchEngine.load(compiled / "model").model.model
    module = LanguageModel(str(compiled / "model"))
    module.built().base.load_state_dict(model.state_dict())
    [metrics] = trainer(compiled).validate(
        module, LayoutData(validation=compiled / "set"), verbose=False
    )
    assert metrics["validation/loss"] == pytest.approx(float(whole[-1][0]), rel=1e-5)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_of_the_package_are_valid(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", path.stem, "--print_config"])
    assert caught.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["ckpt_path"] == "last"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Twice two devices where there are two: said before a rank is started.
        (["--config", "fsdp", "--trainer.accelerator", "cpu",
          "--trainer.strategy.init_args.tensor_parallel_size", "2"],
         r"^trainer\.strategy: data_parallel_size 2 x tensor_parallel_size 2 are 4 devices, .* 2"),
        pytest.param(
            ["--config", "finetune"],
            r"^trainer\.accelerator: gpu: this machine has none that torch .* --trainer",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="it has one"),
        ),
        (["--config", "tiny", "--trainer.max_epok", "3"], r"^train: .*max_epok 3; .*--help"),
        (["--config", "tiny", "--data.batch_size", "many"],
         r'^train: Parser key "data\.batch_size": Expected .*int.* Got value: many; '),
        (["--config", "tiny", "--trainer.precision", "17"],
         r'^train: Parser key "trainer\.precision": - Expected .* Given value: 17; '),
        (["--config", "no-such.yaml"], r"^train: .*File does not exist: '.*no-such\.yaml'"),
        (["--config", "tiny", "--trainer.accumulate_grad_batches", "0"],
         r"^trainer\.accumulate_grad_batches: is a whole number from 1 up"),
        (["--config", "tiny", "--data.workers", "-1"], r"^data\.workers: -1 is not"),
        (["--config", "tiny", "--trainer.strategy", "foo"], r"^trainer: .*strategy='foo'"),
        # The trainer's parser makes callbacks, and buries what they say.
        (["--config", "finetune", "--trainer.accelerator", "cpu"],
         r"^data/validation\.jsonl: No such file"),
        (["--config", "tiny", "--model.loss", "foo"], "^loss: 'foo' is not one of chunked, liger"),
        pytest.param(
            ["--config", "tiny", "--model.loss", "liger"],
            r"^loss 'liger' needs: pip install liger-kernel \(.*\); or use loss: chunked",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("liger_kernel") is not None, reason="it is installed"
            ),
        ),
    ],
)  # fmt: skip
def test_wrong_configurations_say_where(
    compiled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model.model", str(CONFIG), "--model.tokenizer", str(compiled / "tokenizer")]
    with pytest.raises(MvspecError, match=message):
        main(["fit", *arguments, *model])


def test_what_there_is_to_do(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MvspecError, match=r"choose from '?fit'?, '?validate'?, '?test'?\)"):
        main(["predict", "--config", "tiny"])
    model = ["--model.model", str(CONFIG), "--model.tokenizer", str(compiled / "tokenizer")]
    with pytest.raises(VerifyError, match=r"^data\.test: there is no set to read: give one"):
        main(["test", "--config", "tiny", *model])


def test_a_config_is_given_whole() -> None:
    with pytest.raises(VerifyError, match=r"^model\.model: its fields cannot be given one by one"):
        main(["fit", "--config", "tiny", "--model.model.hidden_size", "64"])


def test_the_staged_mix_is_one_configuration(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = {
        "autoregressive": "Think step by step before answering.",
        "multiverse": "Think step by step and in parallel before answering.",
    }
    for name, prompt in prompts.items():
        result = CliRunner().invoke(
            app,
            ["compile", str(compiled / "rows.jsonl"), "--tokenizer", str(compiled / "tokenizer"),
             "--prompt-field", "question", "--field", "output", "--lowering", name, "--add-tags",
             "--instruction", prompt, "-o", f"data/{name}"],
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    config = {
        "trainer": {
            "accelerator": "cpu", "precision": "32-true", "accumulate_grad_batches": 1,
            "log_every_n_steps": 1, "enable_progress_bar": False, "num_sanity_val_steps": 0,
        },
        "model": {"model": CONFIG, "add_tags": False, "gradient_checkpointing": False},
        "data": {"validation": None, "length": 400, "batch_size": 4},
    }  # fmt: skip
    Path("small.yaml").write_text(yaml.safe_dump(config))
    read: list[str] = []
    step = LanguageModel.training_step

    def reading(self: LanguageModel, batch: Batch, batch_idx: int) -> Tensor:
        texts = [self.tokenizer.decode(layout.input_ids) for layout in batch.layouts]
        read.extend(
            name for text in texts for name, prompt in prompts.items()
            if text.count(prompt) > 0
        )  # fmt: skip
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", reading)
    main(["fit", "--config", "staged", "--config", "small.yaml"])
    single = read.count("autoregressive") - read.count("multiverse")
    thirds = [read[i * len(read) // 5 : (i + 1) * len(read) // 5] for i in range(5)]
    shares = [third.count("multiverse") / len(third) for third in thirds]
    assert shares[0] < 0.15
    assert shares[-1] > 0.85
    assert shares == sorted(shares)
    assert abs(single) < len(read) / 4
    with Path("runs/staged/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    degrees = [float(row["data/parallelism"]) for row in rows if row["data/parallelism"]]
    assert degrees[0] == 1.0 < degrees[-1]
    assert all(0 <= float(row["data/padding"]) < 0.5 for row in rows if row["data/padding"])


def test_a_kill_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    io = WholeCheckpoints()
    io.save_checkpoint({"step": 1}, tmp_path / "a.ckpt")
    whole = (tmp_path / "a.ckpt").read_bytes()
    # What a kill leaves, here and in a folder that another program wrote to in place.
    (tmp_path / ".a.ckpt.77.tmp").write_bytes(whole[:100])
    (tmp_path / "b.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.ckpt").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "a.ckpt"
    io.save_checkpoint({"step": 2}, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True) == {"step": 2}
    assert not list(tmp_path.glob(".*"))
    assert newest_checkpoint(tmp_path / "none") is None


def test_operations_of_a_step_are_those_that_are_done() -> None:
    """6 operations a parameter and token in matrices, counted by torch as they run."""
    module = LanguageModel(CONFIG, TOKENIZER)
    batch = Batch([BatchRow(documents(1)[0], ("a",))])
    module.built()  # its loss was compared with the model's own once
    with FlopCounterMode(display=False) as counter:
        module.losses(batch).backward()  # type: ignore[no-untyped-call]
    by_kind = counter.get_flop_counts()["Global"]
    matrices = (torch.ops.aten.mm, torch.ops.aten.addmm)
    found = sum(count for kind, count in by_kind.items() if kind in matrices)
    assert found == step_flops(module.built(), batch.tokens, batch.loss_tokens, 0)
    attention = step_flops(module.built(), 0, 0, batch.pairs)
    assert attention == 12 * 2 * 4 * 8 * batch.pairs
