"""The other lowerings, each against a definition of its own: an engine simulated, or all pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from bpe import chat_tokenizer, small_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from places import Block, blocks, pairs, place_tokens, tag_at
from qwen import qwen_tokenizer
from strategies import turns
from traces import CANONICAL

import mvspec
from mvspec.compiler import (
    Layout,
    Tokens,
    Vocabulary,
    compile_document,
    dense_mask,
    flatten,
    layout_from_ids,
    lower,
)
from mvspec.compiler.lowerings import find_lowering
from mvspec.errors import Unsupported
from mvspec.law.tags import Tag
from mvspec.tree.ir import Message

NESTED = mvspec.parse(CANONICAL).messages[0]
TWICE = mvspec.assistant(
    mvspec.think("So.\n", mvspec.parallel(mvspec.branch("a", "b"), mvspec.branch("c", "d e f"))),
    mvspec.parallel(
        mvspec.branch("a", "b", mvspec.parallel(mvspec.branch("x", "y"), mvspec.branch("z", "w"))),
        mvspec.branch("c", mvspec.parallel(mvspec.branch("x", "y"), mvspec.branch("z", "w")), "v"),
        mvspec.branch("e", "f"),
        conclusion="g",
    ),
    "h",
)
# Three words and a line in path 1, one word and a line in path 2, outlines without text.
WORKED = """<Parallel>
<Goal>
<Outline>
1: \n</Outline>
<Outline>
2: \n</Outline>
</Goal>
<Path>
1: a b c
</Path>
<Path>
2: a
</Path>
<Conclusion>
a
</Conclusion>
</Parallel>
"""


def numbered(tokens: Tokens) -> Tokens:
    """The tokens with their own indices as ids, so that a layout says which token each row is."""
    return replace(tokens, ids=np.arange(len(tokens.ids), dtype=np.int32))


def names_and_positions(layout: Layout, tokenizer: Any) -> list[tuple[str, int]]:
    """Text and position of each token."""
    vocabulary = Vocabulary.of(tokenizer)
    return [
        (vocabulary.decode([index]), position)
        for index, position in zip(
            layout.input_ids.tolist(), layout.position_ids.tolist(), strict=True
        )
    ]


# official


@pytest.mark.parametrize("make", [small_tokenizer, qwen_tokenizer])
def test_the_worked_example_of_the_published_training_code(make: Any) -> None:
    document = mvspec.parse(WORKED)
    path_1 = ["<Path>", "\n", "1", ":", " a", " b", " c", "\n", "</Path>"]
    path_2 = ["<Path>", "\n", "2", ":", " a", "\n", "</Path>"]
    published = names_and_positions(compile_document(document, make(), "official"), make())
    start = published.index(("</Goal>", 18)) + 1
    assert published[start:] == [
        ("\n", 19), *zip(path_1, range(19, 28), strict=True),
        ("\n", 28), *zip(path_2, range(19, 26), strict=True),
        ("\n", 26), ("<Conclusion>", 28), ("\n", 29), ("a", 30), ("\n", 31),
        ("</Conclusion>", 32), ("\n", 33), ("</Parallel>", 34), ("\n", 35),
    ]  # fmt: skip
    law = names_and_positions(compile_document(document, make()), make())
    assert law[:start] == published[:start]
    assert law[start:] == [
        ("\n", 19), *zip(path_1, range(20, 29), strict=True),
        ("\n", 19), *zip(path_2, range(20, 27), strict=True),
        ("\n", 29), ("<Conclusion>", 30), ("\n", 31), ("a", 32), ("\n", 33),
        ("</Conclusion>", 34), ("\n", 35), ("</Parallel>", 36), ("\n", 37),
    ]  # fmt: skip
    # +1 in paths, +2 after the block.
    assert law[start + 1][1] - published[start + 1][1] == 1
    assert law[-1][1] - published[-1][1] == 2
    # Path 2 reads the separator between the paths, which has read path 1.
    seen = dense_mask(compile_document(document, make(), "official"))
    between, second = start + 10, start + 12
    assert seen[second, between]
    assert seen[between, start + 9]
    assert not seen[second, start + 9]
    assert not dense_mask(compile_document(document, make()))[second, start + 9]


def published(tags: dict[int, Tag], n: int) -> tuple[list[int], NDArray[np.bool_]]:
    """Positions and visibility of the published training code, re-derived.

    Positions count on from token to token, but every `<Path>` takes the position after its
    block's `</Goal>`, and `<Conclusion>` the one after the furthest `</Path>`. The mask is
    causal, less the pairs of `<Path>`...`</Path>` spans of one block.
    """
    found = blocks(tags)
    seen = np.tri(n, dtype=np.bool_)
    for block in found:
        for (a, b), (c, d) in combinations(block.paths, 2):
            seen[a : b + 1, c : d + 1] = seen[c : d + 1, a : b + 1] = False
    opens = {path: block for block in found for path, _ in block.paths}
    joins = {block.conclusion: block for block in found}
    positions: list[int] = []
    for index in range(n):
        if index in opens:
            positions.append(positions[opens[index].fork] + 1)
        elif index in joins:
            positions.append(1 + max(positions[end] for _, end in joins[index].paths))
        else:
            positions.append(positions[-1] + 1 if positions else 0)
    return positions, seen


@given(turns(max_depth=3))
@example(NESTED)
@example(TWICE)
def test_official_is_the_published_layout(message: Message) -> None:
    tokenizer = small_tokenizer()
    layout = compile_document(message, tokenizer, "official")
    tokens = lower(message, tokenizer, forced=False)
    n = len(tokens.ids)
    positions, seen = published(tag_at(tokens), n)
    assert layout.input_ids.tolist() == Vocabulary.of(tokenizer).encode(mvspec.render(message))
    assert layout.position_ids.tolist() == positions
    assert np.array_equal(dense_mask(layout).numpy(), seen)
    assert layout.parent.tolist() == list(range(-1, n - 1))
    assert layout.loss_mask.tolist() == [i > 0 for i in range(n)]


# tree


def engine(tokens: Tokens) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield (context, token) for all that a stock engine generates, as indices of tokens.

    A path is a request of its own: the prefix, then its own thread. At a join the paths are
    read again, as the plain text that they are. Separators and headers are the engine's.
    """
    tags = tag_at(tokens)
    opening: dict[int, Block] = {block.fork: block for block in blocks(tags)}

    def go(context: list[int], start: int, end: int) -> Iterator[tuple[tuple[int, ...], int]]:
        at = start
        while at < end:
            if tokens.free[at]:
                yield tuple(context), at
            context.append(at)
            block = opening.get(at)
            at += 1
            if block is not None:
                for _, last in block.paths:
                    yield from go(list(context), at, last + 1)
                    at = last + 1
                context += range(block.fork + 1, at)

    return go([], 0, len(tokens.ids))


