"""The code of README and of the pages in docs/ runs, with a tiny model in a real one's place."""

from __future__ import annotations

import asyncio
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from bpe import chat_tokenizer
from curator_model import Scripted
from page_code import ROOT, blocks_of, run_page
from traces import CANONICAL
from transformers import LlamaConfig, LlamaForCausalLM

import mvspec

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
RUNNING = [page for page in PAGES if any(block.runs for block in blocks_of(page))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def tiny_llama(vocabulary: int, end: int, spread: float) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, initializer_range=spread, bos_token_id=None, eos_token_id=end,
    )  # fmt: skip
    return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]


@pytest.fixture
def folder(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with what the pages' code reads."""
    tokenizer = chat_tokenizer()
    tokenizer.save_pretrained(tmp_path / "MODEL")
    # One that writes ends of texts, where a page lets it write; else one that knows nothing.
    spread = 0.4 if page.name == "run.md" else 0.02
    model = tiny_llama(len(tokenizer), tokenizer.eos_token_id, spread)
    model.save_pretrained(tmp_path / "MODEL")
    (tmp_path / "a.txt").write_text(CANONICAL, "utf-8")
    (tmp_path / "b.txt").write_text("Answer: 4", "utf-8")
    rows = [{"id": str(i), "question": "What?", "output": CANONICAL} for i in range(3)]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("page", RUNNING, ids=name_of)
@pytest.mark.usefixtures("folder")
def test_code_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_page(page)
    check = CHECKS.get(page.name)
    if check is not None:
        check(names, capsys.readouterr().out)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_code_escapes(page: Path) -> None:
    """Code stands in fences with a language that is known: what is python or sh runs."""
    for block in blocks_of(page):
        kind = block.language.split(" ")[0]
        assert kind in {"python", "sh", "text", "json", "yaml"}, f"{page}:{block.line}: {kind}"
    text = re.sub(r"^(```|~~~~).*?^\1$", "", page.read_text("utf-8"), flags=re.M | re.S)
    assert not re.search(r"(\A|\n\n)(    |\t)(?![-*+ ]|\d+\.)", text), f"{page}: indented code"


def plans(names: dict[str, Any], printed: str) -> None:
    assert "%1, %2 = fork %0" in printed
    assert "generate %2 $speed max 60" in printed
    assert "%3 = join %1, %2" in printed
    assert "104 generated" in printed
    assert names["same"] == names["plan"]


def masks(names: dict[str, Any], printed: str) -> None:
    # A fresh model knows nothing: the loss is that of a guess among all tokens.
    guess = torch.log(torch.tensor(len(names["tokenizer"])))
    assert abs(float(names["loss"].detach()) - float(guess)) < 0.3


def run(names: dict[str, Any], printed: str) -> None:
    assert "spain" in printed
    assert set(names["result"].texts) == {"france", "spain", "larger"}
    assert names["replay"].trace.ids == names["written"].trace.ids
    assert names["written"].document is not None


def curation(names: dict[str, Any], printed: str) -> None:
    outcome = asyncio.run(names["curate"](Scripted().ask))
    assert outcome.code == "sequential"


def compiled(names: dict[str, Any], printed: str) -> None:
    assert len(names["data"]) == 3
    assert names["data"].records(0) == ["0"]


def law(names: dict[str, Any], printed: str) -> None:
    assert (names["layout"].hide_hi > names["layout"].hide_lo).any()


def authoring(names: dict[str, Any], printed: str) -> None:
    assert "2: Review 2" in printed
    assert "tag" in printed.splitlines()[-1]


def training(names: dict[str, Any], printed: str) -> None:
    written = names["written"].trace
    assert written.text == mvspec.render(names["document"].messages[1]) + "<|im_end|>"
    assert names["again"].trace.ids == written.ids
    assert written.parallelism > 1


CHECKS = {
    "authoring.md": authoring, "compile.md": compiled, "curation.md": curation, "law.md": law,
    "masks.md": masks, "plans.md": plans, "run.md": run, "training.md": training,
}  # fmt: skip
