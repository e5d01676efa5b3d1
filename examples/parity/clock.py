"""The wall clock: arms asked one problem at a time in turns, and all problems at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mvspec.errors import VerifyError
from mvspec.forms.untagged import UNTAGGED
from mvspec.runtime.tasks.examination import mark, means, measure_replays
from mvspec.runtime.tasks.problem import TaskProblem, ask, problems
from mvspec.trace import Trace

from arms import Arm, find_arm  # isort: skip
from report import Records  # isort: skip
from settings import Settings  # isort: skip

__all__ = ["Clock", "held_out", "server_of"]


def held_out(settings: Settings, count: int) -> list[TaskProblem]:
    """Return held-out problems, the same ones for every model."""
    return list(islice(problems("test", 0, settings.difficulty), count))


@dataclass(slots=True)
class Side:
    """An arm on an engine, and what its answers took, one at a time."""

    arm: Arm
    engine: Any
    name: str = "torch"
    seconds: float = 0.0
    tokens: int = 0
    forwards: int = 0
    right: int = 0
    traces: list[Trace] = field(default_factory=list)

    def ask(self, problem: TaskProblem, max_tokens: int) -> None:
        """Ask one problem, and add up what it took."""
        options = self.arm.options(max_tokens)
        started = time.perf_counter()
        result = self.engine.run(ask(problem, self.arm.prompt), options)
        self.seconds += time.perf_counter() - started
        found = mark(result, problem)
        self.tokens += found.tokens
        self.forwards += found.forwards
        self.right += found.right
        self.traces.append(result.trace)


@dataclass(frozen=True)
class Clock:
    """Measures the arms of a comparison.

    Args:
        settings: of the comparison.
        records: where measurements go.
        model: the folder of an arm's weights.
        words: the folder of a tokenizer whose tags are words like others.
    """

    settings: Settings
    records: Records
    model: Callable[[Arm], Path]
    words: Path

    def in_process(self, arms: Sequence[Arm]) -> None:
        """Ask the in-process engine one problem at a time; then the same tokens in turn."""
        todo = [arm for arm in arms if not self.records.find(kind="alone", arm=arm.name)]
        if not todo:
            return
        asked = held_out(self.settings, self.settings.evaluation.latency)
        sides = [Side(arm, arm.engine(self.model(arm))) for arm in todo]
        self._in_turns(sides, asked)
        for side in sides:
            self.records.add(
                kind="alone", arm=side.arm.name, engine=side.name, problems=len(asked),
                seconds=side.seconds, tokens=side.tokens, forwards=side.forwards, right=side.right,
            )  # fmt: skip
        for side in sides:
            if side.arm.name == "multiverse":
                same = measure_replays(side.engine, side.traces, rounds=1)
                self.records.add(
                    kind="replay", arm="multiverse", engine="torch", forwards=same.forwards,
                    seconds=same.seconds, forwards_alone=same.forwards_alone,
                    seconds_alone=same.seconds_alone,
                )  # fmt: skip

    def both(self, servers: Sequence[tuple[Arm, str]]) -> None:
        """Ask servers of SGLang, and the in-process engine beside them.

        Args:
            servers: arms, and the URLs of servers that `mvspec serve` started.

        Raises:
            VerifyError: a server forks where its arm does not, or the other way round.
        """
        sides: list[Side] = []
        for arm, url in servers:
            if self.records.find(kind="served", arm=arm.name, engine="sglang"):
                continue
            there = self._server(arm, url)
            sides += [Side(arm, arm.engine(self.model(arm))), Side(arm, there, "sglang")]
        how = self.settings.evaluation
        asked = held_out(self.settings, how.problems)
        alone = asked[: how.served]
        self._in_turns(sides, alone)
        rows = []
        for side in sides:
            started = time.perf_counter()
            found = means(
                side.arm.examine(side.engine, asked, batch=len(asked), max_tokens=how.max_tokens)
            )
            together = time.perf_counter() - started
            rows.append(
                {
                    "kind": "served", "arm": side.arm.name, "engine": side.name,
                    "problems": len(asked), "together_seconds": together,
                    "alone_problems": len(alone), "seconds": side.seconds, **found,
                }
            )  # fmt: skip
        for row in rows:  # all, or none where something went wrong
            self.records.add(**row)

    def _server(self, arm: Arm, url: str) -> Any:
        from mvspec.runtime import SGLangEngine  # it needs httpx

        engine = SGLangEngine(url)
        if (engine.syntax == UNTAGGED) != (arm.serving == "text"):
            fault = (
                "its tokenizer has tags, and this arm's are words like others: start it with "
                f"--tokenizer-path {self.words}"
                if arm.serving == "text"
                else "its tokenizer has no tags, and nothing would fork: start it without "
                "--tokenizer-path"
            )
            raise VerifyError(f"--url {arm.name}={url}", fault)
        return engine

    def _in_turns(self, sides: Sequence[Side], asked: Sequence[TaskProblem]) -> None:
        """Ask problem after problem, each side in its turn."""
        most = self.settings.evaluation.max_tokens
        for side in sides:  # warm: kernels, graphs, the server's prefix cache
            side.engine.run(ask(asked[0], side.arm.prompt), side.arm.options(most))
        for problem in asked:
            for side in sides:
                side.ask(problem, most)


def server_of(given: str) -> tuple[Arm, str]:
    """Read what `--url` names: an arm and its server.

    Raises:
        VerifyError: it is not ARM=URL.
    """
    name, _, url = given.partition("=")
    if not url:
        raise VerifyError(f"--url {given}", "is not ARM=URL, as multiverse=http://127.0.0.1:30000")
    return find_arm(name), url
