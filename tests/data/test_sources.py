"""Law 12: every command reads every source to the same documents and the same located errors."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bpe import CHATML, chat_tokenizer, small_tokenizer
from tiny import tiny_engine
from traces import CANONICAL
from typer.testing import CliRunner, Result

import mvspec
from mvspec.cli import app
from mvspec.compiler.dataset import CompiledDataset
from mvspec.compiler.stages import compile_stages
from mvspec.compiler.vocabulary import save_tokenizer
from mvspec.curation.chain import ChainFields, read_chain
from mvspec.data.records import BadRecord, Fields, InputError, Record
from mvspec.data.sources import Records, open_records
from mvspec.runtime.evaluation.problem import EvaluationProblem
from mvspec.runtime.evaluation.recorded import match_outputs
from mvspec.view.records import view_of

PLAIN = "<Think>\nHm. Yes.\n</Think>\n\nFour."
CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": CANONICAL}]
TALK = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": PLAIN}]
THOUGHT = [
    {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
    {"role": "assistant", "content": "Four.", "reasoning_content": "Hm. Yes."},
]
ASKED = mvspec.document(mvspec.user("2 + 2?"), *mvspec.parse(CANONICAL).messages)
THINKING = mvspec.document(mvspec.user("2 + 2?"), *mvspec.parse(PLAIN).messages)
RUN = tiny_engine().run(ASKED).trace

ROWS: dict[str, tuple[dict[str, Any], mvspec.Document | tuple[str, str, int]]] = {
    "text": ({"output": CANONICAL}, mvspec.parse(CANONICAL)),
    "document": ({"document": json.loads(ASKED.to_json())}, ASKED),
    "messages": (json.loads(ASKED.to_json()), ASKED),
    "chat": ({"messages": CHAT}, ASKED),
    "packed": ({"messages": json.dumps(CHAT), "source": "x"}, ASKED),
    "sharegpt": ({"conversations": TALK}, THINKING),
    "thoughts": ({"messages": THOUGHT}, THINKING),
    "pair": ({"prompt": CHAT[:1], "completion": CHAT[1:]}, ASKED),
    "words": ({"prompt": "2 + 2?", "completion": PLAIN}, THINKING),
    "trace": ({"trace": json.loads(RUN.model_dump_json(exclude_none=True))}, ASKED),
    "cut": ({"output": "<Think>\nHm"}, ("cut", "", 2)),
    "cut chat": (
        {"messages": [*CHAT, {"role": "assistant", "content": "<Think>\nHm"}]},
        ("cut", "messages[2].content", 2),
    ),
    "strange": ({"messages": [CHAT[0] | {"mood": "x"}]}, ("unknown-field", "messages[0]", 1)),
    "call": (
        {"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{"name": "f"}]}]},
        ("tool-calls", "messages[1].tool_calls", 1),
    ),
    "no document": ({"document": {"messages": [{"role": "x"}]}}, ("not-a-document", "", 1)),
    "number": ({"output": 3, "completion": "Four."}, mvspec.parse("Four.")),
}
"""What a row holds, and the document that it is, or the error's code, address and line."""

LINES = [json.dumps({"id": name, **row}) for name, (row, _) in ROWS.items()]
TEXT = "\n".join(LINES) + "\n"


def write(path: Path, data: bytes) -> list[str]:
    path.write_bytes(data)
    return [str(path)]


def parquet(folder: Path) -> list[str]:
    for number, (name, (row, _)) in enumerate(ROWS.items()):
        # A column of Parquet has one type, and no object without a field: JSON text has all.
        keys = ("document", "trace", *(["messages"] if name in ("messages", "thoughts") else []))
        texts = {key: json.dumps(row[key]) for key in keys if key in row}
        table = pa.Table.from_pylist([{"id": name, **row, **texts}])
        pq.write_table(table, folder / f"{number:02}.parquet")
    return [str(path) for path in sorted(folder.glob("*.parquet"))]


def many(folder: Path) -> list[str]:
    (folder / "in").mkdir()
    for number, line in enumerate(LINES):
        (folder / "in" / f"{number:02}.json").write_text(line, "utf-8")
    return [str(folder / "in")]


