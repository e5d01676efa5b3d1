"""Random requests against a server: plans, adaptive turns and plain text, some given up.

    PYTHONPATH=tests python tests/serving/soak.py URL MODEL --requests 10000

Every answer is compared with one training forward over its layout: a logprob that differs by more
than 5e-5 (float32), a request without an answer, or a server that has died is a failure, and so
is a slot or row that is not free in the end. Prints a line of sums; the exit status says whether
all was right.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

import aiohttp
import torch
from reference import Reference, random_document
from transformers import AutoTokenizer

import mvspec as mv
from mvspec.compiler import plan_document
from mvspec.law.limits import Limits
from mvspec.runtime import Options, Sampling
from mvspec.runtime.serving.protocol import KEY, PlanPayload
from mvspec.trace import Trace


class Soak:
    """One run."""

    def __init__(self, url: str, folder: str, seed: int, give_up: float) -> None:
        self.url = url
        self.reference = Reference(folder)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.draw = random.Random(seed)
        self.give_up = give_up
        self.sums: Counter[str] = Counter()
        self.worst = 0.0
        self.wrong: list[str] = []

    def payload(self) -> tuple[str, dict[str, Any], list[int]]:
        """Return a kind, the body of a request, and its prompt."""
        draw = self.draw
        body: dict[str, Any] = {"return_logprob": True, "rid": f"soak-{draw.getrandbits(64):x}"}
        kind = draw.choices(["plain", "adaptive", "static", "replay"], [2, 4, 3, 1])[0]
        if kind == "plain":
            ids = self.tokenizer.encode("Well? " * draw.randint(1, 60))
            body |= {
                "input_ids": ids,
                "sampling_params": {
                    "temperature": 0,
                    "max_new_tokens": draw.randint(1, 120),
                    "ignore_eos": True,
                },
            }
            return kind, body, ids
        options = Options()
        if kind == "adaptive":
            document = mv.document(mv.user("Well? " * draw.randint(1, 40)))
            options = Options(
                sampling=Sampling(
                    temperature=draw.choice([0.0, 0.7, 1.0]), seed=draw.randint(0, 1 << 30)
                ),
                limits=Limits(
                    max_tokens=draw.randint(1, 250),
                    max_depth=draw.randint(1, 3),
                    max_seconds=draw.choice([None, None, 0.3]),
                ),
            )
        else:
            document = random_document(draw)
            if kind == "replay":
                texts = {hole.name: "It is one" for hole in document.holes}
                document, options = document.fill(texts, check=False), Options(decode=True)
        plan = plan_document(document, self.tokenizer, template=True)
        ids, payload = PlanPayload.of(plan, options, live=draw.random() < 0.5)
        body |= {
            "input_ids": ids,
            "stream": draw.random() < 0.3,
            "sampling_params": {
                "temperature": options.sampling.temperature,
                "max_new_tokens": 1500,
                "custom_params": {KEY: payload.model_dump_json()},
            },
        }
        return kind, body, ids

    async def one(self, session: aiohttp.ClientSession) -> None:
        """Send one request and check its answer."""
        kind, body, prompt = self.payload()
        self.sums[kind] += 1
        gives_up = self.draw.random() < self.give_up
        after = self.draw.random() * 2.0
        try:
            if gives_up and self.draw.random() < 0.5:
                asyncio.get_running_loop().call_later(
                    after, lambda: asyncio.ensure_future(self.abort(session, body["rid"]))
                )
                answer = await self.send(session, body)
            elif gives_up:
                answer = await asyncio.wait_for(self.send(session, body), after)
            else:
                answer = await self.send(session, body)
        except TimeoutError:
            self.sums["disconnected"] += 1
            return
        if "meta_info" not in answer:
            self.sums["refused"] += 1
            message = json.dumps(answer)[:300]
            if "max_tokens" not in message and "tokens" not in message:
                self.wrong.append(f"{kind}: {message}")
            return
        reason = answer["meta_info"]["finish_reason"]
        if reason["type"] == "abort":
            self.sums["aborted"] += 1
            if not gives_up:
                self.sums["aborted by the server"] += 1
                if "fault" in str(reason):
                    self.wrong.append(f"{kind}: {str(reason)[:300]}")
            return
        self.check(kind, answer, prompt)

    def check(self, kind: str, answer: dict[str, Any], prompt: list[int]) -> None:
        """Compare an answer with training."""
        told = answer["meta_info"]["finish_reason"].get(KEY)
        if kind == "plain":
            ids = answer["output_ids"]
            logprobs = [each[0] for each in answer["meta_info"]["output_token_logprobs"]]
            count, worst = len(ids), self.reference.worst_plain(prompt, ids, logprobs)
        else:
            trace = Trace.model_validate(json.loads(told)["trace"])
            count, worst = self.reference.worst(trace)
            self.sums["paths"] += len(trace.threads) - 1
            if trace.document is None:
                self.wrong.append(f"{kind}: no document")
        self.sums["answered"] += 1
        self.sums["tokens"] += count
        self.worst = max(self.worst, worst)
        if worst > 5e-5:
            self.wrong.append(f"{kind}: a logprob differs by {worst}")

    async def send(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> Any:
        """Return the answer, the last piece of it where it is streamed."""
        async with session.post(f"{self.url}/generate", json=body) as response:
            if not body.get("stream"):
                return await response.json()
            last = None
            async for line in response.content:
                if line.startswith(b"data: {"):
                    last = json.loads(line[6:])
            return last

    async def abort(self, session: aiohttp.ClientSession, rid: str) -> None:
        """Ask the server to end a request."""
        async with session.post(f"{self.url}/abort_request", json={"rid": rid}) as response:
            await response.read()

    async def run(self, requests: int, concurrency: int) -> bool:
        """Send all requests; say whether everything was right."""
        gate = asyncio.Semaphore(concurrency)
        done = 0
        start = time.time()
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None)
        # A line may hold a whole trace.
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, read_bufsize=1 << 24
        ) as session:

            async def gated() -> None:
                nonlocal done
                async with gate:
                    await self.one(session)
                    done += 1
                    if done % 100 == 0:
                        print(f"{done} of {requests}, {time.time() - start:.0f} s, "
                              f"{dict(self.sums)}, worst {self.worst:.1e}, "
                              f"{len(self.wrong)} wrong", flush=True)  # fmt: skip

            await asyncio.gather(*(gated() for _ in range(requests)))
            await asyncio.sleep(3)
            async with session.post(f"{self.url}/flush_cache") as response:
                flushed = response.status == 200
        print(f"{time.time() - start:.0f} s, {dict(self.sums)}, worst {self.worst:.1e}, all memory "
              f"free: {flushed}, {len(self.wrong)} wrong")  # fmt: skip
        for each in self.wrong[:20]:
            print("wrong:", each)
        return flushed and not self.wrong


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--give-up", type=float, default=0.2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    soak = Soak(args.url, args.model, args.seed, args.give_up)
    raise SystemExit(not asyncio.run(soak.run(args.requests, args.concurrency)))


if __name__ == "__main__":
    main()
