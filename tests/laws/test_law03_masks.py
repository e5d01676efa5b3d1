"""Law 3: every form of a mask says the same, pair by pair and block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bpe import small_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import turns
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from traces import CANONICAL

import mvspec
from mvspec.compiler import (
    Layout,
    additive_mask,
    block_mask,
    compile_document,
    concatenate,
    dense_mask,
    pad_batch,
)
from mvspec.errors import VerifyError
from mvspec.tree.ir import Message

NAMES = ("multiverse", "autoregressive", "sequential", "tree", "official", "shared(1)", "shared(5)")
NESTED = mvspec.parse(CANONICAL).messages[0]


def layout_of(message: Message, lowering: str) -> Layout:
    return compile_document(message, small_tokenizer(), lowering)


def by_pairs(layout: Layout) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """The docstring of `Layout`, read literally; padding sees itself."""
    n = len(layout)
    seen = np.zeros((n, n), dtype=np.bool_)
    for q in range(n):
        same = layout.document_ids == layout.document_ids[q]
        seen[q] = same & (np.arange(n) <= q)
        if layout.document_ids[q] < 0:
            seen[q] = np.arange(n) == q
        for lo, hi in zip(layout.hide_lo[:, q], layout.hide_hi[:, q], strict=True):
            seen[q, lo:hi] = False
    return seen


def listed(number: Tensor, columns: Tensor) -> list[list[set[int]]]:
    """For each batch element and row of blocks, the listed columns."""
    assert number.shape[1] == columns.shape[1] == 1
    return [
        [set(row[:count].tolist()) for row, count in zip(rows[0], counts[0], strict=True)]
        for rows, counts in zip(columns, number, strict=True)
    ]


def check(batch: list[Layout], size: int, length: int | None = None) -> None:
    padded = pad_batch(batch, length)
    n = len(padded[0])
    dense = dense_mask(padded)
    expected = np.stack([by_pairs(layout) for layout in padded])
    assert np.array_equal(dense.numpy(), expected)
    assert dense.diagonal(dim1=1, dim2=2).all()  # no row sees nothing

    additive = additive_mask(padded)
    assert additive.shape == (len(batch), 1, n, n)
    assert torch.equal(additive[:, 0] == 0, dense)
    assert set(additive.flatten().tolist()) <= {0.0, torch.finfo(torch.float32).min}

    ours = block_mask(batch, block_size=size, length=length)
    index = torch.arange(n)
    rows = torch.arange(len(batch))[:, None, None]
    evaluated = ours.mask_mod(rows, torch.tensor(0), index[None, :, None], index[None, None, :])
    assert torch.equal(evaluated.expand(len(batch), n, n), dense)

    def from_dense(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return dense[b, q, k]

    theirs = create_block_mask(from_dense, len(batch), None, n, n, device="cpu", BLOCK_SIZE=size)
    same_blocks(ours, theirs)


def same_blocks(ours: BlockMask, theirs: BlockMask) -> None:
    assert ours.shape == theirs.shape
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    for kind in ("kv", "full_kv", "q", "full_q"):
        numbers, columns = f"{kind}_num_blocks", f"{kind}_indices"
        number, reference = getattr(ours, numbers), getattr(theirs, numbers)
        assert torch.equal(number, reference), kind
        assert number.dtype == getattr(ours, columns).dtype == torch.int32
        mine = listed(number, getattr(ours, columns))
        assert mine == listed(reference, getattr(theirs, columns)), kind
        # Kernels may read past the listed columns, and have to stay inside.
        columns_ = getattr(ours, columns)
        assert int(columns_.min()) >= 0
        assert int(columns_.max()) < columns_.shape[-1]


@given(
    lowering=st.sampled_from(NAMES),
    messages=st.lists(turns(max_depth=3), min_size=1, max_size=3),
    size=st.sampled_from([16, 32, 64, 128]),
    packed=st.booleans(),
    extra=st.integers(0, 70),
)
@example(lowering="multiverse", messages=[NESTED], size=16, packed=False, extra=0)
@example(lowering="tree", messages=[NESTED, NESTED], size=32, packed=True, extra=33)
@example(lowering="official", messages=[NESTED], size=16, packed=False, extra=0)
@example(lowering="shared(1)", messages=[NESTED], size=16, packed=True, extra=1)
def test_all_masks_of_a_batch_agree(
    lowering: str, messages: list[Message], size: int, packed: bool, extra: int
) -> None:
    batch = [layout_of(message, lowering) for message in messages]
    if packed:
        batch = [concatenate(batch), batch[0]]
    longest = max(len(layout) for layout in batch)
    check(batch, size, longest + extra or 1)


@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    size=st.sampled_from([16, 32, 64, 128]),
    share=st.floats(0, 1),
    extra=st.integers(1, 40),
)
def test_masks_of_rows_that_were_cut_agree(
    names: list[str], size: int, share: float, extra: int
) -> None:
    whole = concatenate([layout_of(NESTED, name) for name in names])
    row = whole.truncate(int(share * len(whole)))
    check([row], size, len(row) + extra)


def test_one_layout_and_a_batch_of_one_agree() -> None:
    layout = layout_of(NESTED, "multiverse")
    assert dense_mask(layout).ndim == 2
    assert torch.equal(dense_mask([layout])[0], dense_mask(layout))
    assert torch.equal(additive_mask(layout), additive_mask([layout]))
    same_blocks(block_mask(layout), block_mask([layout]))
    half = additive_mask(layout, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()


@pytest.mark.parametrize(("levels", "padded"), [(0, 2), (1, 2), (2, 2), (3, 4), (4, 4), (5, 8)])
def test_levels_are_padded_so_that_depth_does_not_make_new_kernels(
    levels: int, padded: int
) -> None:
    layout = layout_of(mvspec.assistant("flat"), "multiverse").padded_depth(levels)
    compared = 0

    class Index:
        """A key that counts how often it is compared with the end of an interval."""

        def __le__(self, other: object) -> bool:
            return True

        def __lt__(self, other: object) -> bool:
            return True

        def __ge__(self, other: object) -> Tensor:
            nonlocal compared
            compared += 1
            return torch.tensor(True)

    zero: Any = torch.tensor(0)
    key: Any = Index()
    assert block_mask(layout).mask_mod(zero, zero, zero, key)
    assert compared == padded + 1  # one more is the start of the document


def test_a_fixed_depth_is_kept_and_too_small_a_one_refused() -> None:
    layout = layout_of(NESTED, "multiverse")
    same_blocks(block_mask(layout, depth=8), block_mask(layout))
    with pytest.raises(VerifyError, match="nest 2 deep, more than 1"):
        block_mask(layout, depth=1)
    with pytest.raises(VerifyError, match="do not fit into 3"):
        block_mask(layout, length=3)


def test_the_lists_of_a_batch_are_contiguous() -> None:
    # FlexAttention's GPU kernels take no stride over the batch: a view would be read wrongly,
    # which no test on a CPU shows.
    block = mvspec.parallel(mvspec.branch("a", "x" * 300), mvspec.branch("b", "y" * 200))
    layout = compile_document(mvspec.assistant(block), small_tokenizer())
    mask = block_mask([layout, layout.truncate(200), layout], block_size=64)
    tensors = {name: each for name, each in vars(mask).items() if isinstance(each, torch.Tensor)}
    assert len(tensors) == 8
    assert all(each.is_contiguous() for each in tensors.values()), tensors
