"""Every command over what it was not made for: one line, the right exit status, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from traces import CANONICAL
from typer.testing import CliRunner

from mvspec.cli import app
from mvspec.trace import Trace
from mvspec.tree.builder import assistant

READERS = ("check", "show", "stats", "convert --to json", "check --recover --json")
ALL = (*READERS, "view", "compile --tokenizer {model}", "eval math --field output")
MODEL = Path(__file__).parents[2] / "runtime" / "tasks" / "arithmetic_model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "binary.parquet").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "rows.jsonl").write_text('[1]\n{"a": 5}\nnull\n{"output": "x"}\n{')
    (tmp_path / "folder").mkdir()
    return tmp_path


NAMES = (
    "empty.jsonl", "empty.txt", "binary.txt", "binary.jsonl", "binary.parquet", "rows.jsonl",
    "folder", "missing.txt", "folder/missing.jsonl",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", ALL)
def test_inputs_that_are_none_end_in_a_line(
    command: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    words = command.format(model=MODEL).split()
    result = CliRunner().invoke(app, [*words, name])
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.exit_code in (0, 1, 2)
    if "missing" in name or name == "folder":
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
    elif name == "empty.jsonl":
        assert "no record" in result.stderr or "no problem" in result.stderr


@pytest.mark.parametrize("command", [*READERS, "eval math", "run", "curate", "bench"])
def test_wrong_options_end_in_a_line(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--nothing-of-the-kind", "x"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1


def test_streams_that_are_closed_narrow_or_of_ascii(folder: Path) -> None:
    """All in processes of their own, at once: closed stdin, `| head`, LANG=C in 40 columns."""
    (folder / "good.txt").write_text(f"größer {CANONICAL}", "utf-8")
    start = f"{sys.executable} -m mvspec"
    narrow = os.environ | {"LANG": "C", "LC_ALL": "C", "COLUMNS": "40", "TERM": "dumb"}
    made = {
        "closed stdin": (f"{start} check - <&-", (0, 2)),
        "pipe": (f"{start} check --json good.txt good.txt | head -c 0", (0,)),
        "narrow": (f"{start} show good.txt", (0,)),
        "closed stdout": (f"{start} check good.txt >&-", (0, 1, 2)),
    }
    running = {
        name: subprocess.Popen(
            ["bash", "-c", line], cwd=folder, env=narrow, stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL, text=True,
        )
        for name, (line, _) in made.items()
    }  # fmt: skip
    for name, process in running.items():
        _, errors = process.communicate(timeout=120)
        assert process.returncode in made[name][1], (name, errors)
        assert "Traceback" not in errors, name
        assert errors.count("\n") <= 1, name


def test_print_and_repr_are_a_screen() -> None:
    count = 20_000
    trace = Trace(
        ids=(1,) * count, token_texts=("long \n",) * count, thread_ids=(0,) * count,
        position_ids=tuple(range(count)), authors=("model",) * count, logprobs=(None,) * count,
        forward_ids=(0,) * count, forward_seconds=(1.0,), forward_tokens=(count,),
    )  # fmt: skip
    document = assistant("long " * 10_000)
    for text in (repr(trace), str(trace), repr(document)):
        assert len(text) <= 24 * 101
        assert text.count("\n") < 24
