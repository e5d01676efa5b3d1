"""Records to a compiled data set, in several processes, carried on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

from mvspec.compiler.chat_template import TemplateSettings, asking, settings_of, with_settings
from mvspec.compiler.dataset import (
    FORMAT,
    MANIFEST,
    Entry,
    read_manifest,
    shard_contents,
    shard_name,
    verified_files,
    write_manifest,
    write_shard,
    write_state,
)
from mvspec.compiler.layout import Layout, best_fit, concatenate
from mvspec.compiler.lowerings import find_lowering
from mvspec.compiler.stages import Stages, uses_template
from mvspec.compiler.traced import record_rows, record_trace, trace_stages
from mvspec.compiler.vocabulary import (
    Vocabulary,
    fingerprint,
    load_asking,
    load_vocabulary,
    pad_id,
    save_tokenizer,
)
from mvspec.data.parallel_map import ordered_map, singly
from mvspec.data.records import BadRecord, InputError, Record, encodable
from mvspec.data.resume import differing, exclusive, replaced, write_json
from mvspec.data.sources import PATIENCE, Records
from mvspec.data.where import RowCondition, check_conditions
from mvspec.errors import LimitExceeded, MvspecError, Unsupported, VerifyError

QUARANTINE = "quarantine.jsonl"
_OURS = ("shard-*.arrow", ".*.tmp", QUARANTINE, "state.json", "dataset_info.json")


@dataclass(frozen=True, slots=True)
class CompilationOptions:
    """The settings that decide the contents of the shards.

    Args:
        lowering: a name in `LOWERINGS`, or "shared(k)".
        max_length: the most tokens of a row; None is no limit.
        too_long: what becomes of longer records: "truncate", "drop" or "error".
        pack: fill rows of exactly `max_length` tokens; the window is the shard.
        forced_loss: let forced tokens carry loss where the law allows it.
        shard: records of the input in a shard.
        tags: add the tags to the tokenizer where they are missing.
        where: conditions that a row has to meet, as `RowCondition.parse` reads them.
    """

    lowering: str = "multiverse"
    max_length: int | None = None
    too_long: str = "truncate"
    pack: bool = False
    forced_loss: bool = False
    shard: int = 256
    tags: bool = False
    where: tuple[str, ...] = ()

    @property
    def conditions(self) -> tuple[RowCondition, ...]:
        """The conditions that a row has to meet."""
        return tuple(map(RowCondition.parse, self.where))


@dataclass(frozen=True, slots=True)
class CompilationCounts:
    """The totals of records and tokens; add them up.

    Args:
        records: compiled.
        quarantined: left out, with a reason.
        truncated: of the compiled records.
        rows: of the data set; fewer than records where they are packed.
        tokens: padding not counted.
        loss_tokens: of the tokens.
        padding: tokens that fill rows up.
        parallelism: the sum of the records' degrees of parallelism, before truncation.
        left: records that do not meet the conditions.
        without_block: of the compiled records.
    """

    records: int = 0
    quarantined: int = 0
    truncated: int = 0
    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    padding: int = 0
    parallelism: float = 0.0
    left: int = 0
    without_block: int = 0

    def __add__(self, other: CompilationCounts) -> CompilationCounts:
        return CompilationCounts(
            *(getattr(self, name) + getattr(other, name) for name in self.__slots__)
        )

    def to_dict(self) -> dict[str, int | float | None]:
        """Return the counts and the means that the manifest holds."""
        total = self.tokens + self.padding
        counts: dict[str, int | float | None] = asdict(self)
        degrees = counts.pop("parallelism")
        mean = degrees / self.records if degrees and self.records else None
        return {
            **counts,
            "mean_parallelism": mean,
            "padding_waste": self.padding / total if total else 0.0,
        }


@dataclass(frozen=True, slots=True)
class Shard:
    """The records of the input that one file will hold."""

    number: int
    records: list[Record] = field(default_factory=list)

    @property
    def cost(self) -> float:
        """Its share of the input, for a progress bar."""
        return sum(record.size for record in self.records)


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """Compiles a shard and writes it; picklable, so that worker processes can call it.

    Args:
        folder: where shards go.
        tokenizer: what `load_tokenizer` takes.
        options: what decides their contents.
        settings: what the chat template is rendered with, as JSON.
    """

    folder: Path
    tokenizer: str
    options: CompilationOptions
    settings: str

    def __call__(self, shard: Shard) -> tuple[float, CompilationCounts]:
        """Write a shard; return its share of the input and its counts.

        Raises:
            LimitExceeded: a record is too long, and `too_long` is "error".
        """
        tokenizer = self._tokenizer()
        vocabulary = Vocabulary.of(tokenizer)
        entries: list[Entry] = []
        bad: list[dict[str, Any]] = []
        counts = CompilationCounts()
        conditions = self.options.conditions
        for record in shard.records:
            try:
                with record.guarded():
                    if not all(condition.holds(record) for condition in conditions):
                        counts += CompilationCounts(left=1)
                        continue
                    rows = self._compile(record, vocabulary)
                    layouts = [self._fit(stages.layout, record) for stages in rows]
            except BadRecord as error:
                bad.append(error.entry)
                continue
            entries += [([encodable(record.name)], layout) for layout in layouts]
            cut = any(len(each) < len(row.layout) for each, row in zip(layouts, rows, strict=True))
            counts += CompilationCounts(
                records=1,
                truncated=int(cut),
                parallelism=rows[-1].metrics.parallelism,
                without_block=not rows[-1].metrics.blocks,
            )
        if self.options.pack:
            entries = self._pack(entries, pad_id(tokenizer))
        for _, layout in entries:
            tokens = int((layout.document_ids >= 0).sum())
            loss = int(layout.loss_mask.sum())
            counts += CompilationCounts(
                rows=1, tokens=tokens, loss_tokens=loss, padding=len(layout) - tokens
            )
        counts += CompilationCounts(quarantined=len(bad))
        contents = {"counts": asdict(counts), "quarantine": bad}
        write_shard(self.folder / shard_name(shard.number), entries, contents)
        return shard.cost, counts

    def without_deadly(self, shard: Shard) -> Shard:
        """Return a shard whose records end no process, each tried in one of its own."""
        return Shard(shard.number, singly(self.outlived, shard.records, Record.deadly))

    def outlived(self, record: Record) -> Record:
        """Return a record that was compiled, if this process is still there."""
        with suppress(Exception):
            self._compile(record, Vocabulary.of(self._tokenizer()))
        return record

    def _tokenizer(self) -> Any:
        return load_asking(self.tokenizer, self.settings, tags=self.options.tags)

    def _compile(self, record: Record, vocabulary: Vocabulary) -> list[Stages]:
        options = self.options
        try:
            return record_rows(
                record, vocabulary, options.lowering, forced_loss=options.forced_loss
            )
        except BadRecord:
            raise
        except VerifyError as error:
            location = {"address": error.address} if error.address else {}
            raise record.bad("malformed", str(error), **location) from None
        except MvspecError as error:
            raise record.bad("unsupported", str(error)) from None
        except UnicodeEncodeError as error:
            reason = f"a text holds {error.object[error.start]!a}, which UTF-8 has no bytes for"
            raise record.bad("surrogate", reason) from None

    def _fit(self, layout: Layout, record: Record) -> Layout:
        limit = self.options.max_length
        if limit is not None and len(layout) > limit:
            reason = f"{len(layout)} tokens, more than {limit}"
            if self.options.too_long == "drop":
                raise record.bad("too-long", reason, tokens=len(layout))
            if self.options.too_long == "error":
                raise LimitExceeded(f"{record.place}: {reason}: use --too-long truncate or drop")
            if layout.loss_mask.any() and not layout.loss_mask[:limit].any():
                reason = f"none of its first {limit} tokens carries loss: raise --max-length"
                raise record.bad("no-loss", reason, tokens=len(layout))
            layout = layout.truncate(limit)
        if not layout.loss_mask.any():
            raise record.bad("no-loss", "no token carries loss: no assistant writes in it")
        return layout

    def _pack(self, entries: list[Entry], padding: int) -> list[Entry]:
        size = self.options.max_length
        if size is None:
            raise VerifyError("options", "packing needs a length: give max_length")
        return [
            (
                [name for index in row for name in entries[index][0]],
                concatenate([entries[index][1] for index in row]).padded(size, pad_id=padding),
            )
            for row in best_fit([len(layout) for _, layout in entries], size)
        ]


@dataclass(frozen=True, slots=True)
class Compilation:
    """The outcome of a run of `compile_records`.

    Args:
        counts: of the whole data set.
        tokens: compiled by this run.
        seconds: that it took, once the tokenizer was there.
        resumed: shards that were there before.
        settings: what the chat template was rendered with.
        ended: whether there is a token that ends turns.
    """

    counts: CompilationCounts
    tokens: int
    seconds: float
    resumed: int
    settings: TemplateSettings
    ended: bool


def compile_records(
    records: Records,
    tokenizer: str,
    folder: Path,
    options: CompilationOptions,
    *,
    workers: int = 1,
    overwrite: bool = False,
    advance: Callable[[float], object] = lambda cost: None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
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
        chat_template_kwargs: the chat template's own arguments, as `enable_thinking`.

    Raises:
        InputError: the input, the tokenizer, the options or the folder will not do.
        LimitExceeded: a record is too long and shall not be.
    """
    vocabulary = load_vocabulary(tokenizer, tags=options.tags)
    loaded = vocabulary.source
    try:
        asked = asking(loaded, chat_template_kwargs, freeze=True)
    except Unsupported as error:
        raise InputError(str(error)) from None
    check(records, vocabulary.asking(chat_template_kwargs), options)
    settings = settings_of(asked) or TemplateSettings()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"-o {folder}: {error.strerror or error}") from None
    with exclusive(folder):
        if not overwrite:
            settings = _same_clock(folder, settings)
        wanted = configuration(records, loaded, options) | {"template": settings.to_dict()}
        _begin(folder, wanted, overwrite=overwrite)
        if options.tags:
            save_tokenizer(with_settings(loaded, settings), folder / "tokenizer")
        before = {int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.arrow")}
        shards = _missing(records, options.shard, before, advance)
        tokens = 0
        started = perf_counter()
        writer = ShardWriter(folder, tokenizer, options, json.dumps(settings.to_dict()))
        for cost, counts in ordered_map(
            writer, shards, workers, batch=1, mended=writer.without_deadly
        ):
            advance(cost)
            tokens += counts.tokens
        counts = _finish(folder)
    seconds = perf_counter() - started
    return Compilation(counts, tokens, seconds, len(before), settings, ends_turns(loaded))


def check(records: Records, vocabulary: Vocabulary, options: CompilationOptions) -> None:
    """Refuse what would put every record into quarantine."""
    try:
        find_lowering(options.lowering)
    except Unsupported as error:
        raise InputError(f"--lowering: {error}") from None
    if options.forced_loss and options.lowering != "multiverse":
        raise InputError(f"--forced-loss: lowering {options.lowering!r} has no forced tokens' loss")
    if options.pack and options.max_length is None:
        raise InputError("--pack needs --max-length")
    if records.fields.prompt_field and not uses_template(vocabulary):
        raise InputError(
            "a prompt needs a chat template: give a tokenizer's folder that has one "
            "(tokenizer_config.json), or leave the prompt out"
        )
    if next(iter(records), None) is None:
        raise InputError("the input has no record")
    check_conditions(records, options.conditions)
    check_traces(records, vocabulary, options)


def check_traces(records: Records, vocabulary: Vocabulary, options: CompilationOptions) -> None:
    """Refuse runs of another tokenizer, and options that do not go with runs, by the first rows."""
    first = ""
    for record in islice(records, PATIENCE):
        try:
            with record.guarded():
                if not all(condition.holds(record) for condition in options.conditions):
                    continue
                if record.kind == "trace":
                    trace = record_trace(record, vocabulary)
                    trace_stages(trace, vocabulary, options.lowering, options.forced_loss)
            return
        except MvspecError as error:
            reason = error.entry["reason"] if isinstance(error, BadRecord) else error
            first = first or f"{record.place}: {reason}"
    if first:
        raise InputError(first)


def configuration(records: Records, tokenizer: Any, options: CompilationOptions) -> dict[str, Any]:
    """Return the manifest of a data set that is not complete."""
    chosen = asdict(options) | {"fields": asdict(records.fields)}
    if not options.where:
        del chosen["where"]  # as it was before there were conditions
    source = json.dumps(records.key, default=str).encode()
    return {
        "format": FORMAT,
        "lowering": chosen.pop("lowering"),
        "tokenizer": {"sha256": fingerprint(tokenizer)},
        "options": chosen,
        "input": hashlib.sha256(source).hexdigest(),
        "complete": False,
    }


def ends_turns(tokenizer: Any) -> bool:
    """Whether a template or an end-of-text token can end turns."""
    return bool(getattr(tokenizer, "chat_template", None) or getattr(tokenizer, "eos_token", None))


def _same_clock(folder: Path, settings: TemplateSettings) -> TemplateSettings:
    """Return settings with the clock of a data set that is taken up again."""
    if settings.clock is None or not (folder / MANIFEST).exists():
        return settings
    before = read_manifest(folder).get("template") or {}
    return replace(settings, clock=before.get("clock") or settings.clock)


def _begin(folder: Path, wanted: dict[str, Any], *, overwrite: bool) -> None:
    if not (folder / MANIFEST).exists():
        (folder / f".{MANIFEST}.tmp").unlink(missing_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"-o {folder}: not empty, and not a compiled data set: use another")
        write_json(folder / MANIFEST, wanted)
        return
    found = read_manifest(folder, earlier=True)  # without ours, nothing is deleted
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
    elif found["complete"]:
        for name, wrong in verified_files(folder):
            if wrong and name.startswith("shard-"):
                (folder / name).unlink(missing_ok=True)


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
    write_manifest(folder, manifest, names)
    return total
