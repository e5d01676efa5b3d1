"""`mvspec convert` and `mvspec check --fix`, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from traces import CANONICAL, TRACES
from typer.testing import CliRunner, Result

import mvspec
from mvspec.cli import app
from mvspec.data.fix import log_path

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
FLAT = mvspec.assistant(
    mvspec.think("Hm.", mvspec.parallel(mvspec.branch("A", "one"), mvspec.branch("B", "two"))),
    "Answer: 3",
)
TRACE = mvspec.render(
    mvspec.assistant(
        "Start",
        mvspec.parallel(mvspec.branch("go left", "no"), mvspec.branch("go right", "yes"),
                        conclusion="right it is"),
        "Done.\n",
    ),
    form="apr",
)  # fmt: skip


def run(*args: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("form", ["multiverse", "multiverse-prompt", "threadweaver", "json"])
def test_a_text_becomes_a_text_and_back(form: str) -> None:
    text = mvspec.render(FLAT)
    there = run("convert", "-", "--to", form, stdin=text)
    assert (there.exit_code, there.stdout) == (0, mvspec.render(mvspec.document(FLAT), form))
    back = run("convert", "-", "--from", form, "--to", "multiverse", stdin=there.stdout)
    assert (back.exit_code, back.stdout) == (0, text)


def test_rows_keep_their_other_fields_and_refusals_name_the_node(tmp_path: Path) -> None:
    data, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"id": "flat", "result": {"text": mvspec.render(FLAT), "score": 3}},
        {"id": "deep", "result": {"text": CANONICAL}},
        {"id": "bad", "result": {"text": "</Path>\n"}},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    args = ("convert", data, "--field", "result.text", "--to", "threadweaver", "-o", out)
    result = run(*args)
    assert result.exit_code == 1
    assert lines(out) == [
        {"id": "flat", "result": {"text": mvspec.render(FLAT, "threadweaver"), "score": 3}}
    ]
    deep, bad = result.stderr.splitlines()
    assert deep.startswith("left out: deep: form 'threadweaver' cannot hold messages[0].body[0].")
    assert "2 levels deep, and the form has 1 level" in deep
    assert "bad: 1:1: </Path> closes nothing" in bad
    assert run(*args, "--recover").exit_code == 1
    assert [row["id"] for row in lines(out)] == ["flat", "bad"]


def test_a_trace_of_apr_stands_in_its_row_as_an_object(tmp_path: Path) -> None:
    data, out, again = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "again.jsonl"))
    row = {"id": "a", "trace": json.loads(TRACE)}
    data.write_text(json.dumps(row) + "\n", "utf-8")
    assert run("check", data, "--field", "trace").exit_code == 0
    assert run("convert", data, "--field", "trace", "--to", "multiverse", "-o", out).exit_code == 0
    assert "<Path>\n1: no\n</Path>" in lines(out)[0]["trace"]
    assert run("convert", out, "--field", "trace", "--to", "apr", "-o", again).exit_code == 0
    assert lines(again) == [row]


def test_an_unknown_form_is_a_usage_error(tmp_path: Path) -> None:
    for args in (("--to", "xml"), ("--to", "json", "--from", "untagged")):
        result = run("convert", "-", *args, stdin="a")
        assert result.exit_code == 2
        assert "multiverse" in result.stderr


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "runs.jsonl"
    rows = [{"n": index, "output": trace.text} for index, trace in enumerate(TRACES)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n", "utf-8")
    return path


def fix(corpus: Path, out: Path, *more: object) -> Result:
    return run("check", corpus, "--field", "output", "--recover", "--fix", out, *more)


def test_fix_writes_the_repaired_corpus_beside_a_log(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "fixed.jsonl"
    result = fix(corpus, out)
    assert result.exit_code == 1  # one row is no JSON
    variants = [{*trace.codes} <= {"separator", "missing-newline"} for trace in TRACES]
    assert lines(out) == [  # white space at tags stays: it is no defect
        {"n": n, "output": trace.text if variants[n] else trace.repaired}
        for n, trace in enumerate(TRACES)
    ]
    assert run("check", out, "--field", "output").exit_code == 0
    head, *log = lines(log_path(out))
    assert head["command"]["field"] == "output"
    assert len(log) == len(TRACES) + 1
    assert log[-1]["left_out"] == "it cannot be read"
    codes = [tuple(each["code"] for each in row["diagnostics"] if "severity" not in each)
             for row in log[:-1]]  # fmt: skip
    wanted = zip(TRACES, variants, strict=True)
    assert codes == [() if variant else trace.codes for trace, variant in wanted]


def test_fix_leaves_out_what_the_policy_says(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "fixed.jsonl"
    result = fix(corpus, out, "--max-repairs", 1, "--drop", "cut", "--drop", "tag-as-word")
    kept = [n for n, trace in enumerate(TRACES)
            if len(trace.codes) < 2 and not {"cut", "tag-as-word"} & {*trace.codes}]  # fmt: skip
    assert [row["n"] for row in lines(out)] == kept
    (row,) = (line for line in result.stdout.splitlines() if line.startswith("left out of --fix"))
    assert row.split()[-1] == str(len(TRACES) + 1 - len(kept))
    why = {row["left_out"] for row in lines(log_path(out))[1:] if "left_out" in row}
    assert "it has the repair cut" in why
    assert "it has 2 repairs, more than 1" in why


@pytest.mark.parametrize("workers", [1, 2])
def test_fix_goes_on_where_a_killed_run_stopped(corpus: Path, tmp_path: Path, workers: int) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "fixed.jsonl"
    fix(corpus, whole)
    # As a run leaves them that was killed in the middle of a line, its log behind its rows.
    rows, log = whole.read_bytes(), log_path(whole).read_bytes()
    (tmp_path / "fixed.jsonl.partial").write_bytes(rows[: len(rows) // 2])
    logged = log.splitlines(keepends=True)[:9]
    (tmp_path / "fixed.jsonl.log.jsonl.partial").write_bytes(b"".join(logged) + b'{"record": ')
    result = fix(corpus, out, "--json", "--workers", workers)
    assert out.read_bytes() == rows
    assert log_path(out).read_bytes() == log
    assert len(result.stdout.splitlines()) == len(TRACES) + 1 - 8
    assert not list(tmp_path.glob("*.partial"))


def test_fix_remembers_what_a_killed_run_left_out(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "fixed.jsonl"
    fix(corpus, tmp_path / "whole.jsonl", "--max-repairs", 0)
    log = log_path(tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    rows = (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "fixed.jsonl.partial").write_bytes(rows)
    (tmp_path / "fixed.jsonl.log.jsonl.partial").write_bytes(b"".join(log))
    result = fix(corpus, out, "--max-repairs", 0)
    assert result.exit_code == 1
    assert f"done by an earlier run {len(log) - 1}" in " ".join(result.stdout.split())
    assert out.read_bytes() == rows


def test_fix_is_right_after_a_kill_between_its_two_files(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "fixed.jsonl"
    fix(corpus, out)
    rows, log = out.read_bytes(), log_path(out).read_bytes()
    out.rename(tmp_path / "fixed.jsonl.partial")
    fix(corpus, out)
    assert (out.read_bytes(), log_path(out).read_bytes()) == (rows, log)


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_fix_survives_kill_9(corpus: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "fixed.jsonl"
    lines_ = corpus.read_bytes()
    corpus.write_bytes(lines_ * 20)
    fix(corpus, whole)
    command = [sys.executable, "-m", "mvspec", "check", str(corpus), "--field", "output",
               "--recover", "--json", "--fix", str(out)]  # fmt: skip
    for records in (30, 200, 500):
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout
        for _ in range(records):
            child.stdout.readline()
        child.kill()
        child.communicate()
        assert not out.exists()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    assert done.stdout.count(b"\n") <= 20 * len(lines_.splitlines()) - 730
    assert out.read_bytes() == whole.read_bytes()
    logs = [log_path(path).read_bytes().split(b"\n", 1)[1] for path in (out, whole)]
    assert logs[0] == logs[1]


def test_one_text_that_the_form_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    path, out = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text(CANONICAL, "utf-8")
    assert run("convert", path, "--to", "threadweaver", "-o", out).exit_code == 1
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_fix_takes_up_no_other_run(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "fixed.jsonl"
    (tmp_path / "fixed.jsonl.log.jsonl.partial").write_text('{"command": {}}\n')
    result = fix(corpus, out)
    assert result.exit_code == 2
    assert "of another command: remove it" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--fix", "a.jsonl"), "--fix needs --recover"),
        (("--recover", "--drop", "cut"), "need --fix"),
        (("--recover", "--max-repairs", "3"), "need --fix"),
        (("--recover", "--fix", "a.jsonl", "--drop", "typo"), "no repair has this code"),
    ],
)
def test_options_that_would_be_ignored_are_refused(args: tuple[str, ...], message: str) -> None:
    result = run("check", "-", *args, stdin="a")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs ../shared/corpus")
def test_real_traces_of_apr_hold_what_they_held() -> None:
    rows = lines(CORPUS / "apr-traces.jsonl")
    for row in rows:
        text = json.dumps(row["trace_dict"])
        document = mvspec.parse(text, form="apr")
        assert mvspec.render(document, form="apr") == text
        for form in ("multiverse", "multiverse-prompt", "threadweaver", "curator"):
            other = mvspec.render(document, form)
            assert mvspec.render(mvspec.parse(other, form), form="apr") == text
    assert len(rows) == 40


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs ../shared/corpus")
def test_real_outputs_repaired_are_well_formed(tmp_path: Path) -> None:
    out = tmp_path / "fixed.jsonl"
    assert fix(CORPUS / "multiverse-dev.jsonl", out).exit_code == 0
    assert len(lines(out)) == 84
    assert run("check", out, "--field", "output").exit_code == 0


@pytest.mark.parametrize("place", ["data.jsonl", "folder/out.jsonl", "folder/../data.jsonl"])
def test_what_is_read_is_never_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    rows = json.dumps({"output": CANONICAL}) + "\n"
    for name in ("data.jsonl", "folder/a.jsonl"):
        (tmp_path / name).write_text(rows, "utf-8")
    inputs = (tmp_path / "data.jsonl", tmp_path / "folder", "--field", "output")
    for args in (("check", "--recover", "--fix"), ("convert", "--to", "json", "-o")):
        result = run(args[0], *inputs, *args[1:], tmp_path / place)
        assert result.exit_code == 2
        assert "is read" in result.stderr
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.jsonl", "data.jsonl"]
    assert (tmp_path / "data.jsonl").read_text("utf-8") == rows
