"""Records to a compiled data set, in several processes, carried on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

from mvspec.compiler.arrow import shard_contents
from mvspec.compiler.dataset import FORMAT, MANIFEST, read_manifest, write_json, write_state
from mvspec.compiler.lowerings import find_lowering
from mvspec.compiler.shard import (
    CompilationCounts,
    CompilationOptions,
    Shard,
    ShardWriter,
    shard_name,
)
from mvspec.compiler.tokenizer import fingerprint, load_vocabulary, save_tokenizer
from mvspec.data.parallel_map import ordered_map
from mvspec.data.records import InputError
from mvspec.data.resume import differing, exclusive, replaced
from mvspec.data.sources import Records
from mvspec.errors import Unsupported

__all__ = ["QUARANTINE", "Compilation", "compile_records"]

QUARANTINE = "quarantine.jsonl"
_OURS = ("shard-*.arrow", ".*.tmp", QUARANTINE, "state.json", "dataset_info.json")


@dataclass(frozen=True, slots=True)
class Compilation:
    """The outcome of a run of `compile_records`.

    Args:
        counts: of the whole data set.
        tokens: compiled by this run.
        seconds: that it took, once the tokenizer was there.
        resumed: shards that were there before.
    """

    counts: CompilationCounts
    tokens: int
    seconds: float
    resumed: int


def compile_records(
    records: Records,
    tokenizer: str,
    folder: Path,
    options: CompilationOptions,
    *,
    workers: int = 1,
    overwrite: bool = False,
    advance: Callable[[float], object] = lambda cost: None,
) -> Compilation:
    """Compile records into a folder; the files are the same for any number of workers.

    A folder that an earlier call with the same input and options left unfinished is carried on.

    Args:
        records: the input.
        tokenizer: what `load_tokenizer` takes.
        folder: where the data set goes.
        options: what decides its contents.
        workers: processes.
        overwrite: throw away what an earlier call left there.
        advance: called with the size of the records that are done, as they are.

    Raises:
        InputError: the input, the tokenizer, the options or the folder will not do.
        LimitExceeded: a record is too long and shall not be.
    """
    loaded = load_vocabulary(tokenizer, tags=options.tags).source
    check(records, loaded, options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"-o {folder}: {error.strerror or error}") from None
    with exclusive(folder):
        _begin(folder, configuration(records, loaded, options), overwrite=overwrite)
        if options.tags:
            save_tokenizer(loaded, folder / "tokenizer")
        before = {int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.arrow")}
        shards = _missing(records, options.shard, before, advance)
        tokens = 0
        started = perf_counter()
        writer = ShardWriter(folder, tokenizer, options)
        for cost, counts in ordered_map(writer, shards, workers, size=lambda shard: 1, batch=1):
            advance(cost)
            tokens += counts.tokens
        counts = _finish(folder)
    return Compilation(counts, tokens, perf_counter() - started, len(before))


def check(records: Records, tokenizer: Any, options: CompilationOptions) -> None:
    """Refuse what would put every record into quarantine."""
    try:
        find_lowering(options.lowering)
    except Unsupported as error:
        raise InputError(f"--lowering: {error}") from None
    if options.forced_loss and options.lowering != "multiverse":
        raise InputError(f"--forced-loss: lowering {options.lowering!r} has no forced tokens' loss")
    if options.pack and options.max_length is None:
        raise InputError("--pack needs --max-length")
    if records.fields.prompt_field and not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "a prompt needs a chat template: give a tokenizer's folder that has one "
            "(tokenizer_config.json), or leave the prompt out"
        )
    if next(iter(records), None) is None:
        raise InputError("the input has no record")


def configuration(records: Records, tokenizer: Any, options: CompilationOptions) -> dict[str, Any]:
    """Return the manifest of a data set that is not complete."""
    chosen = asdict(options) | {"fields": asdict(records.fields)}
    source = json.dumps(records.key, default=str).encode()
    return {
        "format": FORMAT,
        "lowering": chosen.pop("lowering"),
        "tokenizer": {"sha256": fingerprint(tokenizer)},
        "options": chosen,
        "input": hashlib.sha256(source).hexdigest(),
        "complete": False,
    }


def _begin(folder: Path, wanted: dict[str, Any], *, overwrite: bool) -> None:
    if not (folder / MANIFEST).exists():
        (folder / f".{MANIFEST}.tmp").unlink(missing_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"-o {folder}: not empty, and not a compiled data set: use another")
        write_json(folder / MANIFEST, wanted)
        return
    found = read_manifest(folder)  # without ours, nothing is deleted
    for path in folder.glob(".*.tmp"):
        path.unlink()  # what a run that was killed had not finished
    before = {key: found.get(key) for key in wanted} | {"complete": False}
    other = differing(before, wanted)
    nothing = not found["complete"] and not any(folder.glob("shard-*.arrow"))
    if overwrite or (other and nothing):
        # Killed half-way, the folder is still an unfinished one of the old configuration.
        write_json(folder / MANIFEST, found | {"complete": False})
        for pattern in _OURS:
            for path in folder.glob(pattern):
                path.unlink()
        if found["options"].get("tags"):
            shutil.rmtree(folder / "tokenizer", ignore_errors=True)
        write_json(folder / MANIFEST, wanted)
    elif other:
        raise InputError(
            f"-o {folder}: holds a data set that was made otherwise ({', '.join(other)}): "
            "use another folder, or --overwrite"
        )


def _missing(
    records: Records, size: int, present: set[int], advance: Callable[[float], object]
) -> Iterator[Shard]:
    number = next(number for number in range(len(present) + 1) if number not in present)
    stream = records.read(number * size)
    while group := list(islice(stream, size)):
        shard = Shard(number, group)
        if number in present:
            advance(shard.cost)
        else:
            yield shard
        number += 1


def _finish(folder: Path) -> CompilationCounts:
    paths = sorted(folder.glob("shard-*.arrow"), key=lambda path: int(path.stem[6:]))
    total = CompilationCounts()
    shards: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    for path in paths:
        contents = shard_contents(path)
        counts = CompilationCounts(**contents["counts"])
        total += counts
        bad += contents["quarantine"]
        shards.append({"file": path.name, "rows": counts.rows})
    manifest = read_manifest(folder)
    if bad:
        with replaced(folder / QUARANTINE) as file:
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in bad)
    key = json.dumps([manifest["input"], manifest["tokenizer"], manifest["options"]])
    names = [shard_name(number) for number in range(len(shards))]
    write_state(folder, names, hashlib.sha256(key.encode()).hexdigest()[:16])
    manifest |= {"complete": True, "counts": total.to_dict(), "shards": shards}
    write_json(folder / MANIFEST, manifest)
    return total
