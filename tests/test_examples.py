"""Every example is a program that an engine runs, and its docstring's command is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny import tiny_engine

import mvspec as mv
from mvspec.law.limits import Limits
from mvspec.runtime import load_program, run

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example_runs(file: Path) -> None:
    document = load_program(file)
    assert isinstance(document, mv.Document)
    result = run(file, tiny_engine(), limits=Limits(max_seconds=60))
    assert list(result.texts) == [hole.name for hole in document.holes]
    assert result.document is not None
    assert not result.document.holes
    command = re.search(r"`mvspec run [^`]*(examples/\w+\.py)`", file.read_text("utf-8"))
    assert command is not None
    assert Path(command[1]).name == file.name
