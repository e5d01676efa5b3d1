"""A fixed range of records as one file of layouts, and everything that is counted of them.

The counts and the records that a shard lacks travel in its metadata, so that one rename commits
all of it or nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mvspec.compiler.arrow import Entry, write_shard
from mvspec.compiler.layout import Layout, concatenate
from mvspec.compiler.packing import best_fit
from mvspec.compiler.stages import Stages, compile_stages
from mvspec.compiler.tokenizer import load_tokenizer, pad_id
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.data.records import BadRecord, Record, encodable
from mvspec.errors import LimitExceeded, MvspecError, VerifyError

__all__ = ["CompilationCounts", "CompilationOptions", "Shard", "ShardWriter", "shard_name"]


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
    """

    lowering: str = "multiverse"
    max_length: int | None = None
    too_long: str = "truncate"
    pack: bool = False
    forced_loss: bool = False
    shard: int = 256
    tags: bool = False


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
    """

    records: int = 0
    quarantined: int = 0
    truncated: int = 0
    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    padding: int = 0
    parallelism: float = 0.0

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


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05}.arrow"


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """Compiles a shard and writes it; picklable, so that worker processes can call it.

    Args:
        folder: where shards go.
        tokenizer: what `load_tokenizer` takes.
        options: what decides their contents.
    """

    folder: Path
    tokenizer: str
    options: CompilationOptions

    def __call__(self, shard: Shard) -> tuple[float, CompilationCounts]:
        """Write a shard; return its share of the input and its counts.

        Raises:
            LimitExceeded: a record is too long, and `too_long` is "error".
        """
        tokenizer = load_tokenizer(self.tokenizer, tags=self.options.tags)
        vocabulary = Vocabulary.of(tokenizer)
        entries: list[Entry] = []
        bad: list[dict[str, Any]] = []
        counts = CompilationCounts()
        for record in shard.records:
            try:
                stages = self._compile(record, vocabulary)
                layout = self._fit(stages.layout, record)
            except BadRecord as error:
                bad.append(error.entry)
                continue
            entries.append(([encodable(record.name)], layout))
            cut = len(layout) < len(stages.layout)
            counts += CompilationCounts(
                records=1, truncated=int(cut), parallelism=stages.metrics.parallelism
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

    def _compile(self, record: Record, vocabulary: Vocabulary) -> Stages:
        reading = record.needed()
        options = self.options
        try:
            return compile_stages(
                reading.document, vocabulary, options.lowering,
                forced_loss=options.forced_loss, context=reading.context,
            )  # fmt: skip
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
        if limit is None or len(layout) <= limit:
            return layout
        reason = f"{len(layout)} tokens, more than {limit}"
        if self.options.too_long == "drop":
            raise record.bad("too-long", reason, tokens=len(layout))
        if self.options.too_long == "error":
            raise LimitExceeded(f"{record.place}: {reason}: use --too-long truncate or drop")
        return layout.truncate(limit)

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
