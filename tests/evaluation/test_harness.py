"""lm-evaluation-harness's own evaluation of a local task, on our engines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import scripted_engine
from tiny import chat, tiny_engine
from tokenizers.processors import TemplateProcessing

from mvspec.errors import Unsupported
from mvspec.law.tags import Tag
from mvspec.runtime import TorchEngine

lm_eval = pytest.importorskip("lm_eval")
harness = pytest.importorskip("mvspec.runtime.evaluation.harness")

CHOICE = """\
task: mvspec_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: right
metric_list: [{{metric: acc}}]
"""
WRITE = """\
task: mvspec_write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """\
task: mvspec_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
ROWS: tuple[dict[str, Any], ...] = (
    {"question": "So the sum is", "choices": ["5", "a long word"], "right": 0, "answer": " 5"},
    {"question": "Both agree:", "choices": ["6", "it is"], "right": 1, "answer": " 5"},
)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in {"choice": CHOICE, "write": WRITE, "rolling": ROLLING}.items():
        (tmp_path / f"{name}.yaml").write_text(text.format(data=data))
    return tmp_path


def evaluate(tasks: Path, engine: Any, *names: str, **more: Any) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=harness.MvspecLM(engine=engine, **more), tasks=list(names), task_manager=manager,
        bootstrap_iters=0,
    )  # fmt: skip
    return found


def reference(engine: TorchEngine, context: list[int], rest: list[int]) -> tuple[float, bool]:
    """The likelihood of a text by transformers alone."""
    ids = torch.tensor([context + rest])
    with torch.inference_mode():
        logprobs = engine.model.model(input_ids=ids).logits[0].float().log_softmax(-1)
    rows = logprobs[len(context) - 1 : -1]
    total = rows.gather(1, torch.tensor(rest)[:, None]).double().sum()
    return float(total), bool((rows.argmax(-1) == torch.tensor(rest)).all())


def test_likelihoods_are_the_models(tasks: Path) -> None:
    engine = tiny_engine("Qwen2")
    found = evaluate(tasks, engine, "mvspec_choice", "mvspec_rolling", batch_size=3)
    model = harness.MvspecLM(engine=engine)
    right = 0
    for row, sample in zip(ROWS, found["samples"]["mvspec_choice"], strict=True):
        scores = []
        context = model.tok_encode(row["question"])
        for choice, (answer,) in zip(row["choices"], sample["resps"], strict=True):
            whole = model.tok_encode(f"{row['question']} {choice}")
            wanted = reference(engine, context, whole[len(context) :])
            assert float(answer[0]) == pytest.approx(wanted[0], abs=1e-4)
            scores.append(wanted[0])
        right += scores.index(max(scores)) == row["right"]
    assert found["results"]["mvspec_choice"]["acc,none"] == right / len(ROWS)
    total = sum(
        reference(engine, [model.prefix_token_id], model.tok_encode(row["question"]))[0]
        for row in ROWS
    )
    words = sum(len(row["question"].split()) for row in ROWS)
    perplexity = found["results"]["mvspec_rolling"]["word_perplexity,none"]
    assert perplexity == pytest.approx(2.718281828459045 ** (-total / words), rel=1e-3)


@pytest.mark.parametrize("adaptive", [True, False])
def test_generation(tasks: Path, adaptive: bool) -> None:
    says = {"So the sum is": " 5. And so on.", "Both agree:": " 6. No."}
    found = evaluate(tasks, scripted_engine(says), "mvspec_write", adaptive=adaptive)
    texts = [sample["resps"][0][0] for sample in found["samples"]["mvspec_write"]]
    assert texts == [" 5", " 6"]
    assert found["results"]["mvspec_write"]["exact_match,none"] == 0.5


def test_tags_of_a_task_are_plain_characters(tasks: Path) -> None:
    engine = tiny_engine()
    model = harness.MvspecLM(engine=engine)
    ids = model.tok_encode(f"<|im_start|>a {Tag.PARALLEL} b<|im_end|>")
    assert model.vocabulary.tag_ids[Tag.PARALLEL] not in ids
    assert ids[0] == engine.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids[-1] == engine.tokenizer.eos_token_id
    rendered = model.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert lm_eval.api.registry.get_model("mvspec") is harness.MvspecLM
    model.engine.capabilities = replace(model.engine.capabilities, options=frozenset())
    with pytest.raises(Unsupported, match="pretrained=FOLDER"):
        model._loglikelihood_tokens([(None, [1], [2])])


def with_bos(begins: bool) -> Any:
    """A tokenizer with a BOS, which it puts before texts or not."""
    tokenizer = chat()
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>"})
    if begins:
        id = tokenizer.bos_token_id
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", id)]
        )
    return tokenizer


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("add", [None, True, False])
def test_likelihoods_are_the_harness_own_models(begins: bool, add: bool | None) -> None:
    """With BOS where it has one: of choices, of an empty context, of a rendered chat, rolling."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    if add and not begins:
        pytest.skip("transformers' fast tokenizers do not begin with BOS on demand")
    engine = tiny_engine("Llama", with_bos(begins))
    ours = harness.MvspecLM(engine=engine, add_bos_token=add)
    theirs = HFLM(
        pretrained=engine.model.model, tokenizer=with_bos(begins), add_bos_token=add, device="cpu"
    )
    pairs = [
        ("So the sum is", " 5"),
        ("", "Both agree"),
        ("a b ", "c"),
        ("<|endoftext|>1:", " a b"),
    ]
    asked = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    for (one, greedy), (other, theirs_is) in zip(
        ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True
    ):
        assert one == pytest.approx(float(other), abs=1e-4)
        assert greedy == bool(theirs_is)
    rolling = [Instance("loglikelihood_rolling", {}, ("Both agree: it is 5.",), 0)]
    found, wanted = ours.loglikelihood_rolling(rolling), theirs.loglikelihood_rolling(rolling)
    assert found == [pytest.approx(float(each), abs=1e-4) for each in wanted]


HANGS = """\
def grade(doc, results):
    if results[0] == " 5":
        9 ** 9 ** 9
    return {"exact_match": 1.0}
"""
SLOW = """\
filter_list:
  - name: slow
    filter:
      - {function: regex, regex_pattern: "^(?: ?[0-9a-z]+)+\\\\.$"}
      - {function: take_first}
"""


def test_a_grader_and_a_filter_that_hang_are_killed(
    tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says = {"So the sum is": " 5. And so on.", "Both agree:": f" {'a' * 50}!."}
    file = tasks / "write.yaml"
    (tasks / "grading.py").write_text(HANGS)
    hangs = file.read_text().replace("mvspec_write", "mvspec_hangs")
    (tasks / "hangs.yaml").write_text(hangs + "process_results: !function grading.grade\n")
    slow = file.read_text().replace("mvspec_write", "mvspec_slow").replace("toks: 12", "toks: 60")
    (tasks / "slow.yaml").write_text(slow + SLOW)
    with harness.killed_graders(1.0):
        found = evaluate(tasks, scripted_engine(says), "mvspec_hangs", "mvspec_slow")
    assert found["results"]["mvspec_hangs"]["exact_match,none"] == 0.5
    assert found["results"]["mvspec_slow"]["exact_match,slow"] == 0.0
    errors = capsys.readouterr().err
    assert "grading an answer of mvspec_hangs took more than 1 s: it counts as wrong" in errors
    assert "the filter slow of mvspec_slow took more than 1 s" in errors
