"""One forward of a model over layouts: what each token cost, and what each layer held there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mvspec.compiler.layout import Layout
from mvspec.compiler.masks import additive_mask, pad_batch
from mvspec.compiler.models import check_model
from mvspec.errors import VerifyError

__all__ = ["Reading", "read_layouts"]


@dataclass(frozen=True)
class Reading:
    """What a model makes of a layout.

    Args:
        losses: float32 [n]; -log p of each token given its parent, nan where it has none.
        hidden: float32 [layers + 1, tokens, width], the embeddings first, of the tokens that
            were asked for; None where none were.
    """

    losses: NDArray[np.float32]
    hidden: NDArray[np.float32] | None = None


@torch.inference_mode()
def read_layouts(
    model: Any,
    layouts: Sequence[Layout],
    *,
    hidden: Sequence[Sequence[int] | NDArray[np.integer[Any]]] | None = None,
    batch: int = 8,
) -> Iterator[Reading]:
    """Yield what a transformers model makes of each layout, under its mask and positions.

    Args:
        model: a causal model; it reads on its own device, in its own type.
        layouts: of any lowering.
        hidden: for each layout the tokens whose hidden states are kept.
        batch: layouts that are read at once, padded to the longest of them.

    Raises:
        Unsupported: a mask does not decide what this model attends to.
        VerifyError: `hidden` has not one entry for each layout.
    """
    check_model(model)
    if hidden is not None and len(hidden) != len(layouts):
        raise VerifyError("hidden", f"{len(hidden)} entries for {len(layouts)} layouts")
    for start in range(0, len(layouts), batch):
        part = layouts[start : start + batch]
        kept = None if hidden is None else hidden[start : start + batch]
        yield from _read(model, part, kept)


def _read(model: Any, layouts: Sequence[Layout], hidden: Sequence[Any] | None) -> Iterator[Reading]:
    rows = pad_batch(layouts)
    ids, positions, parents = (
        torch.stack([torch.from_numpy(getattr(row, name)) for row in rows]).long().to(model.device)
        for name in ("input_ids", "position_ids", "parent")
    )
    mask = additive_mask(rows, dtype=model.dtype, device=model.device)
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
        output_hidden_states=hidden is not None,
    )
    for index, layout in enumerate(layouts):
        size = len(layout)
        parent = parents[index, :size].clamp(min=0)
        logits = out.logits[index].index_select(0, parent).float()
        losses = torch.nn.functional.cross_entropy(logits, ids[index, :size], reduction="none")
        losses = losses.masked_fill(parents[index, :size] < 0, torch.nan)
        states = None
        if hidden is not None:
            at = torch.as_tensor(np.asarray(hidden[index], dtype=np.int64), device=model.device)
            states = torch.stack([layer[index, at].float() for layer in out.hidden_states])
        yield Reading(losses.cpu().numpy(), None if states is None else states.cpu().numpy())
