"""What the plugin counts, beside SGLang's own metrics."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Counters"]


@dataclass
class Counters:
    """Sums since the server's start.

    Args:
        requests: that the plugin has run.
        forks, joins: of threads.
        forced: runs in which something was closed by force.
        swapped, rebuilt: how often a request's keys and values were given up, and rebuilt.
        refused: requests that could not be run.
        faults: requests that a fault of the plugin ended.
    """

    requests: int = 0
    forks: int = 0
    joins: int = 0
    forced: int = 0
    swapped: int = 0
    rebuilt: int = 0
    refused: int = 0
    faults: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the sums by name."""
        return asdict(self)
