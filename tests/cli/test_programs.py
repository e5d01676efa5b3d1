"""Programs: files that hold what runs, and the commands over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny import chat, tiny_engine
from traces import CANONICAL

import mvspec as mv
from mvspec.cli.demo import show_demo
from mvspec.cli.plan import cost_line, describe_plan
from mvspec.cli.run import run_file
from mvspec.compiler import ExecutionPlan
from mvspec.errors import MvspecError, VerifyError
from mvspec.law.limits import Limits
from mvspec.runtime import Options, TorchEngine, Trace, load_program, run
from mvspec.runtime.tasks.demo import document
from mvspec.view.live import LiveColumns

PROGRAM = """\
import mvspec as mv
document = mv.document(mv.user("Q"), mv.assistant("A", mv.gen("x", 3), mv.gen("y", 2)))
"""


def test_programs(tmp_path: Path) -> None:
    engine = tiny_engine()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    document = load_program(program)
    assert isinstance(document, mv.Document)
    as_json = tmp_path / "document.json"
    as_json.write_text(document.to_json(), encoding="utf-8")
    assert load_program(as_json) == document
    result = run(program, engine)
    assert result.values == run(document, engine).values
    with pytest.raises(VerifyError, match="not both"):
        run(document, engine, model="somewhere")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "x = 1\n", "binds no `document`"),
        ("a.py", "from mvspec import document\n", "binds a function"),
        ("a.py", "\n1 / 0\n", r"a\.py:2: ZeroDivisionError"),
        ("a.py", "def\n", r"a\.py:1: SyntaxError"),
        ("a.py", "import sys\nsys.exit()\n", r"a\.py:2: SystemExit"),
        ("a.py", "import mvspec\n\nmvspec.parallel()\n", r"a\.py:3: .*at least one branch"),
        ("a.json", "{", r"a\.json: "),
        ("a.json", '{"messages": 3}', r"a\.json: messages"),
    ],
)
def test_bad_programs(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    with pytest.raises(MvspecError, match=message):
        load_program(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MvspecError, match="no such file"):
        run(tmp_path / "none.py")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    with pytest.raises(MvspecError, match="cannot be loaded"):
        run(program, model=tmp_path / "no-model")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> TorchEngine:
    """Let `TorchEngine.load` give a tiny engine."""
    engine = tiny_engine()
    monkeypatch.setattr(TorchEngine, "load", classmethod(lambda cls, model=None: engine))
    return engine


def test_results_are_printed(
    small: TorchEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace('"x", 3', '"x", choices=["[b]"]'), encoding="utf-8")
    trace = tmp_path / "t.jsonl"
    result = run_file(program, None, Options(), live=True, trace=trace, timeline=tmp_path / "t.svg")
    out = capsys.readouterr().out
    assert "[b]" in out  # a value is no markup
    assert "critical path" in out
    assert "</svg>" in (tmp_path / "t.svg").read_text(encoding="utf-8")
    # What was saved is replayed by its file's name.
    plan = load_program(trace)
    assert isinstance(plan, ExecutionPlan)
    assert small.run(plan).trace.ids == result.trace.ids


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"trace": "none/t.jsonl"}, "there is no folder"),
        ({"trace": "."}, "is a folder"),
        ({"timeline": "none/t.svg"}, "there is no folder"),
        ({"timeline": "t.gif"}, "an .svg or a .png"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_run(
    small: TorchEngine, tmp_path: Path, more: dict[str, str], message: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    paths: Any = {name: tmp_path / path for name, path in more.items()}
    with pytest.raises(MvspecError, match=message):
        run_file(program, None, Options(), **paths)
    assert small.scheduler.steps == 0


@pytest.mark.parametrize("live", [True, False])
def test_ctrl_c_leaves_the_trace_in_its_file(
    small: TorchEngine, tmp_path: Path, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the screen is drawn."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    owner = LiveColumns if live else small.model
    monkeypatch.setattr(owner, "show" if live else "forward", interrupted)
    trace = tmp_path / "t.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_file(program, None, Options(), live=live, trace=trace)
    found = Trace.from_json(trace.read_text(encoding="utf-8"))
    assert found.finish == "interrupted"
    assert len(found) > 3


def test_texts_are_replayed(small: TorchEngine, tmp_path: Path) -> None:
    text = tmp_path / "trace.txt"
    text.write_text(CANONICAL, encoding="utf-8")
    result = run(text)
    assert result.text.split("<|im_end|>")[0] == CANONICAL
    assert result.document == mv.parse(CANONICAL)
    (tmp_path / "bad.txt").write_text("<Path>", encoding="utf-8")
    with pytest.raises(MvspecError, match=r"bad\.txt"):
        run(tmp_path / "bad.txt")


def test_plans_are_described(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    plan = describe_plan(program, None, chat())
    assert "generate %0 $x max 3" in str(plan)
    assert cost_line(plan).startswith("cost: ")
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json(), encoding="utf-8")
    assert load_program(file) == plan
    asked = tmp_path / "ask.json"
    asked.write_text(mv.document(mv.user("Go.")).to_json(), encoding="utf-8")
    assert "not known before the run" in cost_line(describe_plan(asked, None, chat()))


def test_the_demo_runs(small: TorchEngine, capsys: pytest.CaptureFixture[str]) -> None:
    result = show_demo(document, None)
    out = " ".join(capsys.readouterr().out.split())
    assert set(result.texts) == {hole.name for hole in document.holes}
    for part in ("the document", "its plan", "predicted speedup", "timeline", "times faster"):
        assert part in out


def test_options_of_run_are_checked(small: TorchEngine) -> None:
    asked = mv.document(mv.user("Go."))
    result = run(asked, temperature=1.0, seed=2, limits=Limits(max_tokens=5))
    assert result.trace.answer <= 5
    assert result.trace.seed == 2
    with pytest.raises(VerifyError, match="temprature"):
        run(asked, temprature=1.0)
    with pytest.raises(VerifyError, match="not both"):
        run(asked, options=Options(), seed=1)
