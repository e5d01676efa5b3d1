"""A server that speaks as much of Gemini's REST protocol as curation uses, for tests.

It runs in a thread or as a process of its own: `python tests/gemini_server.py --seconds 0.05`.
What it answers and how it misbehaves is scripted; it keeps a journal of what it was asked, what
it answered, and what those who asked had already been answered.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from curator_model import reply

Body = dict[str, Any]


@dataclass
class Act:
    """How a request is dealt with.

    Args:
        status: of the response.
        body: JSON, or raw bytes.
        headers: further ones.
        seconds: before it.
        drop: close the connection: "before" anything is sent, or "half" way.
    """

    status: int = 200
    body: Body | bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    drop: str = ""


Script = Callable[[Body, int], Act]
"""Takes a request's body and how often it came before."""


def generated(
    text: str, finish: str = "STOP", *, read: int = 100, written: int = 10, thoughts: int = 0
) -> Body:
    """Return the body of a response."""
    return {
        "candidates": [
            {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": finish}
        ],
        "usageMetadata": {
            "promptTokenCount": read,
            "candidatesTokenCount": written,
            "thoughtsTokenCount": thoughts,
            "totalTokenCount": read + written + thoughts,
        },
        "modelVersion": "scripted-1",
        "responseId": "r",
    }


def failure(status: int, reason: str, message: str = "", *details: Body) -> Body:
    """Return the body of an error, as Google's services write it."""
    return {
        "error": {"code": status, "status": reason, "message": message, "details": list(details)}
    }


def prompt_of(body: Body) -> str:
    """Return what a request asks about."""
    return "".join(part["text"] for each in body["contents"] for part in each["parts"])


def scripted(body: Body, times: int) -> Act:
    """Answer as the scripted model does, at once."""
    config = body.get("generationConfig", {})
    text = reply(config.get("responseJsonSchema"), prompt_of(body))
    read = len(json.dumps(body)) // 4
    return Act(body=generated(text, read=read, written=len(text) // 4))


class GeminiServer:
    """Serves on a port of this machine until it is stopped.

    Args:
        script: what it does with `generateContent`.
        polls: looks at a batch before it is done.
    """

    def __init__(self, script: Script = scripted, polls: int = 1) -> None:
        self.script = script
        self.polls = polls
        self.seen: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.repeated: list[str] = []
        self.keys: set[str] = set()
        self.bodies: list[Body] = []
        self.counted = 0
        self.in_flight = self.most_in_flight = 0
        self.batches: dict[str, Body] = {}
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> GeminiServer:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self.start())
        self._ready.set()
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    async def start(self, port: int = 0) -> None:
        """Begin to serve."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", port, backlog=2048)
        self.port = server.sockets[0].getsockname()[1]

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, _, rest = head.partition("\r\n")
        method, target, _ = line.split(" ")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (each.partition(":") for each in rest.split("\r\n") if each)
        }
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        self.keys.add(headers.get("x-goog-api-key", ""))
        body: Body = json.loads(data) if data else {}
        path = target.partition("?")[0]
        digest = hashlib.sha256(data).hexdigest()
        generates = path.endswith(":generateContent")
        act = self._act(method, path, body, digest)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if act.seconds:
                await asyncio.sleep(act.seconds)
            payload = act.body if isinstance(act.body, bytes) else json.dumps(act.body).encode()
            lines = [
                f"HTTP/1.1 {act.status} {'OK' if act.status == 200 else 'Error'}",
                "Content-Type: application/json",
                f"Content-Length: {len(payload)}",
                *(f"{name}: {value}" for name, value in act.headers.items()),
            ]
            if act.drop == "before":
                return False
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            if act.drop == "half":
                writer.write(payload[: len(payload) // 2])
                await writer.drain()
                return False
            writer.write(payload)
            await writer.drain()
            # What a client that has gone was sent, it was not answered.
            if generates and act.status == 200 and not writer.is_closing() and not reader.at_eof():
                self.answered[digest] += 1
        finally:
            self.in_flight -= 1
        return True

    def _act(self, method: str, path: str, body: Body, digest: str) -> Act:
        if path.endswith(":generateContent"):
            if self.answered[digest]:
                self.repeated.append(digest)
            act = self.script(body, self.seen[digest])
            self.seen[digest] += 1
            self.bodies.append(body)
            return act
        if path.endswith(":countTokens"):
            self.counted += 1
            return Act(body={"totalTokens": len(json.dumps(body["contents"])) // 5})
        if path.endswith(":batchGenerateContent"):
            return Act(body=self._batch(body))
        found = re.search(r"/batches/([^/]+)$", path)
        if method == "GET" and found and found.group(1) in self.batches:
            return Act(body=self._look(self.batches[found.group(1)]))
        if method == "GET" and path.endswith("/batches"):
            return Act(body={"operations": [self._shown(each) for each in self.batches.values()]})
        return Act(404, failure(404, "NOT_FOUND", f"no such thing: {path}"))

    def _batch(self, body: Body) -> Body:
        name = f"b{len(self.batches) + 1}"
        requests = body["batch"]["inputConfig"]["requests"]["requests"]
        for each in requests:
            data = json.dumps(each["request"], sort_keys=True).encode()
            digest = hashlib.sha256(data).hexdigest()
            self.seen[digest] += 1
            if self.seen[digest] > 1:
                self.repeated.append(digest)
        job: Body = {
            "name": name,
            "display": body["batch"]["displayName"],
            "requests": requests,
            "looks": 0,
        }
        self.batches[name] = job
        return self._shown(job)

    def _look(self, job: Body) -> Body:
        job["looks"] += 1
        return self._shown(job)

    def _shown(self, job: Body) -> Body:
        done = job["looks"] >= self.polls
        shown: Body = {
            "name": f"batches/{job['name']}",
            "metadata": {
                "displayName": job["display"],
                "state": "BATCH_STATE_SUCCEEDED" if done else "BATCH_STATE_RUNNING",
            },
        }
        if done:
            responses = [
                {"metadata": each["metadata"], **self._response(each["request"])}
                for each in job["requests"]
            ]
            output = {"inlinedResponses": {"inlinedResponses": responses}}
            shown["metadata"]["output"] = output
        return shown

    def _response(self, request: Body) -> Body:
        act = self.script(request, 0)
        body = act.body if isinstance(act.body, dict) else {}
        if act.status != 200:
            return {"error": {"code": act.status, "message": body["error"]["message"]}}
        return {"response": body}


def main() -> None:
    """Serve until standard input ends; then print the journal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--troubles", action="store_true")
    given = parser.parse_args()
    chance = random.Random(1)

    def script(body: Body, times: int) -> Act:
        act = scripted(body, times)
        if given.troubles and times == 0 and chance.random() < 0.1:
            kind = chance.choice([429, 500, 503])
            return Act(kind, failure(kind, "TROUBLE", "not now"), seconds=given.seconds)
        act.seconds = given.seconds * (0.5 + chance.random())
        return act

    async def serve() -> None:
        server = GeminiServer(script)
        await server.start()
        print(server.port, flush=True)
        while command := await asyncio.to_thread(sys.stdin.readline):
            if command.strip() == "journal":
                journal = {
                    "seen": server.seen.total(),
                    "distinct": len(server.seen),
                    "answered": server.answered.total(),
                    "repeated": len(server.repeated),
                    "in_flight": server.in_flight,
                    "most_in_flight": server.most_in_flight,
                }
                print(json.dumps(journal), flush=True)

    asyncio.run(serve())


if __name__ == "__main__":
    main()
