"""Law 12 for documents that went through `datasets`, and for JSON where a text would stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bpe import chat_tokenizer
from traces import CANONICAL
from typer.testing import CliRunner

import mvspec as mv
from mvspec.cli import app
from mvspec.compiler.dataset import CompiledDataset
from mvspec.compiler.stages import compile_stages
from mvspec.compiler.vocabulary import save_tokenizer
from mvspec.data.records import Fields
from mvspec.data.sources import open_records

datasets = pytest.importorskip("datasets")

DOCUMENTS = [
    mv.document(mv.user("2 + 2?"), *mv.parse(CANONICAL).messages),
    mv.document(
        mv.user("Which?"), mv.assistant("It is ", mv.gen("a", 5, choices=("x", "y")), " or ",
        mv.gen("b", 7, stop=(".",)), "."),
    ),
    mv.document(
        mv.system("s"), mv.user("2 + 2?"),
        mv.assistant(
            mv.think("Hm. ", mv.parallel(mv.branch("a", "x"), mv.branch("b", "y"))),
            mv.parallel(mv.branch("c", "z", mv.parallel(mv.branch("d", "w"), conclusion="So."))),
        ),
        mv.user("Sure?"), mv.assistant("Yes."),
    ),
    mv.document(mv.user("{}"), mv.assistant('{"a": [1]}')),
]  # fmt: skip
TABLES: dict[str, Callable[[Any, Path], None]] = {
    "saved": lambda table, path: table.save_to_disk(path),
    "table.parquet": lambda table, path: table.to_parquet(str(path)),
    "table.jsonl": lambda table, path: table.to_json(str(path)),
}


def nodes_as_text(value: Any, depth: int = 0) -> Any:
    """A document whose nodes are JSON text, every other level of them."""
    if isinstance(value, list):
        return [nodes_as_text(each, depth + 1) for each in value]
    if not isinstance(value, dict):
        return value
    made = {key: nodes_as_text(each, depth + 1) for key, each in value.items()}
    return {
        key: json.dumps(each) if key in ("body", "goal", "paths") and depth % 4 else each
        for key, each in made.items()
    }


ROWS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "column": lambda value: {"document": value, "provenance": {"model": "m", "rewritten": []}},
    "row": lambda value: dict(value),
    "own": lambda value: {"answer": {"inside": value}},
    "text": lambda value: {"document": json.dumps(value)},
    "nodes": lambda value: {"document": nodes_as_text(value)},
    "texts of messages": lambda value: {"messages": list(map(json.dumps, value["messages"]))},
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("row", ROWS)
def test_documents_survive_datasets(row: str, table: str, tmp_path: Path) -> None:
    rows = [
        {"id": f"r{number}", **ROWS[row](json.loads(document.to_json()))}
        for number, document in enumerate(DOCUMENTS)
    ]
    TABLES[table](datasets.Dataset.from_list(rows), tmp_path / table)
    field = "answer.inside" if row == "own" else None
    found = list(open_records([str(tmp_path / table)], Fields(field=field)))
    assert [each.read().diagnostics for each in found] == [()] * len(DOCUMENTS)
    assert [each.document for each in found] == DOCUMENTS
    assert [each.name for each in found] == [f"r{n}" for n in range(len(DOCUMENTS))]


def test_null_is_absent_only_where_a_table_fills_it_in() -> None:
    value = json.loads(DOCUMENTS[0].to_json())
    value["messages"][0]["body"][0]["text"] = None
    with pytest.raises(mv.VerifyError, match="text"):
        mv.Document.from_json(json.dumps(value))
    value = json.loads(DOCUMENTS[3].to_json())
    assert mv.Document.from_json(json.dumps(value)).messages[1].body[0].text == '{"a": [1]}'  # type: ignore[union-attr]


CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": CANONICAL}]
TALK = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": CANONICAL}]
DOCUMENT = DOCUMENTS[0].to_json()
WHOLE = {
    "document": DOCUMENT,
    "indented": "\n " + DOCUMENTS[0].to_json(indent=2),
    "twice": json.dumps(DOCUMENT),
    "chat": json.dumps(CHAT),
    "chat of a row": json.dumps({"id": "x", "messages": CHAT}),
    "conversation": json.dumps({"conversations": TALK}),
    "messages": json.dumps(json.loads(DOCUMENT)["messages"]),
}
PARTS = {
    "cut": DOCUMENT[: len(DOCUMENT) // 2],
    "cut early": DOCUMENT[:30],
    "cut chat": json.dumps(CHAT)[:60],
    "with an end": DOCUMENT + "<|im_end|>",
    "a message": json.dumps(json.loads(DOCUMENT)["messages"][1]),
    "named": json.dumps({"id": "x", "n": 3, "messages": CHAT})[:-3],
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_packed_row_is_written_as_it_was(kind: str, tmp_path: Path) -> None:
    rows, fixed = tmp_path / "rows.jsonl", tmp_path / "fixed.jsonl"
    rows.write_text(json.dumps({"id": "a", "output": WHOLE[kind]}) + "\n", "utf-8")
    words = ["check", str(rows), "--recover", "--fix", str(fixed)]
    assert CliRunner().invoke(app, words).exit_code == 0
    (found,) = open_records([str(fixed)])
    assert found.document == DOCUMENTS[0]
    assert isinstance((found.row or {})["output"], str)


WORDS = ['{"a": 1}', '["x", "y"]', "{x} and [y]", '{"messages": 3', "[1, 2]\n", '{"role": "king"}']


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(chat_tokenizer(), folder)
    return folder


def compiled(
    folder: Path, tokenizer: Path, text: str, place: str
) -> tuple[int, list[Any], list[Any]]:
    """Status, layouts and quarantine of compiling a text that stands in one of several places."""
    path, field = folder / "rows.jsonl", []
    if place == "file":
        path = folder / "text.txt"
        path.write_text(text, "utf-8")
    else:
        rows = {
            "column": {"output": text}, "field": {"mine": text},
            "turn": {"messages": [CHAT[0], {"role": "assistant", "content": text}]},
            "completion": {"prompt": "2 + 2?", "completion": text},
        }  # fmt: skip
        path.write_text(json.dumps(rows[place]) + "\n", "utf-8")
        field = ["--field", "mine"] if place == "field" else []
    out = folder / "out"
    words = ["compile", str(path), "--tokenizer", str(tokenizer), "-o", str(out), *field]
    result = CliRunner().invoke(app, words)
    bad = out / "quarantine.jsonl"
    lines = bad.read_text("utf-8").splitlines() if bad.exists() else []
    return result.exit_code, list(CompiledDataset(out)), list(map(json.loads, lines))


@pytest.mark.parametrize("place", ["file", "column", "field", "turn", "completion"])
@pytest.mark.parametrize("kind", [*WHOLE, *PARTS])
def test_json_is_never_an_assistants_words(
    kind: str, place: str, tokenizer: Path, tmp_path: Path
) -> None:
    text = {**WHOLE, **PARTS}[kind]
    status, layouts, bad = compiled(tmp_path, tokenizer, text, place)
    if kind in WHOLE and place not in ("turn", "completion"):
        assert (status, bad) == (0, [])
        assert layouts == [compile_stages(DOCUMENTS[0], chat_tokenizer()).layout]
    elif (kind, place) == ("chat", "completion"):  # both halves of a pair may be chats
        assert (status, bad) == (0, [])
    else:
        assert (status, layouts) == (1, [])
        assert bad[0]["code"] in ("not-a-document", "not-a-string")


@pytest.mark.parametrize("place", ["file", "column", "field", "turn", "completion"])
@pytest.mark.parametrize("text", WORDS)
def test_other_json_is_words(text: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.txt" if place == "file" else "a.jsonl")
    rows = {
        "column": {"output": text}, "field": {"mine": text},
        "turn": {"messages": [CHAT[0], {"role": "assistant", "content": text}]},
        "completion": {"prompt": '{"q": 1}', "completion": text},
    }  # fmt: skip
    path.write_text(text if place == "file" else json.dumps(rows[place]) + "\n", "utf-8")
    (found,) = open_records([str(path)], Fields(field="mine" if place == "field" else None))
    assert found.document.messages[-1] == mv.assistant(text)
    if place == "completion":
        assert found.document.messages[0] == mv.user('{"q": 1}')


def test_compile_says_what_has_no_block(tokenizer: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"output": t}) + "\n" for t in [CANONICAL, "Four.", "Five."])
    )
    out = tmp_path / "out"
    words = ["compile", str(rows), "--tokenizer", str(tokenizer), "-o", str(out)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert "without a block" in result.output
    assert "2 (67%)" in result.output
    assert CompiledDataset(out).manifest["counts"]["without_block"] == 2
