"""Disks that are full or refuse: every error names its file, and no line swallows the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bpe import small_tokenizer
from traces import CANONICAL
from typer.testing import CliRunner

import mvspec as mv
from mvspec.cli import app
from mvspec.compiler.vocabulary import save_tokenizer
from mvspec.data.resume import Journal, replaced, write_json
from mvspec.data.sources import open_records
from mvspec.disk import append_line
from mvspec.trace import Trace
from mvspec.view.page import RecordPage

SIZE = 64_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(small_tokenizer(), folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = [CANONICAL.replace("Let me see.", f"{os.urandom(1500).hex()}.") for _ in range(50)]
    path.write_text("".join(json.dumps({"output": text}) + "\n" for text in texts), "utf-8")
    return path


COMMANDS = {
    "fix": ["check", "{rows}", "--recover", "--fix", "{disk}/a.jsonl"],
    "page": ["show", "{rows}", "--html", "{disk}/a.html"],
    "convert": ["convert", "{rows}", "--to", "json", "-o", "{disk}/a.jsonl"],
    "view": ["view", "{rows}", "-o", "{disk}/a.html"],
    "compile": [
        "compile",
        "{rows}",
        "--tokenizer",
        "{tokenizer}",
        "-o",
        "{disk}/a",
        "--shard",
        "9",
    ],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_named(name: str, rows: Path, tokenizer: Path, disk: Path) -> None:
    words = [w.format(rows=rows, disk=disk, tokenizer=tokenizer) for w in COMMANDS[name]]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2, (result.exception, result.output)
    last = result.output.strip().splitlines()[-1]
    assert last.startswith(f"mvspec: {disk}/"), last
    assert "No space left on device" in last
    if name in ("fix", "compile"):  # with more space the same command goes on
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        if name == "fix":
            found = open_records([f"{disk}/a.jsonl"])
            assert [each.document for each in found] == [
                r.document for r in open_records([str(rows)])
            ]
        else:
            assert CliRunner().invoke(app, ["check", f"{disk}/a"]).exit_code == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "words",
    [["check", "--json"], ["stats", "--each"], ["show"], ["convert", "--to", "json"]],
    ids=lambda words: words[0],
)
def test_a_full_standard_output_is_named(words: list[str], rows: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mvspec", words[0], str(rows), *words[1:]],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["mvspec: standard output: No space left on device"]


def page(path: Path) -> None:
    with RecordPage(path, "x") as made:
        for _ in range(200):
            made.add(os.urandom(5000).hex(), "x", [])


def whole(path: Path) -> None:
    with replaced(path) as file:
        file.write("x" * (2 * SIZE))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "json": lambda path: write_json(path, ["x" * (2 * SIZE)]),
    "whole": whole,
    "page": page,
    "line": lambda path: append_line(path, "x" * (2 * SIZE)),
    "trace": lambda path: Trace(token_texts=("x" * (2 * SIZE),), ids=(1,), thread_ids=(0,),
                                position_ids=(0,), authors=("prompt",), logprobs=(None,),
                                forward_ids=(-1,)).save(path),
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_what_fails_leaves_what_was_there(writer: str, disk: Path) -> None:
    path = disk / "a"
    path.write_text('"before"\n')
    with pytest.raises(OSError, match="No space left") as told:
        WRITERS[writer](path)
    assert str(told.value.filename).startswith(str(disk))
    assert path.read_text() == '"before"\n'
    assert [each.name for each in disk.iterdir()] == ["a"]


def test_a_line_that_was_cut_swallows_nothing(disk: Path) -> None:
    path = disk / "lines.jsonl"
    written = []
    for number in range(1000):
        line = json.dumps({"output": f"{number} " + "x" * 3000})
        try:
            append_line(path, line)
        except OSError as error:
            named = error.filename
            with path.open("a") as file:
                file.write(line[:100])  # as a kill may leave it
            subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
            append_line(path, line)
            written.append(json.loads(line)["output"])
            break
        written.append(json.loads(line)["output"])
    assert named == str(path)
    records = list(open_records([str(path)]))
    bad = [record for record in records if record.trouble is not None]
    assert [record.text for record in records if record not in bad] == written
    assert [each.trouble.code for each in bad if each.trouble] == ["invalid-json"] * len(bad)
    assert len(bad) == 1


def test_a_journal_goes_on_behind_its_last_whole_line(disk: Path) -> None:
    path = disk / "a.jsonl"
    with Journal(path, None) as journal:
        with pytest.raises(OSError, match="No space left") as told:  # noqa: PT012
            for number in range(1000):
                journal.add({"number": number, "x": "x" * 3000})
        assert told.value.filename == str(path)
        held = path.read_bytes()
        assert held.endswith(b"\n")
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        journal.add({"number": -1})
    assert path.read_bytes() == held + b'{"number": -1}\n'


@pytest.mark.parametrize("error", [5, 13, 28, 30, 122])
def test_an_error_of_any_kind_names_its_file(error: int, tmp_path: Path) -> None:
    from mvspec.disk import naming

    with pytest.raises(OSError, match=os.strerror(error)) as told, naming(tmp_path / "a"):
        raise OSError(error, os.strerror(error))
    assert told.value.errno == error
    assert told.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError, match="b") as told, naming(tmp_path / "a"):
        (tmp_path / "b").read_bytes()
    assert told.value.filename == str(tmp_path / "b")
    assert mv.__version__


def test_a_damaged_table_ends_no_batch(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "in"
    folder.mkdir()
    table = pa.table({"output": [f"Text {n} {os.urandom(300).hex()}" for n in range(2000)]})
    pq.write_table(table, folder / "a.parquet", row_group_size=500)
    data = bytearray((folder / "a.parquet").read_bytes())
    place = len(data) // 2
    data[place : place + 2000] = os.urandom(2000)
    (folder / "a.parquet").write_bytes(data)
    (folder / "b.parquet").write_bytes(b"none")
    (folder / "c.txt").write_text("Four.")
    texts = pa.array([b"a", b"\xff", b"c"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"output": texts}), folder / "d.parquet")
    found = list(open_records([str(folder)]))
    whole = [each for each in found if each.trouble is None]
    assert len(whole) >= 503
    assert [each.text for each in whole[-3:]] == ["Four.", "a", "c"]
    bad = [each for each in found if each.trouble]
    troubles = [(each.place.partition("in/")[2], each.trouble.code) for each in bad if each.trouble]
    assert troubles[-2:] == [("b.parquet", "unreadable"), ("d.parquet[1]", "unreadable")]
