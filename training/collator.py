"""Compiled sets for other people's trainers: transformers' `Trainer` and TRL's `SFTTrainer`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from mvspec.compiler.layout import Layout
from mvspec.compiler.masks import additive_mask, block_mask, pad_batch
from mvspec.compiler.models import check_model, position_limit
from mvspec.compiler.vocabulary import Vocabulary, pad_id
from mvspec.errors import Unsupported, VerifyError
from mvspec.training.batch import BatchRow
from mvspec.training.data import LayoutSource, adopt_template
from mvspec.training.network import ATTENTIONS

_FLEX = ("flex_attention", ATTENTIONS["flex"])
_ADDITIVE = ("sdpa", "eager")


class Collator:
    """Turns rows of a compiled set into batches that a stock trainer trains as they are meant.

    A batch has `input_ids`, `position_ids`, `labels` and the mask that the model's attention
    takes: 4-D and additive for sdpa and eager, a `BlockMask` for flex_attention. Stock trainers
    predict a label from the token before it; so a token's label stands one past its parent, in
    `multiverse` at the token itself.

    Args:
        model: of transformers, or peft's around one, as the trainer gets it.
        tokenizer: that the sets were compiled with.

    Raises:
        Unsupported: the model does not do what a mask and positions say, or its attention takes
            no mask.
        VerifyError: its embeddings have no rows for the tokenizer's ids.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        check_model(model)
        self.model = model
        self.tokenizer = tokenizer
        self.pad_id = pad_id(tokenizer)
        rows, size = model.get_input_embeddings().weight.shape[0], Vocabulary.of(tokenizer).size
        if rows < size:
            raise VerifyError(
                "model", f"its embeddings have {rows} rows, the tokenizer's ids need {size}: "
                f"model.resize_token_embeddings({size}), or mvspec train with add_tags: true"
            )  # fmt: skip
        _check_attention(model)

    def rows(
        self,
        data: str | os.PathLike[str] | Sequence[Layout],
        *,
        lowering: str = "multiverse",
        length: int | None = None,
        pack: bool = False,
        too_long: str = "truncate",
        seed: int = 0,
    ) -> Any:
        """Return the rows of a set as a `datasets.Dataset`, which are read as they are asked for.

        What is cut or left out is printed: rows longer than `length` or the model's positions,
        and rows without a token with loss.

        Args:
            data: a folder that `mvspec compile -o` wrote, or layouts.
            lowering: that the folder has to have.
            length, pack, too_long, seed: as of `LayoutData`.

        Raises:
            VerifyError: the folder has another lowering or tokenizer, or no row is left.
            LimitExceeded: a row is too long, and `too_long` is "error".
        """
        from datasets import Dataset

        from mvspec.compiler.dataset import CompiledDataset

        name: str = "data"
        documents: Any = data
        if isinstance(data, str | os.PathLike):
            name, compiled = os.fspath(data), CompiledDataset(data, self.tokenizer)
            documents, found = compiled, compiled.manifest["lowering"]
            if found != lowering:
                raise VerifyError(
                    name, f"it was compiled in the lowering {found}, not {lowering}: compile it "
                    f"again, or give lowering={found!r} to train it so"
                )  # fmt: skip
            told = adopt_template(self.tokenizer, compiled.template)
            if told:
                print(f"mvspec: {name}: {told}", flush=True)
        source = LayoutSource(
            name, documents, length=length, positions=position_limit(self.model), pack=pack,
            too_long=too_long, seed=seed,
        )  # fmt: skip
        for note in source.notes:
            print(f"mvspec: {name}: {note}", flush=True)
        return Dataset.from_dict({"row": range(len(source))}).with_transform(_ReadRows(source))

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Return the batch of rows: int64 [batch, n] each, and the mask.

        Args:
            rows: of what `rows` returned; or layouts.

        Raises:
            VerifyError: they are rows of something else, or no token of a row has loss.
            Unsupported: the model's attention takes no mask, or its config asks for the loss of
                its router, which transformers computes without masks only.
        """
        flex = _check_attention(self.model)
        found = [_row(each) for each in rows]
        layouts = pad_batch([row.layout for row in found], pad_id=self.pad_id)
        labels = [_labels(layout, row.names) for layout, row in zip(layouts, found, strict=True)]

        def stacked(arrays: list[Any]) -> Tensor:
            return torch.from_numpy(np.stack(arrays)).long()

        mask: Any = (
            _CountedMask.of(layouts, self.model.device)
            if flex
            else additive_mask(layouts, dtype=self.model.dtype)
        )
        return {
            "input_ids": stacked([layout.input_ids for layout in layouts]),
            "position_ids": stacked([layout.position_ids for layout in layouts]),
            "attention_mask": mask,
            "labels": stacked(labels),
        }


def _check_attention(model: Any) -> bool:
    """Return whether the model attends through FlexAttention; trainers may have changed it."""
    config = model.config.get_text_config()
    how = model.config._attn_implementation
    if how not in (*_FLEX, *_ADDITIVE):
        raise Unsupported(
            f"attn_implementation={how!r} does not read a layout's mask: load the model with "
            "'sdpa', 'eager' or 'flex_attention'"
        )
    if getattr(config, "output_router_logits", False):
        raise Unsupported(
            f"model type {config.model_type!r}: its router's loss (output_router_logits) is "
            "computed by transformers without 4-D masks only: set router_aux_loss_coef=0.0 "
            "(SFTConfig's, and output_router_logits=False in the config), or use mvspec train"
        )
    return how in _FLEX


class _ReadRows:
    """The transform of a `datasets.Dataset` of numbers: rows in their place."""

    def __init__(self, source: LayoutSource) -> None:
        self.source = source

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[BatchRow]]:
        return {"row": [self.source[index] for index in batch["row"]]}


def _row(given: Any) -> BatchRow:
    found = given.get("row") if isinstance(given, Mapping) else given
    if isinstance(found, Layout):
        return BatchRow(found, ("a layout",))
    if not isinstance(found, BatchRow):
        raise VerifyError(
            "collator", f"a row is a {type(given).__name__}, not one of a compiled set: give the "
            "trainer collator.rows(FOLDER), and remove_unused_columns=False"
        )  # fmt: skip
    return found


def _labels(layout: Layout, names: Sequence[str]) -> Any:
    """int64 [n]: one past its parent the id of each token with loss, else -100."""
    at = np.flatnonzero(layout.loss_mask)
    place = layout.parent[at] + 1
    if not len(at):
        raise VerifyError(", ".join(names), "no token has loss: leave the row out")
    if len(np.unique(place)) < len(place):
        raise VerifyError(
            ", ".join(names), "two tokens with loss have one parent, which stock trainers cannot "
            "express: use mvspec train"
        )  # fmt: skip
    labels = np.full(len(layout), -100, np.int64)
    labels[place] = layout.input_ids[at]
    return labels


class _CountedMask(BlockMask):
    """A `BlockMask` that knows how many tokens it is of: `SFTTrainer` adds up a batch's mask."""

    _tokens = 0

    @classmethod
    def of(cls, layouts: Sequence[Layout], device: torch.device) -> _CountedMask:
        """Return the mask of a batch where the model is; a worker process has no GPU."""
        if torch.utils.data.get_worker_info() is not None and device.type != "cpu":
            raise Unsupported("block masks are built on the GPU: set dataloader_num_workers to 0")
        mask: Any = block_mask(layouts, device=device)
        mask.__class__ = cls
        mask._tokens = sum(int((layout.document_ids >= 0).sum()) for layout in layouts)
        found: _CountedMask = mask
        return found

    def to(self, device: torch.device | str) -> BlockMask:
        """Return itself: it is where the model is, and so is what its function reads."""
        return self

    def sum(self) -> Tensor:
        """Return how many tokens it is of, padding not counted: int64 []."""
        return torch.tensor(self._tokens, device=self.kv_num_blocks.device)
