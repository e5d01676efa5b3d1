"""The code blocks of the documentation: found, and run as they stand."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

from mvspec.cli import app

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
            status, `tests: "A" -> "B"` makes it small, "output" makes it what the block before it
            prints.
    """

    line: int
    language: str
    code: str
    notes: str

    @property
    def runs(self) -> bool:
        """Whether the tests run it."""
        return self.language in ("python", "sh") and "not run: " not in self.notes


def small(code: str, notes: str) -> str:
    """Return a block's code as the tests run it; what they replace has to be in it."""
    for old, new in re.findall(r'tests: "([^"]*)" -> "([^"]*)"', notes):
        assert old in code, f"{old!r} is not in\n{code}"
        code = code.replace(old, new)
    return code


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
        found.append(Block(line, match["language"], small(code, notes), notes))
    return found


def run_page(page: Path) -> dict[str, Any]:
    """Run a page's blocks in their order, in the working directory.

    Returns:
        the names that its Python has bound.
    """
    names: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for block in blocks_of(page):
        if block.runs and block.language == "python":
            # Blank lines before it, so that an error names the line of the page.
            code = "\n" * (block.line - 1) + block.code
            with redirect_stdout(Both(sys.stdout)) as out:
                exec(compile(code, str(page), "exec"), names)
            printed = out.getvalue()
        elif block.runs:
            printed = shell(block, f"{page.name}:{block.line}")
        elif "<!-- output -->" in block.notes:
            assert bare(block.code) in bare(printed), f"{page.name}:{block.line}: {printed}"
    return names


class Both(StringIO):
    """Keeps what is printed, and prints it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def write(self, text: str) -> int:
        """Keep and print a text."""
        self.stream.write(text)
        return super().write(text)


def bare(text: str) -> str:
    """Return a text without white space at the ends of its lines."""
    return "\n".join(line.rstrip() for line in text.splitlines())


def shell(block: Block, place: str) -> str:
    """Run a block of shell commands and return what it printed, errors too."""
    expected = re.search(r"exits with (\d+)", block.notes)
    commands = simple_commands(block.code)
    status, printed = in_process(commands) if commands else in_bash(block.code)
    assert status == (int(expected[1]) if expected else 0), f"{place}:\n{printed}"
    return printed


def simple_commands(code: str) -> list[list[str]]:
    """Return the words of each command; none where one of them needs a shell, or is not ours."""
    lines = [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]
    commands = [shlex.split(line, comments=True) for line in lines]
    ours = all(words[0] == "mvspec" or words[0] == "python" for words in commands if words)
    return (
        [] if not ours or re.search(r"[|&;<>$`]", code) else [words for words in commands if words]
    )


def in_process(commands: Sequence[Sequence[str]]) -> tuple[int, str]:
    """Run commands through their own entry points.

    In a process of its own each would do the same, after seconds of importing torch.
    """
    out = StringIO()
    before = sys.argv
    status = 0
    for name, *words in commands:
        with redirect_stdout(out), redirect_stderr(out):
            try:
                if name == "mvspec":
                    app(words, prog_name="mvspec")
                else:
                    sys.argv = words
                    runpy.run_path(words[0], run_name="__main__")
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            finally:
                sys.argv = before
        if status:
            break
    return status, out.getvalue()


def in_bash(code: str) -> tuple[int, str]:
    """Run commands in the working directory, with this environment's programs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", code],
        # The checkout's own mvspec, whatever folder the commands run in.
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout
