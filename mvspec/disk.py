"""Files whose errors name them, and lines that are appended whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give an error of the disk the name of the file that was read or written.

    Opening a file names it in its error; writing, reading and closing do not.

    >>> with naming("a.txt"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 'a.txt'
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Append a line to a file, whole or not at all.

    It begins a line of its own where a full disk or a kill has cut the one before it.

    Raises:
        OSError: names the file, which holds what it held.
    """
    data = line.encode(errors="backslashreplace") + b"\n"
    with naming(path):
        file = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666
        )
        try:
            size = os.fstat(file).st_size
            if size:
                os.lseek(file, size - 1, os.SEEK_SET)
                data = data if os.read(file, 1) == b"\n" else b"\n" + data
            write_whole(file, data, size)
        finally:
            os.close(file)


def write_whole(file: int, data: bytes, size: int, *, durable: bool = False) -> None:
    """Write to an open file, which keeps its first `size` bytes alone where that fails.

    Args:
        durable: whether the data is on the disk before this returns.
    """
    try:
        if os.write(file, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            os.fsync(file)
    except OSError:
        with suppress(OSError):  # a device cannot be cut
            os.ftruncate(file, size)
        raise
