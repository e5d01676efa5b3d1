"""A compiled data set: a folder of shards that training reads memory-mapped.

The folder is one that `datasets.load_from_disk` opens too, under names of columns that no stock
trainer reads: what sees whom is not in ids alone. manifest.json says what made it.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvspec.compiler.chat_template import TemplateSettings, settings_of
from mvspec.compiler.layout import Layout
from mvspec.compiler.vocabulary import fingerprint
from mvspec.data.resume import digest, json_text, replaced, write_json
from mvspec.errors import VerifyError

MANIFEST = "manifest.json"
FORMAT = 2
"""Version of the folder's format."""

REMEDY = "run the same mvspec compile again, which makes what is missing"

Entry = tuple[list[str], Layout]
"""A row: the names of its records, and their layout."""

_OF_LAYOUT = "layout_"
COLUMNS = {
    "layout_input_ids": ("int32", 1),
    "layout_position_ids": ("int32", 1),
    "layout_parent": ("int32", 1),
    "layout_loss_mask": ("bool", 1),
    "layout_document_ids": ("int16", 1),
    "layout_hide_lo": ("int32", 2),
    "layout_hide_hi": ("int32", 2),
    "records": ("string", 1),
}
"""Of each column the type of its values and the levels of lists around them: [n], [depth, n]."""

_METADATA = b"mvspec"
_BATCH = 1 << 22  # tokens of a record batch: far below what int32 offsets can count


class CompiledDataset:
    """The layouts of a folder that `mvspec compile` wrote, read from disk as they are asked for.

    It has a length and is indexed, as a torch `Dataset`; it can be pickled, so that data loaders
    may have worker processes.

    Args:
        folder: what `mvspec compile -o` wrote.
        tokenizer: the one that training uses, to be sure that it is the one that was compiled
            with.

    Raises:
        VerifyError: the folder is not complete, its manifest or the size of a file is not what was
            written (`verified_files` looks at every byte), or it was made with another tokenizer.
    """

    def __init__(self, folder: str | os.PathLike[str], tokenizer: Any = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if not self.manifest["complete"]:
            raise VerifyError(str(folder), f"the data set is not complete: {REMEDY}")
        for name, wrong in verified_files(self.folder, fast=True):
            if wrong:
                raise VerifyError(str(self.folder / name), wrong)
        if tokenizer is not None and fingerprint(tokenizer) != self.manifest["tokenizer"]["sha256"]:
            raise VerifyError(
                str(folder),
                "the data set was compiled with another tokenizer: use that one, or compile again",
            )
        if tokenizer is not None and self.template is not None:
            named = settings_of(tokenizer)
            if named is not None and dict(named.arguments) != dict(self.template.arguments):
                raise VerifyError(
                    str(folder),
                    f"the chat template was rendered with {self.template}, and the model's folder "
                    f"names {named}: compile it again with that folder's tokenizer",
                )
        self._ends = list(accumulate(shard["rows"] for shard in self.manifest["shards"]))
        self._shards: dict[int, list[pa.RecordBatch]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Layout:
        batch, row = self._find(index)
        columns = {
            name.removeprefix(_OF_LAYOUT): _values(batch[name], row)
            for name in COLUMNS
            if name != "records"
        }
        n = len(columns["input_ids"])
        for name in ("hide_lo", "hide_hi"):
            columns[name] = columns[name].reshape(-1, n) if n else np.zeros((0, 0), np.int32)
        columns["document_ids"] = columns["document_ids"].astype(np.int32)
        return Layout(**columns)

    def __iter__(self) -> Iterator[Layout]:
        return (self[index] for index in range(len(self)))

    @property
    def template(self) -> TemplateSettings | None:
        """What the chat template was rendered with; None before version 0.2."""
        found = self.manifest.get("template")
        return None if found is None else TemplateSettings(**found)

    @property
    def content(self) -> str | None:
        """A digest of every row, the same wherever the folder lies; None before version 0.2."""
        content: str | None = self.manifest.get("content")
        return content

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [rows]: tokens of each row; no token is read for it."""
        return self._of_rows("layout_input_ids", lambda _, starts, ends: ends - starts)

    @cached_property
    def first_loss(self) -> NDArray[np.int64]:
        """int64 [rows]: where the first token with loss stands; the row's length if none has."""

        def first(flags: NDArray[Any], starts: NDArray[Any], ends: NDArray[Any]) -> NDArray[Any]:
            at = np.append(np.flatnonzero(flags), len(flags))
            found: NDArray[Any] = np.minimum(at[np.searchsorted(at, starts)], ends) - starts
            return found

        return self._of_rows("layout_loss_mask", first)

    @cached_property
    def highest(self) -> NDArray[np.int64]:
        """int64 [rows]: the highest position id of each row."""
        return self._of_rows(
            "layout_position_ids",
            lambda values, starts, _: np.maximum.reduceat(np.append(values, 0), starts),
        )

    def _of_rows(self, name: str, each: Callable[..., NDArray[Any]]) -> NDArray[np.int64]:
        """Return a number of every row, from a column's values and where its rows start and end."""
        found = [np.zeros(0, np.int64)]
        for number in range(len(self._ends)):
            for batch in self._batches(number):
                offsets = batch[name].offsets.to_numpy()
                values = batch[name].values.to_numpy(zero_copy_only=False)
                found.append(each(values, offsets[:-1], offsets[1:]))
        return np.concatenate(found)

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledDataset, (self.folder,)

    def records(self, index: int) -> list[str]:
        """Return the names of the records in a row, in the order of their document ids."""
        batch, row = self._find(index)
        names: list[str] = batch["records"][row].as_py()
        return names

    def _find(self, index: int) -> tuple[pa.RecordBatch, int]:
        wanted = index + len(self) if index < 0 else index
        if not 0 <= wanted < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, wanted)
        row = wanted - (self._ends[number - 1] if number else 0)
        for batch in self._batches(number):
            if row < batch.num_rows:
                return batch, row
            row -= batch.num_rows
        raise VerifyError(str(self.folder), f"{shard_name(number)} lacks rows: compile again")

    def _batches(self, number: int) -> list[pa.RecordBatch]:
        if number not in self._shards:
            path = self.folder / shard_name(number)
            try:
                self._shards[number] = list(pa.ipc.open_stream(pa.memory_map(str(path))))
            except (OSError, pa.ArrowException) as error:
                reason = str(error).partition("\n")[0]
                raise VerifyError(
                    str(path), f"the shard cannot be read ({reason}): delete it, compile again"
                ) from None
        return self._shards[number]


def _values(column: pa.Array, row: int) -> NDArray[Any]:
    """Return the innermost values of one row of a list column, in memory of their own."""
    start, end = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
    values = column.values
    if pa.types.is_list(values.type):
        start, end = values.offsets[start].as_py(), values.offsets[end].as_py()
        values = values.values
    # A copy of one row costs little, and torch warns of arrays that it may not write to.
    array: NDArray[Any] = values.slice(start, end - start).to_numpy(zero_copy_only=False)
    return array if array.flags.writeable else array.copy()


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05}.arrow"


