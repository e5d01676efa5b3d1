"""Which models a layout's mask decides for, by transformers' own configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from mvspec.compiler import check_model
from mvspec.errors import Unsupported

LOAD: Any = AutoModelForCausalLM.from_config


def config(kind: str, **fields: Any) -> Any:
    """A configuration with its type's defaults."""
    return AutoConfig.for_model(kind, **fields)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4,
                                       "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                       "original_max_position_embeddings": 64}}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 4096}),
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6,
                                       "original_max_position_embeddings": 32768}}),
        ("qwen3", {}),
        ("qwen3_moe", {"use_sliding_window": False}),
        ("phi3", {"sliding_window": None}),
        ("mistral", {"sliding_window": None}),
        ("mixtral", {"sliding_window": None}),
        ("falcon", {"alibi": False}),
        ("gemma", {}), ("gpt2", {}), ("gpt_neox", {}), ("olmo2", {}), ("deepseek_v3", {}),
        ("granite", {}), ("smollm3", {}), ("seed_oss", {}), ("glm4", {}), ("apertus", {}),
    ],
)  # fmt: skip
def test_accepted(kind: str, fields: dict[str, Any]) -> None:
    made = config(kind, **fields)
    assert made.model_type == kind
    check_model(made)


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48,
            "rope_theta": 1e4, "original_max_position_embeddings": 4096}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        # Sliding windows, of all layers or of some
        ("mistral", {"sliding_window": 4096}, "sliding window of 4096"),
        ("mixtral", {"sliding_window": 512}, "sliding window of 512"),
        ("phi3", {"sliding_window": 2047}, "sliding window of 2047"),
        ("starcoder2", {"sliding_window": 4096}, "sliding window of 4096"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0, "num_hidden_layers": 4},
         "layers of type sliding_attention"),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 1, "num_hidden_layers": 4},
         "layers of type sliding_attention"),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 64}, "window of 64"),
        ("gemma2", {}, "layers of type sliding_attention"),
        ("gemma3", {}, "layers of type sliding_attention"),
        ("gemma3_text", {}, "layers of type sliding_attention"),
        ("gpt_oss", {}, "layers of type sliding_attention"),
        ("olmo3", {}, "layers of type sliding_attention"),
        ("cohere2", {}, "layers of type sliding_attention"),
        ("gpt_neo", {}, "layers of local attention"),
        # Chunked, sparse and linear attention
        ("llama4", {}, "chunked"),
        ("llama4_text", {}, "chunked"),
        ("deepseek_v32", {}, "attention"),
        ("qwen3_next", {}, "layers of type linear_attention"),
        ("minimax", {}, "recurrent state"),
        # Recurrent states
        ("mamba", {}, "recurrent state"), ("mamba2", {}, "recurrent state"),
        ("falcon_mamba", {}, "recurrent state"), ("rwkv", {}, "recurrent state"),
        ("jamba", {}, "recurrent state"), ("zamba2", {}, "recurrent state"),
        ("bamba", {}, "recurrent state"), ("falcon_h1", {}, "recurrent state"),
        ("recurrent_gemma", {}, "recurrent state"), ("xlstm", {}, "recurrent state"),
        ("granitemoehybrid", {}, "layers of type"), ("lfm2", {}, "recurrent state"),
        # Positions that are not the position ids
        ("bloom", {}, "ALiBi"), ("mpt", {}, "ALiBi"), ("falcon", {"alibi": True}, "ALiBi"),
        ("bart", {}, "takes no position_ids"), ("roformer", {}, "takes no position_ids"),
        ("cpmant", {}, "takes no position_ids"),
        ("roberta", {"is_decoder": True}, "counted from the padding token"),
        ("blt", {}, "patches of several tokens"),
        # RoPE that depends on the length
        ("llama", {"rope_parameters": DYNAMIC}, r"RoPE \(dynamic\)"),
        ("phi3", {"sliding_window": None, "rope_parameters": LONGROPE}, r"RoPE \(longrope\)"),
    ],
)  # fmt: skip
def test_refused_by_name(kind: str, fields: dict[str, Any], why: str) -> None:
    made = config(kind, **fields)
    with pytest.raises(Unsupported, match=why) as refused:
        check_model(made)
    text = made.get_text_config()
    assert f"model type {text.model_type!r}" in str(refused.value)
    assert "silently wrong" in str(refused.value)


def test_rope_for_each_type_of_layer_is_read() -> None:
    made = config("llama")
    made.rope_parameters = {"full_attention": dict(DYNAMIC), "sliding_attention": {}}
    with pytest.raises(Unsupported, match="dynamic"):
        check_model(made)


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "paged|sdpa"])
def test_kernels_without_masks_are_refused(name: str) -> None:
    made = config("llama")
    made._attn_implementation_internal = name
    with pytest.raises(Unsupported, match="takes no mask"):
        check_model(made)
    for fitting in ("eager", "sdpa", "flex_attention"):
        made._attn_implementation_internal = fitting
        check_model(made)


