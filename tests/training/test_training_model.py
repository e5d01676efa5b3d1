"""The model of training: its loss, its tags, its faults, and the folder that it becomes."""

from __future__ import annotations

import csv
import resource
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from bpe import chat_tokenizer, small_tokenizer, untagged_tokenizer
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from test_training import CONFIG, TOKENIZER, documents, trainer
from tiny import KINDS, tiny_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from traces import CANONICAL
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig

import mvspec
from mvspec.compiler import additive_mask, compile_document
from mvspec.compiler.vocabulary import TAGS, Vocabulary, save_tokenizer
from mvspec.errors import MvspecError, Unsupported, VerifyError
from mvspec.law.limits import Limits
from mvspec.runtime import Options, TorchEngine
from mvspec.training import (
    Batch,
    BatchRow,
    CheckpointError,
    Generations,
    LanguageModel,
    LayoutData,
    LoraAdapters,
    MetricsLogger,
    NotFinite,
    Optimizer,
    Throughput,
    export,
)
from mvspec.training.checkpoint import Checkpoints, newest_checkpoint
from mvspec.training.loss import head_loss
from mvspec.training.weights import tag_words

PLAIN = chat_tokenizer(tokenizer=untagged_tokenizer())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_chunked_loss_is_the_whole_one(bias: bool, chunk: int) -> None:
    torch.manual_seed(0)
    head = nn.Linear(6, 11, bias=bias, dtype=torch.float64)
    hidden = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (9,))
    inputs = [hidden, *head.parameters()]
    whole = cross_entropy(head(hidden), targets, reduction="sum")
    wanted = torch.autograd.grad(3 * whole, inputs)
    # A head with something around it goes another way.
    for each in (head, nn.Sequential(head)):
        loss = head_loss(each, hidden, targets, chunk=chunk)
        assert torch.isclose(loss, whole, rtol=1e-12)
        for mine, theirs in zip(torch.autograd.grad(3 * loss, inputs), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_no_loss_still_takes_part_in_the_backward_pass() -> None:
    head, hidden = nn.Linear(4, 5), torch.randn(0, 4, requires_grad=True)
    loss = head_loss(head, hidden, torch.zeros(0, dtype=torch.int64))
    assert not torch.autograd.grad(loss, head.weight)[0].any()


def folder(path: Path, *, tied: bool = True, tokenizer: Any = PLAIN) -> Path:
    """A Hugging Face folder with random weights, as one that knows no tags."""
    torch.manual_seed(1)
    fields = {k: v for k, v in CONFIG.items() if k != "model_type"}
    make: Any = LlamaForCausalLM
    made = make(
        LlamaConfig(
            vocab_size=len(tokenizer), tie_word_embeddings=tied, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, **fields,
        )
    )  # fmt: skip
    made.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_seed_means_the_same_weights_wherever_a_strategy_makes_tensors() -> None:
    def weights(device: str) -> list[Tensor]:
        model = LanguageModel(CONFIG, TOKENIZER, seed=3)
        with torch.device(device):
            model.configure_model()
        return list(model.parameters())

    for here, there in zip(weights("cpu"), weights("meta"), strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_tags_start_as_the_words_that_they_name(tmp_path: Path, tied: bool, compiled: bool) -> None:
    path = folder(tmp_path / "model", tied=tied)
    before: Any = LlamaForCausalLM.from_pretrained(path)
    # As `mvspec compile --add-tags` leaves it beside the shards, or the model's own.
    save_tokenizer(TOKENIZER, tmp_path / "tags")
    tokenizer = str(tmp_path / "tags") if compiled else None
    module = LanguageModel(str(path), tokenizer, add_tags=True)
    model = module.built().base
    vocabulary = Vocabulary.of(module.tokenizer)
    assert len(module.new_tags) == len(TAGS)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    for table, old in (
        (model.model.embed_tokens.weight, before.model.embed_tokens.weight),
        (model.lm_head.weight, before.lm_head.weight),
    ):
        assert len(table) == vocabulary.size
        assert torch.equal(table[: len(old)], old)
        for tag in TAGS:
            words = vocabulary.encode_outside(tag_words(tag))
            assert torch.equal(table[vocabulary.tag_ids[tag]], old[words].mean(0))
    assert torch.equal(model.model.embed_tokens.weight, model.lm_head.weight) == tied


def test_a_tokenizer_without_tags_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    with pytest.raises(Unsupported, match=r"no token for <Think>.*add_tags: true"):
        LanguageModel(str(path))
    with pytest.raises(VerifyError, match="give the one that the data was compiled with"):
        LanguageModel(CONFIG)
    # Its embeddings may have rows for them, and nobody said that they were never trained.
    save_tokenizer(TOKENIZER, tmp_path / "tags")
    with pytest.raises(Unsupported, match=r"<Think>.* are new to the model"):
        LanguageModel(str(path), str(tmp_path / "tags"))
    model = LlamaForCausalLM.from_pretrained(path)
    with pytest.raises(VerifyError, match="rows, the tokenizer's ids need"):
        LanguageModel(model, TOKENIZER).built()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MistralConfig(sliding_window=8).to_dict(), "sliding window"),
        (
            {"model_type": "granite", "num_attention_heads": 2, "logits_scaling": 8.0},
            "logits are changed after the head",
        ),
        ({"model_type": "qwen2"}, "as Qwen2Tokenizer from the folder of a 'qwen2' model"),
        ({"hidden_size": 4}, "needs a model_type"),
        ({"model_type": "llama", "num_attention_heads": 3}, "is not a multiple of the number"),
        ({"model_type": "no-such"}, "cannot be loaded"),
        ("/no/such/folder", "cannot be loaded"),
    ],
)
def test_models_that_are_refused(model: Any, message: str) -> None:
    small = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
    given = small | model if isinstance(model, dict) else model
    with pytest.raises(MvspecError, match=message):
        LanguageModel(given, TOKENIZER).built()


