"""One record never ends a batch: whatever fails on it, the others get their verdicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from bpe import small_tokenizer
from traces import CANONICAL
from typer.testing import CliRunner, Result

from mvspec.cli import app
from mvspec.compiler.vocabulary import save_tokenizer
from mvspec.data.records import Record

ERRORS = (KeyError("x"), RecursionError("deep"), MemoryError(), AssertionError("odd"), TypeError())
COMMANDS = {
    "check": ["check", "--json"],
    "fix": ["check", "--json", "--recover", "--fix", "{out}.jsonl"],
    "show": ["show"],
    "page": ["show", "--html", "{out}.html"],
    "mask": ["show", "--mask", "{out}.html", "--tokenizer", "{tokenizer}"],
    "stats": ["stats", "--each", "--json"],
    "convert": ["convert", "--to", "json", "-o", "{out}.jsonl"],
    "view": ["view", "-o", "{out}.html"],
    "compile": ["compile", "--tokenizer", "{tokenizer}", "-o", "{out}"],
    "emit": ["compile", "--tokenizer", "{tokenizer}", "--emit", "segments"],
}
READ = "mvspec.data.records:read_text"
PLACES = [
    *((name, READ) for name in COMMANDS if name != "view"),
    ("view", "mvspec.data.records:parse"),
    ("view", "mvspec.cli.view:view_of"),
    ("check", "mvspec.data.check:warnings"),
    ("fix", "mvspec.data.fix:fixed_row"),
    ("show", "mvspec.cli.show:tree_rich"),
    ("page", "mvspec.cli.show:tree_html"),
    ("mask", "mvspec.compiler:compile_document"),
    ("stats", "mvspec.cli.stats:measure"),
    ("convert", "mvspec.data.convert:render"),
    ("convert", "mvspec.data.convert:output_row"),
    ("compile", "mvspec.compiler.traced:compile_rows"),
    ("emit", "mvspec.cli.print_stages:segments_of"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(small_tokenizer(), folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = [CANONICAL, CANONICAL.replace("Let me see.", "BOOM."), CANONICAL]
    lines = [json.dumps({"id": f"r{i}", "output": text}) for i, text in enumerate(texts)]
    path.write_text("\n".join(lines), "utf-8")
    return path


def run(name: str, rows: Path, tokenizer: Path) -> Result:
    out = rows.with_name("out")
    words = [word.format(out=out, tokenizer=tokenizer) for word in COMMANDS[name]]
    return CliRunner().invoke(app, [words[0], str(rows), *words[1:]])


def means_boom(value: Any) -> bool:
    if isinstance(value, Record):
        return "BOOM" in value.text
    return "BOOM" in (value if isinstance(value, str) else repr(value))


@pytest.mark.parametrize("number", range(len(PLACES)), ids=[f"{n}-{p}" for n, p in PLACES])
def test_a_crash_is_a_verdict(
    number: int, rows: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, place = PLACES[number]
    error = ERRORS[number % len(ERRORS)]
    module, _, function = place.partition(":")
    real = getattr(import_module(module), function)

    def failing(*args: Any, **more: Any) -> Any:
        if any(map(means_boom, args)):
            raise error
        return real(*args, **more)

    monkeypatch.setattr(import_module(module), function, failing)
    result = run(name, rows, tokenizer)
    assert result.exit_code == 1, (result.exception, result.output)
    told = result.output
    out = rows.with_name("out")
    files = [path for path in rows.parent.rglob("out*") if path.is_file()]
    files += list(out.rglob("*")) if out.is_dir() else []
    told += "".join(path.read_text("utf-8", "replace") for path in files if path.is_file())
    if name == "view":  # a page is packed
        assert "1 of them could not be read" in told
        return
    assert "please report it" in told
    assert type(error).__name__ in told
    assert "test_crashes.py:" in told
    assert "r1" in told or "rows.jsonl:2" in told
    monkeypatch.undo()
    if name == "check":
        verdicts = [json.loads(line) for line in result.stdout.splitlines()]
        assert [each["ok"] for each in verdicts] == [True, False, True]
        assert verdicts[1]["diagnostics"][0]["code"] == "crash"
    elif name in ("fix", "convert"):
        kept = Path(f"{out}.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line)["id"] for line in kept] == ["r0", "r2"]
    elif name == "compile":
        from mvspec.compiler.dataset import CompiledDataset

        data = CompiledDataset(out)
        assert [data.records(index) for index in range(len(data))] == [["r0"], ["r2"]]
    else:
        assert "r0" in told
        assert "r2" in told


DEADLY = """
import os
import mvspec.data.records as records
real = records.read_text
def deadly(text, *args, **more):
    if "BOOM" in text:
        os.kill(os.getpid(), 9)
    return real(text, *args, **more)
records.read_text = deadly
"""


@pytest.mark.parametrize("name", ["check", "compile"])
def test_a_worker_that_dies_names_its_record(name: str, rows: Path, tokenizer: Path) -> None:
    folder = rows.with_name("site")
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(DEADLY, "utf-8")
    out = rows.with_name("out")
    words = [word.format(out=out, tokenizer=tokenizer) for word in COMMANDS[name]]
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "mvspec", words[0], str(rows), *words[1:], "--workers", "2"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    if name == "check":
        verdicts = [json.loads(line) for line in done.stdout.splitlines()]
        assert [each["ok"] for each in verdicts] == [True, False, True]
        assert verdicts[1]["record"] == f"{rows}:2"
        assert verdicts[1]["diagnostics"][0]["code"] == "crash"
    else:
        entry = json.loads((out / "quarantine.jsonl").read_text("utf-8"))
        assert (entry["place"], entry["code"]) == ("rows.jsonl:2", "crash")
        assert "has died" in entry["reason"]
