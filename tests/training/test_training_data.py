"""The rows of training: their order, their shares, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bpe import chat_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from strategies import turns
from traces import CANONICAL

import mvspec
from mvspec.compiler import Layout, compile_document, concatenate, dense_mask
from mvspec.errors import LimitExceeded, VerifyError
from mvspec.training import Batch, BatchRow, LayoutData, MixtureStage
from mvspec.training.data import BatchLoader, LayoutSource, RowSchedule
from mvspec.tree.ir import Message

TOKENIZER = chat_tokenizer()


def layouts(count: int) -> list[Layout]:
    words = ("So " * (i * 7 % 31) for i in range(count))
    return [compile_document(mvspec.parse(f"Four. {each}"), TOKENIZER) for each in words]


SIZES = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40), min_size=1)


@given(sizes=SIZES, seed=st.integers(0, 5), epochs=st.integers(1, 4))
def test_every_row_comes_once_an_epoch_in_another_order(
    sizes: dict[str, int], seed: int, epochs: int
) -> None:
    schedule = RowSchedule(sizes, seed=seed)
    rows = [(source, row) for source, n in enumerate(sizes.values()) for row in range(n)]
    orders = []
    for epoch in range(epochs):
        order = [(int(a), int(b)) for a, b in zip(*schedule.order(epoch), strict=True)]
        assert sorted(order) == rows
        again = RowSchedule(sizes, seed=seed).order(epoch)
        assert order == [(int(a), int(b)) for a, b in zip(*again, strict=True)]
        orders.append(order)
    if max(sizes.values()) > 12:  # fewer may come in the same order by chance
        assert len({tuple(order) for order in orders}) == epochs


@given(
    weights=st.lists(st.integers(0, 5), min_size=2, max_size=4).filter(any),
    until=st.lists(st.integers(0, 5), min_size=4, max_size=4).filter(lambda w: any(w[:2])),
    rows=st.integers(1, 200),
)
def test_shares_of_a_stage_are_exact_all_the_way(
    weights: list[int], until: list[int], rows: int
) -> None:
    names = "abcd"[: len(weights)]
    ends = until[: len(weights)] if any(until[: len(weights)]) else weights
    stage = MixtureStage(
        dict(zip(names, weights, strict=True)), dict(zip(names, ends, strict=True)), rows
    )
    which, _ = RowSchedule(dict.fromkeys(names, 7), [stage]).order(0)
    assert len(which) == rows
    first = np.array(weights) / sum(weights)
    last = np.array(ends) / sum(ends)
    at = (np.arange(rows) + 0.5) / rows
    for source in range(len(names)):
        share = first[source] * (1 - at) + last[source] * at
        apart = np.abs(np.cumsum(which == source) - np.cumsum(share))
        assert apart.max() < len(names)


def test_stages_follow_one_another_and_sets_go_on() -> None:
    stages = [
        MixtureStage({"a": 1}, rows=3),
        MixtureStage({"a": 1, "b": 1}, rows=4),
        MixtureStage({"b": 1}, rows=2),
    ]
    schedule = RowSchedule({"a": 5, "b": 4}, stages, shuffle=False)
    which, rows = schedule.order(0)
    assert which[:3].tolist() == [0, 0, 0]
    assert sorted(which[3:7].tolist()) == [0, 0, 1, 1]
    assert which[7:].tolist() == [1, 1]
    assert rows[which == 0].tolist() == [0, 1, 2, 3, 4]
    assert rows[which == 1].tolist() == [0, 1, 2, 3]
    which, rows = schedule.order(1)
    assert rows[which == 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (MixtureStage({"x": 1}), "no set is named x: there are a"),
        (MixtureStage({"a": 0}), "one is above 0"),
        (MixtureStage({"a": -1}), "from 0 up"),
        (MixtureStage(rows=0), "raise rows or passes"),
        (MixtureStage(passes=0.01), "raise rows or passes"),
    ],
)
def test_stages_that_are_none(stage: MixtureStage, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        RowSchedule({"a": 3}, [stage])


def loader(count: int, batch: int, rank: int = 0, ranks: int = 1, **more: Any) -> BatchLoader:
    source = LayoutSource("a", layouts(count))
    return BatchLoader([source], RowSchedule({"a": count}), batch, rank=rank, ranks=ranks, **more)


def names(batches: Any) -> list[str]:
    return [name for batch in batches for row in batch.names for name in row]


@pytest.mark.parametrize(
    ("count", "batch", "ranks"), [(13, 2, 3), (12, 2, 3), (1, 4, 2), (7, 1, 4)]
)
def test_ranks_share_the_rows(count: int, batch: int, ranks: int) -> None:
    each = [loader(count, batch, rank, ranks) for rank in range(ranks)]
    batches = [list(one.batches(0)) for one in each]
    assert {len(some) for some in batches} == {len(each[0])}
    read = [name for some in batches for name in names(some)]
    assert sorted(read) == sorted(f"a[{i}]" for i in range(count))
    whole = list(loader(count, batch * ranks).batches(0))
    for step, batch_ in enumerate(whole):  # a step reads the same rows on any number of ranks
        assert sorted(names([batch_])) == sorted(names(some[step] for some in batches))
        assert batch_.tokens == sum(some[step].tokens for some in batches)


def test_a_loader_goes_on_where_it_stood_however_far_workers_read_ahead() -> None:
    whole = loader(11, 2)
    wanted = [names([batch]) for batch in whole]
    killed = loader(11, 2, workers=2)
    batches = iter(killed)
    assert [names([next(batches)]) for _ in range(3)] == wanted[:3]
    resumed = loader(11, 2)
    resumed.load_state_dict(killed.state_dict())
    assert [names([batch]) for batch in resumed] == wanted[3:]
    resumed.set_epoch(1)
    assert len(list(resumed)) == 6


def test_an_iterator_that_came_to_its_end_starts_with_the_next_epoch() -> None:
    one = loader(4, 2)
    batches = iter(one)
    assert len(list(batches)) == 2
    assert next(batches, None) is None
    one.set_epoch(1)
    assert len(list(batches)) == 2


@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=30), size=st.integers(5, 40))
def test_packing_keeps_every_document(lengths: list[int], size: int) -> None:
    documents = [plain(n) for n in lengths]
    source = LayoutSource("a", documents, length=size, pack=True, window=8)
    longer = sum(n > size for n in lengths)
    assert source.notes == (
        [f"{longer:,} documents longer than length {size:,} are truncated"] if longer else []
    )
    found: dict[str, Layout] = {}
    for row in (source[i] for i in range(len(source))):
        assert len(row.layout) <= size
        assert row.layout.document_ids.max() + 1 == len(row.names)
        for number, name in enumerate(row.names):
            own = row.layout.document_ids == number
            found[name] = plain(int(own.sum()))
            assert row.layout.position_ids[own].tolist() == list(range(int(own.sum())))
    assert {name: len(layout) for name, layout in found.items()} == {
        f"a[{i}]": min(n, size) for i, n in enumerate(lengths)
    }


def plain(n: int) -> Layout:
    none = np.zeros((0, n), np.int32)
    positions = np.arange(n, dtype=np.int32)
    loss = positions > 0
    return Layout(positions, positions, positions - 1, loss, np.zeros(n, np.int32), none, none)


def test_documents_longer_than_a_row() -> None:
    documents = [plain(4), plain(9), plain(6)]
    cut = LayoutSource("a", documents, length=6)
    assert len(cut) == 3
    assert cut.notes == ["1 documents longer than length 6 are truncated"]
    assert cut[1].layout == documents[1].truncate(6)
    left = LayoutSource("a", documents, length=6, too_long="drop")
    assert len(left) == 2
    assert left.notes == ["1 documents longer than length 6 are dropped"]
    with pytest.raises(LimitExceeded, match=r"a\[1\]: 9 tokens, more than length 6"):
        LayoutSource("a", documents, length=6, too_long="error")
    with pytest.raises(VerifyError, match="no row to train on: 3 documents longer than length 2"):
        LayoutSource("a", documents, length=2, too_long="drop")
    with pytest.raises(VerifyError, match="'cut' is not one of truncate, drop, error"):
        LayoutSource("a", documents, too_long="cut")
    with pytest.raises(VerifyError, match="give length"):
        LayoutSource("a", documents, pack=True)


def late(n: int, first: int) -> Layout:
    """A document of n tokens whose loss starts at one of them; at n there is none."""
    return replace(plain(n), loss_mask=np.arange(n) >= first)


@pytest.mark.parametrize("pack", [False, True])
def test_documents_whose_loss_is_cut_away_are_left_out_and_counted(pack: bool) -> None:
    documents = [late(9, 5), late(9, 6), late(4, 4), late(6, 2)]
    source = LayoutSource("a", documents, length=6, pack=pack)
    found = sorted(name for index in range(len(source)) for name in source[index].names)
    assert found == ["a[0]", "a[3]"]
    assert all(source[index].layout.loss_mask.any() for index in range(len(source)))
    assert source.notes == [
        "2 documents longer than length 6 are truncated",
        "2 documents without loss (in what fits) are left out",
    ]
    with pytest.raises(VerifyError, match=r"no row to train on: .* 4 documents without loss"):
        LayoutSource("a", documents, length=2)
    with pytest.raises(VerifyError, match="no row to train on: 1 documents without loss"):
        LayoutData([late(4, 4)]).train_dataloader()
    with pytest.raises(VerifyError, match="no row to train on"):
        LayoutData([plain(4)], [late(4, 4)]).val_dataloader()


def test_documents_that_go_past_the_models_positions() -> None:
    forked = compile_document(mvspec.parse(CANONICAL), TOKENIZER)
    highest = int(forked.position_ids.max())
    assert highest + 1 < len(forked)  # paths share positions: tokens alone do not tell
    packed = concatenate([forked, plain(9), plain(12)])
    documents = [plain(9), forked, packed]
    fits = LayoutSource("a", documents, positions=highest + 1)
    assert not fits.notes
    cut = LayoutSource("a", documents, positions=highest - 20)
    assert cut.notes == [
        f"2 documents longer than the model's {highest - 20} positions are truncated"
    ]
    assert all(cut[index].layout.position_ids.max() < highest - 20 for index in range(3))
    assert cut[1].layout == forked.truncate(len(cut[1].layout))
    assert LayoutSource("a", documents, positions=10, too_long="drop")[0].names == ("a[0]",)
    with pytest.raises(LimitExceeded, match="more than the model's 10 positions"):
        LayoutSource("a", documents, positions=10, too_long="error")


def test_an_empty_set(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match=r"train: there is no row to train on: it is empty"):
        LayoutData([]).train_dataloader()
    with pytest.raises(VerifyError, match=r"give data\.train"):
        LayoutData().train_dataloader()
    with pytest.raises(VerifyError, match="not a compiled data set"):
        LayoutData(tmp_path).train_dataloader()
    with pytest.raises(VerifyError, match="batch_size: 0 is not"):
        LayoutData([plain(3)], batch_size=0)


@given(turn=turns(max_depth=3), second=turns(max_depth=2))
def test_counts_of_a_batch(turn: Message, second: Message) -> None:
    """Pairs are those of the mask, and degrees those of the definition."""
    documents = [compile_document(each, TOKENIZER) for each in (turn, second)]
    documents = [layout for layout in documents if len(layout)]
    if not documents:
        return
    packed = concatenate(documents)
    size = len(packed) + 3
    batch = Batch([BatchRow(packed, ()), BatchRow(documents[0], ())], size)
    seen = sum(int(dense_mask(layout).sum()) for layout in batch.layouts)
    padding = sum(int((layout.document_ids < 0).sum()) for layout in batch.layouts)
    assert batch.pairs == seen - padding
    assert batch.size == 2 * size
    assert batch.tokens == len(packed) + len(documents[0])
    degrees = []
    for layout in (*documents, documents[0]):
        if layout.loss_mask.any():
            first = int(layout.loss_mask.argmax())
            positions = layout.position_ids[first:]
            degrees.append(len(positions) / (positions.max() - positions.min() + 1))
    assert batch.degrees == pytest.approx(degrees)


def test_degree_of_a_trace() -> None:
    layout = compile_document(mvspec.parse(CANONICAL), TOKENIZER)
    stages = mvspec.compiler.compile_stages(mvspec.parse(CANONICAL), TOKENIZER)
    degree = stages.metrics.parallelism
    assert Batch([BatchRow(layout, ())]).degrees[0] == pytest.approx(degree, rel=0.01)
