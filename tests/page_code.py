"""The code blocks of the documentation: found, and run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Block", "blocks_of", "run_page"]

ROOT = Path(__file__).parents[1]

FENCE = re.compile(
    r"(?P<notes>(?:^>? ?<!--[^\n]*-->\n)*)"
    r"^(?P<mark>>? ?)(?P<fence>```|~~~~)(?P<language>[^\n]*)\n(?P<code>.*?)^>? ?(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        line: of its first line, from 1.
        notes: the comments above it. "not run: WHY" leaves it out, "exits with N" is its
            status, "output" makes it what the shell block before it prints.
    """

    line: int
    language: str
    code: str
    notes: str

    @property
    def runs(self) -> bool:
        """Whether the tests run it."""
        return self.language in ("python", "sh") and "not run: " not in self.notes


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page; none of its code runs where the page says why at its top."""
    text = page.read_text("utf-8")
    whole = re.search(r"^<!-- code on this page is (not run: .*) -->$", text, re.MULTILINE)
    found = []
    for match in FENCE.finditer(text):
        code = match["code"]
        if match["mark"]:
            code = re.sub(r"^> ?", "", code, flags=re.MULTILINE)
        notes = match["notes"] + (whole[1] if whole else "")
        line = text.count("\n", 0, match.start("fence")) + 2
        found.append(Block(line, match["language"], code, notes))
    return found


def run_page(page: Path, folder: Path) -> dict[str, Any]:
    """Run a page's blocks in their order, in a folder that is the working directory.

    Returns:
        the names that its Python has bound.
    """
    names: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for block in blocks_of(page):
        if block.runs and block.language == "python":
            # Blank lines before it, so that an error names the line of the page.
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(page), "exec"), names)
        elif block.runs:
            printed = shell(block, folder, f"{page.name}:{block.line}")
        elif "<!-- output -->" in block.notes:
            assert bare(block.code) in bare(printed), f"{page.name}:{block.line}: {printed}"
    return names


def bare(text: str) -> str:
    """Return a text without white space at the ends of its lines."""
    return "\n".join(line.rstrip() for line in text.splitlines())


def shell(block: Block, folder: Path, place: str) -> str:
    """Run a block of shell commands and return what it printed, errors too."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # The checkout's own mvspec, whatever folder the commands run in.
    source = {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "PATH": path}
    done = subprocess.run(
        ["bash", "-euc", block.code],
        cwd=folder,
        env=os.environ | source,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    expected = re.search(r"exits with (\d+)", block.notes)
    assert done.returncode == (int(expected[1]) if expected else 0), f"{place}:\n{done.stdout}"
    return done.stdout
