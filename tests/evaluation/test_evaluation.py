"""`mvspec eval` as a user runs it: data, recorded outputs, results, reports, comparisons."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from qwen import qwen_tokenizer
from traces import CANONICAL
from typer.testing import CliRunner, Result

from mvspec.cli import app
from mvspec.data.records import InputError
from mvspec.runtime.evaluation.problem import ProblemColumns, open_problems, read_problems
from mvspec.runtime.evaluation.results import EvaluationSample, final_text, open_results, read_run
from mvspec.runtime.evaluation.sandbox import refusal
from mvspec.runtime.evaluation.tasks import TASKS, task_of

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"


def run(*args: object) -> Result:
    one = [] if args[0] in ("compare", "report") else ["--workers", "1"]
    return CliRunner().invoke(app, ["eval", *map(str, args), *one])


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def solved(answer: str) -> str:
    return CANONICAL.replace("Answer: 5", f"Answer: \\boxed{{{answer}}}")


def plain(answer: str) -> str:
    return f"<Think>\nHm.\n</Think>\n\nSo it is \\boxed{{{answer}}}."


ROWS = (
    {"id": "a", "source": "X", "problem": "2 + 3?", "answer": "5", "output": solved("5")},
    {"id": "b", "source": "X", "problem": "2 + 4?", "answer": "6", "output": solved("5")},
    {"id": "c", "source": "Y", "problem": "Half?", "answer": "\\frac12", "output": plain("0.5")},
    {"id": "d", "source": "Y", "problem": "1 + 1?", "answer": "2",
     "output": "<Think>\nHm, \\boxed{2}"},
    {"id": "e", "source": "Y", "problem": "1 + 2?", "answer": "3",
     "output": CANONICAL.replace("</Path>\n", "", 1)},
)  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return lines(tmp_path / "data.jsonl", *ROWS)


# Recorded outputs


def test_recorded_outputs(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    result = run("math", data, "--field", "output", "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    (x, y, both) = json.loads(result.stdout)["summaries"]
    assert (x["group"], x["accuracy"]["mean"], x["forms"]) == (
        "X", 0.5, {"ok": 2, "cut": 0, "malformed": 0},
    )  # fmt: skip
    assert (y["group"], y["forms"]) == ("Y", {"ok": 1, "cut": 1, "malformed": 1})
    assert y["accuracy"]["mean"] == pytest.approx(2 / 3)
    assert both["well_formed_documents"] == 3
    assert both["well_formed_documents_with_blocks"] == 2
    assert both["well_formed_parallelism_with_blocks"] > 1
    assert [sample.id for sample in read_run(out).samples.values()].count("a") == 1
    # What stands in an unfinished thought does not count with --final.
    result = run("math", data, "--field", "output", "--final", "--json")
    assert json.loads(result.stdout)["summaries"][1]["accuracy"]["mean"] == pytest.approx(1 / 3)
    # The same command again finds all of it done; under other settings it is refused.
    again = run("math", data, "--field", "output", "-o", out, "--json")
    assert json.loads(again.stdout)["summaries"][2] == both
    other = run("math", data, "--field", "output", "-o", out, "--final")
    assert other.exit_code == 2
    assert "final was False and is True" in other.stderr
    shown = run("report", out)
    assert shown.exit_code == 0
    assert "# parallel, well-formed" in shown.stdout


def test_outputs_of_another_file_and_several_samples(data: Path, tmp_path: Path) -> None:
    rows = [{"id": each, "text": {"out": plain("5")}} for each in ("a", "a", "b")]
    outputs = lines(tmp_path / "outputs.jsonl", *rows, {"id": "zz", "text": {"out": "x"}})
    with outputs.open("a") as file:
        file.write('{"id": "c", "text": {"out"\n[1]\n')
    result = run("math", data, "--outputs", outputs, "--field", "text.out", "--json")
    assert result.exit_code == 1
    assert "outputs.jsonl:4: no problem has the id 'zz'" in result.stderr
    assert "outputs.jsonl:5: not JSON" in result.stderr
    assert "no output for 3 problems: c, d, e" in result.stderr
    (found,) = json.loads(result.stdout)["summaries"]
    assert (found["samples"], found["problems"], found["accuracy"]["mean"]) == (3, 2, 0.5)


def test_a_run_is_data_for_another(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    run("math", data, "--field", "output", "-o", out)
    result = run("math", data, "--outputs", out, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["summaries"][2]["samples"] == 5


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs real traces")
def test_published_figures(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    qwen_tokenizer().save(str(tokenizer))
    data = CORPUS / "multiverse-dev.jsonl"
    result = run("math", data, "--field", "output", "--count", tokenizer, "--json")
    assert result.exit_code == 0, result.stderr
    aime, math, _ = json.loads(result.stdout)["summaries"]
    assert (aime["group"], aime["samples"], math["group"], math["samples"]) == (
        "AIME24", 30, "MATH500", 54,
    )  # fmt: skip
    assert aime["accuracy"]["mean"] == pytest.approx(14 / 30)
    assert math["accuracy"]["mean"] == pytest.approx(44 / 54)
    name = "well_formed_parallelism"
    assert (round(aime[name], 2), round(math[name], 2)) == (1.05, 1.06)
    with_blocks = [(each[f"{name}_with_blocks"], each["well_formed_documents_with_blocks"])
                   for each in (aime, math)]  # fmt: skip
    assert [(round(mean, 2), n) for mean, n in with_blocks] == [(1.08, 8), (1.11, 23)]


def test_own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("own_checks.py").write_text(
        "def share(row, text):\n"
        "    return sum(word in text for word in row['words']) / len(row['words'])\n"
    )
    data = lines(tmp_path / "own.jsonl", {"question": "Say it.", "words": ["a", "b"], "out": "a c"})
    result = run("own", data, "--checker", "own_checks:share", "--field", "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["summaries"][0]["accuracy"]["mean"] == 0.5
    for checker, reason in (("own_checks:gone", "AttributeError"), ("nothing", "module:function"),
                            ("nowhere:f", "ModuleNotFoundError")):  # fmt: skip
        result = run("own", data, "--checker", checker, "--field", "out")
        assert result.exit_code == 2
        assert reason in result.stderr


def test_what_cannot_be_graded_is_listed_and_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("slow_checks.py").write_text(
        "def check(row, text):\n    while text == 'slow': pass\n    return text == 'good'\n"
    )
    rows = [{"id": i, "question": "?", "out": i} for i in ("good", "slow", "bad")]
    data, out = lines(tmp_path / "own.jsonl", *rows), tmp_path / "run.jsonl"
    options = ("--checker", "slow_checks:check", "--field", "out", "-o", out, "--json")
    result = run("own", data, *options, "--timeout", 0.5)
    assert result.exit_code == 1
    assert "slow, sample 0: not graded: the grader took more than 0.5 s" in result.stderr
    (found,) = json.loads(result.stdout)["summaries"]
    assert (found["ungraded"], found["samples"], found["accuracy"]["mean"]) == (1, 3, 0.5)
    # Once the checker is mended, the same command grades what is missing.
    Path("slow_checks.py").write_text("def check(row, text):\n    return text != 'bad'\n")
    result = run("own", data, *options)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["summaries"][0]["accuracy"]["mean"] == pytest.approx(2 / 3)


def test_choices(tmp_path: Path) -> None:
    asked = [{"question": f"Q{n}", "choices": ["r", "s"], "answer": "r", "id": n} for n in (1, 2)]
    letters = [TASKS["gpqa-diamond"].read(ProblemColumns(row))[1]["letter"] for row in asked]
    rows: list[dict[str, Any]]
    rows = [{**row, "out": f"<Think>\nAnswer: A\n</Think>\n\nAnswer: {right}"}
            for row, right in zip(asked, letters, strict=True)]  # fmt: skip
    data = lines(tmp_path / "choices.jsonl", *rows)
    result = run("gpqa-diamond", data, "--field", "out", "--json")
    assert json.loads(result.stdout)["summaries"][0]["accuracy"]["mean"] == 1.0


def test_code(tmp_path: Path) -> None:
    if reason := refusal():
        pytest.skip(reason)
    program = "```python\nprint(int(input()) + {})\n```"
    tests = [{"input": "1", "output": "2"}, {"input": "4", "output": "5\n"}]
    rows: list[dict[str, Any]]
    rows = [{"question_id": f"q{n}", "question_content": "Add one.", "tests": tests,
             "out": f"<Think>\nNo.\n</Think>\n\n{program.format(n)}"} for n in (1, 2)]  # fmt: skip
    data, out = lines(tmp_path / "code.jsonl", *rows), tmp_path / "run.jsonl"
    result = run("livecodebench", data, "--field", "out", "--allow-code", "--json", "-o", out)
    assert json.loads(result.stdout)["summaries"][0]["accuracy"]["mean"] == 0.5
    right, wrong = read_run(out).samples.values()
    assert right.details == {"passed": 2, "tests": 2}
    assert wrong.note == "test 1 of 2: another result"


# Data


READ: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "aime24": ({"ID": "2024-I-1", "Problem": "P", "Solution": "long", "Answer": 33},
               {"answer": "33"}),
    "aime25": ({"question": "P", "answer": "007"}, {"answer": "007"}),
    "math500": ({"problem": "P", "solution": "so \\boxed{\\frac{1}{2}}.", "unique_id": "t/1.json"},
                {"answer": "\\frac{1}{2}"}),
    "gpqa-diamond": ({"Record ID": "r", "Question": "P", "Correct Answer": "x\n",
                      "Incorrect Answer 1": "y", "Incorrect Answer 2": "z"}, {}),
    "ifeval": ({"key": 7, "prompt": "P", "instruction_id_list": ["punctuation:no_comma"],
                "kwargs": [{}]}, {"prompt": "P"}),
    "livecodebench": ({"question_id": "q", "question_content": "P", "starter_code": "",
                       "public_test_cases": '[{"input": "1", "output": "2", "testtype": "stdin"}]',
                       "metadata": "{}"}, {"function": ""}),
    "own": ({"prompt": "P"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_published_columns_are_known(name: str) -> None:
    row, wanted = READ[name]
    question, payload = TASKS[name].read(ProblemColumns(row))
    assert question.startswith("P")
    assert wanted.items() <= payload.items()


def test_options_are_shuffled_the_same_way_every_time() -> None:
    rows = [{"question": f"Q{n}", "choices": ["r", "s", "t", "u"], "answer": a}
            for n, a in enumerate([0, "r", "A", "(a)"] * 5)]  # fmt: skip
    read = [TASKS["gpqa-diamond"].read(ProblemColumns(row)) for row in rows]
    assert read == [TASKS["gpqa-diamond"].read(ProblemColumns(row)) for row in rows]
    assert {payload["letter"] for _, payload in read} == set("ABCD")
    for question, payload in read:
        assert f"{payload['letter']}) r\n" in question


def test_starter_code_names_the_function() -> None:
    row = {"question": "P", "starter_code": "class Solution:\n    def f(self, x):\n        ",
           "tests": [{"input": "1", "output": "2"}]}  # fmt: skip
    question, payload = TASKS["livecodebench"].read(ProblemColumns(row))
    assert payload["function"] == "f"
    assert "def f(self, x):" in question


@pytest.mark.parametrize(
    ("task", "row", "reason"),
    [
        (
            "math",
            {"id": "a", "text": "P"},
            "no column problem or question or prompt or instruction: there is id",
        ),
        ("math", {"problem": "P"}, "no column answer"),
        ("math", {"problem": "P", "solution": "very " * 20}, "boxes no answer"),
        ("math", {"problem": " ", "answer": "1"}, "the question is empty"),
        ("math", {"problem": ["P"], "answer": "1"}, "column problem is a list, not a text"),
        ("aime24", {"problem": "P", "answer": "1/2"}, "no whole number from 0 to 999"),
        ("gpqa-diamond", {"question": "P", "choices": ["x", "y"], "answer": "q"}, "none of the 2"),
        ("gpqa-diamond", {"question": "P", "choices": "x", "answer": "q"}, "a text, not a list"),
        ("ifeval", {"prompt": "P", "instruction_id_list": ["a:b"], "kwargs": []}, "kwargs for 0"),
        ("livecodebench", {"question": "P", "tests": []}, "or there is none"),
        ("livecodebench", {"question": "P", "tests": "=="}, "neither JSON nor packed"),
        (
            "livecodebench",
            {"question": "P", "function": "f", "tests": [{"input": "1\n{", "output": "2"}]},
            "test 1 of the function f: input (a line an argument) and output are JSON",
        ),
        (
            "livecodebench",
            {"question": "P", "function": "f", "tests": [{"input": "1", "output": "two"}]},
            "test 1 of the function f: input (a line an argument) and output are JSON",
        ),
    ],
)
def test_rows_that_are_no_problem(
    task: str, row: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    data = lines(tmp_path / "bad.jsonl", {"id": "first"} | READ["own"][0], row)
    result = run(task, data, "-o", tmp_path / "out.jsonl", "--allow-code")
    assert result.exit_code == 2
    assert "bad.jsonl:2: " in result.stderr
    assert reason in result.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_unreadable_data(tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_bytes(b'{"problem": "P", "answer": 1}\n{"problem": \n\n\xff\n[1]\n')
    with pytest.raises(InputError) as caught:
        read_problems(open_problems([str(data)]), TASKS["math"].read)
    for text in ("3 rows are no problem", "bad.jsonl:2: not JSON", "bad.jsonl:4: byte 0xff",
                 "bad.jsonl:5: a list"):  # fmt: skip
        assert text in str(caught.value)
    twice = lines(tmp_path / "twice.jsonl", *[{"id": 1, "problem": "P", "answer": 1}] * 2)
    with pytest.raises(InputError, match=r"twice.jsonl:2: the id '1' is that of twice.jsonl:1"):
        read_problems(open_problems([str(twice)]), TASKS["math"].read)
    empty = lines(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="holds no problem"):
        read_problems(open_problems([str(empty)]), TASKS["math"].read)


def test_commands_that_cannot_be_carried_out(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for reason, args in {
        "'aime' is no task: use math, aime24": ("aime", data, "-o", out),
        "gone.jsonl: no such file": ("math", tmp_path / "gone.jsonl", "-o", out),
        "owner/name: no such file": ("math", "owner/name", "-o", out),
        "expected hf:OWNER/NAME": ("math", "hf:name", "-o", out),
        "add --allow-code": ("livecodebench", data, "-o", out),
        "needs --checker": ("own", data, "-o", out),
        "takes no --checker": ("math", data, "-o", out, "--checker", "a:b"),
        "needed, or --outputs": ("math", data),
        "expected whole numbers from 1 up": ("math", data, "-o", out, "--cap", "12,x"),
        "all samples would be alike": ("math", data, "-o", out, "--samples", "2"),
        "are graded as they are": ("math", data, "--field", "output", "--cap", "12"),
        "no field 'gone': there is id, source": ("math", data, "--field", "gone"),
        "name a .png or an .svg": ("math", data, "--field", "output", "--plot", "a.pdf"),
        "there is no folder": ("math", data, "--field", "output", "-o", tmp_path / "no" / "r"),
        "is a folder": ("math", data, "--field", "output", "-o", tmp_path),
        "no caps in": ("math", data, "--field", "output", "--plot", tmp_path / "a.svg"),
    }.items():  # fmt: skip
        result = run(*args)
        assert result.exit_code == 2, (reason, result.output)
        assert reason in " ".join(result.stderr.replace("│", " ").split()), result.stderr
    assert not out.exists()


def test_the_hub_is_asked_only_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*args: Any, **more: Any) -> Any:
        asked.append((args, more))
        if args[0] == "owner/gone":
            raise ConnectionError("no network")
        return iter([{"problem": "P", "answer": "5"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    (problem,) = read_problems(open_problems(["hf:owner/name/part:test"]), TASKS["math"].read)
    assert problem.place == "owner/name/test[0]"
    assert asked == [(("owner/name", "part"), {"split": "test", "streaming": True})]
    result = run("math", "hf:owner/gone", "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 2
    assert "no data set on the hub that can be reached (no network)" in result.stderr


# Results


def test_results_survive_what_a_kill_leaves(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with open_results(path, {"task": "math", "samples": 1}) as results:
        results.add(EvaluationSample("a", output="é", score=1.0))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "b", "score": 1.0, "outp')
    assert list(read_run(path).samples) == [("a", 0, None)]
    with open_results(path, {"task": "math", "samples": 4}) as results:  # more may be asked for
        results.add(EvaluationSample("b", score=0.0))
    run = read_run(path)
    assert path.read_bytes().startswith(whole)
    assert [each.score for each in run.samples.values()] == [1.0, 0.0]
    assert run.settings["samples"] == 4


def test_files_that_are_no_results_are_left_alone(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "text.jsonl"
    other.write_text("my notes")
    for path, reason in ((data, "no results of mvspec eval"), (other, "no results of mvspec eval")):
        before = path.read_bytes()
        with pytest.raises(InputError, match=reason), open_results(path, {"task": "math"}):
            pass
        assert path.read_bytes() == before
    good = tmp_path / "run.jsonl"
    with open_results(good, {"task": "math"}) as results:
        results.add(EvaluationSample("a"))
        with pytest.raises(InputError, match="another run"), open_results(good, {"task": "math"}):
            pass
    good.write_text(good.read_text() + "{oops}\n")
    with pytest.raises(InputError, match=r"run.jsonl:3: .*mend the line, or delete it"):
        read_run(good)


OLD_RESULTS = """\
{"format": 1, "settings": {"task": "math", "problems": "eb62a130fc9c0acb", "limit": null, \
"data": ["aime.jsonl"], "group": "source", "checker": null, "final": false, \
"engine": "TorchEngine", "model": "model", "prompt": "Think.", "sampling": {"temperature": 0.0, \
"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stop": [], "seed": 0}, \
"limits": {"max_tokens": 20}, "structure": true, "samples": 1, "caps": [null], "total": 2}}
{"id": "b", "sample": 0, "output": "AAA", "score": 0.0, "note": "no answer", "form": "ok", \
"blocks": 0, "tokens": 20, "critical_path": 20, "finish": "limit", "seconds": 0.09, "prompt": 47}
"""
"""Results as 447e7af wrote them."""


def test_results_of_before_are_read_and_those_of_after_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(OLD_RESULTS)
    run = read_run(path)
    assert run.missing == 1
    assert run.samples["b", 0, None].critical_path == 20
    with open_results(path, run.settings) as results:
        results.add(EvaluationSample("a", score=1.0))
    again = read_run(path)
    assert (len(again.samples), again.format) == (2, 2)
    assert again.samples["b", 0, None].prompt_tokens == 47
    path.write_text(OLD_RESULTS.replace('"format": 1', '"format": 3'))
    with pytest.raises(InputError, match=r"of format 3, and this mvspec reads 1 and 2: use the"):
        read_run(path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full disk")
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.jsonl"
    with open_results(path, {"task": "math"}) as results:
        results.add(EvaluationSample("a", score=1.0))
        before = path.read_bytes()
        write = os.write

        def short(descriptor: int, data: bytes) -> int:
            write(descriptor, data[:9])  # what fits is written
            return write(os.open("/dev/full", os.O_WRONLY), data[9:])

        monkeypatch.setattr(os, "write", short)
        with pytest.raises(InputError, match=r"No space left .* 1 samples are kept"):
            results.add(EvaluationSample("b", score=1.0))
        monkeypatch.undo()
        assert path.read_bytes() == before
        results.add(EvaluationSample("b", score=0.0))
    assert len(read_run(path).samples) == 2


# Comparisons


def test_compare(tmp_path: Path) -> None:
    good, bad, other = (tmp_path / f"{name}.jsonl" for name in ("good", "bad", "other"))
    for path, task, names, score in (
        (good, "math", "abcdefghijkl", 1.0), (bad, "math", "abcdefghijklm", 0.0),
        (other, "math", "xyz", 1.0),
    ):  # fmt: skip
        with open_results(path, {"task": task}) as results:
            for name in names:
                results.add(
                    EvaluationSample(name, score=score, form="ok", tokens=9, critical_path=6)
                )
    worse = run("compare", good, bad, "--json")
    assert worse.exit_code == 1  # B is worse
    (found,) = json.loads(worse.stdout)["comparisons"]
    mark = found["figures"]["pass@1"]
    assert (mark["difference"], mark["worse"], mark["problems"]) == (-1.0, 12, 12)
    assert mark["p"] == pytest.approx(2 / 2**12)
    better = run("compare", bad, good)
    assert better.exit_code == 0
    assert "McNemar" in better.stdout
    assert run("compare", good, good).exit_code == 0
    apart = run("compare", good, other)
    assert apart.exit_code == 2
    assert "no graded problem in common" in apart.stderr
    missing = run("compare", good, tmp_path / "gone.jsonl")
    assert missing.exit_code == 2
    assert "No such file" in missing.stderr


def test_final_text() -> None:
    assert final_text("a</Think>b</Think>\n\nc") == "c"
    assert final_text("<Think>\nnot done") == ""
    assert task_of("MATH500").whole
    assert not task_of("ifeval").whole