@given(turns(max_depth=3))
@example(NESTED)
@example(TWICE)
def test_tree_trains_what_a_stock_engine_generates(message: Message) -> None:
    tokens = numbered(lower(message, small_tokenizer()))
    layout = find_lowering("tree")(tokens)
    seen = dense_mask(layout).numpy()
    trained: list[tuple[tuple[int, ...], int]] = []
    for row in np.flatnonzero(layout.loss_mask).tolist():
        parent = int(layout.parent[row])
        context = np.flatnonzero(seen[parent])
        at = layout.position_ids[context]
        # A stock engine counts positions from 0 without a gap, and no two tokens share one.
        assert sorted(at.tolist()) == list(range(len(context)))
        assert layout.position_ids[row] == len(context)
        ordered = context[np.argsort(at)]
        assert ordered[-1] == parent
        trained.append((tuple(layout.input_ids[ordered].tolist()), int(layout.input_ids[row])))
    expected = list(engine(tokens))
    assert max(Counter(token for _, token in expected).values(), default=1) == 1
    assert {token for _, token in expected} == set(np.flatnonzero(tokens.free).tolist())
    # All of it, each once; the first token of a document is predicted by nothing.
    assert sorted(trained) == sorted((c, t) for c, t in expected if c)


@given(turns(max_depth=3))
@example(TWICE)
def test_tree_lays_the_chain_first_and_copies_only_later_paths(message: Message) -> None:
    tokens = numbered(lower(message, small_tokenizer()))
    layout = find_lowering("tree")(tokens)
    n = len(tokens.ids)
    assert layout.input_ids[:n].tolist() == layout.position_ids[:n].tolist() == list(range(n))
    assert np.array_equal(dense_mask(layout.truncate(n)).numpy(), np.tri(n, dtype=np.bool_))
    copies = Counter(layout.input_ids.tolist())
    expected = Counter(range(n))
    ends = {tag: block.paths[i - 1][1] for block in blocks(tag_at(tokens))
            for i, (tag, _) in enumerate(block.paths) if i}  # fmt: skip
    for block in blocks(tag_at(tokens)):
        for tag, last in block.paths[1:]:
            expected.update(range(ends[tag] + 1, last + 1))
    assert copies == expected
    # One interval serves one level of branches, however many blocks there are.
    assert layout.depth <= compile_document(message, small_tokenizer()).depth


