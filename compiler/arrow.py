"""Layouts as an Arrow file, which pyarrow and `datasets` read memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvspec.compiler.layout import Layout
from mvspec.data.resume import replaced
from mvspec.errors import VerifyError

__all__ = ["COLUMNS", "Entry", "features", "shard_contents", "write_shard"]

Entry = tuple[list[str], Layout]
"""A row: the names of its records, and their layout."""

COLUMNS = {
    "input_ids": ("int32", 1),
    "position_ids": ("int32", 1),
    "parent": ("int32", 1),
    "loss_mask": ("bool", 1),
    "document_ids": ("int16", 1),
    "hide_lo": ("int32", 2),
    "hide_hi": ("int32", 2),
    "records": ("string", 1),
}
"""Of each column the type of its values and the levels of lists around them: [n], [depth, n]."""

_METADATA = b"mvspec"
_BATCH = 1 << 22  # tokens of a record batch: far below what int32 offsets can count


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


def _batches(
    entries: Sequence[Entry],
) -> Iterator[Sequence[Entry]]:
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
        arrays = [getattr(layout, name) for layout in layouts]
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
