"""Compiled sets in transformers' Trainer and TRL's SFTTrainer: as our own trainer, or refused."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
import torch
from bpe import chat_tokenizer
from lightning.pytorch import Callback, Trainer
from torch.nn.attention.flex_attention import BlockMask
from traces import CANONICAL
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    TrainingArguments,
)
from transformers import Trainer as StockTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from typer.testing import CliRunner

import mvspec
from mvspec.cli import app
from mvspec.compiler import compile_document, dense_mask
from mvspec.compiler.dataset import CompiledDataset
from mvspec.errors import Unsupported, VerifyError
from mvspec.training import Collator, LanguageModel, LayoutData, Optimizer

TOKENIZER = chat_tokenizer()
STEPS = 20
RATE = 2e-3
MAKE: Any = AutoModelForCausalLM.from_config


def text(number: int) -> str:
    return CANONICAL.replace("Let me see.", "Let me see. " + "So " * (number * 7 % 31))


def compile_rows(folder: Path, out: str, *options: str) -> Path:
    """A data set of 24 documents, by the command."""
    rows = [{"id": f"r{i}", "question": f"What is {i}?", "output": text(i)} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    TOKENIZER.save_pretrained(folder / "tokenizer")
    result = CliRunner().invoke(
        app,
        ["compile", str(folder / "rows.jsonl"), "--tokenizer", str(folder / "tokenizer"),
         "--prompt-field", "question", "--field", "output", "-o", str(folder / out), *options],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder / out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_rows(tmp_path_factory.mktemp("sets"), "set")


def tiny(kind: str = "llama", attention: str = "sdpa", **fields: Any) -> Any:
    """A model in float32 with random weights."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "initializer_range": 0.1,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    return MAKE(AutoConfig.for_model(kind, **settings | fields), attn_implementation=attention)


Curve = list[tuple[float, float]]
"""Of each step its loss and the norm of its gradient."""


def ours(root: Path, data: Any, *, accumulate: int = 1, **options: Any) -> Curve:
    optimizer = Optimizer(
        lr=RATE, weight_decay=0.0, betas=(0.9, 0.999), schedule="constant", warmup=0, clip=None
    )
    module = LanguageModel(tiny(), TOKENIZER, attention="sdpa", optimizer=optimizer)
    found: Curve = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            metrics = trainer.callback_metrics
            if len(found) < trainer.global_step:
                found.append((float(metrics["train/loss"]), float(metrics["train/gradient_norm"])))

    run = Trainer(
        default_root_dir=root, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_steps=STEPS, max_epochs=-1,
        accumulate_grad_batches=accumulate, callbacks=[Keep()],
    )  # fmt: skip
    run.fit(module, LayoutData(data, shuffle=False, **options))
    return found


def stock_settings(root: Path, **more: Any) -> dict[str, Any]:
    """What both stock trainers are told, so that they do what `ours` does."""
    return {
        "output_dir": str(root), "max_steps": STEPS, "learning_rate": RATE, "logging_steps": 1,
        "lr_scheduler_type": "constant", "max_grad_norm": 1e9, "save_strategy": "no",
        "report_to": [], "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "remove_unused_columns": False,
        "train_sampling_strategy": "sequential", "disable_tqdm": True, "optim": "adamw_torch",
    } | more  # fmt: skip


def stock(
    root: Path, kind: str, data: Any, *, batch_size: int, accumulate: int = 1,
    attention: str = "sdpa", lowering: str = "multiverse", **options: Any,
) -> Curve:  # fmt: skip
    model = tiny(attention=attention)
    collator = Collator(model, TOKENIZER)
    rows = collator.rows(data, lowering=lowering, **options)
    settings = stock_settings(
        root, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulate
    )
    trainer: Any
    if kind == "trl":
        args = SFTConfig(**settings, dataset_kwargs={"skip_prepare_dataset": True})
        trainer = SFTTrainer(model, args, collator, train_dataset=rows, processing_class=TOKENIZER)
    else:
        trainer = StockTrainer(model, TrainingArguments(**settings), collator, rows)
    trainer.train()
    return [
        (each["loss"], each["grad_norm"]) for each in trainer.state.log_history if "loss" in each
    ]