def test_tree_trains_no_end_to_predict_a_label() -> None:
    # The released code of ThreadWeaver predicts a path's first label from the sequence's end.
    layout = compile_document(TWICE, small_tokenizer(), "tree")
    vocabulary = Vocabulary.of(small_tokenizer())
    end = vocabulary.tag_ids[Tag.END_PATH]
    parents = layout.parent[layout.loss_mask]
    following = layout.input_ids[layout.loss_mask][layout.input_ids[parents] == end]
    assert len(following) == 0
    starts = layout.input_ids == vocabulary.tag_ids[Tag.PATH]
    assert starts.any()
    assert not layout.loss_mask[starts].any()


# shared


@given(message=turns(max_depth=3), k=st.integers(1, 9))
@example(message=NESTED, k=1)
@example(message=TWICE, k=3)
def test_shared_equals_its_definition(message: Message, k: int) -> None:
    tokenizer = small_tokenizer()
    tokens = lower(message, tokenizer)
    places = place_tokens(message, tokens, tokenizer)
    law = compile_document(message, tokenizer)
    seen = pairs(places)
    n = len(places)
    outermost = [place[0][0] if place else -1 for place in places]
    start: dict[int, int] = {}
    for block, position in zip(outermost, law.position_ids.tolist(), strict=True):
        start[block] = min(start.get(block, position), position)
    rounds = [
        (p - start[b]) // k for b, p in zip(outermost, law.position_ids.tolist(), strict=True)
    ]
    expected = seen.copy()
    for q in range(n):
        for other in range(n):
            if outermost[q] == outermost[other] >= 0:
                earlier = rounds[other] < rounds[q]
                expected[q, other] = earlier or (rounds[other] == rounds[q] and seen[q, other])

    layout = find_lowering(f"shared({k})")(numbered(tokens))
    source = layout.input_ids
    assert sorted(source.tolist()) == list(range(n))
    assert np.array_equal(dense_mask(layout).numpy(), expected[np.ix_(source, source)])
    assert np.array_equal(layout.position_ids, law.position_ids[source])
    assert np.array_equal(layout.loss_mask, law.loss_mask[source])
    parents = np.where(layout.parent >= 0, source[layout.parent], -1)
    assert np.array_equal(parents, law.parent[source])
    index = np.arange(n)
    assert (layout.parent < index).all()
    assert dense_mask(layout).numpy()[index, np.maximum(layout.parent, 0)].all()


@given(turns(max_depth=3))
@example(TWICE)
def test_rounds_longer_than_every_path_are_the_law(message: Message) -> None:
    layout = compile_document(message, small_tokenizer())
    assert compile_document(message, small_tokenizer(), f"shared({len(layout) + 1})") == layout


def test_with_rounds_of_one_token_paths_read_each_other_at_once() -> None:
    tokens = numbered(lower(TWICE, small_tokenizer()))
    [first, *_] = blocks(tag_at(tokens))
    law = find_lowering("multiverse")(tokens)
    layout = find_lowering("shared(1)")(tokens)
    row = {int(token): row for row, token in enumerate(layout.input_ids.tolist())}
    seen = dense_mask(layout).numpy()
    (path_1, end_1), (path_2, end_2) = first.paths
    crossed = 0
    for a in range(path_1, end_1 + 1):
        for b in range(path_2, end_2 + 1):
            before = law.position_ids[a] < law.position_ids[b]
            after = law.position_ids[a] > law.position_ids[b]
            assert seen[row[b], row[a]] == before
            assert seen[row[a], row[b]] == after
            crossed += bool(before) + bool(after)
    assert crossed > 0
    with pytest.raises(Unsupported, match="at least one token"):
        find_lowering("shared(0)")
    tokens = lower(mvspec.parse(CANONICAL), small_tokenizer())
    assert find_lowering(f"shared({10**30})")(tokens) == find_lowering("shared(100000)")(tokens)


# sequential and autoregressive


