"""Law 10: no sequence of model choices crashes the machine or yields an unparsable result."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import mvspec
from mvspec.law.automaton import TagAutomaton, TagOrText
from mvspec.law.limits import Limits
from mvspec.law.tags import Tag

# Pieces that a tokenizer could have, chosen to be awkward: newlines with text around them, parts
# of tags and of labels.
PIECES = (
    *(" ", "\n", "a", " b", "x\n", "1: ", "1:", "<", "Path>", "</", "</Pa", "th>", "\n\n", " \n"),
    *("  ", "<Path>", "é", "\\frac{1}", "\n\nAnswer", ":\n", "</Think>", "2", "."),
)

limits = st.builds(
    Limits,
    max_depth=st.integers(0, 3),
    max_paths=st.one_of(st.none(), st.integers(1, 4)),
    max_position=st.one_of(st.none(), st.integers(0, 90)),
    max_tokens=st.one_of(st.none(), st.integers(0, 160)),
)


class Play:
    """A model that chooses at random, and a runtime that writes what the machine asks for."""

    def __init__(self, machine: TagAutomaton) -> None:
        self.machine = machine
        self.written: dict[int, list[TagOrText | tuple[int, ...]]] = {0: []}

    def push(self, thread: int, event: TagOrText) -> None:
        step = self.machine.push(thread, event)
        self.written[thread].append(event)
        if step.forked:
            self.written[thread].append(step.forked)
            self.written |= {path: [] for path in step.forked}

    def close(self, thread: int) -> bool:
        """Write the shortest ending; False where there is nothing to write."""
        events = self.machine.closing(thread)
        for event in events:
            self.push(thread, event)
        return bool(events)

    def text(self, thread: int = 0) -> str:
        return "".join(
            "".join(map(self.text, item)) if isinstance(item, tuple) else item
            for item in self.written[thread]
        )


@given(limits, st.data())
def test_whatever_is_chosen_the_result_parses(limits: Limits, data: st.DataObject) -> None:
    machine = TagAutomaton(limits=limits)
    play = Play(machine)
    choices = data.draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 999)), max_size=120))
    for who, what in choices:
        thread = machine.live[who % len(machine.live)]
        expect = machine.expect(thread)
        events: list[TagOrText] = sorted(expect.tags)
        if expect.fixed:
            events += [expect.fixed, expect.fixed[:1]]
        if expect.free or expect.fixed:
            events += PIECES[what % 3 :: 3]
        if expect.closing or not events:
            play.close(thread)
            continue
        event = events[what % len(events)]
        before = (machine.count, machine.live, expect)
        if machine.allows(thread, event):
            play.push(thread, event)
            continue
        try:
            machine.push(thread, event)
        except mvspec.MvspecError:
            assert (machine.count, machine.live, machine.expect(thread)) == before
        else:
            raise AssertionError(f"allows() refuses {event!r}, push() takes it")
    while play.close(machine.live[-1]):  # those inside come last
        pass
    assert machine.expect(0).end
    text = play.text()
    document = mvspec.parse(text)
    assert mvspec.render(document) == text
    if limits.max_tokens is not None:
        assert machine.count <= limits.max_tokens
    if limits.max_position is not None:
        assert machine.threads[0].position <= limits.max_position
    depth = max((block.depth for block in document.walk(mvspec.Parallel)), default=0)
    assert depth <= limits.max_depth
    if limits.max_paths is not None:
        assert all(len(b.paths) <= limits.max_paths for b in document.walk(mvspec.Parallel))


@given(st.lists(st.one_of(st.sampled_from(list(Tag)), st.sampled_from(PIECES)), max_size=60))
def test_any_event_is_taken_or_refused(events: list[TagOrText]) -> None:
    for strict in (True, False):
        machine = TagAutomaton(strict=strict)
        for event in events:
            allowed = machine.allows(machine.cursor, event)
            before = {number: thread.copy() for number, thread in machine.threads.items()}
            try:
                machine.feed(event)
            except mvspec.MvspecError:
                assert not allowed
                assert machine.threads == before
            else:
                assert allowed