def assert_same(found: Curve, wanted: Curve) -> None:
    assert len(found) == len(wanted) == STEPS
    assert wanted[0][0] > wanted[-1][0] + 0.1  # it learns
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-5, atol=1e-5)


HOW: dict[str, dict[str, Any]] = {
    "padded": {"batch_size": 3},
    "packed": {"batch_size": 1, "length": 512, "pack": True},
    "truncated": {"batch_size": 1, "length": 90, "accumulate": 2},
}


@pytest.mark.parametrize("how", HOW)
def test_stock_trainers_train_as_ours(folder: Path, tmp_path: Path, how: str) -> None:
    wanted = ours(tmp_path, folder, **HOW[how])
    for kind, attention in (("transformers", "sdpa"), ("trl", "eager")):
        assert_same(stock(tmp_path, kind, folder, attention=attention, **HOW[how]), wanted)


@pytest.mark.parametrize("lowering", ["autoregressive", "tree", "official", "shared(2)"])
def test_labels_stand_one_past_a_tokens_parent(lowering: str) -> None:
    """In these the token before need not be the parent; a stock trainer's shift finds it."""
    layouts = [compile_document(mvspec.parse(text(i)), TOKENIZER, lowering) for i in range(3)]
    model = tiny()
    batch = Collator(model, TOKENIZER)(layouts)
    module = LanguageModel(model, TOKENIZER, attention="sdpa")
    rows = next(iter(LayoutData(layouts, batch_size=3, shuffle=False).train_dataloader()))
    with torch.no_grad():
        wanted = module.losses(rows) / rows.loss_tokens
        torch.testing.assert_close(model(**batch).loss, wanted)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_a_batch_has_the_mask_that_the_models_attention_takes(attention: str) -> None:
    layouts = [compile_document(mvspec.parse(text(i)), TOKENIZER) for i in range(3)]
    batch = Collator(tiny(attention=attention), TOKENIZER)(layouts)
    mask = batch["attention_mask"]
    n = batch["input_ids"].shape[1]
    if attention == "flex_attention":
        assert isinstance(mask.to(torch.device("cpu")), BlockMask)
        assert mask.sum() == sum(map(len, layouts))
        b, q, k = torch.meshgrid(*map(torch.arange, (3, n, n)), indexing="ij")
        seen = mask.mask_mod(b, b * 0, q, k)
    else:
        assert mask.dtype == torch.float32
        assert mask.shape == (3, 1, n, n)
        seen = mask[:, 0] == 0
    assert torch.equal(seen, dense_mask(layouts))
    for row, layout in enumerate(layouts):
        assert batch["labels"][row, : len(layout)].tolist() == layout.labels.tolist()
        assert batch["position_ids"][row, : len(layout)].tolist() == layout.position_ids.tolist()
        assert (batch["labels"][row, len(layout) :] == -100).all()


