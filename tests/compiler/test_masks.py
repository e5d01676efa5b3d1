"""Masks in real models, tiny and random: each trap's wrong way, and that ours is right."""

from __future__ import annotations

import shutil
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from bpe import small_tokenizer
from places import blocks, tag_at
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from traces import CANONICAL
from transformers import AutoConfig, AutoModelForCausalLM

import mvspec
from mvspec.compiler import (
    Layout,
    additive_mask,
    block_mask,
    compile_document,
    concatenate,
    dense_mask,
    layout_from_ids,
    lower,
    pack,
    pad_batch,
)

SHORT = mvspec.assistant(
    "So:\n",
    mvspec.parallel(
        mvspec.branch("a", "b", mvspec.parallel(mvspec.branch("x", "y"), mvspec.branch("z", "w"))),
        mvspec.branch("c", "d"),
        conclusion="e",
    ),
    "f",
)
LONG = mvspec.parse(CANONICAL).messages[0]
KINDS = pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
NOISE = {"sdpa": 1e-9, "eager": 1e-5}  # eager attention rounds its softmax to float32


@cache
def model(kind: str, attention: str, dtype: torch.dtype = torch.float64) -> Any:
    """A random model; the same weights for every kind of attention.

    In float64, so that what differs by more than `NOISE` differs for a reason.
    """
    config = AutoConfig.for_model(
        kind,
        vocab_size=small_tokenizer().get_vocab_size(),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    load: Any = AutoModelForCausalLM.from_config
    return load(config, attn_implementation=attention).eval().to(dtype)


def logits(which: Any, batch: list[Layout], mask: Any, ids: Tensor | None = None) -> Tensor:
    """[batch, n, vocabulary]."""
    rows = pad_batch(batch)
    given = torch.tensor(np.stack([row.input_ids for row in rows])).long()
    positions = torch.tensor(np.stack([row.position_ids for row in rows])).long()
    with torch.no_grad():
        out = which(
            input_ids=given if ids is None else ids,
            position_ids=positions,
            attention_mask=mask,
            use_cache=False,
        ).logits
    assert isinstance(out, Tensor)
    return out


def layout_of(message: Any, lowering: str = "multiverse") -> Layout:
    return compile_document(message, small_tokenizer(), lowering)


def added(layouts: Layout | list[Layout]) -> Tensor:
    """The additive mask in the models' type."""
    return additive_mask(layouts, dtype=torch.float64)


def by_hand(which: Any, message: Any) -> dict[int, Tensor]:
    """Logits at each token of a turn, from plain texts: what it sees, in order, and nothing else.

    No mask and no position is given, so nothing of a layout is used but who sees whom.
    """
    layout = layout_of(message)
    seen = dense_mask(layout).numpy()
    out: dict[int, Tensor] = {}
    found = blocks(tag_at(lower(message, small_tokenizer())))
    for last in (last for block in found for _, last in block.paths):
        context = np.flatnonzero(seen[last])
        at = layout.position_ids[context]
        if sorted(at.tolist()) != list(range(len(context))):
            continue  # it has joined paths, which share positions
        ids = torch.tensor(layout.input_ids[context]).long()[None]
        with torch.no_grad():
            plain = which(input_ids=ids, use_cache=False).logits[0]
        for row, index in enumerate(context.tolist()):
            out[index] = plain[row]
    return out


@KINDS
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_path_reads_what_a_plain_text_of_it_would(kind: str, attention: str) -> None:
    layout = layout_of(SHORT)
    got = logits(model(kind, attention), [layout], added(layout))[0]
    expected = by_hand(model(kind, attention), SHORT)
    [outer, inner] = blocks(tag_at(lower(SHORT, small_tokenizer())))
    covered = {index for start, end in [*inner.paths, outer.paths[1]]
               for index in range(start, end + 1)}  # fmt: skip
    assert covered <= set(expected)
    for index, plain in expected.items():
        assert torch.allclose(got[index], plain, atol=NOISE[attention])


@KINDS
def test_without_a_mask_position_resets_are_read_as_packing(kind: str) -> None:
    layout = layout_of(SHORT)
    which = model(kind, "eager")
    right = logits(which, [layout], added(layout))[0]
    wrong = logits(which, [layout], None)[0]
    jumps = np.flatnonzero(np.diff(layout.position_ids, prepend=-1) != 1)
    assert len(jumps) == 3  # both second paths, and the join after a longer first one
    assert torch.allclose(wrong[: jumps[0]], right[: jumps[0]], atol=NOISE["eager"])
    assert (wrong - right)[jumps[0] :].abs().amax(-1).min() > 1e-2
    # What it did: every jump began another document.
    documents = np.cumsum(np.diff(layout.position_ids, prepend=-1) != 1)
    allowed = torch.tensor(np.tril(documents[:, None] == documents[None, :]))
    packing = torch.zeros(allowed.shape).double()
    packing.masked_fill_(~allowed, torch.finfo(torch.float64).min)
    assert torch.allclose(
        wrong, logits(which, [layout], packing[None, None])[0], atol=NOISE["eager"]
    )


@KINDS
def test_a_boolean_mask_is_added_as_numbers_by_eager_attention(kind: str) -> None:
    layout = layout_of(SHORT)
    boolean = dense_mask([layout])[:, None]
    right = logits(model(kind, "eager"), [layout], added(layout))
    wrong = logits(model(kind, "eager"), [layout], boolean)
    assert (wrong - right).abs().max() > 1e-2
    assert torch.equal(wrong, logits(model(kind, "eager"), [layout], boolean.double()))
    # So a token read what stands after it.
    ids = torch.tensor(layout.input_ids).long()[None]
    ids[0, -1] = (ids[0, -1] + 1) % 256
    leaked = logits(model(kind, "eager"), [layout], boolean, ids)
    assert (leaked - wrong)[0, 0].abs().max() > 0
    assert torch.allclose(
        logits(model(kind, "sdpa"), [layout], added(layout)), right, atol=NOISE["eager"]
    )


@KINDS
def test_a_padding_row_that_sees_nothing_spreads_nan(kind: str) -> None:
    layout = layout_of(SHORT)
    row = layout.padded(len(layout) + 5)
    alone = logits(model(kind, "eager"), [layout], added(layout))[0]
    nothing = dense_mask([row])[:, None].clone()
    nothing[:, :, len(layout) :] = False
    blind = torch.where(nothing, 0.0, -torch.inf).double()
    wrong = logits(model(kind, "eager"), [row], blind)[0, : len(layout)]
    assert wrong.isnan().all()
    for attention in ("eager", "sdpa"):
        ours = logits(model(kind, attention), [row], added(row))[0]
        assert ours.isfinite().all()
        assert torch.allclose(ours[: len(layout)], alone, atol=NOISE["eager"])


@KINDS
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lowering", ["multiverse", "tree", "official", "shared(2)"])
def test_a_packed_document_has_the_logits_that_it_has_alone(
    kind: str, attention: str, lowering: str
) -> None:
    parts = [layout_of(message, lowering) for message in (SHORT, LONG, SHORT)]
    which = model(kind, attention)
    [row] = pack(parts, sum(map(len, parts)) + 7)
    assert np.array_equal(row.truncate(len(row) - 7).input_ids, concatenate(parts).input_ids)
    together = logits(which, [row], added(row))[0]
    batched = logits(which, parts, added(parts))
    at = 0
    for number, part in enumerate(parts):
        alone = logits(which, [part], added(part))[0]
        assert torch.allclose(together[at : at + len(part)], alone, atol=NOISE[attention])
        assert torch.allclose(batched[number, : len(part)], alone, atol=NOISE[attention])
        at += len(part)


@KINDS
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_law_7_a_path_changes_no_logit_of_its_siblings(kind: str, attention: str) -> None:
    layout = layout_of(SHORT)
    mask = added(layout)
    which = model(kind, attention)
    before = logits(which, [layout], mask)[0]
    found = blocks(tag_at(lower(SHORT, small_tokenizer())))
    ids = torch.tensor(layout.input_ids).long()[None]
    touched = 0
    for block in found:
        # A path owns its separator: it starts right after </Goal> or the </Path> before it.
        ends = [last for _, last in block.paths]
        starts = [block.fork + 1, *(last + 1 for last in ends)]
        spans = [slice(start, last + 1) for start, last in zip(starts, ends, strict=False)]
        for path in spans:
            others = [span for span in spans if span != path]
            for index in range(path.start, path.stop):
                changed = ids.clone()
                changed[0, index] = (ids[0, index] + 7) % 256
                after = logits(which, [layout], mask, changed)[0]
                for other in others:
                    assert torch.equal(after[other], before[other])
                assert not torch.equal(after[index], before[index])
                joined = after[block.conclusion] - before[block.conclusion]
                assert joined.abs().max() > 0  # and the join reads it
                touched += 1
    assert touched > 40


def test_in_the_published_layout_a_path_does_change_its_siblings() -> None:
    # Through the separators, which see the path before them and are seen by the path after.
    layout = layout_of(SHORT, "official")
    which = model("llama", "eager")
    mask = added(layout)
    [outer, _] = blocks(tag_at(lower(SHORT, small_tokenizer(), forced=False)))
    (start, _), (other, end) = outer.paths
    ids = torch.tensor(layout.input_ids).long()[None]
    before = logits(which, [layout], mask)[0]
    ids[0, start + 2] = (ids[0, start + 2] + 7) % 256
    after = logits(which, [layout], mask, ids)[0]
    assert (after - before)[other : end + 1].abs().max() > 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="FlexAttention on CPU is compiled with g++")
