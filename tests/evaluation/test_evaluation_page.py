"""The code of docs/evaluation.md runs, its commands in this process: each is a start less."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from page_code import ROOT, blocks_of
from typer.testing import CliRunner

from mvspec.cli import app
from mvspec.compiler.dataset import CompiledDataset
from mvspec.runtime.tasks.arithmetic import arithmetic_model

PAGE = ROOT / "docs" / "evaluation.md"

TASK = """\
task: sums_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: right
metric_list: [{{metric: acc}}]
"""


def lines(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # One that is right now and then: where none is, there is nothing to compile.
    shutil.copytree(arithmetic_model(), tmp_path / "MODEL")
    sums = [
        {"id": f"s{n}", "problem": f"What is 2+{n}?", "answer": str(2 + n), "source": "easy"}
        for n in range(2)
    ]
    lines(Path("sums.jsonl"), *sums)
    lines(Path("outputs.jsonl"), *({"id": each["id"], "output": each["answer"]} for each in sums))
    lines(Path("choices.jsonl"), {"question": "2 + 3 is", "choices": ["5", "6"], "right": 0})
    Path("TASKS").mkdir()
    Path("TASKS/choice.yaml").write_text(TASK.format(data=tmp_path / "choices.jsonl"))
    names: dict[str, Any] = {}
    commands = 0
    for block in blocks_of(PAGE):
        if block.language == "python":
            exec(compile(block.code, PAGE, "exec"), names)
        lines_of = block.code.splitlines() if block.language == "sh" else []
        for command in (each for each in lines_of if each.startswith("mvspec ")):
            commands += 1
            result = CliRunner().invoke(app, shlex.split(command)[1:])
            assert result.exit_code == 0, (command, result.output)
            assert "harness" not in command or "sums_choice" in result.stdout
    assert commands == 10
    assert 0 < len(CompiledDataset("RIGHT")) <= len(CompiledDataset("OWN")) <= 4
    for name in ("caps.png", "caps.svg", "speed.json", "speed.svg"):
        assert Path(name).stat().st_size > 1000
    assert len(names["run"].samples) == 4
    assert names["summary"].accuracy is not None
