"""Long runs that are taken up again: whole lines after kill -9, settings that agree, one writer.

`check --fix` and `eval` append lines to a `Journal`; `compile` and `curate` write files that
appear whole or not at all, with `replaced`. Settings are compared with `differing`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mvspec.data.records import InputError
from mvspec.disk import naming, write_whole

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def check_file(path: Path, option: str, suffixes: tuple[str, str]) -> None:
    """Refuse a file that could not be written, before there is something to lose.

    Args:
        option: that named it.
        suffixes: what it may end in.

    Raises:
        InputError: it ends in neither, or its folder is not there.
    """
    if path.suffix.lower() not in suffixes:
        names = " or ".join(f"{'an' if suffix[1] == 's' else 'a'} {suffix}" for suffix in suffixes)
        raise InputError(f"{option} {path}: name {names} file")
    if not path.parent.is_dir():
        raise InputError(f"{option} {path}: there is no folder {path.parent}")


@contextmanager
def replaced(path: Path, mode: str = "w", *, keep_empty: bool = True) -> Iterator[IO[Any]]:
    """Give a file that takes the place of `path` whole; an empty one may take it away instead."""
    temporary = path.with_name(f".{path.name}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with naming(temporary), temporary.open(mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
            empty = file.tell() == 0
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk needs its place
        raise
    if empty and not keep_empty:
        temporary.unlink()
        path.unlink(missing_ok=True)
    else:
        os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears whole or not at all."""
    with replaced(path) as file:
        file.write(json_text(value))


def json_text(value: Any) -> str:
    """Return what `write_json` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with naming(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file that are complete: a killed run may have begun another."""
    if path.exists():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of settings that are not what they were.

    >>> differing({"form": "json", "field": None}, {"form": "multiverse"})
    ['form']
    """
    names = dict.fromkeys((*before, *now))
    return [name for name in names if before.get(name) != now.get(name)]


def hold(descriptor: int, path: Path) -> None:
    """Hold an open file or folder against other processes, where the system can, until it closes.

    Raises:
        InputError: another process holds it.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"-o {path}: another run is writing it: wait for it, or stop it") from None


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that write into it.

    Raises:
        InputError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        hold(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


class Journal:
    """A file of JSON lines that is appended to; a line is there as a whole or not at all.

    Args:
        path: of the file, which is made where it is not there.
        size: bytes of it that are kept, as of `cut`; None keeps all for now.
        durable: whether a line is on the disk before `add` returns.

    Raises:
        InputError: another process is writing it.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, size: int | None, *, durable: bool = False) -> None:
        self.path = path
        self.durable = durable
        how = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, how, 0o666)
        try:
            hold(self._descriptor, path)
            self.cut(path.stat().st_size if size is None else size)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def cut(self, size: int) -> None:
        """Cut off what a killed run left behind the first bytes."""
        with naming(self.path):
            os.ftruncate(self._descriptor, size)
        self._size = size

    def close(self) -> None:
        """Close the file, and let others write it."""
        os.close(self._descriptor)

    def add(self, row: Mapping[str, Any], *, ascii: bool = False) -> int:
        """Write a line; return at which byte of the file it begins.

        Args:
            ascii: escape every other character; rows may hold some that UTF-8 has not.

        Raises:
            OSError: the disk is full, or the file cannot be written; what it held stays.
        """
        line = (json.dumps(row, ensure_ascii=ascii) + "\n").encode(errors="backslashreplace")
        with naming(self.path):
            write_whole(self._descriptor, line, self._size, durable=self.durable)
        self._size += len(line)
        return self._size - len(line)