def test_flex_attention_has_the_logits_of_eager() -> None:
    batch = [layout_of(LONG), layout_of(SHORT, "tree"), layout_of(LONG, "shared(3)")]
    batch.append(concatenate([batch[1], layout_of(SHORT)]))
    single = torch.float32
    flex = logits(model("qwen2", "flex_attention", single), batch, block_mask(batch))
    eager = logits(model("qwen2", "eager", single), batch, additive_mask(batch))
    assert flex.isfinite().all()
    assert (flex - eager).abs().max() <= 1e-5 * eager.abs().max()
    exact = logits(model("qwen2", "eager"), batch, added(batch))
    assert (flex - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_flex_attention_on_a_cpu_has_no_backward() -> None:
    # So training on a CPU takes `additive_mask`; here is the error that says so.
    q = torch.randn(1, 2, 128, 16, requires_grad=True)
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        flex_attention(q, q, q, block_mask=block_mask(layout_of(SHORT).padded(128)))


def test_what_has_no_tokens_has_no_mask() -> None:
    empty = layout_from_ids([], small_tokenizer())
    for make in (dense_mask, additive_mask, block_mask):
        with pytest.raises(mvspec.VerifyError):
            make([])
    with pytest.raises(mvspec.VerifyError, match="no token"):
        block_mask(empty)
    with pytest.raises(mvspec.VerifyError, match="-1 tokens"):
        empty.truncate(-1)
