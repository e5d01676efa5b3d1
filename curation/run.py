"""Run of a task over the records of the input, resumed where an earlier run was stopped."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from mvspec.curation.chain import ChainFields, ReasoningChain, read_chain
from mvspec.curation.client import ModelClient
from mvspec.curation.questions import Ask
from mvspec.curation.request import CurationStopped, RequestRefused, RequestUnanswered
from mvspec.curation.store import CurationStore
from mvspec.data.records import BadRecord, InputError, Record
from mvspec.data.sources import PATIENCE, Records

__all__ = [
    "ChainTask",
    "CurationTally",
    "UndecidedRecord",
    "check_records",
    "outcome_key",
    "run_task",
]


class ChainTask(Protocol):
    """Work that is done with every chain.

    Attributes:
        reasoning: whether it needs a chain, or a question alone.
        fingerprint: everything but the chain that decides the outcome.
    """

    @property
    def reasoning(self) -> bool: ...
    @property
    def fingerprint(self) -> dict[str, Any]: ...
    async def work(self, chain: ReasoningChain, ask: Ask) -> dict[str, Any]:
        """Return the outcome as JSON: `code` ("" for success), `reason`, `history` and more."""

    def write(self, folder: Path, store: CurationStore) -> None:
        """Write what the stored outcomes come to."""


@dataclass(frozen=True, slots=True)
class UndecidedRecord:
    """A record that this run could not decide; the next one tries again."""

    record: str
    place: str
    reason: str


@dataclass
class CurationTally:
    """Counts of a run so far.

    Args:
        records: read; `resumed` of them were decided by an earlier run.
        accepted: with a document.
        quarantined: by the check that they did not pass.
        unfinished: not decided.
        share: of the input's cost that is done.
    """

    records: int = 0
    resumed: int = 0
    accepted: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    unfinished: list[UndecidedRecord] = field(default_factory=list)
    share: float = 0.0

    @property
    def decided(self) -> int:
        """Records with a verdict."""
        return self.accepted + self.quarantined.total()

    def add(self, outcome: dict[str, Any]) -> None:
        """Count a verdict."""
        if outcome["code"]:
            self.quarantined[outcome["code"]] += 1
        else:
            self.accepted += 1


def check_records(records: Records, fields: ChainFields, task: ChainTask) -> None:
    """Refuse an input that has no record, or whose first records all lack a field.

    Raises:
        InputError: it has none.
    """
    first: BadRecord | None = None
    some = list(islice(records.read(), PATIENCE))
    if not some:
        raise InputError("the input has no record")
    for record in some:
        try:
            read_chain(record, fields, reasoning=task.reasoning)
        except BadRecord as error:
            if error.entry["code"] != "missing-field":
                return
            first = first or error
        else:
            return
    if first is not None:
        raise InputError(
            f"{first.entry['place']}: {first.entry['reason']}; name the fields with --field, "
            "--question-field and --answer-field"
        )


async def run_task(
    records: Records,
    fields: ChainFields,
    task: ChainTask,
    caller: ModelClient,
    store: CurationStore,
    tally: CurationTally,
    *,
    concurrency: int,
    limit: int | None = None,
) -> None:
    """Bring every record to a verdict, or as many as can be; all verdicts are in the store.

    Args:
        records: the input.
        fields: where they keep what.
        task: what is done.
        caller: how the model is asked.
        store: where verdicts go.
        tally: filled as the run goes on.
        concurrency: records worked on at once.
        limit: the first so many records only.

    Raises:
        InputError: the store cannot be written.
    """
    stream = enumerate(islice(records.read(), limit))
    size = records.size

    async def worker(stream: Iterator[tuple[int, Record]]) -> None:
        for number, record in stream:
            if caller.abandoned:
                return
            tally.records += 1
            await _one(number, record, fields, task, caller, store, tally)
            if limit is not None:
                tally.share += 1 / limit
            elif size:
                tally.share += record.size / size

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker(stream))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    await caller.landed()
    if not caller.abandoned:
        await store.forget_from(tally.records)


async def _one(
    number: int,
    record: Record,
    fields: ChainFields,
    task: ChainTask,
    caller: ModelClient,
    store: CurationStore,
    tally: CurationTally,
) -> None:
    try:
        chain = read_chain(record, fields, reasoning=task.reasoning)
    except BadRecord as error:
        entry = error.entry
        outcome = {
            "record": entry["record"],
            "place": entry["place"],
            "code": entry["code"],
            "reason": entry["reason"],
            "history": [],
        }
        tally.add(outcome)
        await store.finish(number, "", json.dumps(outcome))
        return
    key = outcome_key(task, chain)
    found = store.result(number, key)
    if found is not None:
        tally.resumed += 1
        tally.add(json.loads(found))
        return
    try:
        outcome = await task.work(chain, lambda request: caller.ask(request, number))
    except (CurationStopped, RequestUnanswered, RequestRefused) as error:
        await _undecided(number, chain, str(error), store, tally)
    except (InputError, OSError):
        raise
    except Exception as error:  # one record must not end a night's run
        reason = f"internal error, please report it: {type(error).__name__}: {error}"
        await _undecided(number, chain, reason, store, tally)
    else:
        outcome = {"record": chain.name, "place": chain.place} | outcome
        tally.add(outcome)
        await store.finish(number, key, json.dumps(outcome))


async def _undecided(
    number: int, chain: ReasoningChain, reason: str, store: CurationStore, tally: CurationTally
) -> None:
    tally.unfinished.append(UndecidedRecord(chain.name, chain.place, reason))
    await store.forget(number)


def outcome_key(task: ChainTask, chain: ReasoningChain) -> str:
    """Return the SHA-256 of everything that decides the outcome of a chain."""
    made = json.dumps([task.fingerprint, chain.digest], sort_keys=True)
    return hashlib.sha256(made.encode()).hexdigest()
