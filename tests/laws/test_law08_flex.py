"""Law 8 against FlexAttention: the engine's logits are those of one forward with `block_mask`.

In float64 FlexAttention runs uncompiled, which evaluates the mask's function over all pairs;
compiled, in float32, its kernel reads the mask's lists of blocks as training does on a GPU.
"""

from __future__ import annotations

import shutil
from copy import deepcopy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bpe import small_tokenizer  # noqa: E402
from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from strategies import turns  # noqa: E402
from tiny import FORKING, KINDS, chat, tiny_engine  # noqa: E402
from torch.nn.attention.flex_attention import flex_attention  # noqa: E402
from traces import CANONICAL  # noqa: E402
from transformers import AttentionInterface  # noqa: E402
from transformers.masking_utils import AttentionMaskInterface  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.compiler import block_mask  # noqa: E402
from mvspec.compiler.layout import Layout  # noqa: E402
from mvspec.law.limits import Limits  # noqa: E402
from mvspec.runtime import Options, Result, Sampling, TorchEngine  # noqa: E402
from mvspec.tree.ir import Message  # noqa: E402

TOKENIZER = chat()
NESTED = mv.parse(CANONICAL).messages[0]
FEWER = settings(max_examples=max(10, settings().max_examples // 5))

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def uncompiled(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **rest: Any
) -> tuple[Any, None]:
    """FlexAttention as transformers calls it, but in any type of numbers."""
    out = flex_attention(
        query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("uncompiled_flex", uncompiled)
AttentionMaskInterface.register("uncompiled_flex", lambda *, attention_mask, **rest: attention_mask)


def flex_logits(engine: TorchEngine, layout: Layout, attention: str, model: Any) -> Any:
    """Return the logits of one training forward with a `BlockMask`: [tokens, vocabulary]."""
    before = model.config._attn_implementation
    model.config._attn_implementation = attention
    try:
        with torch.no_grad():
            out = model(
                input_ids=torch.tensor(layout.input_ids[None], dtype=torch.int64),
                position_ids=torch.tensor(layout.position_ids[None], dtype=torch.int64),
                attention_mask=block_mask(layout),
                use_cache=False,
            )
    finally:
        model.config._attn_implementation = before
    return out.logits[0] + getattr(engine.model, "bias", 0.0)


def difference(
    engine: TorchEngine, result: Result, attention: str = "uncompiled_flex", model: Any = None
) -> float:
    """Return the largest difference between a run's logits and those of training."""
    assert result.logits is not None
    whole = flex_logits(engine, result.trace.layout, attention, model or engine.model.model)
    rows = [(i, row) for i, row in enumerate(result.logits) if row is not None]
    assert len(rows) >= len(result.trace) - 1
    return max((float((row - whole[i]).abs().max()) for i, row in rows), default=0.0)


@pytest.mark.parametrize("kind", KINDS)
@given(turn=turns(max_depth=3), rows=st.sampled_from([1, 7, 4096]), decode=st.booleans())
@example(turn=NESTED, rows=3, decode=True)
@FEWER
def test_a_replay_is_one_flex_forward(kind: str, turn: Message, rows: int, decode: bool) -> None:
    engine = tiny_engine(kind, small_tokenizer(), max_batched_tokens=rows)
    result = engine.run(mv.document(turn), Options(logits=True, decode=decode))
    if len(result.trace):
        assert difference(engine, result) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_forks_is_one_flex_forward(kind: str) -> None:
    engine = tiny_engine(kind, TOKENIZER, FORKING)
    threads = 0
    for seed in range(8):
        options = Options(Sampling(1.5, seed=seed), Limits(max_tokens=180), logits=True)
        result = engine.run(mv.document(mv.user("Go.")), options)
        assert difference(engine, result) < 1e-9
        threads += len(result.trace.threads) - 1
    assert threads > 8


@pytest.mark.skipif(shutil.which("g++") is None, reason="FlexAttention on CPU is compiled with g++")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_one_compiled_flex_forward(kind: str) -> None:
    engine = tiny_engine(kind, TOKENIZER)
    result = engine.run(mv.document(NESTED), Options(logits=True, decode=True))
    single = deepcopy(engine.model.model).to(torch.float32)
    found = difference(engine, result, "flex_attention", single)
    print(f"{kind}: {found:.1e} over {len(result.trace)} tokens")
    assert found < 3e-4
