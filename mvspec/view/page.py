"""The page: one HTML file that needs nothing else and lets nothing in.

Records travel as compressed lines of JSON in base64, some tens together, so that no character of
theirs is markup wherever they stand, and a browser decodes only what it shows or searches. The
content-security-policy names the page's one script and one style by their hashes: nothing else
runs, is loaded or is sent, and the script may not make markup out of strings.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from base64 import b64encode
from html import escape
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mvspec.data.records import InputError
from mvspec.disk import naming
from mvspec.shown import visible

MARK = '<meta name="generator" content="mvspec view">'
"""What tells a page from a file that is somebody else's."""

GROUP = 256_000
"""Characters of records that are compressed together, about; a click decodes so many."""

SCRIPTS = (
    "characters", "archive", "record", "elements", "selection", "facts", "tree", "axis", "timeline",
    "mask", "tokens", "source", "fields", "list", "search", "record_view", "theme", "keyboard",
    "main",
)  # fmt: skip
"""The page's script: these files, end to end, as one module."""

STYLES = ("colours", "tree", "page")


class RecordPage:
    """A page that is being written; it gets its name when it is whole.

    Args:
        path: the file.
        title: what it is called.

    >>> import tempfile
    >>> from mvspec.view.record_view import RecordView
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RecordPage(Path(folder, "a.html"), "<b>") as page:
    ...         page.add(*RecordView("a", "a:1", "text", text="Hi").lines(), ["a"])
    ...     "&lt;b&gt;" in Path(folder, "a.html").read_text()
    True
    """

    def __init__(self, path: Path, title: str) -> None:
        self.path = path
        self.title = title
        self.partial = path.with_name(path.name + ".partial")
        self.index: list[list[Any]] = []
        self.group: list[str] = []
        self.weight = 0
        self.first = 0
        self.tail = ""
        self.file: IO[str] | None = None

    def __enter__(self) -> RecordPage:
        self.file = self.partial.open("w", encoding="utf-8", newline="\n")
        head, self.tail = _frame(self.title)
        with naming(self.partial):
            self.file.write(head)
        return self

    def add(self, searched: str, rest: str, index: list[Any]) -> None:
        """Add a record: the two lines of `RecordView.lines`, and what the list knows of it."""
        self.index.append(index)
        self.group += (searched, rest)
        self.weight += len(searched) + len(rest)
        if self.weight >= GROUP:
            with naming(self.partial):
                self._flush()

    def _flush(self) -> None:
        if self.group:
            self._part("records", "\n".join(self.group), first=self.first)
        self.first = len(self.index)
        self.group.clear()
        self.weight = 0

    def _part(self, name: str, text: str, first: int = 0) -> None:
        if self.file is not None:
            data = b64encode(zlib.compress(text.encode("ascii"), 6)).decode("ascii")
            tag = f'<script type="text/plain" data-part="{name}" data-first="{first}">'
            self.file.write(f"{tag}{data}</script>\n")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.file is None:
            return
        try:
            with naming(self.partial), self.file:
                if kind is None:
                    self._flush()
                    self._part("index", json.dumps(self.index, separators=(",", ":")))
                    self.file.write(self.tail)
            if kind is None:
                os.replace(self.partial, self.path)
        finally:
            self.partial.unlink(missing_ok=True)


def is_page(path: Path) -> bool:
    """Whether a file is a page that this module wrote."""
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(4096)
    except OSError:
        return False


def own_output(path: Path, force: bool) -> Path:
    """Return a file that may be written.

    Raises:
        InputError: something else stands there, or its folder does not.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file")
    if path.exists() and not force and not is_page(path):
        raise InputError(f"{path} is there and is no page of mvspec view: --force overwrites it")
    return path


def _read(name: str) -> str:
    return files("mvspec.view").joinpath(name).read_text("utf-8")


def _frame(title: str) -> tuple[str, str]:
    """Return what stands before and behind the records."""
    script = "\n" + "".join(_read(f"{name}.js") for name in SCRIPTS)
    rules = "\n" + "".join(_read(f"{name}.css") for name in STYLES)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(rules)}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    parts = {"mark": MARK, "policy": policy, "title": escape(visible(title))}
    parts |= {"style": rules, "script": script}
    # In one pass: a title may look like a place of the page.
    head, tail = (
        re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], half)
        for half in _read("page.html").split("{{records}}")
    )
    return head, tail


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
