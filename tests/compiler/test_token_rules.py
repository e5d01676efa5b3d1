"""What a model may choose, as token ids: equal to asking the machine about every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from random import Random

import numpy as np
import pytest
from bpe import loose_tokenizer, small_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from qwen import byte_characters, qwen_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import mvspec
from mvspec.compiler import Vocabulary, add_tags
from mvspec.compiler.token_rules import TokenRules
from mvspec.law.automaton import TagAutomaton, TagOrText
from mvspec.law.limits import Limits
from mvspec.law.tags import Tag

ENDS = ("<|endoftext|>", "<|im_end|>")

# Tokens that no training would make, each a trap: fixed text with free text after it, free text
# over several lines, tags and their parts in plain characters, half a character.
TOKENS = (
    *("\n1", "\n1:", "\n1: ", "\n1: a", "\n1: a\n", "\n1: a\nb", "\n1: \n", "\n1: \n\n"),
    *("\n1:\n", "\n1: <", "\n1: </Goal>", "1: ", ": a", ": \n", " a", " \n", " a\n", " <", "  "),
    *("a\n", "\n\n", "\n\n\n", "\n\na", "\n \n", "\na\n", "\n<", "<P", "</", "</P", "Path>", "th>"),
    *("h>", ">", ">\n", "></Path>", " <Goal>", "</Path>x", "<Path>\n", "Think>", "<<Path", "\r\n"),
    *("\n\r", "\n1.1:", "1.1: "),
)  # fmt: skip


@cache
def awkward_tokenizer() -> Tokenizer:
    """A byte-level one with `TOKENS` too; it encodes bytewise, and every second id is a gap."""
    characters = byte_characters()
    texts = [text.encode() for text in (*TOKENS, *ENDS, "<tool_call>", *Tag)]
    texts += [bytes([byte]) for byte in range(256) if bytes([byte]) not in texts]
    texts += ["é".encode()[:1] + b">", b"a" + "答".encode()[:2], "答\n".encode()[1:]]
    tokens = ["".join(characters[byte] for byte in text) for text in texts]
    tokenizer = Tokenizer(models.BPE({token: 2 * id for id, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ENDS])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    add_tags(tokenizer)
    return tokenizer


SMALL = [small_tokenizer, loose_tokenizer, awkward_tokenizer]
Make = Callable[[], Tokenizer]


@cache
def rules_of(make: Make) -> TokenRules:
    tokenizer = make()
    return TokenRules(Vocabulary.of(tokenizer), [tokenizer.token_to_id(end) for end in ENDS])


@cache
def kinds_of(rules: TokenRules) -> list[NDArray[np.bool_]]:
    """What a model in `Play` chooses among: tags, ends of a line, awkward text, any text."""
    ids = [[id] for id in range(rules.size)]
    texts = rules.vocabulary.backend.decode_batch(ids, skip_special_tokens=False)
    line = np.array([text.endswith("\n") for text in texts])
    awkward = np.array([any(c in text for c in "<>\n\ufffd") for text in texts])
    tags = np.isin(np.arange(rules.size), list(rules.vocabulary.tag_ids.values()))
    text = ~tags & ~np.isin(np.arange(rules.size), list(rules.ends))
    return [tags, line, awkward & text, text]


def id_of(rules: TokenRules, text: str) -> int:
    """The id of the token that is this text."""
    return next(id for id in range(rules.size) if rules.vocabulary.decode([id]) == text)


def truth(rules: TokenRules, machine: TagAutomaton, thread: int) -> NDArray[np.bool_]:
    """What `allowed` should be, by asking the machine about each token."""
    out = np.zeros(rules.size, dtype=np.bool_)
    end = machine.expect(thread).end
    added = rules.vocabulary.backend.get_added_tokens_decoder()
    for id in range(rules.size):
        try:
            event = rules.event(id)
        except ValueError:
            continue  # a gap
        if id in rules.ends:
            out[id] = end
        elif isinstance(event, Tag) or id not in added or not added[id].special:
            out[id] = machine.allows(thread, event)
    return out


def check(rules: TokenRules, machine: TagAutomaton, thread: int) -> None:
    wrong = np.flatnonzero(rules.allowed(machine, thread) != truth(rules, machine, thread))
    assert [(int(id), rules.event(int(id))) for id in wrong[:5]] == []


class Play:
    """A model that chooses allowed tokens, and an engine that writes what it has to."""

    def __init__(self, rules: TokenRules, limits: Limits, *, headers: bool = True) -> None:
        self.rules = rules
        self.headers = headers
        self.machine = TagAutomaton(limits=limits, tokens=self.width)
        self.written: dict[int, list[int | tuple[int, ...]]] = {0: []}
        self.ended = False
        self.kinds = kinds_of(rules)

    def width(self, text: str) -> int:
        return len(self.rules.vocabulary.encode(text))

    def push(self, thread: int, event: TagOrText, ids: Sequence[int]) -> None:
        step = self.machine.push(thread, event, len(ids))
        self.written[thread] += ids
        if step.forked:
            self.written[thread].append(step.forked)
            self.written |= {path: [] for path in step.forked}
            for path in step.forked:
                label = self.machine.threads[path].label
                self.write_header(path, "\n", Tag.PATH, f"\n{label}:")
        if step.joined is not None:
            self.write_header(step.joined, "\n", Tag.CONCLUSION, "\n")

    def write_header(self, thread: int, *events: TagOrText) -> None:
        """Write it all, or leave it to the model, as far as the machine is concerned."""
        if self.headers:
            before = len(self.written[thread])
            for event in events:
                self.write(thread, event)
            header = "".join(map(str, events))
            assert self.written[thread][before:] == self.rules.vocabulary.encode(header)

    def write(self, thread: int, event: TagOrText) -> None:
        self.push(thread, event, self.rules.vocabulary.encode(str(event)))

    def close(self, thread: int) -> None:
        for event in self.machine.closing(thread):
            self.write(thread, event)

    def step(self, who: int, what: int) -> None:
        """Let one thread go on; tags, newlines and parts of tags are common."""
        thread = self.machine.live[who % len(self.machine.live)]
        allowed = self.rules.allowed(self.machine, thread)
        closing = self.machine.expect(thread).closing
        if closing or not allowed.any():
            # Never a dead end.
            assert self.machine.closing(thread)
            assert closing in ((), self.machine.closing(thread))
            self.close(thread)
            return
        # Turns end seldom, so that there is much in them.
        among = self.kinds[what % 4] & allowed if what % 101 else allowed
        ids = np.flatnonzero(among if among.any() else allowed)
        id = int(ids[what // 4 % len(ids)])
        if id in self.rules.ends:
            self.ended = True
        else:
            self.push(thread, self.rules.event(id), [id])

    def finish(self) -> None:
        """Close what is open, and check that the result is a document within the limits."""
        while not self.machine.expect(0).end:
            self.close(self.machine.live[-1])  # those inside come last
        text = self.rules.vocabulary.decode(self.ids())
        assert mvspec.render(mvspec.parse(text)) == text
        limits = self.machine.limits
        assert self.machine.count == len(self.ids())
        assert limits.max_tokens is None or self.machine.count <= limits.max_tokens
        position = self.machine.threads[0].position
        assert limits.max_position is None or position <= limits.max_position

    def ids(self, thread: int = 0) -> list[int]:
        out: list[int] = []
        for item in self.written[thread]:
            out += [item] if isinstance(item, int) else [i for t in item for i in self.ids(t)]
        return out


limits = st.builds(
    Limits,
    max_depth=st.integers(0, 3),
    max_paths=st.one_of(st.none(), st.integers(1, 4)),
    max_position=st.one_of(st.none(), st.integers(0, 90)),
    max_tokens=st.one_of(st.none(), st.integers(0, 200)),
)
choices = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9999)), max_size=120)


@pytest.mark.parametrize("make", SMALL)
@given(limits=limits, choices=choices, headers=st.booleans())
def test_allowed_is_what_the_machine_allows(
    make: Make, limits: Limits, choices: list[tuple[int, int]], headers: bool
) -> None:
    play = Play(rules_of(make), limits, headers=headers)
    for number, (who, what) in enumerate(choices):
        if play.ended:
            break
        thread = play.machine.live[who % len(play.machine.live)]
        if number % 6 == 0 or play.machine.expect(thread).closing:
            check(play.rules, play.machine, thread)
        play.step(who, what)
    for thread in play.machine.live:
        check(play.rules, play.machine, thread)
    play.finish()


@pytest.mark.parametrize("make", [*SMALL, qwen_tokenizer])
def test_20000_allowed_tokens_always_end_in_a_document(make: Make) -> None:
    random = Random(20)
    tokens = 0
    rules = rules_of(make)
    while tokens < 20_000:
        limits = Limits(
            max_depth=random.choice((0, 1, 2, 5)),
            max_paths=random.choice((None, 1, 3)),
            max_position=random.choice((None, random.randrange(200), random.randrange(2000))),
            max_tokens=random.choice((None, random.randrange(300), random.randrange(3000))),
        )
        play = Play(rules, limits, headers=random.random() < 0.7)
        for _ in range(random.randrange(1500)):
            if play.ended:
                break
            play.step(random.randrange(99), random.randrange(10**6))
        play.finish()
        tokens += max(play.machine.count, 1)


@pytest.mark.parametrize("make", SMALL)
@given(choices=choices)
@example(choices=[])
def test_a_machine_that_is_not_strict_takes_any_text(
    make: Make, choices: list[tuple[int, int]]
) -> None:
    rules = rules_of(make)
    machine = TagAutomaton(strict=False)
    for _, what in choices:
        allowed = np.flatnonzero(rules.allowed(machine, machine.cursor))
        event = rules.event(int(allowed[what % len(allowed)]))
        if str(event) not in ENDS:
            machine.feed(event)
    check(rules, machine, machine.cursor)


BLOCK: tuple[TagOrText, ...] = (
    *(Tag.PARALLEL, "\n", Tag.GOAL, "\n", Tag.OUTLINE, "\n1: a\n", Tag.END_OUTLINE, "\n"),
    *(Tag.OUTLINE, "\n2: b\n", Tag.END_OUTLINE, "\n"),
)
PATHS: tuple[TagOrText, ...] = (*BLOCK, Tag.END_GOAL, "\n", Tag.PATH, "\n1:")
JOIN: tuple[TagOrText, ...] = (
    *(*PATHS, " a\n", Tag.END_PATH, "\n", Tag.PATH, "\n2:", " b\n", Tag.END_PATH),
    *("\n", Tag.CONCLUSION, "\n"),
)


@pytest.mark.parametrize("make", SMALL)
@pytest.mark.parametrize("limit", ["max_position", "max_tokens"])
def test_what_a_budget_leaves_token_by_token(make: Make, limit: str) -> None:
    rules = rules_of(make)
    encode = rules.vocabulary.encode
    thought: tuple[TagOrText, ...] = (Tag.THINK, "\n")
    starts = [
        *((), ("a",), ("a\n",), ("<",), thought, (*thought, "\n"), (*thought, "a")),
        *((*BLOCK[:5],), (*BLOCK[:5], "\n1: "), (*BLOCK[:5], "\n1: a"), (*BLOCK[:5], "\n1: a\n")),
        *(BLOCK[:6], BLOCK[:7], BLOCK, PATHS, (*PATHS, " a"), (*PATHS, " "), (*PATHS, " a\n")),
        *(JOIN, (*JOIN, "a"), (*JOIN, "\n"), (*JOIN, "a\n"), (*JOIN, "a\n", Tag.END_CONCLUSION)),
        (*JOIN, "a\n", Tag.END_CONCLUSION, "\n", Tag.END_PARALLEL),
    ]
    for events in starts:
        fitting = 0
        for budget in range(200):
            limits = Limits.model_validate({limit: budget})
            machine = TagAutomaton(limits=limits, tokens=lambda text: len(encode(text)))
            try:
                for event in events:
                    machine.feed(event, len(encode(str(event))))
            except mvspec.MvspecError:
                continue
            check(rules, machine, machine.cursor)
            fitting += 1
            if fitting == 5:  # the budget is wide from here on
                break
        assert fitting == 5


@pytest.mark.parametrize(
    ("events", "limits"),
    [
        ((), Limits()),
        (("So </Pa",), Limits(max_tokens=20)),
        (BLOCK[:5], Limits()),
        ((*BLOCK[:5], "\n1: a"), Limits(max_position=28)),
        (BLOCK, Limits(max_paths=2)),
        (PATHS, Limits(max_tokens=45)),
        ((*PATHS, " a"), Limits(max_tokens=45)),
        ((*JOIN, "a\n"), Limits()),
        ((*JOIN, "a\n", Tag.END_CONCLUSION, "\n", Tag.END_PARALLEL), Limits(max_position=100)),
    ],
)  # fmt: skip
def test_with_qwens_151677_tokens(events: tuple[TagOrText, ...], limits: Limits) -> None:
    rules = rules_of(qwen_tokenizer)
    encode = rules.vocabulary.encode
    machine = TagAutomaton(limits=limits, tokens=lambda text: len(encode(text)))
    for event in events:
        machine.feed(event, len(encode(str(event))))
    assert rules.allowed(machine, machine.cursor).any()
    check(rules, machine, machine.cursor)


def test_free_text_may_follow_fixed_text_in_one_token() -> None:
    rules = rules_of(awkward_tokenizer)
    machine = TagAutomaton()
    for event in BLOCK[:5]:
        machine.feed(event)
    allowed = rules.allowed(machine, 0)
    found = {str(rules.event(int(id))) for id in np.flatnonzero(allowed)}
    assert found == {
        *("\n", "\n1", "\n1:", "\n1: ", "\n1: a", "\n1: a\n", "\n1: \n", "\n1: <"),
    }


def test_no_token_completes_a_tag_in_plain_characters() -> None:
    rules = rules_of(awkward_tokenizer)
    machine = TagAutomaton()
    machine.feed("</Pat")
    allowed = rules.allowed(machine, 0)
    assert not allowed[id_of(rules, "h>")]
    assert allowed[id_of(rules, "th>")]
    machine.feed("<")
    allowed = rules.allowed(machine, 0)
    assert allowed[id_of(rules, "h>")]
    assert not allowed[id_of(rules, "Path>")]
    assert allowed[id_of(rules, ">")]


def test_control_tokens_are_never_text_and_other_added_tokens_are() -> None:
    rules = rules_of(small_tokenizer)
    allowed = rules.allowed(TagAutomaton(), 0)
    assert not allowed[id_of(rules, "<|im_start|>")]
    assert allowed[id_of(rules, "<tool_call>")]


def test_an_end_of_turn_never_ends_an_open_structure() -> None:
    rules = rules_of(small_tokenizer)
    end = id_of(rules, "<|im_end|>")
    machine = TagAutomaton()
    assert rules.allowed(machine, 0)[end]
    machine.feed(Tag.THINK)
    assert not rules.allowed(machine, 0)[end]
    # An end that is not special is no text either.
    call = id_of(rules, "<tool_call>")
    machine.feed("\n")
    assert rules.allowed(machine, 0)[call]
    assert not TokenRules(rules.vocabulary, [call]).allowed(machine, 0)[call]


def test_an_event_is_a_tag_or_a_text_that_is_not_empty() -> None:
    rules = rules_of(awkward_tokenizer)
    for tag in Tag:
        assert rules.event(id_of(rules, tag.value)) is tag
    for id in rules.vocabulary.encode("é"):
        assert rules.event(id) == "\ufffd"
    for id in (1, -1, rules.size):  # every second id is a gap
        with pytest.raises(ValueError, match=f"has no token {id}"):
            rules.event(id)


@pytest.mark.parametrize("id", [1, -1, 10**6])
def test_an_end_must_be_a_token(id: int) -> None:
    with pytest.raises(ValueError, match=f"has no token {id}"):
        TokenRules(Vocabulary.of(awkward_tokenizer()), [id])


def test_an_end_must_not_be_a_tag() -> None:
    vocabulary = Vocabulary.of(small_tokenizer())
    with pytest.raises(ValueError, match="a tag cannot end a turn"):
        TokenRules(vocabulary, [vocabulary.tag_ids[Tag.PATH]])


def test_masks_are_shared_and_cannot_be_written() -> None:
    rules = rules_of(small_tokenizer)
    machine = TagAutomaton()
    machine.feed("a")
    first = rules.allowed(machine, 0)
    machine.feed("b")
    assert rules.allowed(machine, 0) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = True


def test_a_thread_that_is_not_there_is_refused_as_the_machine_does() -> None:
    with pytest.raises(mvspec.errors.VerifyError, match="no such thread"):
        rules_of(small_tokenizer).allowed(TagAutomaton(), 1)
