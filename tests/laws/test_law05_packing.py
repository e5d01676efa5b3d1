"""Law 5: packing and cutting change nothing about a document."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from bpe import small_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import turns
from traces import CANONICAL

import mvspec
from mvspec.compiler import (
    Layout,
    compile_document,
    concatenate,
    dense_mask,
    pack,
    pad_batch,
)
from mvspec.compiler.layout import best_fit
from mvspec.errors import VerifyError
from mvspec.tree.ir import Message

NAMES = ("multiverse", "autoregressive", "sequential", "tree", "official", "shared(1)", "shared(7)")
NESTED = mvspec.parse(CANONICAL).messages[0]
ARRAYS = ("input_ids", "position_ids", "loss_mask")


def same_part(row: Layout, at: int, part: Layout, pad: int = 0) -> None:
    """A stretch of a row is this layout, moved, and sees nothing else of the row."""
    n = len(part)
    here = slice(at, at + n)
    for name in ARRAYS:
        assert np.array_equal(getattr(row, name)[here], getattr(part, name)), name
    parent = np.where(part.parent >= 0, part.parent + at, -1)
    assert np.array_equal(row.parent[here], parent)
    seen = dense_mask(row).numpy()[here]
    assert np.array_equal(seen[:, here], dense_mask(part).numpy())
    assert not np.delete(seen, np.r_[here], axis=1).any()


@given(
    lowering=st.sampled_from(NAMES),
    messages=st.lists(turns(max_depth=2), min_size=1, max_size=4),
    room=st.integers(0, 40),
)
@example(lowering="multiverse", messages=[NESTED, NESTED], room=3)
@example(lowering="tree", messages=[NESTED, NESTED], room=3)
@example(lowering="official", messages=[NESTED, NESTED], room=250)
@example(lowering="shared(7)", messages=[NESTED, NESTED], room=250)
def test_each_document_of_a_row_is_its_own_layout(
    lowering: str, messages: list[Message], room: int
) -> None:
    parts = [compile_document(message, small_tokenizer(), lowering) for message in messages]
    size = max(max(len(part) for part in parts) + room, 1)
    rows = best_fit([len(part) for part in parts], size)
    packed = pack(parts, size, pad_id=7)
    assert [len(row) for row in packed] == [size] * len(rows)
    for row, documents in zip(packed, rows, strict=True):
        at = 0
        for index in documents:
            same_part(row, at, parts[index])
            at += len(parts[index])
        padding = np.arange(at, size)
        assert np.array_equal(dense_mask(row).numpy()[at:], np.eye(size, dtype=bool)[at:])
        assert not dense_mask(row).numpy()[:at, at:].any()
        assert (row.document_ids[padding] == -1).all()
        assert (row.input_ids[padding] == 7).all()
        assert not row.loss_mask[padding].any()
        assert (row.parent[padding] == -1).all()
        assert len(set(row.document_ids[:at].tolist())) == sum(
            len(parts[index]) > 0 for index in documents
        )


@given(
    lowering=st.sampled_from(NAMES),
    messages=st.lists(turns(max_depth=3), min_size=1, max_size=2),
    shares=st.lists(st.floats(0, 1), max_size=4),
)
@example(lowering="multiverse", messages=[NESTED], shares=[i / 60 for i in range(61)])
@example(lowering="tree", messages=[NESTED], shares=[i / 60 for i in range(61)])
@example(lowering="official", messages=[NESTED], shares=[i / 60 for i in range(61)])
@example(lowering="shared(1)", messages=[NESTED], shares=[i / 60 for i in range(61)])
def test_truncation_keeps_a_valid_layout(
    lowering: str, messages: list[Message], shares: list[float]
) -> None:
    whole = concatenate([compile_document(m, small_tokenizer(), lowering) for m in messages])
    seen = dense_mask(whole).numpy()
    for length in (int(share * len(whole)) for share in shares):
        cut = whole.truncate(length)
        assert len(cut) == length
        assert np.array_equal(dense_mask(cut).numpy(), seen[:length, :length])
        for name in (*ARRAYS, "parent", "document_ids"):
            assert np.array_equal(getattr(cut, name), getattr(whole, name)[:length])
        assert (cut.parent < np.arange(length)).all()
        assert (cut.hide_hi <= np.arange(length)).all()
        back = cut.padded(len(whole))
        assert back.truncate(length) == cut


def test_truncation_copies() -> None:
    whole = compile_document(NESTED, small_tokenizer())
    cut = whole.truncate(9)
    cut.input_ids[:] = -5
    assert (whole.input_ids >= 0).all()


@given(st.lists(turns(max_depth=2), min_size=1, max_size=3))
def test_concatenation_is_associative_and_numbers_documents(messages: list[Message]) -> None:
    parts = [compile_document(message, small_tokenizer()) for message in messages]
    rows = pad_batch(parts)
    assert concatenate([concatenate(parts[:1]), concatenate(parts[1:])]) == concatenate(parts)
    assert concatenate(parts[:1]) == parts[0]
    again = concatenate([row.padded(len(row) + 2) for row in rows])
    real = again.document_ids[again.document_ids >= 0]
    numbers = [i for i, part in enumerate(p for p in parts if len(p)) for _ in range(len(part))]
    assert real.tolist() == numbers


LENGTHS = st.lists(st.integers(1, 20), max_size=40)


@given(LENGTHS, st.integers(20, 30))
def test_best_fit_is_a_valid_assignment(lengths: list[int], size: int) -> None:
    rows = best_fit(lengths, size)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in row) for row in rows]
    assert all(0 < tokens <= size for tokens in filled)
    assert rows == [sorted(row) for row in rows]
    # Any two rows together hold more than one row's worth, else they would be one.
    assert all(a + b > size for i, a in enumerate(filled) for b in filled[:i])
    assert best_fit(lengths, size) == rows


@given(LENGTHS, st.integers(20, 30))
def test_best_fit_puts_each_document_where_it_fits_tightest(lengths: list[int], size: int) -> None:
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in free if room >= length]
        if fitting:
            free.remove(min(fitting))
        free.append((min(fitting) if fitting else size) - length)
    rows = best_fit(lengths, size)
    assert sorted(size - sum(lengths[i] for i in row) for row in rows) == sorted(free)


def fewest(lengths: list[int], size: int) -> int:
    """The fewest rows there can be, by trying all assignments."""
    for rows in range(len(lengths) + 1):
        for places in product(range(rows), repeat=max(len(lengths) - 1, 0)):
            filled = [0] * rows
            for length, place in zip(lengths, (0, *places), strict=False):
                if place < rows:
                    filled[place] += length
            if sum(filled) == sum(lengths) and all(tokens <= size for tokens in filled):
                return rows
    raise AssertionError("one row for each is enough")


@given(st.lists(st.integers(1, 12), max_size=6), st.integers(12, 16))
@example([5, 4, 4, 3], 8)
def test_best_fit_keeps_the_bound_of_first_fit_decreasing(lengths: list[int], size: int) -> None:
    # Johnson 1973: no more than 11/9 of the fewest rows, plus 6/9.
    assert 9 * len(best_fit(lengths, size)) <= 11 * fewest(lengths, size) + 6


def test_a_document_longer_than_a_row_is_refused() -> None:
    layout = compile_document(NESTED, small_tokenizer())
    with pytest.raises(VerifyError, match=r"document 1: .* do not fit into 10: truncate"):
        best_fit([3, 11], 10)
    with pytest.raises(VerifyError, match="truncate"):
        pack([layout], len(layout) - 1)
    assert pack([], 10) == []
