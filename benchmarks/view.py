"""The viewer on many traces: how long the page takes to write, to open, to scroll, to search.

    python benchmarks/view.py [--records 10000] [--tokens 300] [--data TRACES.jsonl] [--repeats 3]

Traces shaped like reasoning are made up, a page is written of them with `mvspec view`, and
headless Chromium opens it with an empty profile. `ready` is the time from the start of the
navigation to the first record on the screen; `long` is the longest task that the browser reports
(PerformanceObserver, longtask: those over 50 ms) while the list is scrolled through, while
records are opened, and during a search of all records. Needs selenium, chromium, chromedriver.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import synthetic

from mvspec.trace import Trace, TracedThread
from mvspec.view.record_view import AUTHORS, lay_words

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1280,860",
)  # fmt: skip

WATCH = """
window.longest = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration);
}).observe({ type: "longtask", buffered: true });
"""

SCROLL = """
const [steps, done] = arguments, list = document.getElementById("list");
let step = 0;
const go = () => {
  list.scrollTop = (list.scrollHeight * step) / steps;
  if (step++ < steps) requestAnimationFrame(go); else setTimeout(done, 200);
};
go();
"""

SEARCH = """
const [query, done] = arguments, input = document.getElementById("search");
const count = document.getElementById("count"), start = performance.now();
input.value = query;
input.dispatchEvent(new Event("input", { bubbles: true }));
const wait = () => count.dataset.query === query
  ? done([performance.now() - start, count.textContent]) : setTimeout(wait, 5);
wait();
"""


def trace(tokens: int, seed: int) -> Trace:
    """Return a trace of about so many tokens; words stand for tokens, all threads in step."""
    rng = random.Random(seed)
    document = synthetic.document(tokens, rng.choice([0.1, 0.3, 0.5]), seed)
    pages = lay_words(document)
    starts = [0]
    for width in pages.widths:
        starts.append(starts[-1] + width)
    owners: list[int] = []
    authors: list[str] = []
    positions: list[int] = []
    for run in pages.runs:
        owners += [run.thread] * run.size
        authors += [AUTHORS[run.author]] * run.size
        positions += range(run.position, run.position + run.size)
    forwards = max(positions, default=0) + 1
    return Trace.model_validate(
        {
            "model": "synthetic",
            "seed": seed,
            "threads": [
                TracedThread(
                    id=index, label=each.label, title=each.title, block=each.block,
                    parent=each.parent if each.parent >= 0 else None,
                )
                for index, each in enumerate(pages.threads)
            ],
            "ids": [rng.randrange(150_000) for _ in owners],
            "token_texts": [pages.text[a:b] for a, b in pairwise(starts)],
            "thread_ids": owners,
            "position_ids": positions,
            "authors": authors,
            "logprobs": [
                None if author != "model" else -rng.expovariate(2) for author in authors
            ],
            "forward_ids": positions,
            "forward_seconds": [0.02 * (step + 1) for step in range(forwards)],
            "forward_tokens": [1] * forwards,
            "document": document,
            "seconds": 0.02 * forwards,
        }
    )  # fmt: skip


def measured(page: Path) -> dict[str, Any]:
    """Open a page in a fresh browser, and say how long everything took, in ms."""
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        service = webdriver.ChromeService(shutil.which("chromedriver") or "chromedriver")
        browser = webdriver.Chrome(options=options, service=service)
        try:
            browser.set_script_timeout(300)
            browser.get(page.resolve().as_uri())
            browser.execute_script(WATCH)
            ready = "return performance.getEntriesByName('mvspec-shown')[0]?.startTime ?? 0"
            WebDriverWait(browser, 120, 0.05).until(lambda _: browser.execute_script(ready))
            out: dict[str, Any] = {"ready": browser.execute_script(ready)}
            time.sleep(0.3)
            out["long, opening"] = browser.execute_script("return longest")
            browser.execute_script("longest = 0")
            browser.execute_async_script(SCROLL, 400)
            out["long, scrolling"] = browser.execute_script("return longest")
            browser.execute_script("longest = 0")
            for _ in range(20):
                browser.execute_script("document.getElementById('previous').click()")
                time.sleep(0.05)
            out["long, records"] = browser.execute_script("return longest")
            for name, query in (("search", "twice what"), ("search again", "no other case")):
                browser.execute_script("longest = 0")
                took, told = browser.execute_async_script(SEARCH, query)
                time.sleep(0.2)
                out[name], out[f"long, {name}"] = took, browser.execute_script("return longest")
                out[f"found, {name}"] = told
            return out
        finally:
            browser.quit()


def main() -> None:
    """Print a line for each repeat, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--data", type=Path, help="traces, instead of made-up ones")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir(), "mvspec-view"))
    given = parser.parse_args()
    given.out.mkdir(exist_ok=True)
    data, page = given.data or given.out / "traces.jsonl", given.out / "traces.html"
    if not given.data:
        with data.open("w", encoding="utf-8") as file:
            for seed in range(given.records):
                each = trace(given.tokens, seed)
                file.write(each.model_dump_json(exclude_none=True) + "\n")
    print(f"{data.stat().st_size / 1e6:,.1f} MB of traces")
    start = time.perf_counter()
    command = [sys.executable, "-m", "mvspec", "view", str(data), "-o", str(page), "--force"]
    subprocess.run(command, check=True)
    print(f"written in {time.perf_counter() - start:.1f} s, load {os.getloadavg()[0]:.1f}")
    runs = []
    for _ in range(given.repeats):
        load = os.getloadavg()[0]
        runs.append(measured(page))
        print(f"load {load:.1f}", json.dumps(runs[-1]))
    for name, value in runs[0].items():
        if not isinstance(value, str):
            print(f"{name:>20}: median {statistics.median(run[name] for run in runs):,.0f} ms")


if __name__ == "__main__":
    main()
