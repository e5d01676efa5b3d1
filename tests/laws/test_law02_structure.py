"""Law 2: the machine equals the definition over all pairs, at every prefix; and law 4."""

from __future__ import annotations

from definition import Token, parents, positions, tokens, visible
from hypothesis import given
from strategies import turns

import mvspec
from mvspec.law.automaton import PlacedEvent, TagAutomaton
from mvspec.law.threads import sees
from mvspec.tree.ir import Message


def run(events: list[Token], *, strict: bool) -> list[PlacedEvent]:
    machine = TagAutomaton(strict=strict)
    return [machine.feed(token.event) for token in events]


@given(turns())
def test_the_definition_writes_what_render_writes(message: Message) -> None:
    assert "".join(token.event for token in tokens(message)) == mvspec.render(message)


@given(turns())
def test_machine_equals_definition(message: Message) -> None:
    events = tokens(message)
    places = [token.place for token in events]
    seen = visible(places)
    steps = run(events, strict=False)
    assert [step.position for step in steps] == positions(seen)
    assert [step.parent for step in steps] == parents(places)
    assert [step.token for step in steps] == list(range(len(events)))
    chains = [step.chain for step in steps]
    n = len(events)
    assert [[k <= q and sees(chains[q], chains[k]) for k in range(n)] for q in range(n)] == seen


@given(turns(canonical=True))
def test_the_strict_machine_takes_every_canonical_turn(message: Message) -> None:
    events = tokens(message)
    assert run(events, strict=True) == run(events, strict=False)
    pieces = TagAutomaton()
    for piece in mvspec.forms.multiverse.MULTIVERSE.pieces(message):
        pieces.feed(piece.tag or piece.text, width=1 if piece.tag else len(piece.text))
    assert pieces.count == len(events)
    assert pieces.expect(0).end


@given(turns())
def test_a_prefix_has_the_layout_of_the_whole(message: Message) -> None:
    # Steps are emitted one by one, before what follows is known; so this can only break if a
    # later event changed an earlier step. What can differ is the definition of a prefix.
    events = tokens(message)
    steps = run(events, strict=False)
    for cut in range(0, len(events), 1 + len(events) // 7):
        places = [token.place for token in events[:cut]]
        assert [step.position for step in steps[:cut]] == positions(visible(places))
        assert [step.parent for step in steps[:cut]] == parents(places)


@given(turns())
def test_law_4_positions_rise_along_visible_chains(message: Message) -> None:
    events = tokens(message)
    steps = run(events, strict=False)
    starts: dict[tuple[object, int], set[int]] = {}
    ends: dict[int, int] = {}
    seen_chain: set[object] = set()
    for q, step in enumerate(steps):
        for k in range(q):
            if sees(step.chain, steps[k].chain):
                assert steps[k].position < step.position
        if step.chain and step.chain not in seen_chain:
            seen_chain.add(step.chain)
            block = step.chain[-1][0]
            starts.setdefault((step.chain[:-1], block), set()).add(step.position)
        for block, _ in step.chain:
            ends[block] = max(ends.get(block, 0), step.position)
        if q and len(steps[q - 1].chain) > len(step.chain):
            assert step.position == ends[steps[q - 1].chain[-1][0]] + 1
    assert all(len(positions) == 1 for positions in starts.values())
