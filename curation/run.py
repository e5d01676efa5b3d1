"""Run of a curation: records of the input through a task, taken up again where it was stopped."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mvspec.compiler.chat_template import TemplateSettings
from mvspec.curation.chain import ChainFields, ReasoningChain, read_chain
from mvspec.curation.client import UNIT, ModelClient, RateLimit, SpendingLimit, TokenPrice
from mvspec.curation.estimate import CurationEstimate, estimate
from mvspec.curation.gemini import NO_KEY, GeminiBatchProvider, GeminiProvider, key_of
from mvspec.curation.output import open_folder, write_unfinished
from mvspec.curation.process import ORPHANED, locked, watched
from mvspec.curation.questions import CurationOptions
from mvspec.curation.report import SAMPLE
from mvspec.curation.request import (
    CurationStopped,
    ModelProvider,
    RequestRefused,
    RequestUnanswered,
)
from mvspec.curation.store import CurationStore
from mvspec.curation.tasks import BranchTask, CurationTask, PromptingTask
from mvspec.data.records import BadRecord, InputError, Record
from mvspec.data.sources import PATIENCE, Records, open_records
from mvspec.disk import append_line

TASKS = ("documents", "branches", "prompting")

RUNS = "runs.jsonl"

WINDOW = 2
"""Records that are worked on for each request on its way: some wait for a slot or for the pace."""


ChainTask = CurationTask | BranchTask | PromptingTask
"""Work that is done with every chain, or with its question alone where `reasoning` is false.