def test_a_set_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mvspec.cli import app

    (tmp_path / "a.txt").write_text(CANONICAL)
    save_tokenizer(TOKENIZER, tmp_path / "tokenizer")
    arguments = ["--tokenizer", str(tmp_path / "tokenizer"), "-o", str(tmp_path / "set")]
    assert CliRunner().invoke(app, ["compile", str(tmp_path / "a.txt"), *arguments]).exit_code == 0
    other = deepcopy(TOKENIZER)
    other.add_tokens(["<|more|>"])
    run = trainer(tmp_path, max_steps=1)
    with pytest.raises(VerifyError, match="compiled with another tokenizer"):
        run.fit(LanguageModel(CONFIG, other), LayoutData(tmp_path / "set"))
    shard = tmp_path / "set" / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(VerifyError, match=r"shard-00000\.arrow: it has 100 bytes"):
        trainer(tmp_path, max_steps=1).fit(
            LanguageModel(CONFIG, TOKENIZER), LayoutData(tmp_path / "set")
        )


def trained(model: Any, root: Path, steps: int = 12, **more: Any) -> LanguageModel:
    module = LanguageModel(model, TOKENIZER, optimizer=Optimizer(lr=0.01), **more)
    data = LayoutData(documents(), batch_size=6)
    trainer(root, max_steps=steps, max_epochs=-1).fit(module, data)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_inference(kind: str, tmp_path: Path) -> None:
    """Law 8 on a model that was trained here: its forward equals the engine's every step."""
    model = deepcopy(tiny_model(kind, len(TOKENIZER)))
    module = trained(model, tmp_path, dtype="float64")
    document = mvspec.document(mvspec.user("What?"), mvspec.parse(CANONICAL).messages[0])
    layout = compile_document(document, TOKENIZER)
    batch = Batch([BatchRow(layout, ("a",))])
    network = module.built()
    inputs = batch.inputs(torch.device("cpu"), module.mask(batch))
    with torch.inference_mode():
        logits = network.base.get_output_embeddings()(network.hidden(inputs)[0])[0]
    with module.engine(max_batched_tokens=7) as engine:
        replay = engine.run(document, Options(logits=True, decode=True))
        assert replay.trace.layout == layout
        rows = replay.logits or []
        worst = max(float((a - b).abs().max()) for a, b in zip(rows, logits, strict=True)
                    if a is not None)  # fmt: skip
        assert worst < 1e-9
        # What the loss adds up are the log-probabilities that the engine draws by.
        asked = mvspec.document(mvspec.user("What?"))
        written = engine.run(asked, Options(limits=Limits(max_tokens=60)))
    assert network.training
    trace = written.trace
    layout = trace.layout
    drawn = [i for i, logprob in enumerate(trace.logprobs) if logprob is not None]
    layout.loss_mask[:] = False
    layout.loss_mask[drawn] = True
    loss = float(module.losses(Batch([BatchRow(layout, ("b",))])).detach())
    assert loss == pytest.approx(-sum(trace.logprobs[i] or 0.0 for i in drawn), abs=1e-9)


