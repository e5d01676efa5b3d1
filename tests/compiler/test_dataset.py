"""Compiled data sets: read back, resumed, packed, truncated, and what they leave out."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bpe import CHATML, chat_tokenizer, copy, small_tokenizer, untagged_tokenizer
from traces import CANONICAL
from typer.testing import CliRunner, Result

import mvspec
from mvspec.cli import app
from mvspec.compiler import Layout, compile_document, concatenate, layout_from_ids

pytest.importorskip("pyarrow")

from mvspec.compiler.dataset import CompiledDataset, write_shard
from mvspec.compiler.vocabulary import load_tokenizer, save_tokenizer

LOWERINGS = ("multiverse", "autoregressive", "sequential", "tree", "official", "shared(3)")
SHORT = mvspec.render(
    mvspec.assistant(mvspec.parallel(mvspec.branch("a", "x"), mvspec.branch("b", "yy")))
)
CUT = CANONICAL[: CANONICAL.index("</Goal>") + 3]


def text(number: int) -> str:
    """A trace of one of many lengths."""
    return CANONICAL.replace("Let me see.", "Let me see. " + "So " * (number * 7 % 31))


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(small_tokenizer(), folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts = [text(number) for number in range(9)] + [SHORT, "Four."]
    return write_rows(
        tmp_path / "rows.jsonl", [{"id": f"r{i}", "output": t} for i, t in enumerate(texts)]
    )


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["compile", *map(str, args)])


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def expected(rows: Path, lowering: str = "multiverse") -> list[Layout]:
    return [
        compile_document(mvspec.parse(json.loads(line)["output"]), small_tokenizer(), lowering)
        for line in rows.read_text("utf-8").splitlines()
    ]


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_reads_back_what_compile_document_returns(
    lowering: str, rows: Path, tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(rows, "--field", "output", "--tokenizer", tokenizer, "-o", out,
                 "--lowering", lowering, "--shard", 4)  # fmt: skip
    assert result.exit_code == 0, result.output
    data = CompiledDataset(out, small_tokenizer())
    assert list(data) == expected(rows, lowering)
    assert [data.records(i) for i in range(len(data))] == [[f"r{i}"] for i in range(11)]
    assert data[-1] == data[10]
    with pytest.raises(IndexError):
        data[11]
    for field in Layout.__dataclass_fields__:
        array, wanted = getattr(data[0], field), getattr(expected(rows, lowering)[0], field)
        assert array.dtype == wanted.dtype
        assert array.flags.writeable
    assert pickle.loads(pickle.dumps(data))[3] == data[3]


def test_datasets_opens_the_folder_memory_mapped(
    rows: Path, tokenizer: Path, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "out"
    assert run(rows, "--field", "output", "--tokenizer", tokenizer, "-o", out,
               "--shard", 4).exit_code == 0  # fmt: skip
    table = datasets.load_from_disk(str(out), keep_in_memory=False)
    layout = expected(rows)[5]
    assert len(table) == 11
    assert len(table.cache_files) == 3
    assert table[5]["records"] == ["r5"]
    for field in Layout.__dataclass_fields__:
        assert table[5][f"layout_{field}"] == getattr(layout, field).tolist()


def test_workers_change_nothing(rows: Path, tokenizer: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        assert run(rows, "--field", "output", "--tokenizer", tokenizer, "-o", folder,
                   "--shard", 2, "--workers", workers).exit_code == 0  # fmt: skip
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_a_killed_run_is_carried_on(tokenizer: Path, tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "rows.jsonl",
        [{"id": f"r{i}", "output": CUT if i % 50 == 7 else text(i)} for i in range(600)],
    )
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ["compile", rows, "--field", "output", "--tokenizer", tokenizer, "--shard", 3]
    chance = random.Random(7)
    for shards, workers in ((1, 1), (40, 2), (90, 1)):
        arguments = [*command, "-o", out, "--workers", workers]
        process = subprocess.Popen(
            [sys.executable, "-m", "mvspec", *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while len(list(out.glob("shard-*"))) < shards and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.03)
        assert process.poll() is None, "it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert shards <= len(list(out.glob("shard-*"))) < 200
        with pytest.raises(mvspec.VerifyError, match="not complete"):
            CompiledDataset(out)
    assert run(*command[1:], "-o", out).exit_code == 1
    assert run(*command[1:], "-o", whole).exit_code == 1
    assert files(out) == files(whole)
    assert sum(len(CompiledDataset(out).records(i)) for i in range(588)) == 588


def test_a_finished_run_is_left_alone(rows: Path, tokenizer: Path, tmp_path: Path) -> None:
    command = [rows, "--field", "output", "--tokenizer", tokenizer, "-o", tmp_path / "out"]
    assert run(*command).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}
    assert run(*command).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}


def test_every_flipped_bit_is_found_and_made_anew(
    rows: Path, tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = (rows, "--field", "output", "--tokenizer", tokenizer, "-o", out, "--shard", 4)
    assert run(*command).exit_code == 0
    good = files(out)
    assert CompiledDataset(out).content is not None
    assert checked(out) == (0, [])
    dice = random.Random(1)
    for name in [name for name in good for _ in range(8)]:
        damaged = bytearray(good[name])
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        (out / name).write_bytes(damaged)
        assert checked(out) == (1, [f"{out}/{name}"])
        if name == "manifest.json":
            with pytest.raises(mvspec.VerifyError, match="manifest"):
                CompiledDataset(out)
            (out / name).write_bytes(good[name])
        else:
            assert run(*command).exit_code == 0
        assert files(out) == good
    for name in good.keys() - {"manifest.json"}:  # what opening finds
        (out / name).write_bytes(good[name][:-1])
        with pytest.raises(mvspec.VerifyError, match=f"{name}: it has .* bytes, not"):
            CompiledDataset(out)
        (out / name).unlink()
        with pytest.raises(mvspec.VerifyError, match=f"{name}: the file is missing"):
            CompiledDataset(out)
        assert checked(out) == (1, [f"{out}/{name}"])
        (out / name).write_bytes(good[name])
    refused = CliRunner().invoke(
        app, ["check", "--recover", "--fix", str(tmp_path / "f"), str(out)]
    )
    assert refused.exit_code == 2
    assert "compiled data set" in refused.output


def checked(folder: Path) -> tuple[int, list[str]]:
    """The status of `mvspec check FOLDER`, and the files that it finds damaged."""
    result = CliRunner().invoke(app, ["check", "--json", str(folder)])
    verdicts = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(v["diagnostics"][0]["code"] == "damaged" for v in verdicts if not v["ok"])
    return result.exit_code, [v["record"] for v in verdicts if not v["ok"]]


def test_another_configuration_is_refused(rows: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [rows, "--field", "output", "--tokenizer", tokenizer, "-o", out]
    assert run(*command).exit_code == 0
    before = files(out)
    result = run(*command, "--lowering", "sequential")
    assert result.exit_code == 2
    assert "made otherwise (lowering)" in " ".join(result.output.split())
    assert files(out) == before
    assert run(*command, "--lowering", "sequential", "--overwrite").exit_code == 0
    assert CompiledDataset(out).manifest["lowering"] == "sequential"
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"output": "More."}) + "\n")
    assert "(input)" in run(*command, "--lowering", "sequential").output


def test_a_folder_of_other_things_is_left_alone(
    rows: Path, tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    for extra in ((), ("--overwrite",)):
        result = run(rows, "--field", "output", "--tokenizer", tokenizer, "-o", tmp_path, *extra)
        assert result.exit_code == 2
    assert (tmp_path / "notes.txt").read_text("utf-8") == "mine"


def test_overwrite_deletes_only_what_mvspec_wrote(
    rows: Path, tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "tokenizer").mkdir(parents=True)
    mine = ("state.json", ".notes.tmp", "tokenizer/mine.txt")
    for name in mine:
        (out / name).write_text("{}", "utf-8")
    command = [rows, "--field", "output", "--tokenizer", tokenizer, "-o", out]
    for manifest in (None, "[]", '{"format": 1}'):
        if manifest:
            (out / "manifest.json").write_text(manifest, "utf-8")
        for extra in ((), ("--overwrite",)):
            assert run(*command, *extra).exit_code in (1, 2)
        assert all((out / name).exists() for name in mine)
    result = run(*command[:-1], rows)
    assert result.exit_code == 2
    assert "File exists" in result.output or "Not a directory" in result.output


def test_input_of_the_same_size_is_another_input(
    rows: Path, tokenizer: Path, tmp_path: Path
) -> None:
    command = [rows, "--field", "output", "--tokenizer", tokenizer, "-o", tmp_path / "out"]
    assert run(*command).exit_code == 0
    rows.write_text(rows.read_text("utf-8").replace("Four.", "Five."), "utf-8")
    assert "(input)" in run(*command).output


def test_options_may_change_while_nothing_is_compiled(
    rows: Path, tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [rows, "--field", "output", "--tokenizer", tokenizer, "-o", out, "--max-length", 60]
    assert run(*command, "--too-long", "error").exit_code == 1
    assert run(*command).exit_code == 0  # as its message says
    assert all(len(layout) <= 60 for layout in CompiledDataset(out))


def test_compiling_does_without_torch() -> None:
    code = (
        "import sys, mvspec.compiler, mvspec.compiler.compilation, mvspec.cli.print_stages\n"
        "assert 'torch' not in sys.modules\n"
        "mvspec.compiler.dense_mask"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_document_ids_never_wrap_around(tmp_path: Path) -> None:
    row = concatenate([layout_from_ids([5], small_tokenizer())] * 32_769)
    with pytest.raises(mvspec.VerifyError, match="smaller --shard"):
        write_shard(tmp_path / "shard.arrow", [(["x"], row)], {})


def test_bad_records_are_quarantined(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    hole = mvspec.document(mvspec.assistant("A: ", mvspec.gen("a")))
    write_rows(
        path,
        [
            {"id": "good", "output": CANONICAL},
            {"id": "cut", "output": CUT},
            {"output": CANONICAL.replace("</Path>\n", "", 1)},
            {"id": "none"},
            {"id": "number", "output": 3},
            {"id": "hole", "output": json.loads(hole.to_json())},
            {"id": "not", "output": {"messages": [{"role": "assistant", "body": [{}]}]}},
            {"id": "half", "output": "a \ud800"},
            {"id": "chat", "output": [{"role": "user", "content": "Hi"}]},
        ],
    )
    with path.open("ab") as file:
        file.write(b'{"id": \n{"output": "\xff"}\n')
    out = tmp_path / "out"
    result = run(path, "--field", "output", "--tokenizer", tokenizer, "-o", out, "--shard", 2)
    assert result.exit_code == 1
    assert len(CompiledDataset(out)) == 1
    lines = (out / "quarantine.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert [(entry["record"], entry["code"]) for entry in entries] == [
        ("cut", "cut"),
        ("rows.jsonl:3", "missing-closing"),
        ("none", "missing-field"),
        ("number", "not-a-string"),
        ("hole", "unsupported"),
        ("not", "not-a-document"),
        ("half", "surrogate"),
        ("chat", "unsupported"),
        ("rows.jsonl:10", "invalid-json"),
        ("rows.jsonl:11", "invalid-utf-8"),
    ]
    assert entries[0]["cut"] is True
    assert (entries[0]["place"], entries[0]["line"]) == ("rows.jsonl:2", CUT.count("\n") + 1)
    assert "messages" in entries[5]["address"]
    assert entries[8]["column"] == 8
    assert CompiledDataset(out).manifest["counts"]["quarantined"] == 10


def test_truncation_and_what_is_too_long(rows: Path, tokenizer: Path, tmp_path: Path) -> None:
    command = [rows, "--field", "output", "--tokenizer", tokenizer, "--max-length", 120]
    lengths = [len(layout) for layout in expected(rows)]
    longer = sum(length > 120 for length in lengths)
    assert 0 < longer < len(lengths)
    assert run(*command, "-o", tmp_path / "cut").exit_code == 0
    data = CompiledDataset(tmp_path / "cut")
    assert list(data) == [
        layout.truncate(120) if len(layout) > 120 else layout for layout in expected(rows)
    ]
    assert data.manifest["counts"]["truncated"] == longer
    assert run(*command, "-o", tmp_path / "drop", "--too-long", "drop").exit_code == 1
    data = CompiledDataset(tmp_path / "drop")
    assert list(data) == [layout for layout in expected(rows) if len(layout) <= 120]
    assert data.manifest["counts"]["quarantined"] == longer
    result = run(*command, "-o", tmp_path / "error", "--too-long", "error", "--workers", 2)
    assert result.exit_code == 1
    assert "more than 120" in result.output


def test_packed_rows_hold_every_record_once(rows: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    size = max(len(layout) for layout in expected(rows)) + 70
    result = run(rows, "--field", "output", "--tokenizer", tokenizer, "-o", out,
                 "--max-length", size, "--pack", "--shard", 6)  # fmt: skip
    assert result.exit_code == 0
    data = CompiledDataset(out)
    alone = {f"r{i}": layout for i, layout in enumerate(expected(rows))}
    found: list[str] = []
    for index, row in enumerate(data):
        assert len(row) == size
        for number, name in enumerate(data.records(index)):
            place = np.flatnonzero(row.document_ids == number)
            wanted = alone[name]
            assert row.input_ids[place].tolist() == wanted.input_ids.tolist()
            assert row.position_ids[place].tolist() == wanted.position_ids.tolist()
            assert row.loss_mask[place].tolist() == wanted.loss_mask.tolist()
            found.append(name)
    assert sorted(found) == sorted(alone)
    counts = data.manifest["counts"]
    assert counts["padding"] == len(data) * size - sum(map(len, alone.values()))
    assert f"{counts['padding_waste']:.1%}" in result.output
    assert run(rows, "--field", "output", "--tokenizer", tokenizer, "-o", tmp_path / "no",
               "--pack").exit_code == 2  # fmt: skip


def test_another_tokenizer_is_noticed(rows: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(rows, "--field", "output", "--tokenizer", tokenizer, "-o", out).exit_code == 0
    other = copy(small_tokenizer())
    other.add_tokens(["another"])
    with pytest.raises(mvspec.VerifyError, match="another tokenizer"):
        CompiledDataset(out, other)
    padded = copy(small_tokenizer())
    padded.enable_padding()
    assert len(CompiledDataset(out, padded)) == 11
    other.save(str(tmp_path / "other.json"))
    result = run(rows, "--field", "output", "--tokenizer", tmp_path / "other.json", "-o", out)
    assert result.exit_code == 2
    assert "(tokenizer)" in result.output


def test_missing_tags_are_added_when_asked(rows: Path, tmp_path: Path) -> None:
    plain, out = tmp_path / "plain.json", tmp_path / "out"
    untagged_tokenizer().save(str(plain))
    command = [rows, "--field", "output", "--tokenizer", plain, "-o", out]
    result = run(*command)
    assert result.exit_code == 2
    assert "--add-tags" in result.output
    assert run(*command, "--add-tags", "--workers", 2, "--shard", 3).exit_code == 0
    saved = load_tokenizer(str(out / "tokenizer"))
    assert list(CompiledDataset(out, saved)) == expected(rows)


def test_prompts_go_through_the_chat_template(tmp_path: Path) -> None:
    chat = chat_tokenizer(CHATML)
    save_tokenizer(chat, tmp_path / "model")
    question = "Tea or </Path> coffee?"
    wanted = compile_document(
        mvspec.document(mvspec.user(question), *mvspec.parse(CANONICAL).messages), chat
    )
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": CANONICAL}]
    document = mvspec.document(mvspec.user(question), *mvspec.parse(CANONICAL).messages)
    inputs = {
        "columns": ({"q": question, "a": {"text": CANONICAL}}, "--field", "a.text",
                    "--prompt-field", "q"),
        "chat": ({"messages": turns, "other": 1},),
        "document": (json.loads(document.to_json()),),
    }  # fmt: skip
    for name, (row, *options) in inputs.items():
        path = write_rows(tmp_path / f"{name}.jsonl", [row])
        result = run(path, *options, "--tokenizer", tmp_path / "model", "-o", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert list(CompiledDataset(tmp_path / name, chat)) == [wanted]


def test_every_kind_of_input_gives_the_same_layouts(
    rows: Path, tokenizer: Path, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    table = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    parquet.write_table(pa.Table.from_pylist(table), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(table), "utf-8")
    datasets.Dataset.from_list(table).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": datasets.Dataset.from_list(table)}).save_to_disk(
        str(tmp_path / "splits")
    )
    for name in ("rows.parquet", "rows.json", "saved", "splits"):
        out = tmp_path / f"{name}-out"
        result = run(tmp_path / name, "--field", "output", "--tokenizer", tokenizer, "-o", out,
                     "--shard", 4)  # fmt: skip
        assert result.exit_code == 0, result.output
        data = CompiledDataset(out)
        assert list(data) == expected(rows)
        assert data.records(10) == ["r10"]
    texts = tmp_path / "texts"
    texts.mkdir()
    for row in table:
        (texts / f"{row['id']:>4}.txt".replace(" ", "0")).write_text(row["output"], "utf-8")
    assert run(texts, "--tokenizer", tokenizer, "-o", tmp_path / "texts-out").exit_code == 0
    assert list(CompiledDataset(tmp_path / "texts-out")) == expected(rows)
    assert run(tmp_path / "splits", "--field", "output", "--tokenizer", tokenizer, "-o",
               tmp_path / "no", "--split", "test").exit_code == 2  # fmt: skip


def test_mistakes_in_the_command(rows: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    unknown = write_rows(tmp_path / "unknown.jsonl", [{"id": "a", "reply": "Four."}])
    for wrong in (
        (tmp_path / "none.jsonl", "--tokenizer", tokenizer),
        (unknown, "--tokenizer", tokenizer),
        (rows, "--field", "answer", "--tokenizer", tokenizer),
        (rows, "--field", "output", "--tokenizer", tmp_path / "none"),
        (rows, "--field", "output", "--tokenizer", tokenizer, "--lowering", "shared(x)"),
        (rows, "--field", "output", "--tokenizer", tokenizer, "--prompt-field", "id"),
        (rows, "--field", "output", "--tokenizer", tokenizer, "--too-long", "shrug"),
        (rows, "--field", "output", "--tokenizer", tokenizer, "--forced-loss", "--lowering",
         "tree"),
    ):  # fmt: skip
        result = run(*wrong, "-o", out)
        assert result.exit_code == 2, (wrong, result.output)
        assert not out.exists()


def test_an_instruction_ends_the_last_question(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    turns = (("user", "One?"), ("assistant", "1."), ("user", "Two?"), ("assistant", "2."))
    chat = [{"role": role, "content": text} for role, text in turns]
    path = write_rows(tmp_path / "rows.jsonl", [{"m": chat}, {"m": "Four."}])
    result = run(path, "--field", "m", "--tokenizer", tmp_path / "tokenizer", "-o", tmp_path / "o",
                 "--instruction", "Think <Path> first.")  # fmt: skip
    assert result.exit_code == 1
    data = CompiledDataset(tmp_path / "o", tokenizer)
    assert len(data) == 1
    text = tokenizer.decode(data[0].input_ids)
    assert "One?<|im_end|>" in text
    assert "Two? Think <Path> first.<|im_end|>" in text
    assert tokenizer.convert_tokens_to_ids("<Path>") not in data[0].input_ids
    line = json.loads((tmp_path / "o" / "quarantine.jsonl").read_text())
    assert (line["code"], line["record"]) == ("no-question", "rows.jsonl:2")