def test_what_a_collator_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    collator = Collator(model, TOKENIZER)
    other = compile_rows(folder.parent, "tree", "--lowering", "tree")
    with pytest.raises(VerifyError, match="in the lowering tree, not multiverse"):
        collator.rows(other)
    assert len(collator.rows(other, lowering="tree")) == 24
    with pytest.raises(VerifyError, match="lowering multiverse, not tree"):
        collator.rows(folder, lowering="tree")
    with pytest.raises(
        VerifyError, match=r"no row to train on: 24 documents longer .* without loss"
    ):
        collator.rows(folder, length=4)
    capsys.readouterr()
    assert len(collator.rows(folder, length=60)) == 24
    assert capsys.readouterr().out == (
        f"mvspec: {folder}: 24 documents longer than length 60 are truncated\n"
    )
    with pytest.raises(VerifyError, match="longer than the model's 20 positions"):
        Collator(tiny(max_position_embeddings=20), TOKENIZER).rows(folder, too_long="drop")
    with pytest.raises(VerifyError, match=r"its embeddings have 9 rows.*resize_token_embeddings"):
        Collator(tiny(vocab_size=9), TOKENIZER)
    renamed = chat_tokenizer()
    renamed.add_tokens(["another"])
    with pytest.raises(VerifyError, match="another tokenizer"):
        Collator(tiny(vocab_size=len(renamed)), renamed).rows(folder)
    with pytest.raises(VerifyError, match=r"a row is a dict.*collator\.rows\(FOLDER\)"):
        collator([datasets.load_from_disk(str(folder))[0]])
    question = compile_document(mvspec.document(mvspec.user("Well?")), TOKENIZER)
    with pytest.raises(VerifyError, match="no token has loss"):
        collator([question])
    with pytest.raises(Unsupported, match="sliding window"):
        Collator(tiny("mistral", sliding_window=64), TOKENIZER)
    for how in ("flash_attention_2", "flash_attention_3", "paged|sdpa", "kernels-community/x"):
        model.config._attn_implementation_internal = how
        with pytest.raises(Unsupported, match="attn_implementation") as refused:
            Collator(model, TOKENIZER)
        assert "\n" not in str(refused.value)
        with pytest.raises(Unsupported, match="attn_implementation"):  # changed by a trainer
            collator(layouts := [CompiledDataset(folder)[0]])
    model.config._attn_implementation_internal = "sdpa"
    model.config.output_router_logits = True  # as SFTTrainer sets it for a mixture of experts
    with pytest.raises(Unsupported, match=r"router_aux_loss_coef=0\.0"):
        collator(layouts)


REFUSED = (ValueError, KeyError, TypeError, RuntimeError)
"""What stock trainers raise for columns that they do not know."""


def opened(folder: Path) -> list[Any]:
    """The folder's rows, in every way in which `datasets` reads them without mvspec."""
    saved = datasets.load_from_disk(str(folder))
    file, cache = folder.parent / "set.parquet", str(folder.parent / "cache")
    pyarrow.parquet.write_table(saved.data.table, file)
    shards = sorted(map(str, folder.glob("*.arrow")))
    arrow = datasets.load_dataset("arrow", data_files=shards, split="train", cache_dir=cache)
    return [saved, arrow, datasets.Dataset.from_parquet(str(file), cache_dir=cache)]


def test_a_folder_is_not_trained_as_plain_text(folder: Path, tmp_path: Path) -> None:
    """Whoever opens the folder himself and gives it to a stock trainer is stopped."""
    model = tiny()
    taken = set(inspect.signature(model.forward).parameters) | {
        "text", "messages", "prompt", "completion", "conversations", "chosen", "rejected",
        "labels", "label", "label_ids", "completion_mask", "assistant_masks", "seq_lengths",
    }  # fmt: skip
    for rows in opened(folder):
        assert len(rows) == 24
        assert not taken & set(rows.column_names)
    plain = DataCollatorForLanguageModeling(TOKENIZER, mlm=False)
    for keep in (False, True):
        settings = stock_settings(tmp_path, max_steps=1, remove_unused_columns=keep)
        for collator in (None, plain):
            args = TrainingArguments(**settings)
            with pytest.raises(REFUSED):
                StockTrainer(model, args, collator, rows, processing_class=TOKENIZER).train()
        for more in ({}, {"dataset_kwargs": {"skip_prepare_dataset": True}}, {"packing": True}):
            args = SFTConfig(**settings, **more)
            with pytest.raises(REFUSED):
                SFTTrainer(model, args, train_dataset=rows, processing_class=TOKENIZER).train()


def test_rows_of_a_collator_are_not_trained_without_it(folder: Path, tmp_path: Path) -> None:
    model = tiny()
    collator = Collator(model, TOKENIZER)
    rows = collator.rows(folder)
    removing = stock_settings(tmp_path, remove_unused_columns=True)
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        StockTrainer(model, TrainingArguments(**removing), collator, rows).train()
    settings = stock_settings(tmp_path)
    with pytest.raises(ValueError, match="skip_prepare_dataset"):
        SFTTrainer(model, SFTConfig(**settings), train_dataset=rows, processing_class=TOKENIZER)
    with pytest.raises(REFUSED):
        StockTrainer(model, TrainingArguments(**settings), None, rows).train()
