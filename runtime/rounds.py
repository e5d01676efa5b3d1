"""`shared(k)`: paths that read each other after every k tokens.

Rounds of k positions are counted from the outermost fork, as compiler/shared.py lays them out: a
token sees what all threads of the block wrote in earlier rounds, and of its own round what the
law shows it. Source: the rebuttal's ablation (Table R1), Group Think, Hogwild.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mvspec.runtime.engine.store import Store
from mvspec.runtime.thread import Live

__all__ = ["Rounds"]


@dataclass(slots=True)
class Rounds:
    """The rounds of one outermost block.

    Args:
        k: positions of a round.
        base: position of the outermost paths' first token.
        store: of the request.
        threads: all threads of the block, ended ones included.
    """

    k: int
    base: int
    store: Store
    threads: list[Live] = field(default_factory=list)
    number: int = 0

    def room(self, live: Live) -> int:
        """Return how many tokens a thread may write before it waits for the others."""
        return self.base + (self.number + 1) * self.k - live.position

    def turn(self) -> bool:
        """Begin the next round once no thread can write in this one; say whether it began."""
        # A token that is still to be read must not see what comes into view with the next round.
        if any(live.unread for live in self.threads):
            return False
        writing = [live for live in self.threads if not live.ended and not live.paths]
        if not writing or any(self.room(live) > 0 for live in writing):
            return False
        self.number += 1
        rows = [live.row for live in self.threads]
        common = self.store.row()
        self.store.merge(common, rows)
        for live in self.threads:
            self.store.merge(live.row, [common])
        self.store.release(common)
        return True