def zst(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


SOURCES: dict[str, Callable[[Path], list[str]]] = {
    "jsonl": lambda folder: write(folder / "a.jsonl", TEXT.encode()),
    "marked": lambda folder: write(folder / "a.jsonl", b"\xef\xbb\xbf" + TEXT.encode()),
    "utf-16": lambda folder: write(folder / "a.jsonl", TEXT.encode("utf-16")),
    "utf-16-be": lambda folder: write(
        folder / "a.jsonl", b"\xfe\xff" + TEXT.rstrip().encode("utf-16-be")
    ),
    "gz": lambda folder: write(folder / "a.jsonl.gz", gzip.compress(TEXT.encode())),
    "zst": lambda folder: write(
        folder / "a.ndjson.zst", zst(TEXT[:300].encode()) + zst(TEXT[300:].encode())
    ),
    "json": lambda folder: write(folder / "a.json", f"[{','.join(LINES)}]".encode()),
    "parquet": parquet,
    "folder": many,
    "stdin": lambda folder: ["-"],
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    return SOURCES[request.param](tmp_path)


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=TEXT)


def opened(source: list[str], **more: Any) -> Records:
    sys.stdin = io.TextIOWrapper(io.BytesIO(TEXT.encode()))
    return open_records(source, Fields(field="." if source == ["-"] else None), **more)


def found(record: Record) -> mvspec.Document | tuple[str, str, int]:
    reading = record.read()
    if reading.document is not None:
        return reading.document
    first = reading.diagnostics[0]
    assert reading.cut == (first.code == "cut")
    # Where a document breaks an invariant, its message has the place.
    address = "" if first.code == "not-a-document" else first.address
    return first.code, address, first.line


def test_every_source_gives_the_same_records(source: list[str]) -> None:
    records = list(opened(source, again=True))
    assert {each.name: found(each) for each in records} == {
        name: wanted for name, (_, wanted) in ROWS.items()
    }


@pytest.mark.parametrize("start", [0, 1, 7, len(ROWS)])
def test_any_record_can_be_started_from(source: list[str], start: int) -> None:
    records = opened(source, short=True)
    names = [record.name for record in records.read(start)]
    assert names == list(ROWS)[start:]
    assert records.key == opened(source, short=True).key if source != ["-"] else records.key


def test_every_command_reads_the_same(source: list[str], tmp_path: Path) -> None:
    rows = ["--field", "."] if source == ["-"] else []
    good = {name: each for name, (_, each) in ROWS.items() if isinstance(each, mvspec.Document)}
    bad = {name: each for name, (_, each) in ROWS.items() if isinstance(each, tuple)}
    checked = run("check", *source, *rows, "--json")
    verdicts = {each["record"]: each for each in map(json.loads, checked.stdout.splitlines())}
    assert {name for name, each in verdicts.items() if each["ok"]} == set(good)
    for name, (code, address, line) in bad.items():
        (first,) = verdicts[name]["diagnostics"]
        assert (first["code"], first["line"]) == (code, line)
        assert first.get("address", "").startswith(address)
    out = tmp_path / "out.jsonl"
    assert run("convert", *source, *rows, "--to", "json", "-o", out).exit_code == 1
    made = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    documents = [each.get("document") or next(v for v in each.values() if isinstance(v, dict))
                 for each in made]  # fmt: skip
    assert [mvspec.Document.from_json(json.dumps(each)) for each in documents] == list(
        good.values()
    )
    counted = run("stats", *source, *rows, "--each", "--json")
    assert [json.loads(line)["record"] for line in counted.stdout.splitlines()] == list(good)
    shown = run("show", *source, *rows)
    assert all(f"\n{name}\n" in f"\n{shown.stdout}" for name in good)
    fixed = tmp_path / "fixed.jsonl"
    run("check", *source, *rows, "--recover", "--fix", fixed, "--json")
    names = [each.name for each in mvspec.read(fixed)]
    assert names == [name for name in ROWS if name in good or name.startswith("cut")]
    assert all(not each.read().diagnostics for each in mvspec.read(fixed))


def test_pages_data_sets_chains_and_outputs_read_the_same(
    source: list[str], tmp_path: Path
) -> None:
    good = [name for name, (_, each) in ROWS.items() if isinstance(each, mvspec.Document)]
    records = list(opened(source, short=True))
    pages = {record.name: view_of(record) for record in records}
    assert [name for name, view in pages.items() if view.verdict == "ok"] == good
    rows = ["--field", "."] if source == ["-"] else []
    save_tokenizer(chat_tokenizer(CHATML), tmp_path / "chat")
    result = run("compile", *source, *rows, "--tokenizer", tmp_path / "chat", "-o", tmp_path / "o")
    assert result.exit_code == 1, result.output
    data = CompiledDataset(tmp_path / "o")
    assert [data.records(index)[0] for index in range(len(data))] == good
    lines = (tmp_path / "o" / "quarantine.jsonl").read_text("utf-8").splitlines()
    entries = {entry["record"]: entry for entry in map(json.loads, lines)}
    assert {name: (entry["code"], entry["line"]) for name, entry in entries.items()} == {
        name: (each[0], each[2]) for name, (_, each) in ROWS.items() if isinstance(each, tuple)
    }
    chains: dict[str, str] = {}
    for record in records:
        try:
            chain = read_chain(record, ChainFields())
            chains[record.name] = f"{chain.question}|{chain.reasoning}|{chain.answer}"
        except BadRecord as error:
            chains[record.name] = error.entry["code"]
    assert {name: chains[name] for name in ("sharegpt", "thoughts", "words", "chat", "cut")} == {
        **dict.fromkeys(("sharegpt", "thoughts", "words"), "2 + 2?|Hm. Yes.|Four."),
        "chat": "not-sequential",
        "cut": "cut",
    }
    problems = [EvaluationProblem(name, "2 + 2?") for name in ROWS]
    outputs = match_outputs(opened(source, short=True), problems).outputs
    assert outputs["chat"] == outputs["text"] == outputs["trace"] == [CANONICAL]
    assert outputs["sharegpt"] == outputs["thoughts"] == outputs["words"] == [PLAIN]
    assert outputs["cut"] == ["<Think>\nHm"]


# What a chat says beside its document


def test_turns_without_loss_tools_and_calls() -> None:
    template = "{% for tool in tools or [] %}{{ tool.name }}\n{% endfor %}" + CHATML.replace(
        "{{ message.content }}",
        "{{ message.content }}{% for c in message.tool_calls or [] %}<{{ c.name }}>{% endfor %}",
    )
    tokenizer = chat_tokenizer(template)
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}], "weight": 0}
    said = [{"role": "assistant", "content": "Four.", "train": each} for each in (True, False)]
    for last, learned in zip(said, ("Four.<|im_end|>", ""), strict=True):
        chat = [CHAT[0], call, {"role": "tool", "content": "4"}, last]
        row = {"tools": [{"name": "f"}], "messages": chat}
        reading = Record("a", row, "value").needed()
        stages = compile_stages(reading.document, tokenizer, context=reading.context)
        text = str(tokenizer.decode(stages.layout.input_ids))
        assert text.startswith("f\n<|im_start|>user\n2 + 2?<|im_end|>")
        assert "assistant\n<f><|im_end|>" in text
        assert tokenizer.decode(stages.layout.input_ids[stages.layout.loss_mask]) == learned
    with pytest.raises(mvspec.Unsupported, match="nothing of the tools"):
        compile_stages(reading.document, chat_tokenizer(CHATML), context=reading.context)