def schema(contents: dict[str, Any] | None = None) -> pa.Schema:
    """Return the schema of a shard, with what `datasets` reads types from."""
    fields = []
    for name, (kind, levels) in COLUMNS.items():
        dtype = {"bool": pa.bool_(), "string": pa.string()}.get(kind) or getattr(pa, kind)()
        for _ in range(levels):
            dtype = pa.list_(dtype)
        fields.append(pa.field(name, dtype))
    metadata = {b"huggingface": json.dumps({"info": {"features": features()}}).encode()}
    if contents is not None:
        metadata[_METADATA] = json.dumps(contents).encode()
    return pa.schema(fields, metadata)


def features() -> dict[str, Any]:
    """Return the columns as `datasets` describes them in dataset_info.json."""
    described: dict[str, Any] = {}
    for name, (kind, levels) in COLUMNS.items():
        feature: dict[str, Any] = {"dtype": kind, "_type": "Value"}
        for _ in range(levels):
            feature = {"feature": feature, "_type": "List"}
        described[name] = feature
    return described


def write_shard(path: Path, entries: Sequence[Entry], contents: dict[str, Any]) -> None:
    """Write layouts to a file that appears whole or not at all.

    Args:
        entries: of each row, the names of its records and its layout.
        contents: what `shard_contents` gives back.
    """
    with replaced(path, "wb") as stream, pa.ipc.new_stream(stream, schema(contents)) as writer:
        for batch in _batches(entries):
            writer.write_batch(_table(batch))


def _batches(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    start = tokens = 0
    for index, (_, layout) in enumerate(entries):
        size = len(layout) * max(1, layout.depth)
        if tokens and tokens + size > _BATCH:
            yield entries[start:index]
            start, tokens = index, 0
        tokens += size
    if start < len(entries):
        yield entries[start:]


def _table(entries: Sequence[Entry]) -> pa.RecordBatch:
    layouts = [layout for _, layout in entries]
    columns: list[pa.Array] = []
    for name, (kind, levels) in COLUMNS.items():
        if name == "records":
            columns.append(_name_lists([names for names, _ in entries]))
            continue
        arrays = [getattr(layout, name.removeprefix(_OF_LAYOUT)) for layout in layouts]
        flat = np.concatenate([array.reshape(-1) for array in arrays])
        if kind == "int16" and flat.max(initial=-1) > np.iinfo(np.int16).max:
            raise VerifyError(name, "more than 32768 documents in a row: use a smaller --shard")
        column = _array(flat, kind)
        if levels == 2:
            inner = [len(layout) for layout in layouts for _ in range(layout.depth)]
            column = pa.ListArray.from_arrays(_offsets(inner), column)
        sizes = [array.shape[0] for array in arrays]
        columns.append(pa.ListArray.from_arrays(_offsets(sizes), column))
    return pa.RecordBatch.from_arrays(columns, schema=schema())


def _name_lists(lists: list[list[str]]) -> pa.Array:
    texts = [name.encode() for names in lists for name in names]
    ends = _offsets([len(text) for text in texts]).buffers()[1]
    flat = pa.StringArray.from_buffers(len(texts), ends, pa.py_buffer(b"".join(texts)))
    return pa.ListArray.from_arrays(_offsets([len(names) for names in lists]), flat)


def _offsets(sizes: list[int]) -> pa.Array:
    return _array(np.cumsum([0, *sizes]), "int32")


def _array(values: NDArray[Any], kind: str) -> pa.Array:
    # From buffers: `pa.array` would import pandas, which takes half a second.
    if kind == "bool":
        bits = np.packbits(values, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])
    array = np.ascontiguousarray(values, dtype=kind)
    return pa.Array.from_buffers(getattr(pa, kind)(), len(array), [None, pa.py_buffer(array)])


