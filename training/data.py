"""Compiled sets as the data of a Lightning trainer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule

from mvspec.compiler.layout import Layout
from mvspec.compiler.tokenizer import pad_id
from mvspec.errors import VerifyError
from mvspec.training.loader import Loader
from mvspec.training.ranks import Ranks
from mvspec.training.schedule import Schedule, Stage
from mvspec.training.source import Documents, Source

__all__ = ["LayoutData"]

Given = str | os.PathLike[str] | Sequence[Layout]


class LayoutData(LightningDataModule):
    """Rows of layouts: packed or padded, mixed by stages, sharded over ranks, resumable.

    Args:
        train: a folder that `mvspec compile -o` wrote, or a list of layouts; or several by name.
        validation, test: as `train`; read in order, one document a row.
        stages: mixtures of the named sets, one after the other; an epoch is all of them. By
            default every row comes once.
        batch_size: rows of a rank in a step.
        length: the most tokens of a row; rows are padded to it where they are packed.
        pack: fill rows of `length` tokens with documents. Leave it for sets that
            `mvspec compile --pack` packed.
        too_long: what becomes of longer documents: "truncate", "drop" or "error"; the numbers are
            logged.
        seed: of the order; the same seed gives the same batches on any number of workers.
        shuffle: whether rows of training come in random order.
        workers: processes of each rank that read.

    Raises:
        VerifyError: a set is empty, incomplete, or made with another tokenizer than the model's.
    """

    def __init__(
        self,
        train: Any = None,
        validation: Any = None,
        test: Any = None,
        *,
        stages: list[Stage] | None = None,
        batch_size: int = 1,
        length: int | None = None,
        pack: bool = False,
        too_long: str = "truncate",
        seed: int = 0,
        shuffle: bool = True,
        workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1), ("length", length, 1), ("workers", workers, 0)
        ):  # fmt: skip
            if value is not None and value < least:
                raise VerifyError(f"data.{name}", f"{value} is not a whole number from {least} up")
        self._given = {"train": train, "validation": validation, "test": test}
        self.stages = list(stages or [])
        self.batch_size = batch_size
        self.length = length
        self.pack = pack
        self.too_long = too_long
        self.seed = seed
        self.shuffle = shuffle
        self.workers = workers
        self._sources: dict[str, list[Source]] = {}
        self._loader: Loader | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model that is trained, where there is one."""
        module = getattr(self.trainer, "lightning_module", None)
        return getattr(module, "tokenizer", None)

    def sources(self, split: str) -> list[Source]:
        """Return the sets of "train", "validation" or "test"; none where none was given."""
        if split not in self._sources:
            given = self._given[split]
            named = given if isinstance(given, Mapping) else {split: given}
            self._sources[split] = [
                self._source(name, each, split) for name, each in named.items() if each is not None
            ]
        return self._sources[split]

    def _source(self, name: str, given: Given, split: str) -> Source:
        documents: Documents
        if isinstance(given, str | os.PathLike):
            # Layouts in memory need no pyarrow.
            from mvspec.compiler.dataset import CompiledDataset

            documents = CompiledDataset(given, self.tokenizer)
            name = os.fspath(given) if name == split else name
        else:
            documents = given
        return Source(
            name,
            documents,
            length=self.length,
            pack=self.pack and split == "train",
            too_long=self.too_long,
            seed=self.seed,
        )

    def setup(self, stage: str) -> None:
        """Open the sets that a stage reads, so that a fault shows before the model is loaded.

        Raises:
            VerifyError: there is none.
        """
        if stage == "fit":
            self._loader = self._resumed = None
        splits = {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",))
        if not self.sources(splits[0]):
            raise VerifyError(f"data.{splits[0]}", "there is no set to read: give one")
        for split in splits:
            for source in self.sources(split):
                for what in ("truncated", "dropped"):
                    count = getattr(source, what)
                    if count and (self.trainer is None or self.trainer.is_global_zero):
                        print(f"mvspec: {source.name}: {count:,} documents longer than "
                              f"{self.length} tokens are {what}", flush=True)  # fmt: skip

    def train_dataloader(self) -> Loader:
        """Return the batches of training."""
        sources = self.sources("train")
        if not sources:
            raise VerifyError("train", "there is no set to train on: give data.train")
        sizes = {source.name: len(source) for source in sources}
        stages = self.stages
        if len(sizes) < len(sources):
            raise VerifyError("train", "two sets have the same name")
        schedule = Schedule(sizes, stages, seed=self.seed, shuffle=self.shuffle)
        self._loader = self._loader_of(sources, schedule, self.length if self.pack else None)
        if self._resumed is not None:
            self._loader.load_state_dict(self._resumed)
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands, for the checkpoint."""
        return {"train": self._loader.state_dict()} if self._loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; Lightning forgets loaders that it had before the checkpoint."""
        self._resumed = state_dict.get("train")
        if self._loader is not None and self._resumed is not None:
            self._loader.load_state_dict(self._resumed)

    def val_dataloader(self) -> Loader | list[Any]:
        """Return the batches of validation."""
        return self._in_order("validation")

    def test_dataloader(self) -> Loader | list[Any]:
        """Return the batches of the test."""
        return self._in_order("test")

    def _in_order(self, split: str) -> Loader | list[Any]:
        sources = self.sources(split)
        if not sources:
            return []
        schedule = Schedule({each.name: len(each) for each in sources}, shuffle=False)
        return self._loader_of(sources, schedule, None)

    def _loader_of(self, sources: list[Source], schedule: Schedule, length: int | None) -> Loader:
        ranks = Ranks.of(self.trainer)
        tokenizer = self.tokenizer
        return Loader(
            sources,
            schedule,
            self.batch_size,
            rank=ranks.rank,
            ranks=ranks.count,
            length=length,
            pad_id=0 if tokenizer is None else pad_id(tokenizer),
            workers=self.workers,
        )
