"""Law 6: in `multiverse` every token with loss has its flat predecessor as its parent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bpe import chat_tokenizer
from hypothesis import example, given
from places import TOKENIZERS
from strategies import texts, turns
from traces import CANONICAL

import mvspec
from mvspec.compiler import compile_document, lower, pack
from mvspec.errors import Unsupported
from mvspec.tree.ir import Message

NESTED = mvspec.parse(CANONICAL).messages[0]
CHAT = chat_tokenizer()


@pytest.mark.parametrize("make", TOKENIZERS)
@given(message=turns(max_depth=3))
@example(message=NESTED)
def test_loss_is_predicted_by_the_flat_predecessor(make: Any, message: Message) -> None:
    layout = compile_document(message, make())
    index = np.arange(len(layout))
    assert (layout.parent[layout.loss_mask] == index[layout.loss_mask] - 1).all()
    assert not layout.loss_mask[:1].any()
    assert layout.labels.dtype == np.int64
    assert np.array_equal(layout.labels != -100, layout.loss_mask)
    assert np.array_equal(layout.labels[layout.loss_mask], layout.input_ids[layout.loss_mask])


@pytest.mark.parametrize("make", TOKENIZERS)
@given(message=turns(max_depth=3))
@example(message=NESTED)
def test_forced_loss_adds_what_follows_its_parent(make: Any, message: Message) -> None:
    tokens = lower(message, make())
    plain = compile_document(message, make())
    more = compile_document(message, make(), forced_loss=True)
    added = more.loss_mask & ~plain.loss_mask
    index = np.arange(len(plain))
    follows = (plain.parent == index - 1) & (plain.parent >= 0)
    assert np.array_equal(added, tokens.forced & follows)
    assert not (plain.loss_mask & ~more.loss_mask).any()
    assert np.array_equal(more.position_ids, plain.position_ids)
    # Left out are the first tokens of all paths but a block's first, and of all joins.
    blocks = [len(block.paths) for block in message.walk(mvspec.Parallel)]
    assert int((tokens.forced & ~added).sum()) == sum(blocks)


@given(question=texts(), message=turns(max_depth=2))
def test_only_the_assistant_carries_loss(question: str, message: Message) -> None:
    document = mvspec.document(mvspec.system("Be kind."), mvspec.user(question), message)
    layout = compile_document(document, CHAT)
    tokens = lower(document, CHAT)
    turn = lower(message, CHAT)
    assert np.array_equal(layout.loss_mask, tokens.free & (layout.parent >= 0))
    # The turn's free tokens and the end of turn, which the model writes.
    assert int(tokens.free.sum()) == int(turn.free.sum()) + 1
    assert np.flatnonzero(layout.loss_mask)[-1] == len(layout) - 2
    rows = pack([layout, layout], 2 * len(layout) + 3)
    assert int((rows[0].labels != -100).sum()) == 2 * int(layout.loss_mask.sum())


def test_forced_loss_is_of_multiverse_only() -> None:
    for lowering in ("tree", "official", "shared(2)", "sequential"):
        with pytest.raises(Unsupported, match="no loss on forced tokens"):
            compile_document(NESTED, CHAT, lowering, forced_loss=True)
