"""The structural law as an incremental machine.

Runtimes drive it, one event for each token: it says where the token sits and what it may see,
when threads fork and join, what may come next, and how to close in time. It knows no tokenizer.
The vectorised writing of the same law is compiler/layout.py; the definition over all pairs is
tests/laws/definition.py.

The law (DESIGN: "The structural law"; paper, section 4.2):

1. A path owns the separator before its `<Path>` up to its `</Path>`; the join starts with the
   separator before `<Conclusion>`.
2. Every path starts at the position after `</Goal>`'s; the join starts after the longest path.
3. q sees k iff k does not come after q and no block has them in different paths.
4. A token is predicted by the previous token of its thread; a path's first by `</Goal>`.
"""

from __future__ import annotations

from collections.abc import Callable

from mvspec.errors import LimitExceeded, VerifyError
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.law.limits import Limits
from mvspec.law.step import Expect, Step
from mvspec.law.tags import Tag
from mvspec.law.thread import Event, Thread

__all__ = ["Structure"]


class Structure:
    """The machine.

    Args:
        syntax: the surface form.
        limits: what may be used; exceeding them is refused, with the state unchanged.
        position: position id of the first token, which is the length of the prompt.
        tokens: how many tokens a fixed text takes; for budgets only.
        strict: hold texts to the grammar too (generation). If not, only tags count and text
            may be any str (reading what exists, whose labels may be unusual).

    >>> machine = Structure(strict=False)
    >>> steps = [machine.feed(event) for event in
    ...     (Tag.PARALLEL, Tag.GOAL, Tag.OUTLINE, Tag.END_OUTLINE, Tag.OUTLINE, Tag.END_OUTLINE,
    ...      Tag.END_GOAL, Tag.PATH, "a", "b", Tag.END_PATH, Tag.PATH, Tag.END_PATH,
    ...      Tag.CONCLUSION)]
    >>> [step.position for step in steps]
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 7, 8, 11]
    """

    def __init__(
        self,
        syntax: Syntax = MULTIVERSE,
        limits: Limits | None = None,
        *,
        position: int = 0,
        tokens: Callable[[str], int] = lambda text: 1,
        strict: bool = True,
    ) -> None:
        self.syntax = syntax
        self.limits = limits or Limits()
        bounds = self.limits.max_position, self.limits.max_tokens
        self._bounded = any(bound is not None for bound in bounds)
        self.tokens = tokens
        self.strict = strict
        self.threads: dict[int, Thread] = {0: Thread(position=position, strict=strict)}
        self.count = 0
        self.cursor = 0
        self._made = 1
        self._blocks = 0
        self._costs: dict[tuple[object, ...], tuple[int, int]] = {}
        self._reserve = 0
        if not self._fits(self.threads[0], self.threads[0], 0):
            raise LimitExceeded(f"the prompt alone passes the budget: {self.limits}")

    @property
    def live(self) -> tuple[int, ...]:
        """The threads that can take a token now, in the order in which they were forked."""
        return tuple(t.id for t in self.threads.values() if not t.done and not t.children)

    # Taking events

    def feed(self, event: Event, width: int = 1) -> Step:
        """Take the next event of the surface form; `cursor` is the thread that it belongs to."""
        thread = self.threads[self.cursor]
        step = self.push(self.cursor, event, width)
        if step.forked:
            self.cursor = step.forked[0]
        elif step.joined is not None:
            self.cursor = step.joined
        elif event is Tag.END_PATH and thread.parent is not None:
            siblings = self.threads[thread.parent].children
            self.cursor = siblings[siblings.index(thread.id) + 1]
        return step

    def push(self, thread: int, event: Event, width: int = 1) -> Step:
        """Take an event of one thread.

        Args:
            thread: a live thread.
            event: a tag, or text.
            width: how many tokens it is; 0 for a tag that the form does not write.

        Raises:
            VerifyError: the event may not come here; nothing has changed.
            LimitExceeded: what is open could not be closed within the limits any more.
        """
        before = self._thread(thread)
        if not (self.strict or self._bounded or isinstance(event, Tag)):
            index, last = self.count, before.last
            return Step(thread, index, self._write(before, event, width), last, before.chain)
        # A thread that refuses an event is unchanged: a copy is for what is refused afterwards.
        limited = self._bounded or event is Tag.PARALLEL or event is Tag.OUTLINE
        after = before.copy() if limited else before
        after.take(event, self.syntax)
        if isinstance(event, Tag):
            self._check_counts(after, event)
        if not self._fits(before, after, width):
            raise LimitExceeded(
                f"thread {thread}, position {before.position}: after {event!r} what is open "
                f"cannot be closed within the budget (positions {self.limits.max_position}, "
                f"tokens {self.limits.max_tokens})"
            )
        index, position, last = self.count, before.position, before.last
        self.count += width
        after.position += width
        if width:
            after.last = index + width - 1
        self.threads[thread] = after
        forked = self._fork(after) if event is Tag.END_GOAL else ()
        if self._bounded:
            self._reserve += self._total(after) - self._total(before)
            self._reserve += sum(self._total(self.threads[child]) for child in forked)
        joined = None
        if after.done and after.parent is not None:
            joined = self._join(self.threads[after.parent])
        return Step(thread, index, position, last, after.chain, forked, joined)

    def write(self, thread: int, text: str, width: int = 1) -> int:
        """Return the position of a thread's text, which is taken as `push` takes it."""
        if self.strict or self._bounded:
            return self.push(thread, text, width).position
        return self._write(self._thread(thread), text, width)

    def _write(self, thread: Thread, text: str, width: int) -> int:
        """Take text that only a thread that waits can refuse: an engine does it for every token."""
        position = thread.position
        thread.text(text)
        if width:
            thread.last = self.count + width - 1
        thread.position += width
        self.count += width
        return position

    def _thread(self, thread: int) -> Thread:
        if thread not in self.threads:
            raise VerifyError(f"thread {thread}", "there is no such thread")
        return self.threads[thread]

    def _fork(self, parent: Thread) -> tuple[int, ...]:
        block = self._blocks
        self._blocks += 1
        made: list[int] = []
        for index in range(parent.outlines):
            child = self._path(parent, index)
            child.id = self._made
            child.chain = (*parent.chain, (block, index))
            child.last = parent.last
            self._made += 1
            self.threads[child.id] = child
            made.append(child.id)
        parent.children = tuple(made)
        return parent.children

    def _path(self, parent: Thread, index: int) -> Thread:
        pending: tuple[Event, ...] = (self.syntax.separator, Tag.PATH)
        return Thread(
            position=parent.position,
            label=parent.number(index + 1),
            parent=parent.id,
            frames=(Tag.PATH,),
            pending=pending if self.strict else pending[1:],
            fresh=False,
            strict=self.strict,
        )

    def _join(self, parent: Thread) -> int | None:
        paths = [self.threads[child] for child in parent.children]
        if not all(path.done for path in paths):
            return None
        parent.position = max(path.position for path in paths)
        parent.last = -1  # the join's first token has no single parent
        parent.join(self.syntax)
        for path in paths:
            del self.threads[path.id]
        return parent.id

    # What may come

    def expect(self, thread: int) -> Expect:
        """Say what may come next in a thread, within the limits."""
        now = self._thread(thread)
        tags = frozenset(tag for tag in now.tags() if self.allows(thread, tag))
        free = now.free()
        if self._bounded and free and not now.fixed():
            probe = now.copy()
            probe.text(now.lead + "x")
            if not self._fits(now, probe, 1):
                return Expect(tags=tags, end=now.may_end(), closing=self.closing(thread))
        return Expect(
            tags=tags,
            fixed=now.fixed(),
            free=free,
            lead=now.lead,
            one_line=now.top is Tag.OUTLINE,
            end=now.may_end(),
        )

    def allows(self, thread: int, event: Event, width: int = 1) -> bool:
        """Whether `push` would take this event."""
        now = self._thread(thread)
        probe = now.copy()
        try:
            probe.take(event, self.syntax)
            if isinstance(event, Tag):
                self._check_counts(probe, event)
        except (VerifyError, LimitExceeded):
            return False
        return self._fits(now, probe, width)

    def closing(self, thread: int) -> tuple[Event, ...]:
        """Return the shortest way to close a thread, up to its next fork or its end."""
        return tuple(self._thread(thread).copy().close(self.syntax))

    # Limits

    def _check_counts(self, thread: Thread, tag: Tag) -> None:
        most = self.limits.max_paths
        if tag is Tag.PARALLEL and len(thread.chain) >= self.limits.max_depth:
            wrong = f"blocks nest deeper than {self.limits.max_depth}"
        elif tag is Tag.OUTLINE and most is not None and thread.outlines > most:
            wrong = f"more than {most} paths in a block"
        else:
            return
        raise LimitExceeded(f"thread {thread.id}, position {thread.position}: {wrong}")

    def _fits(self, before: Thread, after: Thread, width: int) -> bool:
        """Whether all that is open can still be closed once `before` has become `after`."""
        if not self._bounded:
            return True
        if self.limits.max_position is not None:
            end = after.position + width + self._cost(after)[0]
            over: Thread | None = after
            while over is not None and over.parent is not None:
                over = self.threads[over.parent]
                end += self._cost(over)[0]
            if end > self.limits.max_position:
                return False
        if self.limits.max_tokens is not None:
            reserve = self._reserve - self._total(before) + self._total(after)
            return self.count + width + reserve <= self.limits.max_tokens
        return True

    def _total(self, thread: Thread) -> int:
        return self._cost(thread)[1] if self._bounded else 0

    def _cost(self, thread: Thread) -> tuple[int, int]:
        """Tokens that closing a thread takes: (on its critical path, in all)."""
        state = thread.state()
        if state not in self._costs:
            self._costs[state] = self._measure(thread.copy())
        return self._costs[state]

    def _measure(self, probe: Thread) -> tuple[int, int]:
        critical = total = 0
        while True:
            for event in probe.close(self.syntax):
                width = 1 if isinstance(event, Tag) else self.tokens(event)
                critical += width
                total += width
            if not probe.forks:
                return critical, total
            if not probe.children:  # else the paths count for themselves
                paths = [self._measure(self._path(probe, i))[1] for i in range(probe.forks)]
                critical += max(paths)
                total += sum(paths)
            probe.join(self.syntax)
