"""From a chat template to an answer: what was trained under it is what a run writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

import mvspec
from mvspec.compiler import compile_document
from mvspec.compiler.chat_template import settings_of
from mvspec.runtime import TorchEngine
from mvspec.training import LanguageModel, LayoutData, Optimizer
from mvspec.tree.ir import Document

sys.path.insert(0, str(Path(__file__).parents[1] / "laws"))
from zoo import HAND_MADE, TRL, template_tokenizer

CONFIG = {
    "model_type": "llama", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
}  # fmt: skip
DOCUMENT = mvspec.document(
    mvspec.user("Tea or coffee?"),
    mvspec.assistant(
        mvspec.parallel(
            mvspec.branch("Tea", "Calm."), mvspec.branch("Coffee", "Awake."), conclusion="Tea."
        )
    ),
)
ASKED = Document(messages=DOCUMENT.messages[:1])


def template(name: str) -> Any:
    if name in HAND_MADE:
        return HAND_MADE[name][0]
    if name not in TRL:
        pytest.skip("needs trl")
    return TRL[name]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("qwen3", {}),
        ("qwen3", {"enable_thinking": False}),
        ("a space before the end", {}),
    ],
)
def test_a_run_answers_what_was_trained(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = template_tokenizer(template(name), "<|endoftext|>" if name == "qwen3" else "")
    model = LanguageModel(
        CONFIG, tokenizer, add_tags=True, optimizer=Optimizer(lr=1e-2, schedule="constant"),
        chat_template_kwargs=arguments,
    )  # fmt: skip
    layouts = [compile_document(DOCUMENT, model.tokenizer)]
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False}
    Trainer(max_epochs=70, enable_checkpointing=False, enable_model_summary=False, **quiet).fit(
        model, LayoutData(layouts)
    )
    with model.engine() as engine:
        result = engine.run(ASKED)
    assert result.document == DOCUMENT
    assert result.trace.finish == "end"
    model.export(tmp_path)
    exported = TorchEngine.load(tmp_path)
    assert exported.run(ASKED).document == DOCUMENT
    named = settings_of(exported.tokenizer)
    assert dict(named.arguments if named else {}) == arguments
