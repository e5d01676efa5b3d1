"""Common parts of the studies: settings, records that survive a kill, readings, plots, pages."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mvspec
from mvspec import Document, Message, MvspecError, Parallel, Think
from mvspec.tree.node import Node

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Records", "mean_error", "publish", "read_documents", "sequential_reading", "start",
           "table"]  # fmt: skip

HERE = Path(__file__).parent
TRIGGER = re.compile(r"\s*Let's think in parallel[.!:]?\s*$")


def start(main: Callable[..., None]) -> None:
    """Call a study with the settings of its YAML file, of `--config FILE`, and of options."""
    from jsonargparse import auto_cli

    settings = HERE / f"{Path(sys.argv[0]).stem}.yaml"
    try:
        auto_cli(main, as_positional=False, default_config_files=[str(settings)])
    except (MvspecError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


class Records:
    """Rows of a JSONL file, one a unit of work: what a killed run has done is not done again.

    Args:
        path: the file; its folder is made.
        settings: what the rows depend on; rows of other settings are refused.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        head = json.dumps({"settings": settings}, sort_keys=True, default=str)
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # a kill cut it
        if lines and lines[0].rstrip("\n") != head:
            raise MvspecError(
                f"{path} is of a run with other settings: give another --output, or remove it"
            )
        for line in lines[1:]:
            row = json.loads(line)
            self.rows[row["id"]] = row
        path.write_text("".join(lines) or head + "\n", "utf-8")

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Write a row, so that it is there after a kill."""
        self.rows[name] = {"id": name, **row}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[name]) + "\n")
            file.flush()
            os.fsync(file.fileno())


def sequential_reading(message: Message) -> tuple[str, list[int]]:
    """Return a turn as the text of a model that knows no blocks, and where blocks would begin.

    Tags, goals, conclusions and the line that announces a block are left out, as in the paper's
    autoregressive baseline; paths follow one another.

    Returns:
        the text, and for each block the offset of the first character of its first path.
    """
    parts: list[str] = []
    starts: list[int] = []

    def add(text: str) -> None:
        if text and parts:
            parts.append("\n")
        if text:
            parts.append(text)

    def walk(body: Iterable[Node]) -> None:
        for item in body:
            if isinstance(item, Think):
                walk(item.body)
            elif isinstance(item, Parallel):
                if parts:
                    parts[-1] = TRIGGER.sub("", parts[-1])
                starts.append(sum(map(len, parts)) + bool(parts))
                for path in item.paths:
                    walk(path.body)
            else:
                add(getattr(item, "text", "").strip("\n"))

    walk(message.body)
    return "".join(parts), starts


def read_documents(corpus: Path, field: str) -> Iterator[Document]:
    """Yield the documents of a JSONL file.

    Args:
        field: of a row, that has the document; "." for the row itself, with its name.

    Raises:
        MvspecError: a row has none.
    """
    return (record.document for record in mvspec.read(corpus, field=field))


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error (0 for one value)."""
    array = np.asarray(values, dtype=float)
    error = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else 0.0
    return float(array.mean()), float(error)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; all columns but the first are numbers."""
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)


def save_plot(figure: Figure, path: Path) -> None:
    """Save a figure as SVG that is the same whenever it is drawn."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "mvspec", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
    text = path.read_text("utf-8")
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", "utf-8")


def publish(
    name: str,
    text: str,
    page: Path | None,
    figure: Figure | None = None,
    output: Path | None = None,
) -> None:
    """Print results; write them into a page between `<!-- results: NAME -->` and its end.

    Args:
        figure: saved as NAME.svg, in `output` and beside the page.

    Raises:
        MvspecError: the page has no such place.
    """
    print(text)
    folders = [output] + ([page.parent] if page else [])
    for folder in folders:
        if figure is not None and folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            save_plot(figure, folder / f"{name}.svg")
    if page is None:
        return
    old = page.read_text("utf-8")
    first, last = f"<!-- results: {name} -->", f"<!-- end: {name} -->"
    if old.count(first) != 1 or old.count(last) != 1:
        raise MvspecError(f"{page} has no place for results: write {first} and {last} into it")
    before, after = old.split(first)[0], old.split(last)[1]
    page.write_text(f"{before}{first}\n{text.strip()}\n{last}{after}", "utf-8")
