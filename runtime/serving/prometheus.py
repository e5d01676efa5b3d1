"""Metrics of the plugin in Prometheus, beside SGLang's own."""

from __future__ import annotations

from collections.abc import Mapping

COUNTED = {
    "requests": "Requests that ran as plans or forked by themselves.",
    "forks": "Threads that have split.",
    "joins": "Blocks whose paths have met.",
    "forced": "Requests in which something was closed by force at a limit.",
    "evicted": "Requests whose KV slots were freed for others.",
    "rebuilt": "Requests whose keys and values were rebuilt after that.",
    "plain": "Requests that ran plain, since they ask for what forks cannot do.",
    "refused": "Requests that could not be run.",
    "faults": "Requests that a fault of mvspec ended.",
}
"""What `ForkScheduler` counts since the server's start."""


class PrometheusMetrics:
    """Counters `mvspec_..._total` and the gauge `mvspec_live_threads`.

    SGLang collects from all of its processes through files, in a folder that it names in the
    environment before it starts them: so this is made late, in the scheduler's process.

    Args:
        counters: the plugin's sums, by the names of `COUNTED`.
        labels: of every series.
    """

    def __init__(self, counters: Mapping[str, int], labels: dict[str, str]) -> None:
        from prometheus_client import Counter, Gauge

        self._sums = counters
        self._told: dict[str, float] = dict.fromkeys((*COUNTED, "live"), 0)
        self._counters = {
            name: Counter(f"mvspec_{name}", text, list(labels)).labels(**labels)
            for name, text in COUNTED.items()
        }
        self._live = Gauge(
            "mvspec_live_threads",
            "Threads that go on or wait for their turn.",
            list(labels),
            multiprocess_mode="mostrecent",
        ).labels(**labels)

    def update(self, live: int) -> None:
        """Publish what is new.

        Args:
            live: how many threads have not ended.
        """
        for name, total in self._sums.items():
            if total > self._told[name]:
                self._counters[name].inc(total - self._told[name])
                self._told[name] = total
        if live != self._told["live"]:
            self._told["live"] = live
            self._live.set(live)
