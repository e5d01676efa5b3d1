"""Rows of one step: what the host hands over, and the tensors that the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvspec.compiler.layout import Layout
from mvspec.compiler.masks import additive_mask, block_mask, pad_batch


@dataclass(frozen=True)
class BatchRow:
    """One row of a batch.

    Args:
        layout: of one document, or of several that are packed.
        names: of its documents, in the order of their ids.
    """

    layout: Layout
    names: tuple[str, ...]


@dataclass(frozen=True)
class BatchTensors:
    """A batch on the device where it is used.

    Args:
        ids, positions: int64 [batch, n].
        mask: a `BlockMask`, or an additive mask [batch, 1, n, n].
        parents: int64 [m]; of every token with loss, the flat index of the token whose logits
            predict it.
        targets: int64 [m]; the ids of the tokens with loss.
        real: int64 [batch, n]; 1 where a token is no padding.
    """

    ids: Tensor
    positions: Tensor
    mask: Any
    parents: Tensor
    targets: Tensor
    real: Tensor | None = None


class Batch:
    """Rows of one length. It holds intervals and no mask, so a worker can hand it over.

    Args:
        rows: at least one; they are padded to one length and one depth.
        length: tokens of a row; by default the longest row's.
        pad_id: the token id of padding.
    """

    def __init__(
        self, rows: Sequence[BatchRow], length: int | None = None, *, pad_id: int = 0
    ) -> None:
        self.layouts = pad_batch([row.layout for row in rows], length, pad_id=pad_id)
        self.names = [row.names for row in rows]

    def __len__(self) -> int:
        return len(self.layouts)

    @property
    def size(self) -> int:
        """Tokens, padding included."""
        return sum(map(len, self.layouts))

    @cached_property
    def tokens(self) -> int:
        """Tokens, padding not counted."""
        return sum(int((layout.document_ids >= 0).sum()) for layout in self.layouts)

    @cached_property
    def loss_tokens(self) -> int:
        """Tokens with loss."""
        return sum(int(layout.loss_mask.sum()) for layout in self.layouts)

    @cached_property
    def pairs(self) -> int:
        """Pairs of a token and a key that it sees; padding not counted."""
        return sum(map(_visible_pairs, self.layouts))

    @cached_property
    def degrees(self) -> list[float]:
        """Of each document with loss its degree of parallelism.

        Tokens from the document's first one with loss to its last, over their critical path:
        the paper's `# parallel` but for forced tokens before the first free one.
        """
        return [degree for layout in self.layouts for degree in _degrees(layout)]

    def mask(self, device: torch.device, *, flex: bool, dtype: torch.dtype) -> Any:
        """Return who sees whom, built on the device.

        Args:
            flex: a `BlockMask` for FlexAttention; else an additive mask.
            dtype: of an additive mask.
        """
        if flex:
            return block_mask(self.layouts, device=device)
        return additive_mask(self.layouts, dtype=dtype, device=device)

    def inputs(self, device: torch.device, mask: Any) -> BatchTensors:
        """Return the tensors of the batch on a device, with its mask."""
        length = len(self.layouts[0])
        parents = [
            layout.parent[layout.loss_mask].astype(np.int64) + row * length
            for row, layout in enumerate(self.layouts)
        ]
        targets = [layout.input_ids[layout.loss_mask] for layout in self.layouts]

        def sent(arrays: list[Any], join: Any) -> Tensor:
            found: Tensor = torch.from_numpy(join(arrays)).to(device, non_blocking=True).long()
            return found

        return BatchTensors(
            ids=sent([layout.input_ids for layout in self.layouts], np.stack),
            positions=sent([layout.position_ids for layout in self.layouts], np.stack),
            mask=mask,
            parents=sent(parents, np.concatenate),
            targets=sent(targets, np.concatenate),
            real=sent([layout.document_ids >= 0 for layout in self.layouts], np.stack),
        )


def _visible_pairs(layout: Layout) -> int:
    real = layout.document_ids >= 0
    if not real.any():
        return 0
    index = np.arange(len(layout))
    new = np.concatenate([[True], layout.document_ids[1:] != layout.document_ids[:-1]])
    start = np.maximum.accumulate(np.where(new, index, 0))
    low, high = (np.minimum(each, index + 1) for each in (layout.hide_lo, layout.hide_hi))
    hidden = (high - low).sum(0, dtype=np.int64)
    return int((index - start + 1 - hidden)[real].sum())


def _degrees(layout: Layout) -> list[float]:
    n = len(layout)
    starts = np.flatnonzero(np.diff(layout.document_ids, prepend=-2))
    ends = np.append(starts[1:], n)
    at = np.flatnonzero(layout.loss_mask)
    place = np.searchsorted(at, starts)
    some = place < np.searchsorted(at, ends)  # documents with loss
    if not some.any():
        return []
    first, end = at[place[some]], ends[some]
    # Every second range of reduceat is a document's, from its first token with loss to its end.
    bounds = np.stack([first, np.minimum(end, n - 1)], 1).reshape(-1)
    positions = layout.position_ids
    highest = np.maximum(np.maximum.reduceat(positions, bounds)[::2], positions[end - 1])
    lowest = np.minimum(np.minimum.reduceat(positions, bounds)[::2], positions[end - 1])
    degrees: list[float] = ((end - first) / (highest - lowest + 1)).tolist()
    return degrees
