"""`shared(k)`: paths that read each other after every k tokens.

Rounds of k positions are counted from the outermost fork, as compiler/lowerings.py lays them out: a
token sees what all threads of the block wrote in earlier rounds, and of its own round what the
law shows it. Source: the rebuttal's ablation (Table R1), Group Think, Hogwild.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mvspec.runtime.kv_store import KVStore
from mvspec.runtime.thread_state import ThreadState


@dataclass(slots=True)
class SharedRounds:
    """The rounds of one outermost block.

    Args:
        k: positions of a round.
        base: position of the outermost paths' first token.
        kv: of the request.
        threads: all threads of the block, ended ones included.
    """

    k: int
    base: int
    kv: KVStore
    threads: list[ThreadState] = field(default_factory=list)
    number: int = 0

    def room(self, thread: ThreadState) -> int:
        """Return how many tokens a thread may write before it waits for the others."""
        return self.base + (self.number + 1) * self.k - thread.position

    def turn(self) -> bool:
        """Begin the next round once no thread can write in this one; say whether it began."""
        # A token that is still to be read must not see what comes into view with the next round.
        if any(thread.unread for thread in self.threads):
            return False
        writing = [thread for thread in self.threads if not thread.ended and not thread.paths]
        if not writing or any(self.room(thread) > 0 for thread in writing):
            return False
        self.number += 1
        rows = [thread.row for thread in self.threads]
        common = self.kv.fork(None)
        self.kv.merge(common, rows)
        for thread in self.threads:
            self.kv.merge(thread.row, [common])
        self.kv.release(common)
        return True
