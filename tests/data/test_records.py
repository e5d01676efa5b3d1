"""Input becomes records: every kind of file, and every way in which a row can be bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from traces import CANONICAL
from typer.testing import CliRunner

import mvspec
from mvspec.cli import app
from mvspec.data.records import Fields, InputError
from mvspec.data.sources import PATIENCE, Records, open_records


def check(*args: object, stdin: str | None = None) -> tuple[int, list[dict[str, Any]]]:
    """Run `mvspec check --json`; return its exit status and what it printed."""
    command = ["check", "--json", *map(str, args)]
    result = CliRunner().invoke(app, command, input=stdin)
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


def records(*inputs: object, field: str | None = None) -> Records:
    return open_records([str(each) for each in inputs], Fields(field=field))


def names(*inputs: object, field: str | None = None) -> list[tuple[str, str, str | None]]:
    found = records(*inputs, field=field)
    return [(r.name, r.text, r.trouble.code if r.trouble else None) for r in found]


def test_bad_rows_are_records_with_a_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"output": "a\\r\\nb"}\r\n'
        b"\n"
        b'{"output": "b"\n'
        b'{"output": "\xc3\xa4\xff"}\n'
        b'{"id": 7}\n'
        b'{"id": "x", "output": 3}\n'
        b"[1]\n" + b"[" * 100_000 + b"\n"
        b'{"output": "\\ud800"}'
    )
    found = list(records(path, field="output"))
    assert [(r.name.removeprefix(f"{path}:"), r.trouble and r.trouble.code) for r in found] == [
        ("1", None),
        ("3", "invalid-json"),
        ("4", "invalid-utf-8"),
        ("7", "missing-field"),
        ("x", "not-a-string"),
        ("7", "missing-field"),
        ("8", "invalid-json"),
        ("9", None),
    ]
    assert found[0].text == "a\r\nb"
    assert found[3].place == f"{path}:5"
    broken, byte = found[1].trouble, found[2].trouble
    assert broken is not None
    assert byte is not None
    assert (broken.offset, broken.column) == (14, 15)
    assert (byte.offset, byte.message) == (13, "byte 0xff is not UTF-8")
    for mode in ([], ["--recover"]):
        status, verdicts = check(path, "--field", "output", *mode)
        assert status == 1
        assert [each["ok"] for each in verdicts] == [True] + 7 * [False]


def test_rows_without_a_field(tmp_path: Path) -> None:
    document = mvspec.parse(CANONICAL)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps("text") + "\n" + document.to_json() + "\n")
    first, second = records(path)
    assert (first.text, first.kind) == ("text", "text")
    assert second.form == "json"
    status, verdicts = check(path)
    assert (status, len(verdicts)) == (0, 2)


def test_what_names_nothing_is_no_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    ids = "", True, None, 1.5, 0, "a"
    path.write_text("".join(json.dumps({"id": each, "o": "x"}) + "\n" for each in ids))
    places = [f"{path}:{line}" for line in range(1, 5)]
    assert [name for name, _, _ in names(path, field="o")] == [*places, "0", "a"]


def test_dotted_fields_reach_inside(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": {"b": "text"}}\n')
    assert names(path, field="a.b") == [(f"{path}:1", "text", None)]
    (tmp_path / "value.json").write_text('[{"id": "i", "a": {"b": "t"}}, 5]')
    assert names(tmp_path / "value.json", field="a.b") == [
        ("i", "t", None),
        (f"{tmp_path / 'value.json'}[1]", "", "missing-field"),
    ]


def test_a_folder_is_read_by_name(tmp_path: Path) -> None:
    for name, text in {
        "b.txt": "b", "a.md": "a", "sub/c.json": '"c"', "sub/d.ndjson": '"d"\n"e"\n',
        ".hidden.txt": "x", ".git/x.txt": "x", "image.png": "x",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [text for _, text, _ in names(tmp_path)] == ["a", "b", "c", "d", "e"]


def test_a_field_makes_rows_of_any_named_file(tmp_path: Path) -> None:
    path = tmp_path / "runs.log"
    path.write_text('{"output": "a"}\n{"output": "b"}\n')
    assert [text for _, text, _ in names(path, field="output")] == ["a", "b"]
    assert [text for _, text, _ in names(path)] == [path.read_text()]
    _, verdicts = check("-", "--field", "output", stdin=path.read_text())
    assert [each["record"] for each in verdicts] == ["<stdin>:1", "<stdin>:2"]


def test_a_field_that_comes_late_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' * (PATIENCE - 1) + '{"output": "b"}\n{"a": 1}\n')
    codes = [code for _, _, code in names(path, field="output")]
    assert codes == ["missing-field"] * (PATIENCE - 1) + [None, "missing-field"]


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"output": "a"}\n' * 100_000)
    with path.open("rb") as file:
        found = iter(records(path, field="output"))
        assert next(found).name == f"{path}:1"
        path.write_text("")  # what was not read yet is not held
        assert file.read(1) == b""
        assert sum(1 for _ in found) < 99_999


def test_crlf_and_nul_are_kept_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(CANONICAL.replace("\n", "\r\n").encode())
    _, (found,) = check(path)
    assert found["ok"]  # white space at tags is a variant of the form
    assert names(path)[0][1].count("\r\n") == CANONICAL.count("\n")
    path.write_bytes(b"nul \x00 and BOM \xef\xbb\xbf inside")
    assert names(path)[0][1] == "nul \x00 and BOM \ufeff inside"
    assert check(path)[0] == 0


def test_invalid_utf8_has_a_place(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("ä\nü ".encode() + b"\xff rest")
    _, (found,) = check(path)
    (each,) = found["diagnostics"]
    assert (each["code"], each["offset"], each["line"], each["column"]) == (
        "invalid-utf-8",
        4,
        2,
        3,
    )


def test_an_unreadable_path_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no such file"):
        records("missing.jsonl")


def test_a_document_may_have_its_name_beside_it(tmp_path: Path) -> None:
    document = mvspec.parse("Four.")
    row = {"id": "a", **json.loads(document.to_json())}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", "utf-8")
    (record,) = records(path)
    assert (record.name, record.form) == ("a", "json")
    assert mvspec.Document.from_json(record.text) == document
