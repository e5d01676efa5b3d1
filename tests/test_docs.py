"""The code of the pages in docs/ runs, with a tiny model in a real one's place."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from bpe import chat_tokenizer
from curator_model import Scripted
from traces import CANONICAL
from transformers import LlamaConfig, LlamaForCausalLM

DOCS = Path(__file__).parents[1] / "docs"


def run(page: str) -> dict[str, object]:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    code = "\n".join(blocks)
    names: dict[str, object] = {}
    exec(compile(code, f"docs/{page}", "exec"), names)
    return names


def test_plans_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_tokenizer().save_pretrained(tmp_path / "MODEL")
    monkeypatch.chdir(tmp_path)
    names = run("plans.md")
    printed = capsys.readouterr().out
    assert "%1, %2 = fork %0" in printed
    assert "generate %2 $speed max 60" in printed
    assert "%3 = join %1, %2" in printed
    assert "104 generated" in printed
    assert names["same"] == names["plan"]


def test_masks_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.save_pretrained(tmp_path / "MODEL")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "MODEL")  # type: ignore[no-untyped-call]
    (tmp_path / "a.txt").write_text(CANONICAL, "utf-8")
    (tmp_path / "b.txt").write_text("Answer: 4", "utf-8")
    monkeypatch.chdir(tmp_path)
    loss = run("masks.md")["loss"]
    assert isinstance(loss, torch.Tensor)
    # A fresh model knows nothing: the loss is that of a guess among all tokens.
    assert abs(float(loss.detach()) - float(torch.log(torch.tensor(len(tokenizer))))) < 0.3


def test_run_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.save_pretrained(tmp_path / "MODEL")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, initializer_range=0.4, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "MODEL")  # type: ignore[no-untyped-call]
    monkeypatch.chdir(tmp_path)
    names: Any = run("run.md")
    printed = capsys.readouterr().out
    assert "spain" in printed
    assert set(names["result"].texts) == {"france", "spain", "larger"}
    assert names["replay"].trace.ids == names["written"].trace.ids
    assert names["written"].document is not None


def test_curation_page() -> None:
    names: Any = run("curation.md")
    outcome = asyncio.run(names["curate"](Scripted().ask))
    assert outcome.code == "sequential"
