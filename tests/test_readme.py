"""What the documentation says is so: its example runs, its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

import mvspec
from mvspec.forms.recovery.edits import Code

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def fenced(language: str) -> list[str]:
    """Return README's code blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = fenced("python")
    assert len(example.splitlines()) <= 15
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    tree = next(block for block in fenced("text") if block.startswith("document"))
    assert printed.startswith(tree)
    text = printed.removeprefix(tree)[:-1]  # print adds a newline
    assert mvspec.render(mvspec.parse(text)) == text


def test_set_up_commands_are_one_line() -> None:
    commands = fenced("sh")
    assert [command.count("\n") for command in commands] == [1, 1]
    assert "mvspec run examples/compare.py" in commands[0]
    assert "pytest" in commands[1]


def test_links_lead_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\((?!\w+:|#)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_diagnostic_is_explained() -> None:
    page = (ROOT / "docs/diagnostics.md").read_text("utf-8")
    explained = re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE)
    assert len(explained) == len(set(explained))
    assert set(get_args(Code)) <= set(explained)