def logits_of(model: Any) -> Tensor:
    layout = documents(1)[0]
    with torch.inference_mode():
        out = model.eval()(
            input_ids=torch.tensor(layout.input_ids[None]).long(),
            position_ids=torch.tensor(layout.position_ids[None]).long(),
            attention_mask=additive_mask(layout, dtype=model.dtype),
        )
    found: Tensor = out.logits
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_folder_is_served(tied: bool, tmp_path: Path) -> None:
    config = CONFIG | {"tie_word_embeddings": tied}
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints")
    module = LanguageModel(config, TOKENIZER, optimizer=Optimizer(lr=0.01))
    run = trainer(tmp_path, enable_checkpointing=True, callbacks=[checkpoints])
    run.fit(module, LayoutData(documents(), batch_size=6))
    module.export(tmp_path / "memory")
    export(checkpoints.best_model_path, tmp_path / "file")
    export(checkpoints.best_model_path, tmp_path / "half", dtype="bfloat16")
    question = mvspec.document(mvspec.user("What?"))
    options = Options(limits=Limits(max_tokens=40), logits=True)
    with module.engine() as engine:
        wanted = engine.run(question, options).trace
    for name in ("memory", "file"):
        served = TorchEngine.load(tmp_path / name)
        assert served.run(question, options).trace.ids == wanted.ids
        assert torch.equal(logits_of(served.model.model), logits_of(module.built().base))
        assert served.model.ends == {TOKENIZER.eos_token_id}
    assert TorchEngine.load(tmp_path / "half", dtype="bfloat16").run(question, options).trace.ids
    # It knows its tags: nothing is initialised when it is trained on.
    assert LanguageModel(str(tmp_path / "file"), add_tags=True).new_tags == []
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        export(tmp_path / "none.ckpt", tmp_path / "x")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint of mvspec train"):
        export(tmp_path / "other.ckpt", tmp_path / "x")


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", filename="only")
    run = trainer(tmp_path, enable_checkpointing=True, callbacks=[checkpoints])
    run.fit(LanguageModel(CONFIG, TOKENIZER), LayoutData(documents(4), batch_size=4))
    path = tmp_path / "checkpoints" / "only.ckpt"
    data = bytearray(path.read_bytes())
    data[2000 : len(data) - 20_000] = bytes(len(data) - 22_000)  # its end says that it is whole
    path.write_bytes(data)
    assert newest_checkpoint(path.parent) == path
    says = r"only\.ckpt: not a checkpoint, or a damaged one \(PytorchStreamReader .*remove it"
    with pytest.raises(CheckpointError, match=says):
        export(path, tmp_path / "x")
    with pytest.raises(CheckpointError, match=says):
        trainer(tmp_path).fit(
            LanguageModel(CONFIG, TOKENIZER), LayoutData(documents(4)), ckpt_path=path
        )
    with pytest.raises(CheckpointError, match=r"none\.ckpt: there is no such checkpoint"):
        trainer(tmp_path).fit(
            LanguageModel(CONFIG, TOKENIZER), LayoutData(documents(4)), ckpt_path="none.ckpt"
        )
    path.write_bytes(data[:5000])
    assert newest_checkpoint(path.parent) is None
    with pytest.raises(CheckpointError, match="there is no whole checkpoint in it"):
        export(path.parent, tmp_path / "x")