@given(turns(max_depth=3))
@example(NESTED)
def test_sequential_is_the_whole_text_plain_causal(message: Message) -> None:
    layout = compile_document(message, small_tokenizer(), "sequential")
    ids = Vocabulary.of(small_tokenizer()).encode(mvspec.render(message))
    assert layout.input_ids.tolist() == ids
    assert layout.position_ids.tolist() == list(range(len(ids)))
    assert layout.parent.tolist() == list(range(-1, len(ids) - 1))
    assert layout.loss_mask.tolist() == [i > 0 for i in range(len(ids))]
    assert np.array_equal(dense_mask(layout).numpy(), np.tri(len(ids), dtype=np.bool_))


def test_autoregressive_keeps_the_paths_and_drops_the_structure() -> None:
    layout = compile_document(NESTED, small_tokenizer(), "autoregressive")
    text = Vocabulary.of(small_tokenizer()).decode(layout.input_ids)
    assert text == (
        "<Think>\nLet me see.\nLet's think in parallel.\nThe sum is 5.\nLet's think in parallel.\n"
        "It is 5.\nAlso 5.\nSo 5 it is.\nThe product is 6.\nDone.\n</Think>\n\nAnswer: 5 and 6"
    )
    assert layout.depth == 0
    assert layout.loss_mask[1:].all()


@given(turns(max_depth=3))
@example(NESTED)
def test_flatten_leaves_no_block_and_loses_no_text(message: Message) -> None:
    flat = flatten(message)
    assert not list(flat.walk(mvspec.Parallel))
    kept = "".join(item.text for item in flat.walk(mvspec.Text)).replace("\n", "")
    conclusions = {id(t) for c in message.walk(mvspec.Conclusion) for t in c.walk(mvspec.Text)}
    texts = [t.text for t in message.walk(mvspec.Text) if id(t) not in conclusions]
    assert kept == "".join(texts).replace("\n", "")
    assert flatten(flat) == flat


# All of them


@given(
    name=st.sampled_from(
        ["multiverse", "autoregressive", "sequential", "tree", "official", "shared(2)"]
    ),
    message=turns(max_depth=2),
)
@example(name="multiverse", message=NESTED)
@example(name="tree", message=NESTED)
@example(name="official", message=TWICE)
@example(name="shared(2)", message=TWICE)
def test_a_conversation_lowers_to_the_turn_after_a_prompt(name: str, message: Message) -> None:
    document = mvspec.document(mvspec.user("<Path>?"), message)
    layout = compile_document(document, CHAT, name)
    prompt = len(compile_document(mvspec.document(mvspec.user("<Path>?")), CHAT))
    alone = compile_document(message, CHAT, name)
    assert not layout.loss_mask[:prompt].any()
    assert layout.position_ids[:prompt].tolist() == list(range(prompt))
    # The turn's first token has the prompt as its parent; the end of turn comes on top.
    learnt = Counter(alone.input_ids[alone.loss_mask].tolist())
    first = compile_document(message, CHAT, name).input_ids[:1].tolist()
    learnt.update(first)
    learnt[int(CHAT.eos_token_id)] += 1
    assert Counter(layout.input_ids[layout.loss_mask].tolist()) == learnt
    # What a prompt's positions move by is the same for every token.
    if name != "tree":
        middle = slice(prompt, prompt + len(alone))
        assert np.array_equal(layout.position_ids[middle], alone.position_ids + prompt)
        moved = dense_mask(layout).numpy()[middle, middle]
        assert np.array_equal(moved, dense_mask(alone).numpy())
        assert dense_mask(layout).numpy()[middle, :prompt].all()
    if name != "autoregressive" and name != "tree":
        ids = layout.input_ids if name != "shared(2)" else lower(document, CHAT).ids
        found = layout_from_ids(ids, CHAT, name, prompt=prompt)
        assert np.array_equal(found.position_ids, layout.position_ids)
        assert np.array_equal(dense_mask(found), dense_mask(layout))


CHAT = chat_tokenizer()


def test_unknown_lowerings_are_refused_by_name() -> None:
    for name in ("", "parallel", "shared", "shared()", "shared(-1)", "shared(1) "):
        with pytest.raises(Unsupported, match="no lowering is named"):
            compile_document(NESTED, small_tokenizer(), name)
    with pytest.raises(Unsupported, match="changes the text"):
        layout_from_ids([0], small_tokenizer(), "autoregressive")
    with pytest.raises(Unsupported, match="fill it first"):
        compile_document(mvspec.assistant(mvspec.gen("x")), small_tokenizer(), "autoregressive")