Its outcomes are JSON: `code` ("" for success), `reason`, `history` and more. Its `fingerprint` is
everything but the chain that decides them.
"""


@dataclass
class CurationTally:
    """Counts of a run so far.

    Args:
        records: read; `resumed` of them were decided by an earlier run.
        accepted: with a document.
        quarantined: by the check that they did not pass.
        unfinished: not decided, with `record`, `place` and `reason`; the next run tries again.
        share: of the input's cost that is done.
    """

    records: int = 0
    resumed: int = 0
    accepted: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    unfinished: list[dict[str, str]] = field(default_factory=list)
    share: float = 0.0

    @property
    def decided(self) -> int:
        """Records with a verdict."""
        return self.accepted + self.quarantined.total()

    def most_unfinished(self) -> str:
        """Return the most frequent reason for which records were not decided, as a line."""
        reasons = Counter(re.sub(r"[0-9]+", "0", each["reason"]) for each in self.unfinished)
        ((same, number),) = reasons.most_common(1)
        alike = (each["reason"] for each in self.unfinished)
        reason = next(each for each in alike if re.sub(r"[0-9]+", "0", each) == same)
        return f"not decided: {number:,} of {len(self.unfinished):,}: {reason}"

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
            with record.guarded():
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


def outcome_key(task: ChainTask, chain: ReasoningChain) -> str:
    """Return the SHA-256 of everything that decides the outcome of a chain."""
    made = json.dumps([task.fingerprint, chain.digest], sort_keys=True)
    return hashlib.sha256(made.encode()).hexdigest()


@dataclass
class TaskRun:
    """A task over the records of an input; the verdicts go into the store.

    Args:
        records: the input.
        fields: where they keep what.
        task: what is done.
        client: how the model is asked.
        store: where verdicts go.
        tally: filled as the run goes on.
    """

    records: Records
    fields: ChainFields
    task: ChainTask
    client: ModelClient
    store: CurationStore
    tally: CurationTally = field(default_factory=CurationTally)

    async def run(self, concurrency: int, limit: int | None = None) -> None:
        """Bring every record to a verdict, or as many as can be.

        Args:
            concurrency: records worked on at once.
            limit: the first so many records only.

        Raises:
            InputError: the store cannot be written.
        """
        stream = enumerate(islice(self.records.read(), limit))
        size = self.records.size

        async def worker(stream: Iterator[tuple[int, Record]]) -> None:
            for number, record in stream:
                if self.client.abandoned:
                    return
                self.tally.records += 1
                await self._decide(number, record)
                if limit is not None:
                    self.tally.share += 1 / limit
                elif size:
                    self.tally.share += record.size / size

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(worker(stream))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        await self.client.landed()
        if not self.client.abandoned:
            await self.store.forget_from(self.tally.records)

    async def _decide(self, number: int, record: Record) -> None:
        key = ""
        try:
            with record.guarded():
                chain = read_chain(record, self.fields, reasoning=self.task.reasoning)
        except BadRecord as error:
            names = ("record", "place", "code", "reason")
            outcome = {name: error.entry[name] for name in names} | {"history": []}
        else:
            key = outcome_key(self.task, chain)
            found = self.store.result(number, key)
            if found is not None:
                self.tally.resumed += 1
                self.tally.add(json.loads(found))
                return
            named = {"record": chain.name, "place": chain.place}
            try:
                outcome = named | await self.task.work(
                    chain, lambda request: self.client.ask(request, number)
                )
            except (InputError, OSError):
                raise
            except Exception as error:  # one record must not end a night's run
                reason = str(error)
                if not isinstance(error, CurationStopped | RequestUnanswered | RequestRefused):
                    reason = f"internal error, please report it: {type(error).__name__}: {error}"
                self.tally.unfinished.append(named | {"reason": reason})
                await self.store.forget(number)
                return
        self.tally.add(outcome)
        await self.store.finish(number, key, json.dumps(outcome))


RunProgress = Callable[[TaskRun], AbstractAsyncContextManager[None]]
"""Shows how far a run is, as long as it goes on."""


@dataclass(frozen=True)
class CurationRun:
    """Settings of a run, and its course: `mvspec curate`.

    Args:
        inputs: what `open_records` takes.
        curation: what decides the outcome.
        fields: where records keep what.
        task: one of `TASKS`.
        local: ask a model in this process, `curation.model` being its folder or hub name.
        template: arguments of that model's chat template, as `enable_thinking`.
        base_url: another address of the service.
        price, budget: what tokens cost, and what may be spent in all runs on the folder.
        concurrency: requests on their way at once.
        requests, tokens: the most a minute.
        retries: of requests that were not answered.
        timeout: seconds for an answer.
        batch: use the Batch API.
        linger, poll: seconds without a request that make a batch, and between looks at one.
        limit: the first so many records only.
        split: of a data set.
        sample: records that report.html shows.
    """

    inputs: tuple[str, ...]
    curation: CurationOptions
    fields: ChainFields = field(default_factory=ChainFields)
    task: str = "documents"
    local: bool = False
    template: Mapping[str, Any] = field(default_factory=dict)
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

    def run(
        self,
        folder: Path,
        gone: int | None,
        tell: Callable[[str], object],
        progress: RunProgress = lambda run: nullcontext(),
    ) -> TaskRun:
        """Carry the run out in a folder.

        Args:
            folder: of the output.
            gone: what `outlived` gives.
            tell: takes a line for people.
            progress: shows how far it is.

        Raises:
            InputError: it cannot be carried out as given.
        """
        self._check()
        task = self._task()
        records = self.records()
        check_records(records, self.fields, task)
        path = open_folder(folder)
        with locked(folder, tell):
            store = CurationStore(path)
            try:
                return asyncio.run(self._run(task, records, store, folder, gone, tell, progress))
            except (asyncio.CancelledError, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            finally:
                store.close()

    async def dry_run(self) -> CurationEstimate:
        """Return what the run would take; the service counts tokens where there is a key.

        Raises:
            InputError: the input cannot be read.
        """
        if self.task != "documents":
            raise InputError("--dry-run is of the task documents: leave out --task")
        records = self.records()
        check_records(records, self.fields, self._task())
        some = islice(records.read(), self.limit)
        price = self.price or TokenPrice()
        if self.local or not key_of():
            return await estimate(some, self.fields, self.curation, price)
        async with self._gemini() as gemini:
            return await estimate(some, self.fields, self.curation, price, gemini.count)

    def records(self) -> Records:
        """Open the input."""
        return open_records(self.inputs, split=self.split, hub=True, rows=True, short=True)

    def _task(self) -> ChainTask:
        curation = self.curation
        if self.template:  # they decide answers as the model does
            asked = f"{curation.model} ({TemplateSettings(self.template)})"
            curation = replace(curation, model=asked)
        if self.task == "documents":
            return CurationTask(curation, self.sample)
        return (BranchTask if self.task == "branches" else PromptingTask)(curation)

    def _check(self) -> None:
        """Refuse a run that has no key, or a budget that nothing can be counted against."""
        if self.budget is not None and self.price is None and not self.local:
            raise InputError(
                "--budget needs --price IN,OUT: dollars for a million tokens read and written, as "
                "the service's price list has them for this model (mvspec holds no list: it would "
                "be out of date)"
            )
        if self.template and not self.local:
            raise InputError("--template-arg is of a model's chat template: give --local")
        if self.batch and self.local:
            raise InputError("--batch is of the service: leave out --local")
        if not self.local and not key_of():
            raise InputError(NO_KEY)
        if self.task not in TASKS:
            raise InputError(f"--task {self.task}: use one of {', '.join(TASKS)}")

    async def _run(
        self,
        task: ChainTask,
        records: Records,
        store: CurationStore,
        folder: Path,
        gone: int | None,
        tell: Callable[[str], object],
        progress: RunProgress,
    ) -> TaskRun:
        started = time.time()
        if not self.batch and store.batches():
            raise InputError(f"-o {folder}: batches are on their way: add --batch to take them up")
        async with self._provider(store) as provider:
            client = ModelClient(
                provider,
                store,
                budget=SpendingLimit(self.budget, *store.spent()),
                price=self.price or TokenPrice(),
                pace=RateLimit() if self.batch else RateLimit(self.requests, self.tokens),
                concurrency=10**6 if self.batch else self.concurrency,
                retries=self.retries,
                once=self.batch,
            )

            def stop(reason: str) -> None:
                flying = client.traffic.in_flight
                if not self.batch and flying:
                    tell(f"{reason}: waiting for {flying} answers that are paid for")
                client.stop(reason, abandoned=reason == ORPHANED)

            run = TaskRun(records, self.fields, task, client, store)
            with watched(gone, stop, folder):
                async with progress(run):
                    await run.run(1000 if self.batch else WINDOW * self.concurrency, self.limit)
        if not client.abandoned:
            task.write(folder, store)
            write_unfinished(folder, run.tally.unfinished)
            _log(folder, started, run)
        return run

    @asynccontextmanager
    async def _provider(self, store: CurationStore) -> AsyncIterator[ModelProvider]:
        if self.local:
            try:
                from mvspec.curation.local import LocalProvider
                from mvspec.runtime.engine.torch_engine import TorchEngine
            except ImportError as error:
                raise InputError(f"--local needs: pip install 'mvspec[engine]' ({error})") from None
            engine = TorchEngine.load(
                self.curation.model or None, max_concurrent_requests=self.concurrency,
                chat_template_kwargs=self.template,
            )  # fmt: skip
            yield LocalProvider(engine)
            return
        async with self._gemini() as gemini:
            if self.batch:
                yield GeminiBatchProvider(gemini, store, linger=self.linger, poll=self.poll)
            else:
                yield gemini

    @asynccontextmanager
    async def _gemini(self) -> AsyncIterator[GeminiProvider]:
        gemini = GeminiProvider(
            base_url=self.base_url, timeout=self.timeout, connections=self.concurrency + 4
        )
        try:
            yield gemini
        finally:
            await gemini.aclose()


def _log(folder: Path, started: float, run: TaskRun) -> None:
    """Append what a run did to runs.jsonl: the only file that depends on how it went."""
    tally, client, traffic = run.tally, run.client, run.client.traffic
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
        "dollars_all_runs": client.budget.spent / UNIT,
        "dollars_in_doubt": client.budget.doubtful / UNIT,
        "stopped": client.stopped,
    }
    append_line(folder / RUNS, json.dumps(entry))
