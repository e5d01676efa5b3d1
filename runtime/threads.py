"""The threads of one run, and the tokens that wait to be read.

Writing a token takes its column and its position at once; the model reads it later, in the order
of writing. What a token sees was written before it, so any cut of that queue into forwards
gives the same logits.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from mvspec.events import Event, Forked, Joined, PathEnded, TakenBack, Written
from mvspec.law.automaton import TagAutomaton
from mvspec.runtime.engine.model import Part
from mvspec.runtime.engine.store import Store
from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.options import Options
from mvspec.runtime.rounds import Rounds
from mvspec.runtime.sampling import Draw
from mvspec.runtime.thread import Live, Token

__all__ = ["Threads"]


class Threads:
    """The threads of a run, from the root on.

    Args:
        name: of the run.
        options: how it is run.
        lexicon: of the engine's tokenizer.
        store: an empty one.

    Attributes:
        root: the thread that all others were forked from.
        active: those that have not ended and wait for no paths.
        events: what has happened since somebody took them.
        ends: [forwards]: seconds from the start of the run to the end of each forward.
    """

    def __init__(self, name: str, options: Options, lexicon: Lexicon, store: Store) -> None:
        self.name = name
        self.options = options
        self.lexicon = lexicon
        self.store = store
        self.events: deque[Event] = deque()
        self.ends: list[float] = []
        self.root = Live(0, TagAutomaton(strict=False), 0, store.row(), _stream())
        self.active = [self.root]
        self.rounds: Rounds | None = None
        self._queue: deque[tuple[Live, Token]] = deque()
        self._forks = 0
        self._threads = 1

    @property
    def step(self) -> int:
        """The newest forward, from 0; -1 before the first."""
        return len(self.ends) - 1

    # Reading

    @property
    def waiting(self) -> int:
        """How many tokens wait to be read."""
        return len(self._queue)

    def take(self, budget: int) -> tuple[Part, list[tuple[Live, Token]]]:
        """Take at most `budget` waiting tokens, in the order of writing.

        Returns:
            What the model reads, and the tokens whose logits are wanted.
        """
        taken = [self._queue.popleft() for _ in range(min(budget, len(self._queue)))]
        keep: list[int] = []
        for index, (live, _) in enumerate(taken):
            live.unread -= 1
            if not live.unread or self.options.logits:
                keep.append(index)
        part = Part(
            self.store,
            [token.id for _, token in taken],
            [token.position for _, token in taken],
            [live.row for live, _ in taken],
            taken[0][1].column,
            keep,
        )
        return part, [taken[index] for index in keep]

    # Writing

    def append(
        self,
        live: Live,
        id: int,
        position: int,
        author: str,
        *,
        hole: str = "",
        draw: Draw | None = None,
    ) -> Token:
        """Write one token into a thread; the model reads it later."""
        step = -1 if author == "prompt" else len(self.ends) - 1
        token = Token(id, position, author, self.store.take(1), step, hole)
        if draw is not None:
            token.logprob, token.top = draw.logprob, draw.top
        token.text = live.decoder.step(self.lexicon.backend, id) or ""
        live.append(token, control=id in self.lexicon.control)
        self._enqueue(live, (token,))
        self._tell(live, token)
        return token

    def _enqueue(self, live: Live, tokens: Sequence[Token]) -> None:
        self.store.show(live.row, tokens[0].column, tokens[-1].column + 1)
        self._queue += [(live, token) for token in tokens]

    def _tell(self, live: Live, token: Token) -> None:
        if token.author != "prompt":
            self.events.append(
                Written(
                    self.name, live.number, token.position, token.id, token.text, token.author,
                    token.logprob, token.hole, token.step,
                )
            )  # fmt: skip

    def extend(self, live: Live, ids: Sequence[int], position: int, author: str) -> None:
        """Write several tokens."""
        if not ids:
            return
        step = -1 if author == "prompt" else self.step
        decode, backend = live.decoder.step, self.lexicon.backend
        columns = itertools.count(self.store.take(len(ids)))
        tokens = [
            Token(id, place, author, column, step, "", decode(backend, id) or "")
            for id, place, column in zip(ids, itertools.count(position), columns, strict=False)
        ]
        live.extend(tokens, self.lexicon.control)
        self._enqueue(live, tokens)
        for token in tokens if author != "prompt" else ():
            self._tell(live, token)

    def rewind(self, live: Live, count: int) -> list[Token]:
        """Take back a thread's last tokens, which the model has read; nobody sees them now."""
        taken = live.rewind(count)
        if taken:
            self.store.hide(live.row, [token.column for token in taken])
            live.decoder = _stream()
            for token in live.since_control(self.lexicon.control):
                live.decoder.step(self.lexicon.backend, token.id)
            self.events.append(TakenBack(self.name, live.number, len(taken), self.step))
        return taken

    def read_again(self, live: Live) -> None:
        """Let the model read a thread's last token once more: what came after it is gone."""
        tail = live.tail
        (token,) = live.rewind(1)
        self.store.hide(live.row, [token.column])
        token.column = self.store.take(1)
        live.append(token, control=False)
        live.tail = tail
        self._enqueue(live, (token,))

    def settle(self, live: Live) -> None:
        """Give its last token, where it ends inside a character, its text: nothing follows it."""
        last = live.items[-1] if live.items else None
        if not isinstance(last, Token) or last.text:
            return
        tokens = live.since_control(self.lexicon.control)
        text = self.lexicon.vocabulary.decode([token.id for token in tokens])
        last.text = text[sum(len(token.text) for token in tokens) :]
        live.decoder = _stream()
        if last.text and last.author != "prompt":
            self.events.append(TakenBack(self.name, live.number, 1, self.step))
            self._tell(live, last)

    # Forks and joins

    def fork(self, live: Live, ids: Sequence[int], names: Sequence[tuple[str, str]]) -> list[Live]:
        """Split a thread.

        Args:
            ids: the paths' numbers in the machine.
            names: label and title of each.
        """
        self.settle(live)
        if self.options.share and not live.place:
            self.rounds = Rounds(self.options.share, live.position, self.store)
        for index, (id, (label, title)) in enumerate(zip(ids, names, strict=True)):
            row = self.store.row(live.row)
            path = Live(self._threads, live.machine, id, row, _stream(), parent=live)
            path.place = (*live.place, (len(live.forks), index))
            path.label, path.title, path.block = label, title, self._forks
            path.adaptive, path.predicted = live.adaptive, live.predicted
            self._threads += 1
            live.paths.append(path)
        self._forks += 1
        live.forks.append(len(live.items))
        live.items.append(list(live.paths))
        if self.rounds:
            self.rounds.threads += live.paths
        self.active.remove(live)
        self.active += live.paths
        numbers = tuple(path.number for path in live.paths)
        labels, titles = zip(*names, strict=True)
        self.events.append(Forked(self.name, live.number, numbers, labels, titles, self.step))
        return live.paths

    def join(self, live: Live, *, last: bool) -> bool:
        """End a path; where it is the last of its block its parent goes on, and True comes back."""
        self.settle(live)
        live.ended = True
        self.active.remove(live)
        self.events.append(PathEnded(self.name, live.number, self.step))
        parent = live.parent
        if not last or parent is None:
            return False
        ended, parent.paths = parent.paths, []
        numbers = tuple(path.number for path in ended)
        self.store.merge(parent.row, [path.row for path in ended])
        if self.rounds and not parent.place:
            ended = self.rounds.threads
            self.rounds = None
        parent.after_join()
        self.active.append(parent)
        for path in ended:
            self.release(path)
        self.events.append(Joined(self.name, parent.number, numbers, self.step))
        return True

    def release(self, live: Live) -> None:
        """Give a path's row back once its block has joined and the model has read all of it."""
        joined = live.parent is not None and live.ended and live not in live.parent.paths
        if joined and not live.unread and self.rounds is None and live.row >= 0:
            self.store.release(live.row)
            live.row = -1

    # Paths that read each other

    def room(self, live: Live) -> int:
        """How many tokens a thread may write now."""
        return self.rounds.room(live) if self.rounds and live.place else 1 << 62

    def is_shared(self, live: Live) -> bool:
        """Whether others may have read what a thread has written: it cannot be taken back."""
        return self.rounds is not None and bool(live.place)


def _stream() -> DecodeStream:
    return DecodeStream(skip_special_tokens=False)