@pytest.mark.parametrize("lowering", ["autoregressive", "sequential", "tree", "official"])
def test_every_lowering_takes_the_loss_from_a_turn(lowering: str) -> None:
    chat = [CHAT[0], CHAT[1] | {"weight": 0}, CHAT[0], CHAT[1]]
    reading = Record("a", chat, "value").needed()
    tokenizer = chat_tokenizer(CHATML)
    compiled = compile_stages(reading.document, tokenizer, lowering, context=reading.context)
    whole = compile_stages(reading.document, tokenizer, lowering)
    assert compiled.layout.input_ids.tolist() == whole.layout.input_ids.tolist()
    assert 2 * compiled.layout.loss_mask.sum() == whole.layout.loss_mask.sum()


def test_a_question_that_is_named_stands_there_once() -> None:
    row = {"prompt": "2 + 2?", "completion": CANONICAL}
    for field in (None, "completion"):
        fields = Fields(field=field, prompt_field="prompt")
        assert Record("a", row, "value", fields).document == ASKED


def test_chats_are_authored_in_python() -> None:
    assert mvspec.document(*CHAT) == ASKED
    assert mvspec.document(mvspec.user("2 + 2?"), CHAT[1]) == ASKED
    with pytest.raises(mvspec.ParseError, match=r"messages\[0\].content:2:3"):
        mvspec.document({"role": "assistant", "content": "<Think>\nHm"})
    with pytest.raises(mvspec.VerifyError, match=r"messages\[1\].content: it is a number"):
        mvspec.document(mvspec.user("a"), {"role": "user", "content": 3})


