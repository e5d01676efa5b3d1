"""KV cache of one request: keys, values and visibility of the tokens that a model has read.

All threads of a request share one cache that only grows: fork and join change bits of the
visibility table and copy no keys or values. The table lies in main memory, where a bit costs
nothing; a forward takes along what its tokens see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvspec.errors import LimitExceeded


class KVCache:
    """A growing table of slots (tokens) and rows (threads): a `KVStore`.

    Args:
        device: where keys and values lie.
        capacity: slots to begin with; doubled whenever they are used up, so that a token is
            copied once on average, however long the text.

    Attributes:
        limit: the most bytes that keys and values may take; None for what the memory holds.
        token_bytes: what those of one token take; 0 until that is known.
        visible: bool [rows, slots]: what the next token of each thread sees.
        copied: bytes of keys and values copied so far, all of them by growing.
    """

    def __init__(self, device: torch.device, *, capacity: int = 256) -> None:
        self.device = device
        self.capacity = capacity
        self.limit: int | None = None
        self.token_bytes = 0
        self.used = 0
        self.copied = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.visible: NDArray[np.bool_] = np.zeros((8, capacity), np.bool_)
        self._pointers: NDArray[np.int64] | None = None
        self._free_rows = list(range(7, -1, -1))

    def restrict(self, limit: int, token_bytes: int) -> None:
        """Let an empty cache take at most `limit` bytes, at `token_bytes` a token."""
        self.limit, self.token_bytes = limit, token_bytes
        self.capacity = max(1, min(self.capacity, limit // token_bytes))
        self.visible = self.visible[:, : self.capacity]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def clear(self) -> None:
        """Give the memory of keys and values back; nothing is read or written any more."""
        # At once: a request is a ring of objects, which Python may find long after.
        self.keys.clear()
        self.values.clear()
        self._pointers = None

    # Slots

    def allocate(self, row: int, count: int) -> int:
        """Return the first of `count` new slots, which a thread sees from now on.

        Raises:
            LimitExceeded: they do not fit into the limit or the memory; nothing has changed.
        """
        start, stop = self.used, self.used + count
        if self.limit is not None:
            self._check(stop, stop * self.token_bytes)
        if stop > self.capacity:
            self._grow(stop)
        self.used = stop
        self.visible[row, start:stop] = True
        return start

    def _grow(self, needed: int) -> None:
        capacity = self.capacity
        while capacity < needed:
            capacity *= 2
        if self.limit is not None:
            capacity = min(capacity, max(needed, self.limit // self.token_bytes))
        try:
            # One layer after the other, so that little is held twice.
            for tensors in (self.keys, self.values):
                for layer, old in enumerate(tensors):
                    new = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
                    new[:, :, : self.used] = old[:, :, : self.used]
                    tensors[layer] = new
                    self.copied += old[:, :, : self.used].nbytes
            visible = np.zeros((len(self.visible), capacity), np.bool_)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = self.token_bytes * capacity
            raise self._full(needed, size, "the memory is used up") from None
        visible[:, : self.capacity] = self.visible
        self.visible = visible
        self.capacity = capacity
        self._pointers = None

    def _check(self, needed: int, size: int) -> None:
        if self.limit is not None and size > self.limit:
            why = f"the limit of a request is {self.limit / 1e6:,.1f} MB"
            raise self._full(needed, size, why)

    def _full(self, needed: int, size: int, why: str) -> LimitExceeded:
        return LimitExceeded(
            f"{needed:,} tokens' keys and values take {size / 1e6:,.1f} MB and {why}: shorten the "
            "text, lower max_tokens, run fewer requests at once, or raise the limit"
        )

    def write(self, layer: int, key: Tensor, value: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of new slots; return those of all slots up to them.

        Args:
            layer: number of the layer.
            key, value: [1, heads, new, dim].
            start: the first slot.
        """
        if layer >= len(self.keys):
            self._add_layers(layer, key, value)
        keys, values, new = self.keys[layer], self.values[layer], key.shape[2]
        keys.narrow(2, start, new).copy_(key)
        values.narrow(2, start, new).copy_(value)
        return keys.narrow(2, 0, start + new), values.narrow(2, 0, start + new)

    def _add_layers(self, layer: int, key: Tensor, value: Tensor) -> None:
        while layer >= len(self.keys):
            more = (key.nbytes + value.nbytes) // key.shape[2] * self.capacity
            self._check(self.capacity, self.nbytes + more)
            self.token_bytes = max(self.token_bytes, (self.nbytes + more) // self.capacity)
            for tensors, new in ((self.keys, key), (self.values, value)):
                shape = (*new.shape[:2], self.capacity, new.shape[3])
                tensors.append(new.new_zeros(shape))
            self._pointers = None

    @property
    def pointers(self) -> NDArray[np.int64]:
        """Addresses of the keys of every layer, then of the values: [2 * layers]."""
        if self._pointers is None:
            addresses = [tensor.data_ptr() for tensor in (*self.keys, *self.values)]
            self._pointers = np.array(addresses, np.int64)
        return self._pointers

    # Rows

    def fork(self, row: int | None) -> int:
        """Return a new thread's row, which sees what `row` sees; nothing for None."""
        if not self._free_rows:
            count = len(self.visible)
            self.visible = np.concatenate([self.visible, np.zeros_like(self.visible)])
            self._free_rows = list(range(2 * count - 1, count - 1, -1))
        made = self._free_rows.pop()
        self.visible[made] = False if row is None else self.visible[row]
        return made

    def release(self, row: int) -> None:
        """Give a thread's row back."""
        self._free_rows.append(row)

    def hide(self, row: int, slots: Sequence[int]) -> None:
        """Let a thread no longer see slots."""
        self.visible[row, list(slots)] = False

    def merge(self, row: int, others: Sequence[int]) -> None:
        """Let a thread see what others see as well."""
        seen = self.visible[list(others), : self.used].any(0)
        self.visible[row, : self.used] |= seen

    def seen(self, rows: Sequence[int], start: int) -> NDArray[np.bool_] | None:
        """Return what the tokens of the slots from `start` on see: bool [new, start + new].

        None where there is one token and it sees all, as in plain text.

        Args:
            rows: each token's thread. It may have later tokens already, which a token does not
                see: slots rise in the order in which tokens were written.
        """
        count = len(rows)
        seen: NDArray[np.bool_] = self.visible[rows, : start + count]
        if count == 1:
            return None if seen.all() else seen
        # Of other threads too: what is read here may have been written far ahead, past a join.
        seen[:, start:] &= _causal(count)
        return seen


_CAUSAL = np.tri(256, dtype=np.bool_)


def _causal(count: int) -> NDArray[np.bool_]:
    small = count <= len(_CAUSAL)
    return _CAUSAL[:count, :count] if small else np.tri(count, dtype=np.bool_)


def token_bytes(model: Any) -> int:
    """Return how many bytes the keys and values of one token take in a transformers model."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers * heads * width) * int(model.dtype.itemsize)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator had no memory; on the CPU torch raises a bare RuntimeError for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )
