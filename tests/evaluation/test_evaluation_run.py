"""Evaluations with a model: prompts, caps, resuming, kills, and what an engine refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from scripted import scripted_engine
from served_model import save_model
from typer.testing import CliRunner, Result

import mvspec as mv
from mvspec.cli import app
from mvspec.compiler.dataset import CompiledDataset
from mvspec.compiler.vocabulary import load_tokenizer
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
from mvspec.runtime.evaluation.results import EvaluationSample, read_run
from mvspec.runtime.tasks.arithmetic import TINY, arithmetic_model
from mvspec.runtime.tasks.problem import problems
from mvspec.trace import Trace

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


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the arithmetic model has answered twice: run.jsonl with its traces."""
    folder = tmp_path_factory.mktemp("sampled")
    (folder / "sum_checks.py").write_text(
        "def check(row, text):\n    return text.strip().endswith(f'Answer: {row[\"answer\"]}')\n"
    )
    found = islice(problems("test", 0, TINY), 8)
    rows = [
        {"id": f"p{n}", "question": each.question, "answer": each.answer}
        for n, each in enumerate(found)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        result = command(
            "eval", "own", "sums.jsonl", "--checker", "sum_checks:check", "-o", "run.jsonl",
            "--model", arithmetic_model(), "--samples", 2, "--temperature", 1.3,
            "--max-tokens", 120,
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def trace_of(folder: Path, sample: EvaluationSample) -> Trace:
    assert isinstance(sample.trace, dict)
    with (folder / sample.trace["file"]).open("rb") as file:
        file.seek(sample.trace["offset"])
        row = json.loads(file.readline())
    assert (row["id"], row["sample"]) == sample.key[:2]
    return Trace.from_dict(row["trace"])


def test_rejection_sampling_is_two_commands(sampled: Path, tmp_path: Path) -> None:
    result = command("compile", sampled / "run.jsonl", "--where", "score=1",
                     "--tokenizer", arithmetic_model(), "-o", tmp_path / "set")  # fmt: skip
    assert result.exit_code == 0, result.output
    samples = read_run(sampled / "run.jsonl").samples.values()
    right = [each for each in samples if each.score == 1]
    assert 0 < len(right) < len(samples) == 16
    counts = dict(line.rsplit(maxsplit=1) for line in result.stdout.splitlines()[2:])
    assert counts["left out by --where"] == str(16 - len(right))
    data = CompiledDataset(tmp_path / "set", load_tokenizer(str(arithmetic_model())))
    assert [data.records(n) for n in range(len(data))] == [[each.id] for each in right]
    for layout, sample in zip(data, right, strict=True):
        trace = trace_of(sampled, sample)
        assert layout == trace.layout
        assert layout.input_ids.tolist() == list(trace.ids)
        assert "".join(trace.token_texts).startswith(f"<|im_start|>user\n{sample.question}")
        assert trace.text.startswith(sample.output)
        assert sample.output.endswith(sample.gold)
        assert sample.prompt == [{"role": "user", "content": f"{sample.question} {PARALLEL}"}]
        assert layout.loss_mask[-1]  # the end of a turn that was drawn


def test_results_without_their_traces_say_what_to_do(sampled: Path, tmp_path: Path) -> None:
    alone = tmp_path / "run.jsonl"
    alone.write_bytes((sampled / "run.jsonl").read_bytes())
    commands: list[tuple[object, ...]] = [
        ("compile", alone, "--tokenizer", arithmetic_model(), "-o", tmp_path / "o"),
        ("check", alone, "--json"),
    ]
    for arguments in commands:
        result = command(*arguments)
        assert result.exit_code == 1
    entries = (tmp_path / "o" / "quarantine.jsonl").read_text().splitlines()
    assert {json.loads(each)["code"] for each in entries} == {"missing-trace"}
    assert "keep it beside the results, or take their text with --field output" in entries[0]
    checked = [json.loads(line) for line in result.stdout.splitlines()]
    assert {each["diagnostics"][0]["code"] for each in checked} == {"missing-trace"}
    assert command("check", alone, "--field", "output").exit_code == 0
    # Together in a folder, each run is read once.
    (tmp_path / "both").mkdir()
    for name in ("run.jsonl", "run.traces.jsonl"):
        (tmp_path / "both" / name).write_bytes((sampled / name).read_bytes())
    assert len(list(mv.read(tmp_path / "both"))) == 16


def test_a_run_that_is_taken_up_is_read_once(sampled: Path, tmp_path: Path) -> None:
    """Its settings come again, and samples that were graded or asked for again."""
    for name in ("run.jsonl", "run.traces.jsonl", "sums.jsonl", "sum_checks.py"):
        (tmp_path / name).write_bytes((sampled / name).read_bytes())
    lines = (tmp_path / "run.jsonl").read_text("utf-8").splitlines()
    ungraded = json.dumps(json.loads(lines[3]) | {"score": None})
    torn = [lines[0], *lines[1:3], ungraded, lines[0], *lines[4:], lines[3]]
    (tmp_path / "run.jsonl").write_text("\n".join(torn) + "\n", "utf-8")
    found = list(mv.read(tmp_path / "run.jsonl"))
    assert [each.row for each in found] == [
        json.loads(line) for line in [*lines[1:3], *lines[4:], lines[3]]
    ]
    assert all(each.kind == "trace" for each in found)


def test_recorded_runs_keep_their_traces(sampled: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.syspath_prepend(str(sampled))
        result = command(
            "eval", "own", sampled / "sums.jsonl", "--checker", "sum_checks:check",
            "--outputs", sampled / "run.jsonl", "-o", "again.jsonl",
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    before, after = read_run(sampled / "run.jsonl"), read_run(tmp_path / "again.jsonl")
    assert len(after.samples) == 16
    outputs = sorted((each.id, each.output, each.score) for each in before.samples.values())
    assert sorted((each.id, each.output, each.score) for each in after.samples.values()) == outputs
    ids = sorted(trace_of(sampled, each).ids for each in before.samples.values())
    assert sorted(trace_of(tmp_path, each).ids for each in after.samples.values()) == ids


@pytest.mark.parametrize(
    "reference",
    [
        {"file": "../run.traces.jsonl", "offset": 0},
        {"file": "/etc/passwd", "offset": 0},
        {"file": "run.traces.jsonl", "offset": 1},
        {"file": "run.traces.jsonl", "offset": -1},
        {"file": "run.traces.jsonl", "offset": True},
        {"file": "run.traces.jsonl", "offset": 10**9},
        {"file": "sums.jsonl", "offset": 0},
        {"file": "", "offset": 0},
        {"file": 3, "offset": 0},
    ],
)
def test_a_reference_to_no_trace_is_a_located_error(
    sampled: Path, reference: dict[str, Any]
) -> None:
    (sampled / "bad.jsonl").write_text(json.dumps({"id": "a", "trace": reference}) + "\n")
    (record,) = mv.read(sampled / "bad.jsonl").read()
    (sampled / "bad.jsonl").unlink()
    reading = record.read()
    assert reading.document is None
    assert reading.diagnostics[0].code == "missing-trace"
    assert "\n" not in reading.diagnostics[0].message
