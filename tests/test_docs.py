"""The code of docs/masks.md runs, on a tiny model in the place of a real one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from bpe import chat_tokenizer
from traces import CANONICAL
from transformers import LlamaConfig, LlamaForCausalLM

DOCS = Path(__file__).parents[1] / "docs"


def test_masks_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "masks.md").read_text("utf-8"), re.DOTALL)
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
    names: dict[str, object] = {}
    exec(compile(code, "docs/masks.md", "exec"), names)
    loss = names["loss"]
    assert isinstance(loss, torch.Tensor)
    # A fresh model knows nothing: the loss is that of a guess among all tokens.
    assert abs(float(loss.detach()) - float(torch.log(torch.tensor(len(tokenizer))))) < 0.3
