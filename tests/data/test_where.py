"""Conditions on rows: what they say, what meets them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bpe import small_tokenizer
from typer.testing import CliRunner, Result

from mvspec.cli import app
from mvspec.compiler.dataset import CompiledDataset
from mvspec.compiler.vocabulary import save_tokenizer
from mvspec.data.records import BadRecord, InputError, Record
from mvspec.data.where import RowCondition

ROW = {"score": 1.0, "finish": "end", "n": 3, "key": "17", "right": True, "none": None,
       "details": {"kind": "sum", "deep": {"of": 2}}, "day": "2026-11-30", "list": [1]}  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("score=1", True), ("score==1.0", True), ("score = 0.5", False), ("score>=0.5", True),
        ("score > 1", False), ("score<=1", True), ("score<1", False), ("score!=0", True),
        ("finish=end", True), ('finish="end"', True), ("finish=stop", False),
        ("finish != limit", True), ("finish=", False), ("n=3", True), ("n>2.5", True),
        ("key=17", True), ("key='17'", False), ("right=true", True), ("right=1", True),
        ("right!=false", True), ("none=null", True), ("none!=null", False), ("none>0", False),
        ("details.kind=sum", True), ("details.deep.of>=2", True), ("details.deep.gone=1", False),
        ("gone=1", False), ("gone!=1", False), ("day>=2026-11-01", True), ('day<"2026"', False),
        ("list=[1]", True),
    ],
)  # fmt: skip
def test_what_meets_a_condition(condition: str, holds: bool) -> None:
    assert RowCondition.parse(condition).holds(Record("a:1", json.dumps(ROW), "json")) is holds


@pytest.mark.parametrize("text", ["", "score", "=1", ">=", "score=>1", "score>true", "a<null"])
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(InputError, match="--where") as stop:
        RowCondition.parse(text)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    "condition", ["finish>1", "day<2026", "details>1", "list<2", "score<a", "n>=x"]
)
def test_what_has_no_order_is_no_match_in_silence(condition: str) -> None:
    with pytest.raises(BadRecord, match="compares it by"):
        RowCondition.parse(condition).holds(Record("a:1", json.dumps(ROW), "json"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(small_tokenizer(), folder)
    return folder


def compiled(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compile", *map(str, arguments)])


ROWS = [{"id": f"r{n}", "output": f"It is {n}.", "score": n / 4, "of": {"kind": "ab"[n % 2]}}
        for n in range(9)]  # fmt: skip


def jsonl(folder: Path, rows: list[Any] = ROWS) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder / "rows.parquet"


def listed(folder: Path) -> Path:
    (folder / "rows.json").write_text(json.dumps(ROWS))
    return folder / "rows.json"


@pytest.mark.parametrize("source", [jsonl, table, listed])
def test_rows_of_any_source(source: Any, tokenizer: Path, tmp_path: Path) -> None:
    result = compiled(source(tmp_path), "--tokenizer", tokenizer, "-o", tmp_path / "o", "--shard",
                      2, "--where", "score>=1", "--where", "of.kind=a")  # fmt: skip
    assert result.exit_code == 0, result.output
    data = CompiledDataset(tmp_path / "o")
    assert [data.records(n) for n in range(len(data))] == [["r4"], ["r6"], ["r8"]]
    counts = dict(line.rsplit(maxsplit=1) for line in result.stdout.splitlines()[2:])
    assert (counts["records"], counts["left out by --where"]) == ("3", "6")
    assert data.manifest["counts"]["left"] == 6
    assert data.manifest["options"]["where"] == ["score>=1", "of.kind=a"]
    again = compiled(source(tmp_path), "--tokenizer", tokenizer, "-o", tmp_path / "o", "--shard",
                     2, "--where", "score>=2")  # fmt: skip
    assert again.exit_code == 2
    assert "made otherwise (options)" in again.stderr


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("scor=1", "no field 'scor' in rows.jsonl:1 or the rows behind it: there is id, output, "
                   "score, of"),
        ("of.what=a", "no field 'of.what' in rows.jsonl:1 or the rows behind it: there is kind in "
                      "'of'"),
        ("score", "write FIELD=VALUE"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(condition: str, why: str, tokenizer: Path, tmp_path: Path) -> None:
    for out in ([], ["-o", tmp_path / "o"]):
        result = compiled(jsonl(tmp_path), "--tokenizer", tokenizer, "--where", condition, *out)
        assert result.exit_code == 2
        assert why in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_what_no_row_meets_and_what_cannot_be_compared(tokenizer: Path, tmp_path: Path) -> None:
    result = compiled(jsonl(tmp_path), "--tokenizer", tokenizer, "-o", tmp_path / "none",
                      "--where", "score>7")  # fmt: skip
    assert result.exit_code == 1
    assert "no row meets --where" in result.stderr
    mixed = [*ROWS[:2], {"id": "t", "output": "A.", "score": "1"}, {"id": "u", "output": "B."}]
    result = compiled(jsonl(tmp_path, mixed), "--tokenizer", tokenizer, "-o", tmp_path / "mixed",
                      "--where", "score<1")  # fmt: skip
    assert result.exit_code == 1
    (entry,) = map(json.loads, (tmp_path / "mixed/quarantine.jsonl").read_text().splitlines())
    assert (entry["record"], entry["code"]) == ("t", "not-comparable")
    assert len(CompiledDataset(tmp_path / "mixed")) == 2
