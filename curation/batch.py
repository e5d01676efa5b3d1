"""Gemini's Batch API: requests that wait together, and cost less.

A batch is noted in the store before it is made, and is found again by its display name: a run
that was killed takes up its batches, and pays for none twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import uuid4

from google.genai import types

from mvspec.curation.gemini import Gemini, answer_of, config_of
from mvspec.curation.request import Answer, Refused, Request, Unanswered
from mvspec.curation.store import Store

__all__ = ["Batches"]

BYTES = 15_000_000
"""Of the requests of a batch; the service documents 20 MB for one call."""

_ENDED = {"JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED"}
_READY = {"JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED"}


class Batches:
    """Asks Gemini in batches: a batch is made when for a while no request has come.

    Args:
        gemini: the connection.
        store: where batches are noted.
        linger: seconds without a new request after which those that wait become a batch.
        poll: seconds between two looks at a batch.
        most: requests of a batch.
    """

    def __init__(
        self,
        gemini: Gemini,
        store: Store,
        *,
        linger: float = 2.0,
        poll: float = 30.0,
        most: int = 1000,
    ) -> None:
        self.gemini = gemini
        self.store = store
        self.linger = linger
        self.poll = poll
        self.most = most
        self._waiting: dict[str, tuple[Request, asyncio.Future[Answer]]] = {}
        self._came = asyncio.Event()
        self._open: dict[str, list[tuple[str, str | None, list[str]]]] = {}
        for id, name, keys in store.batches():
            for key in keys:
                self._open.setdefault(key, []).append((id, name, keys))
        self._jobs: dict[str, asyncio.Task[dict[str, Answer | Exception]]] = {}
        self._gathering: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, request: Request) -> Answer:
        """Return the model's answer, when its batch has ended.

        Raises:
            Unanswered: the batch failed, or the request in it.
            Refused: the service does not take the batch.
        """
        before = self._open.get(request.key)
        if before:
            return await self._again(request, *before[0])
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[request.key] = request, answer
        self._came.set()
        if self._gathering is None or self._gathering.done():
            self._gathering = asyncio.create_task(self._gather())
        return await answer

    async def _again(
        self, request: Request, id: str, name: str | None, keys: Sequence[str]
    ) -> Answer:
        """Return the answer out of a batch of an earlier run."""
        job = self._jobs.get(id)
        if job is None:
            job = self._jobs[id] = asyncio.create_task(self._resume(id, name, keys))
        try:
            found = (await asyncio.shield(job)).get(request.key)
        except (Unanswered, Refused):
            self._jobs.pop(id, None)  # whoever asks again looks again
            raise
        # One that failed here may be in a later batch too: whoever asks again looks there.
        self._open[request.key].pop(0)
        if isinstance(found, Answer):
            return found
        raise found or Unanswered("batch: it was never made")

    async def _resume(
        self, id: str, name: str | None, keys: Sequence[str]
    ) -> dict[str, Answer | Exception]:
        name = name or await self._named(id)
        if name is None:
            await self.store.batch(id, None, keys, open=False)
            return {}
        await self.store.batch(id, name, keys, open=True)
        return await self._read(id, name, keys)

    async def _named(self, id: str) -> str | None:
        """Return the name of the batch with our display name, where the service has it."""
        try:
            pager = await self.gemini.client.aio.batches.list(config={"page_size": 100})
            async for job in pager:
                if job.display_name == _display(id):
                    return job.name
        except Exception as error:
            raise self.gemini.failure(error) from None
        return None

    async def _gather(self) -> None:
        while self._waiting:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), self.linger)
            except TimeoutError:
                pass
            else:
                if len(self._waiting) < self.most:
                    continue
            while some := self._some():
                task = asyncio.create_task(self._run(some))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    def _some(self) -> list[tuple[Request, asyncio.Future[Answer]]]:
        some: list[tuple[Request, asyncio.Future[Answer]]] = []
        size = 0
        for key, (request, answer) in list(self._waiting.items()):
            if answer.done():  # whoever asked has been stopped
                del self._waiting[key]
                continue
            size += 2 * request.size
            if some and (size > BYTES or len(some) == self.most):
                break
            some.append((request, answer))
            del self._waiting[key]
        return some

    async def _run(self, some: Sequence[tuple[Request, asyncio.Future[Answer]]]) -> None:
        requests = [request for request, _ in some]
        found: dict[str, Answer | Exception]
        try:
            found = await self._make(requests)
        except Exception as error:  # whatever it is, those who wait have to hear of it
            found = {request.key: error for request in requests}
        for request, answer in some:
            result = found.get(request.key) or Unanswered("batch: it holds no response", paid=True)
            if answer.done():
                continue
            if isinstance(result, Answer):
                answer.set_result(result)
            else:
                answer.set_exception(result)

    async def _make(self, requests: Sequence[Request]) -> dict[str, Answer | Exception]:
        keys = [request.key for request in requests]
        id = uuid4().hex
        await self.store.batch(id, None, keys, open=True)
        inlined = [
            types.InlinedRequest(
                model=request.model,
                contents=[types.Content(role="user", parts=[types.Part(text=request.prompt)])],
                config=config_of(request).model_copy(
                    # Of the client and not of the request: a batch does not take them.
                    update={"automatic_continuation": None, "automatic_function_calling": None}
                ),
                metadata={"key": request.key},
            )
            for request in requests
        ]
        try:
            job = await self.gemini.client.aio.batches.create(
                model=requests[0].model,
                src=types.BatchJobSource(inlined_requests=inlined),
                config=types.CreateBatchJobConfig(display_name=_display(id)),
            )
            name = job.name
        except Exception as error:
            failure = self.gemini.failure(error)
            if isinstance(failure, Refused) or not failure.paid:
                await self.store.batch(id, None, keys, open=False)
                raise failure from None
            name = await self._named(id)  # the answer was lost, and perhaps not the batch
            if name is None:
                await self.store.batch(id, None, keys, open=False)
                raise Unanswered(str(failure)) from None
        if name is None:
            raise Unanswered("batch: it has no name", paid=True)
        await self.store.batch(id, name, keys, open=True)
        return await self._read(id, name, keys)

    async def _read(self, id: str, name: str, keys: Sequence[str]) -> dict[str, Answer | Exception]:
        """Wait for a batch and return its answers by key."""
        while True:
            try:
                job = await self.gemini.client.aio.batches.get(name=name)
            except Exception as error:
                failure = self.gemini.failure(error)
                if isinstance(failure, Refused):
                    raise failure from None
                await asyncio.sleep(max(self.poll, failure.after or 0))
                continue
            state = job.state.value if job.state else ""
            if state in _READY:
                break
            if state in _ENDED:
                await self.store.batch(id, name, keys, open=False)
                said = job.error.message if job.error else ""
                failed = Unanswered(f"batch: {state} {said or ''}".strip())
                return dict.fromkeys(keys, failed)
            await asyncio.sleep(self.poll)
        responses = (job.dest.inlined_responses if job.dest else None) or []
        found: dict[str, Answer | Exception] = {}
        for index, each in enumerate(responses):
            key = (each.metadata or {}).get("key") or (keys[index] if index < len(keys) else "")
            if each.response is not None:
                found[key] = answer_of(each.response)
            else:
                said = each.error.message if each.error else "no response"
                found[key] = Unanswered(f"batch: {said}")
        return found  # the note stays until whoever asks has stored every answer


def _display(id: str) -> str:
    return f"mvspec-{id}"
