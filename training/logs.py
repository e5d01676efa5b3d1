"""Metrics as CSV, of one run however often it was killed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

__all__ = ["MetricsLogger"]


class MetricsLogger(Logger):
    """Writes `metrics.csv`, a row a step, and carries it on where a run is resumed.

    Lightning's own logger deletes what an earlier run wrote. Here rows up to the step at which
    the run goes on stay, so the file is that of an uninterrupted run.

    Args:
        save_dir: the folder.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self._folder = Path(save_dir)
        self._columns: list[str] = ["step"]
        self._row: dict[str, Any] = {}
        self._at = 0  # where its line begins
        self._started = False

    @property
    def name(self) -> str:
        """No folder below `save_dir`."""
        return ""

    @property
    def version(self) -> str:
        """No folder below `save_dir`."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder."""
        return str(self._folder)

    @property
    def log_dir(self) -> str:
        """The folder."""
        return str(self._folder)

    @property
    def path(self) -> Path:
        """The file."""
        return self._folder / "metrics.csv"

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Leave them to `config.yaml`, which the command line writes beside the metrics."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write metrics into their step's row, which is the last one.

        Raises:
            OSError: the disk is full, for example; it names the file.
        """
        try:
            self._log(metrics, 0 if step is None else step)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def _log(self, metrics: dict[str, float], step: int) -> None:
        if not self._started:
            self._resume(step)
        if self._row.get("step") != step:
            self._row = {"step": step}
            self._at = self.path.stat().st_size if self.path.exists() else 0
        self._row |= metrics
        new = [name for name in self._row if name not in self._columns]
        if new or not self._at:
            rows = [row for row in _rows(self.path) if _step(row) < step]
            self._columns += sorted(new)
            self._rewrite(rows)
            self._at = self.path.stat().st_size
        with self.path.open("r+", newline="", encoding="utf-8") as file:
            file.truncate(self._at)
            file.seek(self._at)
            csv.DictWriter(file, self._columns).writerow(self._row)

    def _resume(self, step: int) -> None:
        """Drop what an earlier run wrote of steps that come again; keep what it wrote of this."""
        self._started = True
        rows = [row for row in _rows(self.path) if _step(row) <= step]
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        self._columns = list(rows[0])
        if _step(rows[-1]) == step:
            self._row = {key: value for key, value in rows.pop().items() if value}
            self._row["step"] = step
        self._rewrite(rows)
        self._at = self.path.stat().st_size

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".csv.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    # A kill may have cut the last line off, and lines may be longer than an old header.
    return [{k: v or "" for k, v in row.items() if k} for row in found if row.get("step")]


def _step(row: dict[str, str]) -> int:
    return int(row["step"]) if row["step"].isdigit() else 1 << 62
