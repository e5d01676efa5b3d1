"""The plugin's sums in Prometheus, beside SGLang's own, and a request's line in the log."""

from __future__ import annotations

import json
from typing import Any

from mvspec.runtime.serving.counters import Counters
from mvspec.runtime.serving.family import Family

__all__ = ["Exposition", "request_line"]

_HELP = {
    "requests": "Requests that ran as plans or forked by themselves.",
    "forks": "Threads that have split.",
    "joins": "Blocks whose paths have met.",
    "forced": "Requests in which something was closed by force at a limit.",
    "swapped": "Requests whose keys and values were given up for others.",
    "rebuilt": "Requests whose keys and values were rebuilt.",
    "refused": "Requests that could not be run.",
    "faults": "Requests that a fault of mvspec ended.",
}


class Exposition:
    """Counters `mvspec_..._total` and the gauge `mvspec_live_threads`.

    SGLang collects from all of its processes through files, in a folder that it names in the
    environment before it starts them: so this is made late, in the scheduler's process.

    Args:
        counters: the plugin's sums.
        labels: of every series.
    """

    def __init__(self, counters: Counters, labels: dict[str, str]) -> None:
        from prometheus_client import Counter, Gauge

        self._sums = counters
        self._told = dict.fromkeys(_HELP, 0)
        self._counters = {
            name: Counter(f"mvspec_{name}", text, list(labels)).labels(**labels)
            for name, text in _HELP.items()
        }
        self._live = Gauge(
            "mvspec_live_threads",
            "Threads that go on or wait for their turn.",
            list(labels),
            multiprocess_mode="mostrecent",
        ).labels(**labels)

    def update(self, live: int) -> None:
        """Tell what is new.

        Args:
            live: how many threads have not ended.
        """
        for name, total in self._sums.as_dict().items():
            if total > self._told[name]:
                self._counters[name].inc(total - self._told[name])
                self._told[name] = total
        self._live.set(live)


def request_line(family: Family) -> str:
    """Return how a request ended, as one line of JSON."""
    run = family.run
    tokens = [token for _, found in run.root.stretches() for token in found]
    own = [token.position for token in tokens if token.author != "prompt"]
    given = [token.position for token in tokens if token.author == "prompt"]
    path = 0
    if own:
        low, high = min(own), max(own)
        path = high - low + 1 - sum(low < position < high for position in given)
    reason: Any = family.face.finished_reason
    told = {
        "rid": family.face.rid,
        "tokens": len(own),
        "threads": sum(1 for _ in run.root.threads()),
        "critical_path": path,
        "seconds": round(run.ends[-1], 3) if run.ends else 0.0,
        "finish": run.finish or "interrupted",
    }
    if reason is not None and reason.to_json().get("type") == "abort":
        told |= {"finish": "abort", "reason": reason.to_json().get("message")}
    return json.dumps(told)
