"""Token ids that the automaton of tags lets a model choose next: masks for logits.

The automaton (mvspec/law/automaton.py) knows no tokenizer, and asking it about each of Qwen's
151,677 tokens takes a second. But few things about a text matter to it: how it meets what is
fixed, where its newlines are, whether it completes a tag. So texts are sorted by these once, and
the automaton is asked about one of all that are alike.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import VerifyError
from mvspec.law.automaton import Expect, TagAutomaton, TagOrText
from mvspec.law.tags import TAG, Tag

_Ids = NDArray[np.intp]

# What tells free texts apart; a text that may never come has the last kind. Lengths are told
# apart as far as the automaton does: a newline alone does not set a tag on a line of its own.
_NEWLINE, _LONG, _INNER, _NEVER = 1, 2, 4, 8

# A mask of Qwen's vocabulary is 152 kB; labels ("17.3: ") make new states without end.
_STATES, _MASKS = 512, 128


def _kind(text: str) -> int:
    if not text or (">" in text and TAG.search(text)):
        return _NEVER
    inner = "\n" in text and text.index("\n") < len(text) - 1
    return _NEWLINE * text.endswith("\n") + _LONG * (len(text) > 1) + _INNER * inner


class _Choice(NamedTuple):
    """The tokens of a state.

    Args:
        classes: an event, and the ids of all tokens that the automaton's limits treat like it.
        never: ids among them that may not come, since they complete a tag.
    """

    classes: tuple[tuple[TagOrText, tuple[_Ids, ...]], ...]
    never: _Ids


class TokenRules:
    """The token ids that a model may choose next (DESIGN: structure is enforced on tokens).

    Args:
        vocabulary: with its tags; make new rules when it has grown.
        ends: ids that end a turn. They are never text, so none of them ends an open structure.

    Raises:
        ValueError: an id in `ends` is no token's, or a tag's.

    >>> from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    >>> from mvspec.compiler import add_tags
    >>> alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    >>> tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    >>> tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    >>> tokenizer.decoder = decoders.ByteLevel()
    >>> _ = add_tags(tokenizer)
    >>> rules, automaton = TokenRules(Vocabulary.of(tokenizer)), TagAutomaton()
    >>> step = automaton.feed(Tag.PARALLEL)
    >>> [rules.event(int(id)) for id in rules.allowed(automaton, 0).nonzero()[0]]
    ['\\n']
    """

    def __init__(self, vocabulary: Vocabulary, ends: Collection[int] = ()) -> None:
        self.vocabulary = vocabulary
        self.size = vocabulary.size
        backend = vocabulary.backend
        self._events: list[TagOrText] = backend.decode_batch(
            [[id] for id in range(self.size)], skip_special_tokens=False
        )
        for tag, id in vocabulary.tag_ids.items():
            self._events[id] = tag
        for id in ends:
            if isinstance(self.event(id), Tag):
                raise ValueError(f"token {id} is {self.event(id)}: a tag cannot end a turn")
        self.ends = frozenset(ends)
        added = backend.get_added_tokens_decoder()
        no_text = {id for id, token in added.items() if token.special} | self.ends
        text_ids = (id for id, text in enumerate(self._events) if text and id not in no_text)
        # In the order of their texts: those with one beginning stand side by side.
        self._ids = np.array(sorted(text_ids, key=self._events.__getitem__), dtype=np.intp)
        self._texts = [str(self._events[id]) for id in self._ids.tolist()]
        self._kinds = np.array([_kind(text) for text in self._texts], dtype=np.int8)
        self._by_kind = lru_cache(_STATES)(self._split_by_kind)
        self._choice = lru_cache(_STATES)(self._choose)
        self._mask = lru_cache(_MASKS)(self._draw)

    def event(self, id: int) -> TagOrText:
        """Return a token as a tag or as its text (U+FFFD for half a character).

        Raises:
            ValueError: no token has this id.
        """
        event = self._events[id] if 0 <= id < self.size else ""
        if not event:
            raise ValueError(f"tokenizer {self.vocabulary.name} has no token {id}")
        return event

    def allowed(self, automaton: TagAutomaton, thread: int) -> NDArray[np.bool_]:
        """Return the tokens that a thread may take next.

        Returns:
            [vocabulary.size], read-only, shared between calls: a tag that the automaton allows,
            an end of turn where the turn may end, an ordinary text that the automaton allows.
            Where nothing is left but what `closing` writes, all may be False.

        Raises:
            VerifyError: the automaton has no such thread.
        """
        if thread not in automaton.threads:
            raise VerifyError(f"thread {thread}", "there is no such thread")
        state = automaton.threads[thread].expect()
        bounded = (automaton.limits.max_position, automaton.limits.max_tokens) != (None, None)
        answers = tuple(
            # Without a budget, only tags have limits: depth and paths.
            automaton.allows(thread, event) if bounded or isinstance(event, Tag) else True
            for event, _ in self._choice(state).classes
        )
        return self._mask(state, answers)

    def _draw(self, state: Expect, answers: tuple[bool, ...]) -> NDArray[np.bool_]:
        out = np.zeros(self.size, dtype=np.bool_)
        choice = self._choice(state)
        for (_, parts), answer in zip(choice.classes, answers, strict=True):
            for ids in parts if answer else ():
                out[ids] = True
        out[choice.never] = False
        if state.end:
            out[list(self.ends)] = True
        out.setflags(write=False)
        return out

    def _choose(self, state: Expect) -> _Choice:
        tag_ids = self.vocabulary.tag_ids
        # Sorted, since a mask's answers must keep their order when a choice is made anew.
        classes: list[tuple[TagOrText, tuple[_Ids, ...]]] = [
            (tag, (np.array([tag_ids[tag]]),)) for tag in sorted(state.tags) if tag in tag_ids
        ]
        for n in range(1, len(state.fixed) + 1):
            ids = self._ids[self._spelled(state.fixed[:n])]
            if ids.size:
                classes.append((state.fixed[:n], (ids,)))
        never = np.empty(0, dtype=np.intp)
        if state.free and not state.strict:
            classes.append(("x", (self._ids,)))
        elif state.free:
            never = self._completing(state)
            refused = set(never.tolist())
            for parts in self._alike(state):
                # Any token can stand for its class that may come itself.
                found = (int(id) for ids in parts for id in ids if int(id) not in refused)
                if (id := next(found, None)) is not None:
                    classes.append((self._events[id], parts))
        return _Choice(tuple(classes), never)

    def _alike(self, state: Expect) -> list[tuple[_Ids, ...]]:
        """Free texts, in classes that leave the thread in one state, so at one cost to close."""
        classes: dict[tuple[bool, bool], list[_Ids]] = {}
        for kind, ids in self._by_kind(state.fixed, state.lead).items():
            if not (state.one_line and kind & _INNER):
                key = (bool(kind & _NEWLINE), state.begun or bool(kind & _LONG))
                classes.setdefault(key, []).append(ids)
        return [tuple(parts) for parts in classes.values()]

    def _split_by_kind(self, fixed: str, lead: str) -> dict[int, _Ids]:
        """Ids of the texts that go on after `fixed` with `lead`, by the kind of what goes on."""
        where = self._starting(fixed + lead)
        kinds = self._kinds[where]
        if fixed:
            rests = (text[len(fixed) :] for text in self._texts[where])
            kinds = np.fromiter(map(_kind, rests), dtype=np.int8)
        return {kind: self._ids[where][kinds == kind] for kind in set(kinds.tolist()) - {_NEVER}}

    def _completing(self, state: Expect) -> _Ids:
        """Ids of the texts that would make a tag of the start that stands there."""
        ends = {tag[len(state.start) :] for tag in Tag if tag.startswith(state.start)}
        return np.concatenate([self._ids[self._starting(state.fixed + end)] for end in ends])

    def _starting(self, prefix: str) -> slice:
        n = len(prefix)
        first = bisect_left(self._texts, prefix)
        return slice(first, bisect_right(self._texts, prefix, first, key=lambda text: text[:n]))

    def _spelled(self, text: str) -> slice:
        return slice(bisect_left(self._texts, text), bisect_right(self._texts, text))