def test_checkpoints_of_before_are_read_and_those_of_after_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    run = trainer(tmp_path, enable_checkpointing=True, callbacks=[checkpoints])
    run.fit(LanguageModel(CONFIG, TOKENIZER), LayoutData(documents(4), batch_size=4))
    path, old = Path(checkpoints.best_model_path), tmp_path / "old" / "step=1.ckpt"
    old.parent.mkdir()
    kept = torch.load(path, weights_only=True)
    assert kept["mvspec"].pop("format") == 1  # 447e7af said none, and wrote the rest
    assert kept["mvspec"].pop("settings")["model.seed"] == 0
    assert set(kept["mvspec"]) == {
        "config", "generation", "tokenizer", "source", "lora", "new_tags"
    }  # fmt: skip
    torch.save(kept, old)
    export(old, tmp_path / "x")
    # A run that goes on elsewhere leaves the checkpoint that it went on from.
    again = Checkpoints(str(tmp_path / "again"))
    trainer(tmp_path, enable_checkpointing=True, callbacks=[again], max_epochs=2).fit(
        LanguageModel(CONFIG, TOKENIZER), LayoutData(documents(4), batch_size=4), ckpt_path=old
    )
    assert old.exists()
    assert path.exists()
    assert Path(again.best_model_path).name == "step=2.ckpt"
    kept["mvspec"]["format"] = 2
    torch.save(kept, old)
    says = "of format 2, and this mvspec reads 1: use the mvspec that wrote it"
    with pytest.raises(CheckpointError, match=says):
        export(old, tmp_path / "x")
    with pytest.raises(CheckpointError, match=says):
        trainer(tmp_path, max_epochs=2).fit(
            LanguageModel(CONFIG, TOKENIZER), LayoutData(documents(4)), ckpt_path=old
        )


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_are_trained_kept_and_merged(tied: bool, tmp_path: Path) -> None:
    path = folder(tmp_path / "model", tied=tied)
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, save_top_k=-1)

    def fit(ckpt: Any = None) -> LanguageModel:
        module = LanguageModel(
            str(path), deepcopy(PLAIN), add_tags=True, lora=LoraAdapters(rank=2, dropout=0.1),
            optimizer=Optimizer(lr=0.05),
        )  # fmt: skip
        callbacks = [] if ckpt else [checkpoints]
        run = trainer(
            tmp_path, max_steps=4, max_epochs=-1, callbacks=callbacks,
            enable_checkpointing=not ckpt,
        )  # fmt: skip
        run.fit(module, LayoutData(documents(), batch_size=4), ckpt_path=ckpt)
        return module

    module = fit()
    base: Any = LlamaForCausalLM.from_pretrained(path)
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in name or "trainable_tokens" in name for name in names)
    trained_rows = module.built().base.get_input_embeddings()
    old = base.model.embed_tokens.weight
    assert torch.equal(trained_rows.original_module.weight[: len(old)], old)
    half = next(tmp_path.glob("checkpoints/*step=2.ckpt"))
    assert set(torch.load(half, weights_only=True)["state_dict"]) == names
    resumed = dict(fit(half).named_parameters())
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, resumed[name]), name
    export(next(tmp_path.glob("checkpoints/*step=4.ckpt")), tmp_path / "merged")
    module.export(tmp_path / "memory")
    for name in ("merged", "memory"):
        served = TorchEngine.load(tmp_path / name)
        found, wanted = logits_of(served.model.model), logits_of(module.built().base)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert all(p.any() for name, p in module.named_parameters() if "lora_B" in name)


