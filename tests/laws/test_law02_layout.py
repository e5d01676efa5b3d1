"""Law 2: the vectorised layout equals the machine and the definition, also at every prefix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bpe import chat_tokenizer, loose_tokenizer, small_tokenizer
from definition import parents, positions
from hypothesis import example, given
from hypothesis import strategies as st
from places import TOKENIZERS, pairs, place_tokens, tag_at
from qwen import qwen_tokenizer
from strategies import texts, turns
from traces import CANONICAL

import mvspec
from mvspec.compiler import (
    Vocabulary,
    compile_document,
    dense_mask,
    layout_from_ids,
    lower,
)
from mvspec.compiler.vocabulary import TAGS
from mvspec.errors import MvspecError, VerifyError
from mvspec.law.automaton import PlacedEvent, TagAutomaton
from mvspec.law.tags import Tag
from mvspec.law.threads import sees
from mvspec.tree.ir import Message

MANY = pytest.mark.parametrize("make", TOKENIZERS)
NESTED = mvspec.parse(CANONICAL).messages[0]
CHAT = chat_tokenizer()


def cuts(length: int, most: int = 60) -> list[int]:
    """Prefix lengths: all of a short text, `most` or so of a long one."""
    return sorted({*range(0, length, 1 + length // most), length})


def run(ids: Any, tokenizer: Any, position: int = 0) -> list[PlacedEvent]:
    """What the machine says of every token."""
    vocabulary = Vocabulary.of(tokenizer)
    machine = TagAutomaton(strict=False, position=position)
    steps = []
    for index in ids.tolist():
        number = int(vocabulary.tag_of_id[index])
        steps.append(machine.feed(TAGS[number] if number >= 0 else vocabulary.decode([index])))
    return steps


@MANY
@given(message=turns(max_depth=3))
@example(message=NESTED)
def test_layout_equals_definition(make: Any, message: Message) -> None:
    tokenizer = make()
    lowered = lower(message, tokenizer)
    layout = compile_document(message, tokenizer)
    places = place_tokens(message, lowered, tokenizer)
    seen = pairs(places)
    assert np.array_equal(dense_mask(layout).numpy(), seen)
    assert layout.position_ids.tolist() == positions(seen.tolist())
    assert layout.parent.tolist() == parents(places)
    assert layout.input_ids.tolist() == lowered.ids.tolist()
    free = lowered.free & (layout.parent >= 0)
    assert np.array_equal(layout.loss_mask, free)
    assert np.array_equal(lowered.free, ~lowered.forced)


@MANY
@given(message=turns(max_depth=3))
@example(message=NESTED)
def test_layout_equals_machine(make: Any, message: Message) -> None:
    tokenizer = make()
    layout = compile_document(message, tokenizer)
    steps = run(layout.input_ids, tokenizer)
    assert layout.position_ids.tolist() == [step.position for step in steps]
    assert layout.parent.tolist() == [step.parent for step in steps]
    chains = [step.chain for step in steps]
    known = {chain: number for number, chain in enumerate(dict.fromkeys(chains))}
    table = np.array([[sees(q, k) for k in known] for q in known], dtype=np.bool_)
    rows = np.array([known[chain] for chain in chains], dtype=np.int64)
    if len(rows):
        expected = np.tril(table[rows[:, None], rows[None, :]])
        assert np.array_equal(dense_mask(layout).numpy(), expected)


@MANY
@given(message=turns(max_depth=3), canonical=turns(max_depth=2, canonical=True))
@example(message=NESTED, canonical=NESTED)
def test_every_prefix_of_the_ids_has_the_layout_of_the_whole(
    make: Any, message: Message, canonical: Message
) -> None:
    tokenizer = make()
    for each in (message, canonical):
        whole = compile_document(each, tokenizer)
        ids = whole.input_ids
        assert layout_from_ids(ids, tokenizer) == whole
        for cut in cuts(len(ids)):
            assert layout_from_ids(ids[:cut], tokenizer) == whole.truncate(cut)


@pytest.mark.parametrize("make", [small_tokenizer, loose_tokenizer])
def test_a_prefix_that_ends_in_a_header_is_forced_up_to_its_end(make: Any) -> None:
    lowered = lower(NESTED, make())
    tags = tag_at(lowered)
    inside = 0
    for cut in range(1, len(lowered.ids) + 1):
        found = layout_from_ids(lowered.ids[:cut], make())
        expected = lowered.free[:cut] & (found.parent >= 0)
        assert np.array_equal(found.loss_mask, expected)
        inside += bool(lowered.forced[cut - 1]) and cut - 1 not in tags
    assert inside >= 12  # separators and labels of four paths, both newlines of two joins


@pytest.mark.parametrize("make", [small_tokenizer, qwen_tokenizer])
def test_where_no_label_was_written_only_separator_and_tag_are_forced(make: Any) -> None:
    vocabulary = Vocabulary.of(make())
    tag = vocabulary.tag_ids
    head = [tag[Tag.PARALLEL], tag[Tag.GOAL], tag[Tag.OUTLINE], tag[Tag.END_OUTLINE]]
    head += [tag[Tag.END_GOAL], *vocabulary.encode("\n"), tag[Tag.PATH]]
    for text in ("\nnote: 1:", "\n1:\n", "\n1 :", "text"):
        ids = [*head, *vocabulary.encode(text), tag[Tag.END_PATH]]
        if text == "\n1:\n":
            assert vocabulary.encode(":\n") != vocabulary.encode(":") + vocabulary.encode("\n")
        layout = layout_from_ids(ids, make())
        assert layout.loss_mask.tolist() == [i > 0 and i not in (5, 6) for i in range(len(ids))]


@given(message=turns(max_depth=2), question=texts(), data=st.data())
def test_prompt_and_forced_are_what_an_engine_used(
    message: Message, question: str, data: st.DataObject
) -> None:
    tokenizer = CHAT
    question += "<Parallel></Goal><|im_start|>"
    document = mvspec.document(mvspec.user(question), message)
    whole = compile_document(document, tokenizer)
    prompt = len(compile_document(mvspec.document(mvspec.user(question)), tokenizer))
    body = lower(message, tokenizer)
    end = prompt + len(body.ids)
    assert whole.input_ids[prompt:end].tolist() == body.ids.tolist()
    # The template's newline after the end of turn is not the model's; an engine never sees it.
    answered = whole.truncate(end + 1)
    found = layout_from_ids(answered.input_ids, tokenizer, prompt=prompt)
    assert found == answered
    # The turn as the machine has it, which counts positions from the prompt's length.
    steps = run(body.ids, tokenizer, position=prompt)
    assert answered.position_ids[prompt:end].tolist() == [step.position for step in steps]
    assert not answered.loss_mask[:prompt].any()
    assert answered.loss_mask[-1]
    flags = np.zeros(len(answered), dtype=np.bool_)
    flags[prompt:] = data.draw(
        st.lists(st.booleans(), min_size=len(flags) - prompt, max_size=len(flags) - prompt)
    )
    given_ = layout_from_ids(answered.input_ids, tokenizer, prompt=prompt, forced=flags)
    expected = ~flags & (answered.parent >= 0)
    expected[:prompt] = False
    assert np.array_equal(given_.loss_mask, expected)
    assert np.array_equal(given_.position_ids, answered.position_ids)


# Where <Think> may stand is grammar, not layout: every turn of a conversation may have one.
EVENTS: list[Tag | str] = [*(t for t in Tag if t.partner not in (Tag.THINK, Tag.END_THINK)), "x"]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, len(EVENTS) - 1)), max_size=60))
def test_layout_and_machine_refuse_the_same(choices: list[tuple[bool, int]]) -> None:
    vocabulary = Vocabulary.of(small_tokenizer())

    def ids(events: list[Tag | str]) -> list[int]:
        return [index for event in events for index in vocabulary.encode(event)]

    machine = TagAutomaton(strict=False)
    taken: list[Tag | str] = []
    steps: list[PlacedEvent] = []
    for follow, number in choices:
        legal = sorted(machine.threads[machine.cursor].tags() & set(EVENTS))
        event = legal[number % len(legal)] if follow and legal else EVENTS[number]
        try:
            steps.append(machine.feed(event))
        except VerifyError:
            with pytest.raises(VerifyError, match=f"token {len(taken)}:"):
                layout_from_ids(ids([*taken, event]), vocabulary)
        else:
            taken.append(event)
    layout = layout_from_ids(ids(taken), vocabulary)
    assert layout.position_ids.tolist() == [step.position for step in steps]
    assert layout.parent.tolist() == [step.parent for step in steps]


def test_ids_that_are_no_layout_are_refused() -> None:
    vocabulary = Vocabulary.of(small_tokenizer())
    for wrong in ([-1], [vocabulary.size], [0, 1, 10**6]):
        with pytest.raises(MvspecError, match="not in the vocabulary"):
            layout_from_ids(wrong, vocabulary)
    with pytest.raises(MvspecError, match="prompt=3"):
        layout_from_ids([0, 1], vocabulary, prompt=3)
    with pytest.raises(MvspecError, match="1 forced flags for 2 tokens"):
        layout_from_ids([0, 1], vocabulary, forced=[True])
    assert len(layout_from_ids([], vocabulary)) == 0
    assert len(compile_document(mvspec.assistant(), small_tokenizer())) == 0


def test_layouts_of_different_depth_compare() -> None:
    # A prefix from before any block has no levels, a truncated layout has empty ones.
    whole = compile_document(NESTED, small_tokenizer())
    short = layout_from_ids(whole.input_ids[:5], small_tokenizer())
    assert (short.depth, whole.truncate(5).depth) == (0, 2)
    assert short == whole.truncate(5)
    assert short != whole.truncate(6)
    assert short != "a layout"
