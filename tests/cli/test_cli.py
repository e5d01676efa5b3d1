"""The commands as a user runs them: what they print, how they end, what they survive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from traces import CANONICAL
from typer.testing import CliRunner, Result

import mvspec
from mvspec.cli import app
from mvspec.tree.schema import document_schema

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
CUT = CANONICAL[: CANONICAL.index("</Goal>") + 3]
BAD = CANONICAL.replace("</Path>\n", "", 1)
ODD = CANONICAL.replace("\n2: ", "\n3: ")
ROWS = (
    {"id": "good", "output": CANONICAL},
    {"id": "cut", "output": CUT},
    {"id": "bad", "output": BAD},
    {"output": ODD},
)


def run(*args: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


def objects(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


# check


def test_check_json_is_one_object_a_record(rows: Path) -> None:
    result = run("check", rows, "--field", "output", "--json")
    assert result.exit_code == 1
    assert result.stderr == ""
    good, cut, bad, odd = objects(result)
    assert good == {"record": "good", "ok": True, "cut": False, "diagnostics": []}
    assert (cut["ok"], cut["cut"]) == (False, True)
    assert (bad["ok"], bad["cut"]) == (False, False)
    for found in (cut, bad):
        assert len(found["diagnostics"]) == 1
        assert {"offset", "line", "column", "code", "message"} <= set(found["diagnostics"][0])
    assert odd["record"] == f"{rows}:4"
    (warning,) = odd["diagnostics"]
    assert (odd["ok"], warning["code"], warning["severity"]) == (True, "numbering", "warning")


def test_check_points_at_the_place(rows: Path) -> None:
    result = run("check", rows, "--field", "output")
    lines = result.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("bad:"))
    _, line, column = lines[at].split(" ")[0].rstrip(":").split(":")
    text = BAD.split("\n")[int(line) - 1]
    assert lines[at + 1].endswith(f" | {text}")
    assert lines[at + 2].index("^") - lines[at + 1].index("| ") - 2 == int(column) - 1
    table = [tuple(line.rsplit(maxsplit=1)) for line in lines[at + 3 :] if line.strip()]
    assert ("ok", "2") in table
    assert ("cut", "1") in table
    assert ("malformed", "1") in table
    assert ("all", "4") in table
    assert ("  with warning numbering", "1") in table


def test_check_recover_lists_every_repair() -> None:
    text = CANONICAL.replace("</Path>\n", "").replace("</Think>", "</Think></Think>")
    _, repairs = mvspec.parse(text, recover=True)
    assert len(repairs) > 2
    (found,) = objects(run("check", "-", "--recover", "--json", stdin=text))
    assert found["diagnostics"] == [repair.to_dict() for repair in repairs]
    printed = run("check", "-", "--recover", stdin=text).stdout
    assert printed.count("written:  ") == sum(bool(repair.inserted) for repair in repairs)
    assert printed.count("left out: ") == sum(bool(repair.dropped) for repair in repairs)


def test_check_of_what_is_well_formed_ends_with_0(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(CANONICAL)
    result = run("check", tmp_path / "a.txt")
    assert result.exit_code == 0
    assert "^" not in result.stdout


def test_the_caret_stands_under_a_wide_character() -> None:
    _, line, caret, *_ = run("check", "-", stdin="漢字e\u0301<Path> x").stdout.splitlines()
    assert line.endswith("| 漢字e\u0301<Path> x")
    assert caret.index("^") == line.index("漢") + len("漢漢字字e")


@pytest.mark.parametrize("form", ["multiverse", "multiverse-prompt", "threadweaver"])
def test_a_text_of_another_form_is_told(form: str) -> None:
    turn = mvspec.assistant(mvspec.parallel(mvspec.branch("a", "A"), conclusion="b"))
    for other in {"multiverse", "multiverse-prompt", "threadweaver"} - {form}:
        result = run("check", "-", "--form", form, stdin=mvspec.render(turn, other))
        assert result.exit_code == 1
        assert result.stderr == f"<stdin> is well-formed with --form {other}\n"


def test_an_input_without_a_record_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    result = run("check", tmp_path)
    assert (result.exit_code, result.stderr) == (0, "there is no record in the input\n")


# Usage


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["check", "missing.txt"], "missing.txt"),
        (["check", "{rows}", "--field", "outpt"], "no field 'outpt'"),
        (["check", "{folder}.jsonl"], "name the text's field with --field"),
        (["check", "{rows}", "--form", "prose"], "prose"),
        (["check", "{rows}", "--form", "untagged"], "untagged"),
        (["check", "{rows}", "--workers", "0"], "workers"),
        (["check", "{folder}"], ".jsonl, .ndjson or .parquet file in it"),
        (["check"], "INPUT"),
        (["show", "{rows}", "--field", "output", "--record", "none"], "no record is named none"),
        (["stats", "{rows}", "--field", "output", "--count", "tokens"], "--count tokens"),
        (["stats", "{rows}", "--field", "output", "--count", "{rows}"], "not a tokenizer"),
        (["frobnicate"], "frobnicate"),
        (
            ["show", "{rows}", "--field", "output", "--html", "{folder}/no/a.html"],
            "a.html: No such",
        ),
        (["show", "{rows}", "--html", "a.html", "--mask", "a.png", "--tokenizer", "t"], "give one"),
    ],
)
def test_usage_errors_end_with_2(args: list[str], message: str, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text('{"reply": "Four."}\n')
    result = run(*(arg.format(rows=rows, folder=tmp_path / "empty") for arg in args))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stdout == ""


def test_empty_input(tmp_path: Path) -> None:
    (found,) = objects(run("check", "-", "--json", stdin=b""))
    assert found == {"record": "<stdin>", "ok": True, "cut": False, "diagnostics": []}
    path = tmp_path / "empty.jsonl"
    path.write_bytes(b"")
    result = run("check", path, "--field", "output", "--json")
    assert (result.exit_code, result.stdout) == (0, "")
    assert run("stats", path, "--field", "output").exit_code == 0


def test_names_and_messages_cannot_drive_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "\x1b[2J\ud800[red]", "o": CUT}) + "\n")
    for args in (["check", "--recover"], ["show"], ["stats"], ["stats", "--recover", "--each"]):
        result = run(*args, path, "--field", "o")
        assert "\x1b[2J" not in result.output
        assert "␛[2J\\ud800[red]" in result.output
    (found,) = objects(run("check", path, "--field", "o", "--json"))
    assert found["record"] == "\x1b[2J\ud800[red]"


# show, stats, schema


def test_show_selects_by_name_or_place(rows: Path) -> None:
    result = run("show", rows, "--field", "output", "--record", "bad", "--record", f"{rows}:4")
    assert result.exit_code == 0
    assert "bad (1 repair: see check --recover)" in result.stdout
    assert "path 3: Multiply." in result.stdout
    assert "good" not in result.stdout


def test_show_writes_a_page(rows: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run("show", rows, "--field", "output", "--html", page).exit_code == 0
    html = page.read_text("utf-8")
    assert html.count('<div class="mvspec">') == len(ROWS)
    assert html.startswith("<!doctype html>")


def test_show_tells_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('"text"\n{\n')
    result = run("show", path)
    assert result.exit_code == 1
    assert "text" in result.stdout
    assert "invalid-json" in result.stderr


def test_show_limits_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("§" * 1000, "utf-8")
    assert "600 more characters" in " ".join(run("show", path).stdout.split())
    assert run("show", path, "--limit", "0").stdout.count("§") == 1000


def test_show_limits_text_of_a_page(tmp_path: Path) -> None:
    path, page = tmp_path / "a.txt", tmp_path / "page.html"
    path.write_text("§" * 1000, "utf-8")
    for limit, count in ((), 1000), (("--limit", 10), 10), (("--limit", 0), 1000):
        assert run("show", path, "--html", page, *limit).exit_code == 0
        assert page.read_text("utf-8").count("§") == count


def test_show_leaves_no_text_out_where_it_is_narrow(tmp_path: Path) -> None:
    block = mvspec.parallel(mvspec.branch("a", "deep"), mvspec.branch("b", "wide"))
    for _ in range(20):
        block = mvspec.parallel(mvspec.branch("a", "deep", block), mvspec.branch("b", "wide"))
    path = tmp_path / "a.txt"
    path.write_text(mvspec.render(mvspec.document(mvspec.assistant(block))))
    for width in ("10", "80", "300"):
        shown = CliRunner(env={"COLUMNS": width}).invoke(app, ["show", str(path)]).stdout
        assert (shown.count("deep"), shown.count("wide")) == (21, 21)


def test_json_that_is_no_document_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"messages": [3]}')
    (found,) = objects(run("check", path, "--recover", "--json"))
    assert (found["diagnostics"][0]["code"], found["ok"]) == ("not-a-document", False)
    shown = run("show", path)
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert "messages[0]" in shown.stderr
    stats = run("stats", path, "--recover", "--json")
    (corpus,) = objects(stats)
    assert (stats.exit_code, corpus["documents"], corpus["left_out"]) == (1, 0, 1)


def test_stats_of_a_corpus_and_of_each(rows: Path) -> None:
    whole = run("stats", rows, "--field", "output", "--json")
    assert whole.exit_code == 1
    (corpus,) = objects(whole)
    assert (corpus["documents"], corpus["blocks"], corpus["left_out"]) == (2, 4, 2)
    assert [line.split(":")[1].strip() for line in whole.stderr.splitlines()] == ["cut", "bad"]
    each = objects(run("stats", rows, "--field", "output", "--json", "--each"))
    assert [one["record"] for one in each] == ["good", f"{rows}:4"]
    assert sum(one["tokens"] for one in each) == corpus["tokens"]
    repaired = run("stats", rows, "--field", "output", "--json", "--recover")
    assert (repaired.exit_code, objects(repaired)[0]["documents"]) == (0, 4)
    assert "degree of parallelism, mean" in run("stats", rows, "--field", "output").stdout
    assert "good" in run("stats", rows, "--field", "output", "--each").stdout


def test_stats_counts_in_the_unit_asked_for(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "a.txt"
    path.write_text("a bc a")
    counts = {
        unit: objects(run("stats", path, "--json", "--count", unit))[0]["tokens"]
        for unit in ("chars", "words", str(tmp_path), str(tmp_path / "tokenizer.json"))
    }
    assert list(counts.values()) == [6, 3, 3, 3]


def test_stats_leaves_holes_out(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(mvspec.document(mvspec.assistant(mvspec.gen("price"))).to_json())
    result = run("stats", path)
    assert result.exit_code == 1
    assert "the hole 'price' has no length yet" in result.stderr


def test_schema_prints_the_schema() -> None:
    result = run("schema")
    assert (result.exit_code, result.stdout) == (0, document_schema())


# Real outputs


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs ../shared/corpus")
def test_real_outputs_are_classed_as_they_were_by_hand() -> None:
    classes = json.loads((CORPUS / "dev-class.json").read_text("utf-8"))
    result = run("check", CORPUS / "multiverse-dev.jsonl", "--field", "output", "--json")
    assert result.exit_code == 1
    found = {
        each["record"]: "ok" if each["ok"] else "cut" if each["cut"] else "malformed"
        for each in objects(result)
    }
    assert found == classes
    counts = {kind: list(found.values()).count(kind) for kind in set(found.values())}
    assert counts == {"ok": 53, "cut": 17, "malformed": 14}
    for each in objects(result):
        assert bool(each["diagnostics"]) >= (not each["ok"])