def shard_contents(path: Path) -> dict[str, Any]:
    """Return the counts of a shard and the entries of the records that it lacks."""
    with pa.memory_map(str(path)) as stream:
        metadata = pa.ipc.open_stream(stream).schema.metadata
    contents: dict[str, Any] = json.loads(metadata[_METADATA])
    return contents


def read_manifest(folder: Path, *, earlier: bool = False) -> dict[str, Any]:
    """Return the manifest of a folder.

    Args:
        earlier: take one of an earlier format too, whose rows are not read.

    Raises:
        VerifyError: there is none, it is damaged, or another version wrote it.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
        manifest: Any = json.loads(text)
    except FileNotFoundError:
        raise VerifyError(str(folder), f"no {MANIFEST}: not a compiled data set") from None
    except ValueError as error:
        raise VerifyError(str(folder / MANIFEST), f"not JSON: {error}") from None
    needed = {"format", "lowering", "options", "complete"}
    if not isinstance(manifest, dict) or not needed <= manifest.keys():
        raise VerifyError(str(folder), f"{MANIFEST} is not one of a compiled data set")
    if manifest.keys() & {"files", "sha256"}:
        own = {key: each for key, each in manifest.items() if key != "sha256"}
        if text != json_text(own | {"sha256": _own_digest(own)}).encode():
            reason = "it is not as it was written: remove the folder and compile again"
            raise VerifyError(str(folder / MANIFEST), reason)
    if manifest["format"] != FORMAT and not (earlier and manifest["format"] in range(FORMAT)):
        raise VerifyError(
            str(folder),
            f"format {manifest['format']}, this version reads {FORMAT}: compile it again "
            "(--overwrite)",
        )
    found: dict[str, Any] = manifest
    return found


def write_manifest(folder: Path, manifest: dict[str, Any], shards: list[str]) -> None:
    """Write the manifest of a complete data set, with a digest of every file and of itself.

    Args:
        shards: names of the files that hold the rows, in order.
    """
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name[0] != "." and path != folder / MANIFEST
    }
    rows = "".join(str(files[name]["sha256"]) for name in shards)
    made = {
        key: each for key, each in manifest.items() if key not in ("content", "files", "sha256")
    }
    made |= {"content": hashlib.sha256(rows.encode()).hexdigest(), "files": files}
    write_json(folder / MANIFEST, made | {"sha256": _own_digest(made)})


def _own_digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def verified_files(folder: Path, *, fast: bool = False) -> Iterator[tuple[str, str]]:
    """Yield each file of a complete data set, and what is wrong with it, or "".

    Args:
        fast: look at the manifest and at the files' sizes only, not at what they hold.
    """
    try:
        manifest = read_manifest(folder)
        if not manifest["complete"]:
            raise VerifyError("", f"the data set is not complete: {REMEDY}")
        if "files" not in manifest and not fast:
            raise VerifyError("", "it has no checksums: compile again with --overwrite")
    except VerifyError as error:
        yield MANIFEST, str(error).removeprefix(f"{error.address}: ")
        return
    yield MANIFEST, ""
    for name, wanted in manifest.get("files", {}).items():
        path = folder / name
        wrong = ""
        if not path.is_file():
            wrong = "the file is missing"
        elif path.stat().st_size != wanted["size"]:
            wrong = f"it has {path.stat().st_size:,} bytes, not {wanted['size']:,}"
        elif not fast and digest(path) != wanted["sha256"]:
            wrong = "its bytes are not those that were written"
        yield name, f"{wrong}: {REMEDY}" if wrong else ""


def write_state(folder: Path, files: list[str], key: str) -> None:
    """Write what `datasets.load_from_disk` wants to see beside the shards.

    Args:
        files: names of the shards.
        key: tells this data set from others in the caches of `datasets`.
    """
    write_json(folder / "dataset_info.json", {"features": features()})
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": key,
        "_format_type": None,
        "_format_columns": None,
        "_format_kwargs": {},
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)