class Poison(Callback):
    """Lets the embedding of one token be infinite from a step on."""

    def __init__(self, id: int, step: int) -> None:
        self.id, self.step = id, step

    def on_train_batch_start(self, trainer: Trainer, module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            table = module.built().base.get_input_embeddings().weight
            table.data[self.id] = float("inf")


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    marked = compile_document(mvspec.parse("Odd: 答."), TOKENIZER)
    rare = (set(marked.input_ids.tolist()) - {i for d in documents() for i in d.input_ids}).pop()
    layouts = [*documents(5), marked, *documents(5)]
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=1)
    module = LanguageModel(CONFIG, TOKENIZER)
    run = trainer(
        tmp_path, callbacks=[Poison(rare, 2), checkpoints], enable_checkpointing=True,
        accumulate_grad_batches=2, max_epochs=2,
    )  # fmt: skip
    data = LayoutData(layouts, batch_size=1, shuffle=False)
    with pytest.raises(NotFinite, match=r"step 2: the loss is not finite.*train\[5\]") as caught:
        run.fit(module, data)
    assert caught.value.names == ("train[5]",)
    assert run.global_step == 2
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name.endswith("step=2.ckpt")
    state = torch.load(newest, weights_only=True)["state_dict"]
    assert all(torch.isfinite(each).all() for each in state.values())
    for name, tensor in module.state_dict().items():
        finite = torch.isfinite(tensor)
        assert torch.equal(tensor[finite], state[name][finite])
        assert int((~finite).sum()) in ({32} if "embed" in name else {0}), name


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, filename="only")

    class Fill(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 3:  # no file may grow beyond this from here on
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = trainer(tmp_path, callbacks=[Fill(), checkpoints], enable_checkpointing=True)
    module = LanguageModel(CONFIG, TOKENIZER)
    try:
        with pytest.raises(CheckpointError, match=r"not written \(File too large\).*only\.ckpt"):
            run.fit(module, LayoutData(documents(), batch_size=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["only.ckpt"]
    assert torch.load(tmp_path / "checkpoints" / "only.ckpt", weights_only=True)["global_step"] == 2
    again = trainer(tmp_path)
    data = LayoutData(documents(), batch_size=2)
    again.fit(LanguageModel(CONFIG, TOKENIZER), data, ckpt_path=tmp_path / "checkpoints/only.ckpt")
    assert again.global_step == 6


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    module = LanguageModel(CONFIG, TOKENIZER)
    logger = MetricsLogger(str(tmp_path))
    logger.log_metrics({"a": 1.0}, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    says = r"model: the weights were not written .*File too large.*free space"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(CheckpointError, match=says):
            module.export(tmp_path / "model")
        resource.setrlimit(resource.RLIMIT_FSIZE, (logger.path.stat().st_size + 2, limits[1]))
        with pytest.raises(OSError, match=r"File too large: '.*metrics\.csv'"):
            logger.log_metrics({"a": 2.0}, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class UntilKnown(Callback):
    """Ends a training when the model knows its documents by heart.

    How many steps that takes hangs on the last bits of the sums, and so on the machine.
    """

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        loss = float(trainer.callback_metrics["train/loss"])
        trainer.should_stop = trainer.global_step >= 40 and loss < 5e-4


def test_generations_while_training(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "What?", "answer": "6"}\n{"question": "And?", "answer": "x"}\n')

    def six(text: str, answer: str) -> bool:
        return "6" in text and answer == "6"

    calls = Generations(str(rows), checker=six, every=40, max_tokens=300)
    module = LanguageModel(CONFIG, TOKENIZER, optimizer=Optimizer(lr=0.02, schedule="constant"))
    logger = MetricsLogger(str(tmp_path))
    run = trainer(
        tmp_path, max_steps=1000, max_epochs=-1, logger=logger, log_every_n_steps=20,
        callbacks=[calls, Throughput(), UntilKnown()],
    )  # fmt: skip
    prompts = [
        compile_document(
            mvspec.document(mvspec.user(question), mvspec.parse(CANONICAL).messages[0]), TOKENIZER
        )
        for question in ("What?", "And?")
    ]
    run.fit(module, LayoutData(prompts, batch_size=2))
    assert 40 <= run.global_step < 1000
    with logger.path.open(newline="") as file:
        written = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in written]
    assert steps == [0, *range(19, run.global_step, 20)]  # a row a step, and the first
    for step, row in zip(steps[1:], written[1:], strict=True):
        assert row["train/loss"]
        assert row["speed/tokens_per_second"]
        assert bool(row["generate/tokens"]) == (step % 40 == 39)
    found = calls.generate(run, module)
    assert found["generate/well_formed"] == 1.0
    assert found["generate/exact_match"] == 0.5
    assert found["generate/parallelism"] > 1.1
    lines = (tmp_path / "generations.jsonl").read_text().splitlines()
    assert len(lines) == 2 * (run.global_step // 40 + 1)
    assert "path 1" in lines[-1]
    with pytest.raises(VerifyError, match="a prompt lacks an answer"):
        Generations(["What?"], checker=six)
    with pytest.raises(VerifyError, match="there is none"):
        Generations([])


def test_a_bare_tokenizer_is_exported_too(tmp_path: Path) -> None:
    module = LanguageModel(CONFIG, small_tokenizer())
    module.export(tmp_path / "model")
    served = TorchEngine.load(tmp_path / "model")
    assert served.tokenizer.encode(CANONICAL) == small_tokenizer().encode(CANONICAL).ids
    assert torch.equal(logits_of(served.model.model), logits_of(module.built().base))


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision_leaves_positions_alone(precision: Any, tmp_path: Path) -> None:
    """Lightning's bf16-true rounds every buffer, rotary frequencies too, if it is let."""
    module = LanguageModel(
        CONFIG,
        TOKENIZER,
        dtype="bfloat16" if "true" in precision else "float32",
        attention="eager",  # sdpa's kernel for AMX fails under ATEN_CPU_CAPABILITY=default
    )
    data = LayoutData(documents(), documents(2), batch_size=6)
    run = trainer(tmp_path, precision=precision)
    run.fit(module, data)
    rotary = module.built().base.get_decoder().rotary_emb
    fresh = type(rotary)(module.built().base.config)
    assert torch.equal(rotary.inv_freq, fresh.inv_freq)
    assert 0 < float(run.callback_metrics["validation/loss"]) < 6.5


@pytest.mark.nightly
def test_compiled_layers_attend_as_the_mask_says(tmp_path: Path) -> None:
    """FlexAttention inside one compiled graph for all layers, lists and intervals as data."""
    torch._dynamo.utils.counters.clear()
    compiled = LanguageModel(CONFIG, TOKENIZER, attention="flex", compile=True)
    # A model in memory is told how to attend.
    given = LanguageModel(CONFIG, TOKENIZER, attention="flex").built().base
    plain = LanguageModel(given, TOKENIZER, attention="sdpa")
    networks = [module.built().eval() for module in (compiled, plain)]
    for layout in documents(3):
        batch = Batch([BatchRow(layout, ("a",))], 256)
        with torch.no_grad():
            found, wanted = (
                network.hidden(batch.inputs(torch.device("cpu"), module.mask(batch)))[0]
                for network, module in zip(networks, (compiled, plain), strict=True)
            )
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    # Forward and backward; FlexAttention has no backward pass on a CPU.
    losses = []
    for fast, small in ((False, False), (True, False), (True, True)):
        module = LanguageModel(CONFIG, TOKENIZER, compile=fast, gradient_checkpointing=small)
        run = trainer(tmp_path, max_steps=4, max_epochs=-1)
        run.fit(module, LayoutData(documents(), batch_size=4, pack=True, length=700))
        losses.append(float(run.callback_metrics["train/loss"]))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
