"""A whole curation: settings to a provider, rows through a task, outcomes to files."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from mvspec.curation.chain import ChainFields
from mvspec.curation.client import UNIT, ModelClient, RateLimit, SpendingLimit, TokenPrice
from mvspec.curation.estimate import CurationEstimate, estimate
from mvspec.curation.gemini import NO_KEY, GeminiBatchProvider, GeminiProvider, key_of
from mvspec.curation.output import open_folder, write_unfinished
from mvspec.curation.process import ORPHANED, locked, watched
from mvspec.curation.questions import CurationOptions
from mvspec.curation.report import SAMPLE
from mvspec.curation.request import ModelProvider
from mvspec.curation.run import ChainTask, CurationTally, check_records, run_task
from mvspec.curation.store import CurationStore
from mvspec.curation.tasks import BranchTask, CurationTask, PromptingTask
from mvspec.data.records import InputError
from mvspec.data.sources import Records, open_records

__all__ = ["TASKS", "CurationRun", "Progress", "dry_run", "run"]

TASKS = ("documents", "branches", "prompting")

RUNS = "runs.jsonl"

Progress = Callable[[CurationTally, ModelClient], AbstractAsyncContextManager[None]]
"""Shows how far a run is, as long as it goes on."""

WINDOW = 2
"""Records that are worked on for each request on its way: some wait for a slot or for the pace."""


@dataclass(frozen=True)
class CurationRun:
    """Settings of a run.

    Args:
        inputs: what `open_records` takes.
        curation: what decides the outcome.
        fields: where records keep what.
        task: one of `TASKS`.
        local: ask a model in this process, `curation.model` being its folder or hub name.
        base_url: another address of the service.
        price, budget: what tokens cost, and what may be spent in all runs on the folder.
        concurrency: requests on their way at once.
        requests, tokens: the most a minute.
        retries: of requests that were not answered.
        timeout: seconds for an answer.
        batch: use the Batch API.
        limit: the first so many records only.
        split: of a data set.
        sample: records that report.html shows.
    """

    inputs: tuple[str, ...]
    curation: CurationOptions
    fields: ChainFields = field(default_factory=ChainFields)
    task: str = "documents"
    local: bool = False
    base_url: str | None = None
    price: TokenPrice | None = None
    budget: float | None = None
    concurrency: int = 16
    requests: int | None = None
    tokens: int | None = None
    retries: int = 8
    timeout: float = 300.0
    batch: bool = False
    linger: float = 2.0
    poll: float = 30.0
    limit: int | None = None
    split: str | None = None
    sample: int = SAMPLE

    def records(self) -> Records:
        """Open the input."""
        return open_records(self.inputs, split=self.split, hub=True, rows=True, short=True)


def run(
    given: CurationRun,
    folder: Path,
    gone: int | None,
    tell: Callable[[str], object],
    progress: Progress = lambda tally, caller: nullcontext(),
) -> tuple[CurationTally, ModelClient]:
    """Carry out a run in a folder; return what it came to, and what was asked for it.

    Args:
        given: what is asked for.
        folder: of the output.
        gone: what `outlived` gives.
        tell: takes a line for people.
        progress: shows how far it is.

    Raises:
        InputError: it cannot be carried out as given.
    """
    check_means(given)
    if given.task not in TASKS:
        raise InputError(f"--task {given.task}: use one of {', '.join(TASKS)}")
    task = task_of(given)
    records = given.records()
    check_records(records, given.fields, task)
    path = open_folder(folder)
    with locked(folder, tell):
        store = CurationStore(path)
        try:
            return asyncio.run(_run(given, task, records, folder, store, gone, tell, progress))
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        finally:
            store.close()


def task_of(given: CurationRun) -> ChainTask:
    """Return the task of a run."""
    if given.task == "documents":
        return CurationTask(given.curation, given.sample)
    return (BranchTask if given.task == "branches" else PromptingTask)(given.curation)


def check_means(given: CurationRun) -> None:
    """Refuse a run that has no key, or a budget that nothing can be counted against.

    Raises:
        InputError: it has none.
    """
    if given.budget is not None and given.price is None and not given.local:
        raise InputError(
            "--budget needs --price IN,OUT: dollars for a million tokens read and written, as "
            "the service's price list has them for this model (mvspec holds no list: it would "
            "be out of date)"
        )
    if given.batch and given.local:
        raise InputError("--batch is of the service: leave out --local")
    if not given.local and not key_of():
        raise InputError(NO_KEY)


async def _run(
    given: CurationRun,
    task: ChainTask,
    records: Records,
    folder: Path,
    store: CurationStore,
    gone: int | None,
    tell: Callable[[str], object],
    progress: Progress,
) -> tuple[CurationTally, ModelClient]:
    started = time.time()
    tally = CurationTally()
    if not given.batch and store.batches():
        raise InputError(f"-o {folder}: batches are on their way: add --batch to take them up")
    spent, doubtful = store.spent()
    budget = SpendingLimit(given.budget, spent, doubtful)
    async with provider_of(given, store) as provider:
        caller = ModelClient(
            provider,
            store,
            budget=budget,
            price=given.price or TokenPrice(),
            pace=RateLimit() if given.batch else RateLimit(given.requests, given.tokens),
            concurrency=10**6 if given.batch else given.concurrency,
            retries=given.retries,
            once=given.batch,
        )

        def stop(reason: str) -> None:
            flying = caller.traffic.in_flight
            if not given.batch and flying:
                tell(f"{reason}: waiting for {flying} answers that are paid for")
            caller.stop(reason, abandoned=reason == ORPHANED)

        together = 1000 if given.batch else WINDOW * given.concurrency
        with watched(gone, stop, folder):
            async with progress(tally, caller):
                await run_task(
                    records, given.fields, task, caller, store, tally,
                    concurrency=together, limit=given.limit,
                )  # fmt: skip
    if not caller.abandoned:
        task.write(folder, store)
        write_unfinished(folder, tally.unfinished)
        _log(folder, started, tally, caller, budget)
    return tally, caller


@asynccontextmanager
async def provider_of(given: CurationRun, store: CurationStore) -> AsyncIterator[ModelProvider]:
    """Give the provider that a run asks.

    Raises:
        InputError: what it needs is not installed, or there is no key.
    """
    if given.local:
        try:
            from mvspec.curation.local import LocalProvider
            from mvspec.runtime.engine.torch_engine import TorchEngine
        except ImportError as error:
            raise InputError(f"--local needs: pip install 'mvspec[engine]' ({error})") from None
        engine = TorchEngine.load(given.curation.model or None, max_requests=given.concurrency)
        yield LocalProvider(engine)
        return
    gemini = gemini_of(given)
    try:
        if given.batch:
            yield GeminiBatchProvider(gemini, store, linger=given.linger, poll=given.poll)
        else:
            yield gemini
    finally:
        await gemini.aclose()


def gemini_of(given: CurationRun) -> GeminiProvider:
    """Return the connection to the service.

    Raises:
        InputError: there is no key.
    """
    return GeminiProvider(
        base_url=given.base_url, timeout=given.timeout, connections=given.concurrency + 4
    )


async def dry_run(given: CurationRun) -> CurationEstimate:
    """Return what a run would take; the service counts tokens where there is a key.

    Raises:
        InputError: the input cannot be read.
    """
    if given.task != "documents":
        raise InputError("--dry-run is of the task documents: leave out --task")
    records = given.records()
    check_records(records, given.fields, CurationTask(given.curation))
    some = islice(records.read(), given.limit)
    price = given.price or TokenPrice()
    if given.local or not key_of():
        return await estimate(some, given.fields, given.curation, price)
    gemini = gemini_of(given)
    try:
        return await estimate(some, given.fields, given.curation, price, gemini.count)
    finally:
        await gemini.aclose()


def _log(
    folder: Path, started: float, tally: CurationTally, caller: ModelClient, budget: SpendingLimit
) -> None:
    """Append what this run did to runs.jsonl: the only file that depends on how it went."""
    traffic = caller.traffic
    entry = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 3),
        "records": tally.records,
        "decided_before": tally.resumed,
        "accepted": tally.accepted,
        "quarantined": dict(tally.quarantined),
        "unfinished": len(tally.unfinished),
        "calls": traffic.calls,
        "answered": traffic.answered,
        "answers_from_store": traffic.stored,
        "failures": dict(traffic.failures),
        "tokens": asdict(traffic.usage),
        "dollars_all_runs": budget.spent / UNIT,
        "dollars_in_doubt": budget.doubtful / UNIT,
        "stopped": caller.stopped,
    }
    with (folder / RUNS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
