"""A run on disk: one JSONL file that says under which settings, and one line a sample.

A line is written at once and flushed, so a kill loses what is on its way and nothing else; what a
kill or a full disk leaves of a line is cut off before the next one is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvspec.data.records import InputError
from mvspec.data.resume import Journal, differing
from mvspec.runtime.evaluation.sample import Key, Sample

__all__ = ["Results", "Run", "open_results", "read_run"]

FORMAT = 1

_BEGINNING = b'{"format": '

GROWING = ("samples", "caps", "limit", "total")
"""Settings that a run may be taken up with other values of: they say how much there is to do."""


@dataclass
class Run:
    """What a file of results holds.

    Args:
        path: of the file.
        settings: under which it was made.
        samples: by problem, sample and cap; the last line counts where there are several.
    """

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    samples: dict[Key, Sample] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """How many samples were asked for and are not there yet."""
        return max(int(self.settings.get("total", 0)) - len(self.samples), 0)

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.path.stem


def read_run(path: Path) -> Run:
    """Read a file of results; a last line that a kill has cut is left out.

    Raises:
        InputError: it cannot be read, or a line of it is none of ours.
    """
    run, _ = _read(path)
    if not run.settings:
        raise InputError(f"{path}: no results of mvspec eval: its first line has no settings")
    return run


def _read(path: Path) -> tuple[Run, int]:
    """Return a run, and how many bytes of the file are whole lines."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    run = Run(path)
    whole = data.rfind(b"\n") + 1
    if not whole and not data.startswith(_BEGINNING):
        raise InputError(f"{path}: no results of mvspec eval")
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
            if "settings" in row:
                if row.get("format") != FORMAT:
                    raise ValueError(f"format {row.get('format')}: this mvspec reads {FORMAT}")
                run.settings = dict(row["settings"])
            else:
                sample = Sample.from_record(row)
                run.samples[sample.key] = sample
        except (ValueError, TypeError) as error:
            if number == 1:
                raise InputError(f"{path}: no results of mvspec eval ({error})") from None
            raise InputError(f"{path}:{number}: {error}: mend the line, or delete it") from None
    return run, whole


class Results:
    """A file that samples are added to."""

    def __init__(self, run: Run, journal: Journal) -> None:
        self.run = run
        self._journal = journal

    def add(self, sample: Sample) -> None:
        """Write a sample's line.

        Raises:
            InputError: the disk is full, or the file cannot be written; what it held stays.
        """
        self._write(sample.record())
        self.run.samples[sample.key] = sample

    def settle(self, settings: Mapping[str, Any]) -> None:
        """Write the settings where they are new, or ask for more than before."""
        if self.run.settings != settings:
            self._write({"format": FORMAT, "settings": dict(settings)})
            self.run.settings = dict(settings)

    def _write(self, row: Mapping[str, Any]) -> None:
        try:
            self._journal.add(row)
        except OSError as error:
            raise InputError(
                f"{self.run.path}: {error.strerror or error}: {len(self.run.samples)} samples are "
                "kept; the same command goes on from there"
            ) from None


@contextmanager
def open_results(path: Path, settings: Mapping[str, Any]) -> Iterator[Results]:
    """Give the file of a run, new or taken up.

    Args:
        path: of the file.
        settings: under which samples are made now.

    Raises:
        InputError: it was made under others, is none of ours, cannot be written, or another
            process is at work on it.
    """
    settings = json.loads(json.dumps(settings))
    if path.is_dir():
        raise InputError(f"-o {path}: is a folder; name a .jsonl file")
    if not path.parent.is_dir():
        raise InputError(f"-o {path}: there is no folder {path.parent}")
    try:
        journal = Journal(path, None, durable=True)
    except OSError as error:
        raise InputError(f"-o {path}: {error.strerror or error}") from None
    with journal:
        run, whole = _read(path) if path.stat().st_size else (Run(path), 0)
        _compare(run, settings)
        journal.cut(whole)
        results = Results(run, journal)
        results.settle(settings)
        yield results


def _compare(run: Run, settings: Mapping[str, Any]) -> None:
    """Refuse to take a run up under other settings."""
    if not run.settings:
        if run.samples:
            raise InputError(f"-o {run.path}: its first line has no settings: name another file")
        return
    before, now = _flat(run.settings), _flat(settings)
    changed = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in differing(before, now)
        if name not in GROWING
    ]
    if changed:
        raise InputError(
            f"-o {run.path}: made under other settings ({'; '.join(changed)}): name another file"
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those inside others by their own names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat
