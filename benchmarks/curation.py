"""Cost of the curator itself: time for each call and memory, with a thousand records at once.

    python benchmarks/curation.py [--records 1000] [--sentences 300] [--seconds 2]

A server that speaks Gemini's REST protocol runs as a process of its own and answers by rule after
so many seconds. Own time is the CPU time of the client's process, google-genai and all, divided by
its calls. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from curator_model import chains  # noqa: E402

from mvspec.curation import (  # noqa: E402
    ChainFields,
    CurationOptions,
    CurationStore,
    ModelClient,
    ModelRequest,
    SpendingLimit,
    TokenPrice,
    read_chain,
)
from mvspec.curation.answers import StepsReply, schema_text  # noqa: E402
from mvspec.curation.gemini import GeminiProvider  # noqa: E402
from mvspec.curation.questions import instructions, parse_prompt  # noqa: E402
from mvspec.curation.run import TaskRun  # noqa: E402
from mvspec.curation.tasks import CurationTask  # noqa: E402
from mvspec.data.sources import open_records  # noqa: E402


async def measure(folder: Path, url: str, source: Path, records: int) -> tuple[TaskRun, float]:
    """Curate the source with all its records at once; return CPU seconds too."""
    store = CurationStore(folder / "answers.sqlite")
    gemini = GeminiProvider(base_url=url, key="key", timeout=600, connections=records)
    client = ModelClient(
        gemini, store, budget=SpendingLimit(1e9), price=TokenPrice(0.3, 2.5), concurrency=records
    )
    task = CurationTask(CurationOptions("m"))
    run = TaskRun(open_records([str(source)], short=True), ChainFields(), task, client, store)
    before = time.process_time()
    await run.run(records)
    used = time.process_time() - before
    await gemini.aclose()
    store.close()
    return run, used


async def bare(url: str, source: Path, records: int) -> float:
    """Return the CPU seconds of a call of google-genai alone, of the longest prompts."""
    gemini = GeminiProvider(base_url=url, key="key", timeout=600, connections=records)
    requests = [
        ModelRequest(
            "parse", "m", instructions("parse"), parse_prompt(chain), schema_text(StepsReply)
        )
        for chain in (
            read_chain(record, ChainFields())
            for record in open_records([str(source)], short=True).read()
        )
    ]
    before = time.process_time()
    await asyncio.gather(*map(gemini.ask, requests))
    used = time.process_time() - before
    await gemini.aclose()
    return used / len(requests)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows = chains(given.records, length=max(3, given.sentences // 3))
    size = sum(len(row["reasoning"]) for row in rows)
    server = [sys.executable, str(TESTS / "gemini_server.py"), "--seconds", str(given.seconds)]
    with (
        tempfile.TemporaryDirectory() as name,
        subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it,
    ):
        source = Path(name, "chains.jsonl")
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        assert it.stdout is not None
        url = f"http://127.0.0.1:{it.stdout.readline().strip()}"
        start = time.perf_counter()
        run, used = asyncio.run(measure(Path(name), url, source, given.records))
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        alone = asyncio.run(bare(url, source, given.records))
        it.kill()
    calls = run.client.traffic.calls
    print(
        f"{os.cpu_count()} cores, {given.records} records of {size // given.records:,} characters\n"
    )
    print("| records at once | calls | CPU time a call | google-genai alone | memory | whole run |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    print(
        f"| {given.records:,} | {calls:,} | {1000 * used / calls:.2f} ms "
        f"| {1000 * alone:.2f} ms | {peak:,.0f} MB "
        f"| {seconds:.0f} s |"
    )
    if run.tally.accepted != given.records:
        raise SystemExit(f"{run.tally.accepted} of {given.records} accepted: {run.tally}")


if __name__ == "__main__":
    main()
