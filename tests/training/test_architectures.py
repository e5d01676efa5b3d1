"""Other architectures than Llama's: trained as their own forward says, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bpe import chat_tokenizer
from lightning.pytorch import Trainer
from traces import CANONICAL
from transformers import AutoConfig, AutoModelForCausalLM

import mvspec
from mvspec.compiler import Layout, additive_mask, compile_document
from mvspec.errors import Unsupported
from mvspec.training import Batch, BatchRow, LanguageModel, LayoutData, LoraAdapters, Optimizer

TOKENIZER = chat_tokenizer()
MAKE: Any = AutoModelForCausalLM.from_config
SIZES = {
    "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None, "initializer_range": 0.1,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.5}
UNDROPPED = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
OLD: dict[str, dict[str, Any]] = {
    "gpt2": UNDROPPED, "gptj": {"rotary_dim": 4}, "codegen": {"rotary_dim": 4},
    "gpt_bigcode": UNDROPPED, "gpt_neox": {}, "phi": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16,
                  "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8},
    "olmoe": {"num_experts": 4},
    "phimoe": {"num_local_experts": 4, "input_jitter_noise": 0.0, "router_jitter_noise": 0.0},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
}  # fmt: skip


def made(kind: str, **more: Any) -> Any:
    """A tiny model with random weights, attending in the plainest way."""
    torch.manual_seed(0)
    fields = OLD.get(kind) or (MIXTURES[kind] | EXPERTS if kind in MIXTURES else {})
    config = AutoConfig.for_model(kind, **SIZES | fields | more)
    config._experts_implementation = "eager"
    return MAKE(config, attn_implementation="eager")


def document(text: str) -> mvspec.Document:
    return mvspec.document(mvspec.user("What?"), mvspec.parse(text).messages[0])


def batch_of(layouts: list[Layout]) -> Batch:
    return Batch([BatchRow(layout, ("a",)) for layout in layouts])


@pytest.mark.parametrize("kind", OLD)
def test_the_loss_is_that_of_the_models_own_logits(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    layouts = [compile_document(document(CANONICAL), TOKENIZER)]
    module = LanguageModel(model, TOKENIZER, attention="eager", optimizer=Optimizer(lr=3e-3))
    with torch.no_grad():
        logits = model(
            input_ids=torch.from_numpy(layouts[0].input_ids[None]).long(),
            position_ids=torch.from_numpy(layouts[0].position_ids[None]).long(),
            attention_mask=additive_mask(layouts),
        ).logits[0]
    at = layouts[0].loss_mask.nonzero()[0]
    wanted = torch.nn.functional.cross_entropy(
        logits[layouts[0].parent[at]], torch.from_numpy(layouts[0].input_ids[at]).long()
    )
    run = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_steps=4, max_epochs=-1,
    )  # fmt: skip
    first = float(module.losses(batch_of(layouts)).detach()) / int(layouts[0].loss_mask.sum())
    assert first == pytest.approx(float(wanted), rel=1e-5)
    run.fit(module, LayoutData(layouts))
    assert float(run.callback_metrics["train/loss"]) < first


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("asked", [True, False])
def test_a_mixtures_loss_is_transformers_own(kind: str, asked: bool) -> None:
    """On plain texts, padded: the loss of the router is in it where the config asks for it."""
    model = made(kind, output_router_logits=asked)
    layouts = [compile_document(document(text), TOKENIZER) for text in ("Four.", "It is " * 9)]
    batch = batch_of(layouts)
    inputs = batch.inputs(torch.device("cpu"), None)
    labels = torch.stack([torch.from_numpy(layout.labels) for layout in batch.layouts])
    module = LanguageModel(model, TOKENIZER, attention="eager")
    module.built()
    model.train()
    wanted = model(input_ids=inputs.ids, attention_mask=inputs.real, labels=labels).loss
    wanted.backward()
    norms = {
        name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None
    }
    model.zero_grad()
    found: Any = module.losses(batch) / batch.loss_tokens
    found.backward()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert float(p.grad.norm()) == pytest.approx(norms[name], rel=1e-3, abs=1e-6), name


def test_a_routers_loss_of_another_kind_is_refused() -> None:
    """transformers itself keeps no logits of GraniteMoE's routers, and its own loss fails."""
    model = made("granitemoe", num_local_experts=4, **EXPERTS)
    with pytest.raises(Unsupported, match=r"'granitemoe': .* set output_router_logits to false"):
        LanguageModel(model, TOKENIZER, attention="eager").built()


@pytest.mark.parametrize("kind", ["granitemoe", "qwen2_moe", "mixtral", "gpt2"])
def test_adapters_of_all_linear_layers_leave_routers_alone(kind: str) -> None:
    module = LanguageModel(
        made(kind), TOKENIZER, attention="eager", lora=LoraAdapters(rank=2, targets="all-linear")
    )
    module.built()
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert trained
    assert not [
        name for name in trained if ".gate." in name or "router" in name or "_gate." in name
    ]


def test_attention_that_a_model_does_not_have_is_refused() -> None:
    config = {"model_type": "gptj", "rotary_dim": 4} | SIZES
    assert LanguageModel(config, TOKENIZER).built().base.config._attn_implementation == "eager"
    for attention in ("sdpa", "flex"):
        with pytest.raises(Unsupported, match=f"'gptj' has no attention '{attention}': use eager"):
            LanguageModel(config, TOKENIZER, attention=attention).built()
