"""Evaluations with a model: prompts, caps, resuming, kills, and what an engine refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scripted import scripted_engine
from served_model import save_model
from typer.testing import CliRunner

import mvspec as mv
from mvspec.cli import app
from mvspec.errors import MvspecError
from mvspec.law.limits import Limits
from mvspec.runtime import Options, Sampling, TorchEngine
from mvspec.runtime.evaluation.evaluation import (
    AskedSamples,
    Evaluation,
    EvaluationSource,
    run_engine,
)
from mvspec.runtime.evaluation.generation import AnswerGenerator, prompt_of
from mvspec.runtime.evaluation.results import read_run

PARALLEL, SEQUENTIAL = prompt_of("parallel"), prompt_of("sequential")
TURN = "<|im_end|>\n<|im_start|>assistant\n"


def evaluation(folder: Path, count: int = 3) -> Evaluation:
    data = folder / "sums.jsonl"
    rows = [{"id": f"p{n}", "problem": f"2 + 3, {n}?", "answer": "5"} for n in range(count)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvaluationSource("math", (str(data),)).open()


def test_both_prompts(tmp_path: Path) -> None:
    engine = scripted_engine({PARALLEL + TURN: "<Think>\nHm: 5.\n</Think>\n\nIt is \\boxed{5}.",
                              SEQUENTIAL + TURN: "It is \\boxed{6}."})  # fmt: skip
    found = {}
    for prompt in (PARALLEL, SEQUENTIAL):
        generation = AnswerGenerator(engine, prompt, Options())
        path = tmp_path / f"{len(prompt)}.jsonl"
        run = run_engine(evaluation(tmp_path), generation, AskedSamples(), path, print)
        assert run.samples == read_run(path).samples
        found[prompt] = list(run.samples.values())
    assert [each.score for each in found[PARALLEL]] == [1.0] * 3
    assert [each.score for each in found[SEQUENTIAL]] == [0.0] * 3
    sample = found[PARALLEL][0]
    assert sample.output.endswith("</Think>\n\nIt is \\boxed{5}.")
    assert (sample.form, sample.finish, sample.extracted) == ("ok", "end", "5")
    assert sample.tokens == sample.critical_path
    assert sample.seconds is not None


def test_shape_and_cost_are_the_traces(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    engine = TorchEngine.load(str(tmp_path / "model"))
    options = Options(Sampling(temperature=1.0, seed=1))
    asking = AskedSamples(samples=2, caps=(40, 160))
    generation = AnswerGenerator(engine, PARALLEL, options)
    run = run_engine(evaluation(tmp_path), generation, asking, tmp_path / "run.jsonl", print)
    samples = list(run.samples.values())
    assert len(samples) == 12
    for sample in samples:
        assert sample.cap is not None
        assert sample.form == "ok"
        assert sample.finish in ("end", "limit")
        assert mv.parse(sample.output).messages[0].role == "assistant"
        assert sample.critical_path is not None
        assert sample.critical_path <= sample.cap
    assert any(sample.blocks for sample in samples)
    assert any(each.metrics and each.metrics.parallelism > 1 for each in samples)
    # A sample depends on its problem and number alone, whatever runs beside it.
    some = EvaluationSource("math", (str(tmp_path / "sums.jsonl"),), limit=1).open()
    alone = run_engine(
        some, generation, AskedSamples(2, (40, 160), 1), tmp_path / "one.jsonl", print
    )
    for key, sample in alone.samples.items():
        assert sample.output == run.samples[key].output
    # The rest of the data is added by asking for it.
    whole = run_engine(evaluation(tmp_path), generation, asking, tmp_path / "one.jsonl", print)
    assert {k: s.output for k, s in whole.samples.items()} == {
        k: s.output for k, s in run.samples.items()
    }
    plot = tmp_path / "caps.svg"
    shown = CliRunner().invoke(app, ["eval", "report", str(run.path), "--plot", str(plot)])
    assert shown.exit_code == 0, shown.output
    assert "cap 40" in shown.stdout
    assert plot.read_text().count("<svg") == 1


def test_what_the_engine_refuses_is_listed_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = scripted_engine({SEQUENTIAL + TURN: r"\boxed{5}"})
    data = tmp_path / "long.jsonl"
    rows = [{"id": "short", "problem": "2 + 3?", "answer": "5"},
            {"id": "long", "problem": "so " * 90, "answer": "5"}]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = EvaluationSource("math", (str(data),)).open()
    generation = AnswerGenerator(engine, SEQUENTIAL, Options())
    engine.model.context = 60
    path = tmp_path / "run.jsonl"
    run = run_engine(given, generation, AskedSamples(), path, print)
    refused = run.samples["long", 0, None]
    assert run.samples["short", 0, None].score == 1.0
    assert refused.score is None
    assert refused.error
    shown = CliRunner().invoke(app, ["eval", "report", str(path)])
    assert shown.exit_code == 1
    assert "long, sample 0: refused" in shown.stderr
    engine.model.context = None
    run = run_engine(given, generation, AskedSamples(), path, print)
    assert [each.score for each in run.samples.values()] == [1.0, 1.0]
    engine.model.context = 9
    with pytest.raises(MvspecError, match="all of 8 requests were refused"):
        run_engine(
            evaluation(tmp_path, 12), generation, AskedSamples(), tmp_path / "no.jsonl", print
        )


def test_an_answer_that_was_not_graded_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    checks, data = Path("later_checks.py"), tmp_path / "own.jsonl"
    checks.write_text("def check(row, text):\n    raise OSError('busy')\n")
    data.write_text('{"id": "a", "question": "Why?"}\n')
    given = EvaluationSource("own", (str(data),), checker="later_checks:check").open()
    engine = scripted_engine({SEQUENTIAL + TURN: "So."})
    generation = AnswerGenerator(engine, SEQUENTIAL, Options())
    path = tmp_path / "run.jsonl"
    (first,) = run_engine(given, generation, AskedSamples(), path, print).samples.values()
    assert (first.output, first.score) == ("So.", None)
    assert "OSError: busy" in first.note
    checks.write_text("def check(row, text):\n    return text == 'So.'\n")
    monkeypatch.setattr(engine, "run_async", None)
    (again,) = run_engine(given, generation, AskedSamples(), path, print).samples.values()
    assert (again.score, again.seconds) == (1.0, first.seconds)


def test_an_engine_that_fails_ends_the_run_and_keeps_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = scripted_engine({SEQUENTIAL + TURN: r"\boxed{5}"})
    run_async = engine.run_async
    calls = 0

    async def failing(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise MvspecError("the server went away")
        return await run_async(*args, **more)

    monkeypatch.setattr(engine, "run_async", failing)
    generation = AnswerGenerator(engine, SEQUENTIAL, Options())
    path = tmp_path / "run.jsonl"
    given = evaluation(tmp_path, 4)
    with pytest.raises(MvspecError, match="went away"):
        run_engine(given, generation, AskedSamples(concurrency=1), path, print)
    assert len(read_run(path).samples) == 2
    run = run_engine(given, generation, AskedSamples(), path, print)
    assert [each.score for each in run.samples.values()] == [1.0] * 4


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    given = evaluation(tmp_path, 16)
    out = tmp_path / "run.jsonl"
    command = [sys.executable, "-m", "mvspec", "eval", "math", str(tmp_path / "sums.jsonl")]
    command += ["--model", str(tmp_path / "model"), "-o", str(out), "--workers", "1"]
    command += ["--temperature", "1", "--cap", "40", "--concurrency", "2", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while time.monotonic() < until and (not out.exists() or out.read_bytes().count(b"\n") < 4):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = read_run(out)
    assert 3 <= len(before.samples) < 16
    shown = CliRunner().invoke(app, ["eval", "report", str(out)])
    assert shown.exit_code == 1
    assert f"{16 - len(before.samples)} samples are missing" in shown.stderr
    engine = TorchEngine.load(str(tmp_path / "model"))
    options = Options(Sampling(temperature=1.0), Limits())
    generation = AnswerGenerator(engine, PARALLEL, options)
    asking = AskedSamples(caps=(40,))
    run = run_engine(given, generation, asking, out, print)
    assert len(run.samples) == 16
    whole = run_engine(given, generation, asking, tmp_path / "whole.jsonl", print)
    assert {key: each.output for key, each in run.samples.items()} == {
        key: each.output for key, each in whole.samples.items()
    }
    assert {key: each.output for key, each in before.samples.items()}.items() <= {
        key: each.output for key, each in whole.samples.items()
    }.items()