def test_a_model_is_judged_by_its_config_also_in_a_wrapper() -> None:
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "num_key_value_heads": 2, "vocab_size": 8, "intermediate_size": 16}  # fmt: skip
    model = LOAD(config("llama", **fields))
    check_model(model)

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.config = inner.config

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    check_model(Wrapper(model))
    bloom = config("bloom", hidden_size=16, n_layer=1, n_head=2, vocab_size=8)
    with pytest.raises(Unsupported, match="'bloom'"):
        check_model(Wrapper(LOAD(bloom)))


# What transformers' models do with a mask and positions, against what is claimed of them.

TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
KINDS = ["llama", "qwen2", "qwen3", "gemma", "olmo2", "granite", "smollm3", "stablelm", "phi",
         "gpt2", "gptj", "codegen", "gpt_bigcode", "gpt_neox", "opt", "mixtral",
         "olmoe"]  # fmt: skip


def forked() -> tuple[Tensor, Tensor, Tensor]:
    """20 tokens: 8, a path of 6, a path of 6. Returns (ids, positions, additive mask)."""
    allowed = torch.tril(torch.ones(20, 20, dtype=torch.bool))
    allowed[14:, 8:14] = False
    mask = torch.zeros(20, 20).masked_fill(~allowed, torch.finfo(torch.float32).min)
    positions = torch.tensor([[*range(14), *range(8, 14)]])
    return torch.arange(3, 23)[None], positions, mask[None, None]


def alone(model: Any) -> tuple[Tensor, Tensor]:
    """Logits of the second path in a forked text, and as a plain text without the first."""
    ids, positions, mask = forked()
    keep = torch.tensor([*range(8), *range(14, 20)])
    with torch.no_grad():
        both = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        one = model(input_ids=ids[:, keep], use_cache=False)
    return both.logits[0, 14:], one.logits[0, 8:]


@pytest.mark.parametrize("kind", KINDS)
def test_an_accepted_model_obeys_mask_and_positions(kind: str) -> None:
    torch.manual_seed(0)
    made = config(kind, **TINY, **({"rotary_dim": 4} if kind in ("gptj", "codegen") else {}))
    made.pad_token_id = 0
    model = LOAD(made, attn_implementation="eager").eval()
    check_model(model)
    both, one = alone(model)
    assert torch.allclose(both, one, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("mistral", {"sliding_window": 4}),
        ("qwen3_next", {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "head_dim": 8,
                        "num_hidden_layers": 4, "num_experts": 4, "moe_intermediate_size": 8,
                        "num_experts_per_tok": 2}),
        ("roberta", {"is_decoder": True}),
    ],
)  # fmt: skip
def test_a_refused_model_would_be_silently_wrong(kind: str, fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    made = config(kind, **{**TINY, **fields}, pad_token_id=0)
    with pytest.raises(Unsupported):
        check_model(made)
    model = LOAD(made, attn_implementation="eager").eval()
    both, one = alone(model)
    assert not torch.allclose(both, one, atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "electra", "ernie"])
def test_a_model_that_reads_ahead_is_refused(kind: str) -> None:
    made = config(kind, **TINY, embedding_size=32)
    with pytest.raises(Unsupported, match=r"not causal \(is_decoder=False\)"):
        check_model(made)
    made.is_decoder = True
    check_model(LOAD(made, attn_implementation="eager"))


class Altered(transformers.LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """One whose forward does other things with what it is given; its config does not say so."""

    how = ""

    def forward(self, input_ids: Any, **given: Any) -> Any:
        n = input_ids.shape[1]
        if self.how == "no mask":
            given.pop("attention_mask", None)
        if self.how == "causal" and "attention_mask" in given:
            ahead = torch.ones(n, n).triu(1).bool()
            given["attention_mask"] = torch.zeros(n, n).masked_fill(ahead, -1e9)[None, None]
        if self.how == "no positions":
            given["position_ids"] = torch.arange(n)[None]
        if self.how == "both ways" and "attention_mask" not in given:
            given["attention_mask"] = torch.zeros(1, 1, n, n)
        if self.how == "2-D masks":
            _rows, _columns = given.get("attention_mask", input_ids).shape
        return super().forward(input_ids, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("no mask", "reads a path otherwise than as plain text"),
        ("causal", "paths read each other"),
        ("no positions", "ignores position_ids"),
        ("both ways", "reads a path otherwise"),
        ("2-D masks", "cannot read a 4-D mask .*too many values to unpack"),
    ],
)
def test_a_built_model_is_asked(how: str, why: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    make: Any = Altered
    model = make(config("llama", **TINY, initializer_range=0.3)).to(dtype).train()
    check_model(model)
    assert model.training
    other = make(model.config).to(dtype)
    other.load_state_dict(model.state_dict())
    other.how = how
    with pytest.raises(Unsupported, match=why) as refused:
        check_model(other)
    assert "\n" not in str(refused.value)
    model.how = how  # it is asked once
    check_model(model)


def test_every_causal_model_type_is_judged() -> None:
    # No configuration of transformers' own makes the check itself fail.
    kinds = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    refused = 0
    for kind in kinds:
        if kind in ("musicgen", "musicgen_melody"):
            continue  # has no default configuration
        try:
            check_model(config(kind))
        except Unsupported:
            refused += 1
    assert 40 < refused < len(kinds) - 40


def test_what_is_no_model_is_refused() -> None:
    for wrong in ("gpt2", None):
        with pytest.raises(Unsupported, match="neither a transformers model"):
            check_model(wrong)
