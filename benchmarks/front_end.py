"""Text to tree and back: strict, recovering, rendering, every form, and `check`, against lxml.

    python benchmarks/front_end.py [--data TRACES.jsonl --field output] [--form FORM ...]
    python benchmarks/front_end.py --growth

lxml parses the same canonical texts escaped, as the published pipeline does: `&`, `<` and `>`
become entities except in the twelve tags, and one root stands around the whole. It makes a tree
of strings and verifies nothing else. Rates are millions of characters a second of a core (of its
time, so that others on the machine count little), the best of several runs. Without --data,
documents shaped like reasoning traces are made up.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from html import escape
from multiprocessing import get_context
from pathlib import Path

import synthetic

import mvspec
from mvspec.data.sources import read
from mvspec.forms import FORMS
from mvspec.forms.tagged import TaggedForm
from mvspec.law.tags import TAG
from mvspec.tree.builder import number
from mvspec.tree.ir import Conclusion, Document, Parallel, Think
from mvspec.tree.node import Node

try:
    from lxml import etree
except ImportError:
    raise SystemExit("this benchmark compares with lxml: pip install lxml") from None


def best(function: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of a core that the fastest of several runs took."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def row(name: str, texts: list[str], function: Callable[[], object]) -> None:
    """Print the rate of one way to read or write these texts."""
    size = sum(map(len, texts))
    taken = best(function)
    print(
        f"| {name} | {len(texts):,} | {size / 1e6:.2f} | {taken:.3f} | {size / taken / 1e6:.1f} |"
    )


def escaped(text: str) -> str:
    """Return a text as XML: everything escaped but the tags."""
    parts: list[str] = []
    at = 0
    for tag in TAG.finditer(text):
        parts += (escape(text[at : tag.start()], quote=False), tag.group())
        at = tag.end()
    return f"<root>{''.join(parts)}{escape(text[at:], quote=False)}</root>"


def adapted(document: Document, form: str) -> Document | None:
    """Return what a form can hold of a document, None where that is nothing."""
    if form == "apr" or form.startswith("curator"):
        (turn,) = document.messages
        body = turn.body[0].body if turn.body and isinstance(turn.body[0], Think) else turn.body
        document = mvspec.document(mvspec.assistant(*body))
    if form == "curator-summary":
        document = document.map(bare)
    if form == "curator-plan":
        blocks = list(document.walk(Parallel))
        turn = mvspec.assistant(
            *(
                mvspec.parallel(
                    *(mvspec.branch(f"S{o.label}: {o.text}") for o in block.goal.outlines)
                )
                for block in blocks
            )
        )
        document = mvspec.document(turn)
    document = document.map(lambda node: number(node) if isinstance(node, Parallel) else node)
    try:
        mvspec.render(document, form)
    except mvspec.Unsupported:
        return None
    return document


def bare(node: Node) -> Node:
    return Conclusion() if isinstance(node, Conclusion) else node


def damaged(text: str, form: str, rng: random.Random) -> str:
    """Return a text that lacks two of its tags."""
    found = list(FORMS[form].syntax.marker.finditer(text))
    if len(found) < 4:
        return text[: len(text) // 2] + "</Path>\n"
    first, second = sorted(rng.sample(found, 2), key=lambda tag: tag.start())
    return text[: first.start()] + text[first.end() : second.start()] + text[second.end() :]


def recovered(text: str, form: str) -> object:
    return mvspec.parse(text, form, recover=True)


def check_rate(texts: list[str], workers: int, megabytes: int) -> None:
    """Print the rate of the command over a folder of two files."""
    with tempfile.TemporaryDirectory() as folder:
        rows = "".join(json.dumps({"output": text}) + "\n" for text in texts)
        repeats = max(1, megabytes * 500_000 // len(rows))
        for index in range(2):
            Path(folder, f"{index}.jsonl").write_text(rows * repeats, "utf-8")
        size = 2 * repeats * sum(map(len, texts))
        command = [sys.executable, "-m", "mvspec", "check", folder, "--field", "output", "--json"]
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, "--workers", str(workers)], stdout=subprocess.DEVNULL, check=True)
        taken, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    name = f"check, {workers} worker{'s' * (workers > 1)}, {taken:.2f} s on the clock"
    count, rate = 2 * repeats * len(texts), size / busy / 1e6
    print(f"| {name} | {count:,} | {size / 1e6:.1f} | {busy:.2f} | {rate:.1f} |")


OPENING = "<Parallel>\n<Goal>\n<Outline>\n1: a\n</Outline>\n</Goal>\n<Path>\n1: b\n"
HARD: dict[str, tuple[str, str]] = {
    "prose": ("multiverse", "Nothing stands here but words.\n"),
    "less-than signs": ("multiverse", "a < b </ <"),
    "stray tags": ("multiverse", "</Path>\n"),
    "tags as words": ("multiverse", "a <Path> b "),
    "openings, one in the other": ("multiverse", OPENING),
    "paths of one block": ("multiverse", "<Path>\n1: b\n</Path>\n"),
    "lines of a goal": ("multiverse", "1: a\n"),
    "stray threads": ("threadweaver", "</Thread>\n"),
    "stray numbered tags": ("multiverse-prompt", "</Path 1>\n"),
}
"""Texts that are one unit over and over, by name: the form, and the unit."""
STARTS = {"paths of one block": OPENING + "</Path>\n", "lines of a goal": "<Parallel>\n<Goal>\n"}


def hard(name: str, megabytes: float, recover: bool) -> tuple[float, float]:
    """Seconds of a core to read one hard text, and MB that the process grew to."""
    form, unit = HARD[name]
    text = STARTS.get(name, "") + unit * int(megabytes * 1_000_000 / len(unit))
    start = time.process_time()
    with suppress(mvspec.ParseError):
        mvspec.parse(text, form, recover=recover)  # type: ignore[call-overload]
    taken = time.process_time() - start
    return taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def growth(sizes: tuple[float, ...]) -> None:
    """Print how time and memory of hard texts grow as the text doubles."""
    columns = [f"{size:g} MB" for size in sizes]
    print(f"| Text | Mode | {' | '.join(columns)} | Peak, MB |")
    print("| --- | --- |" + " ---: |" * (len(sizes) + 1))
    for name in HARD:
        for recover in (False, True):
            cells, peak = [], 0.0
            for size in sizes:
                # A process of its own: the peak of one cannot be that of another.
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    taken, peak = pool.submit(hard, name, size, recover).result()
                cells.append(f"{taken:.2f} s")
            mode = "recover" if recover else "strict"
            print(f"| {name} | {mode} | {' | '.join(cells)} | {peak:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="records, as `mvspec check` reads them")
    parser.add_argument("--field", help="where a row keeps its text")
    parser.add_argument("--form", action="append", choices=FORMS, help="only this; repeatable")
    parser.add_argument("--megabytes", type=int, default=40, help="input of `check`")
    about = "time and memory of hard texts of these sizes, and nothing else"
    parser.add_argument("--growth", type=float, nargs="*", metavar="MB", help=about)
    args = parser.parse_args()
    if args.growth is not None:
        growth(tuple(args.growth or (0.5, 1, 2)))
        return
    documents = []
    if args.data:
        for record in read(args.data, field=args.field):
            try:
                documents.append(mvspec.parse(record.text))
            except mvspec.ParseError:
                continue
    else:
        documents = [synthetic.document(4000, seed=seed) for seed in range(60)]
    texts = [mvspec.render(document) for document in documents]
    xml = [escaped(text) for text in texts]
    print("| What | Texts | MB | Seconds of a core | MB/s per core |")
    print("| --- | ---: | ---: | ---: | ---: |")
    parser_of_xml = etree.XMLParser(huge_tree=True)
    row(
        "lxml, escaped text to tree", xml, lambda: [etree.fromstring(t, parser_of_xml) for t in xml]
    )
    row("lxml, escaping too", texts,
        lambda: [etree.fromstring(escaped(t), parser_of_xml) for t in texts])  # fmt: skip
    for form in args.form or [name for name, each in FORMS.items() if each.syntax.tagged]:
        held = [each for each in (adapted(document, form) for document in documents) if each]
        written = [mvspec.render(document, form) for document in held]
        if not written:
            continue
        row(f"{form}, strict", written, lambda: [mvspec.parse(t, form) for t in written])  # noqa: B023
        row(f"{form}, render", written, lambda: [mvspec.render(d, form) for d in held])  # noqa: B023
        if not isinstance(FORMS[form], TaggedForm):
            continue  # read strictly only
        rng = random.Random(0)
        broken = [damaged(text, form, rng) for text in written]
        row(f"{form}, recover", broken, lambda: [recovered(t, form) for t in broken])  # noqa: B023
    for workers in (1, 2):
        check_rate(texts, workers, args.megabytes)


if __name__ == "__main__":
    main()