# Files


def test_what_cannot_be_unpacked_is_a_record(tmp_path: Path) -> None:
    cut = gzip.compress(TEXT.encode())[:-40]
    for path in (tmp_path / "a.jsonl.gz", tmp_path / "a.txt.zst"):
        (name,) = write(path, cut if path.suffix == ".gz" else zst(b"Four. " * 99)[:-5])
        *_, last = mvspec.read(name)
        assert last.trouble is not None
        assert last.trouble.code == "unreadable"
    with pytest.raises(InputError, match="not Parquet"):
        mvspec.read(*write(tmp_path / "a.parquet", b"PAR1"))


def test_the_settings_of_an_evaluation_are_no_record(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"format": 1, "settings": {}}\n{"id": "a", "output": "Four."}\n')
    assert [record.name for record in mvspec.read(path)] == ["a"]
    assert [record.name for record in mvspec.read(path).read(0)] == ["a"]


def test_repaired_chats_keep_their_shape(tmp_path: Path) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"n": 1, "conversations": [TALK[0], {"from": "gpt", "value": "<Think>\nHm"}]},
        {"n": 2, "prompt": "Q", "completion": "<Think>\nHm"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("check", path, "--recover", "--fix", out)
    first, second = map(json.loads, out.read_text().splitlines())
    whole = "<Think>\nHm\n</Think>\n\n"
    assert first == {"n": 1, "conversations": [TALK[0], {"from": "gpt", "value": whole}]}
    assert second["messages"][1] == {"role": "assistant", "content": whole}
    assert "completion" not in second


def test_two_runs_never_write_one_file(tmp_path: Path) -> None:
    from mvspec.data.resume import Journal

    with (
        Journal(tmp_path / "a", 0),
        pytest.raises(InputError, match="another run is writing"),
        Journal(tmp_path / "a", 0),
    ):
        pass


def test_reading_and_compiling_import_no_torch(tmp_path: Path) -> None:
    import subprocess

    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.jsonl").write_text(json.dumps({"output": CANONICAL}))
    code = (
        "import sys\nfrom mvspec.cli import app\n"
        "for args in (['check', 'a.jsonl'], ['compile', 'a.jsonl', '--tokenizer',"
        " 'tokenizer.json', '-o', 'out']):\n"
        "    app(args, standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_folder_with_a_chat_template_is_compiled_without_torch(tmp_path: Path) -> None:
    """transformers imports torch where it finds it; the command's own process does not let it."""
    import subprocess

    folder = Path(__file__).parents[2] / "runtime" / "tasks" / "arithmetic_model"
    said = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "6"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": said}))
    arguments = ["mvspec", "compile", "a.jsonl", "--tokenizer", str(folder), "-o", "out"]
    code = (
        "import sys\nfrom mvspec.cli import main\n"
        f"sys.argv = {arguments!r}\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert 'transformers' in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('torch.')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
