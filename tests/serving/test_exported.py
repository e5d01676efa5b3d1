"""A folder that training wrote: SGLang serves it, and writes what the engine in process writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from clock import Clock, server_of
from lightning.pytorch import Trainer
from report import Records, write_report
from served import Served, serve
from settings import load_settings
from typer.testing import CliRunner

from mvspec.cli import app
from mvspec.compiler import compile_document
from mvspec.errors import MvspecError
from mvspec.law.limits import Limits
from mvspec.runtime import Options, Result, SGLangEngine, TorchEngine
from mvspec.runtime.tasks.arithmetic import (
    TINY,
    ArithmeticProblem,
    arithmetic_model,
    is_right,
    problems,
)
from mvspec.runtime.tasks.examination import UNHELD, mark, means
from mvspec.runtime.tasks.problem import ask, question_of, solve
from mvspec.training import LanguageModel, LayoutData, Optimizer

NIGHTLY = os.environ.get("MVSPEC_PROFILE") == "nightly"
ASKED = list(islice(problems("test", 0, TINY), 120 if NIGHTLY else 12))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that comes with the package, trained on for two steps and exported."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("exported")
    module = LanguageModel(str(arithmetic_model()), optimizer=Optimizer(lr=1e-4))
    layouts = [
        compile_document(solve(problem), module.tokenizer)
        for problem in islice(problems("train", 0, TINY), 8)
    ]
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=root,
    )  # fmt: skip
    trainer.fit(module, LayoutData(layouts, batch_size=4))
    trainer.save_checkpoint(root / "last.ckpt")
    given = ["train", "export", str(root / "last.ckpt"), "-o", str(root / "model")]
    made = CliRunner().invoke(app, [*given, "--dtype", "bfloat16"])
    assert made.exit_code == 0, made.output
    return root / "model"


@pytest.fixture(scope="module")
def trained(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of it."""
    with serve(exported, tmp_path_factory.mktemp("log") / "server.log", "--native") as served:
        yield served


@pytest.fixture(scope="module")
def reference(exported: Path) -> TorchEngine:
    """The same weights in this process."""
    return TorchEngine.load(exported, dtype="float32")


def score(results: list[Result], asked: list[ArithmeticProblem]) -> dict[str, float]:
    return means(mark(*pair) for pair in zip(results, asked, strict=True))


def test_a_trained_model_answers_as_in_process(trained: Served, reference: TorchEngine) -> None:
    documents = [ask(problem) for problem in ASKED]
    found = SGLangEngine(trained.url).run_many(documents, UNHELD)
    wanted = reference.run_many(documents, UNHELD)
    for one, other in zip(found, wanted, strict=True):
        assert one.trace.ids == other.trace.ids
        assert one.document == other.document
        assert list(one.trace.position_ids) == list(other.trace.position_ids)
    mine, theirs = score(found, ASKED), score(wanted, ASKED)
    for name in ("right", "well_formed", "forked", "critical_path", "parallelism"):
        assert mine[name] == theirs[name]
    # It has kept what it had learnt: it forks by itself, and its answers are right.
    assert mine["right"] > 0.9
    assert mine["well_formed"] == 1
    assert mine["forked"] > 0.5


def test_plain_chats_fork_and_are_right(trained: Served, reference: TorchEngine) -> None:
    held = Options(limits=Limits(max_tokens=1500))  # as chats are
    wanted = reference.run_many([ask(problem) for problem in ASKED], held)
    client = openai.OpenAI(base_url=f"{trained.url}/v1", api_key="none", max_retries=0)

    def chat(problem: ArithmeticProblem) -> Any:
        said: Any = {"role": "user", "content": question_of(problem)}
        return client.chat.completions.create(
            model=str(trained.folder), messages=[said], temperature=0, max_tokens=1500
        )

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(chat, ASKED))
    for answer, result in zip(answers, wanted, strict=True):
        assert answer.choices[0].message.content == result.trace.text.removesuffix("<|im_end|>")
        assert answer.usage.completion_tokens == result.trace.answer
        assert answer.choices[0].finish_reason == "stop"
    right = sum(
        is_right(answer.choices[0].message.content, problem.value)
        for answer, problem in zip(answers, ASKED, strict=True)
    )
    assert right > 0.9 * len(ASKED)


def test_the_command_asks_the_server(trained: Served, tmp_path: Path) -> None:
    program = tmp_path / "question.json"
    program.write_text(
        ask(
            ArithmeticProblem(
                "+", (ArithmeticProblem("+", (47, 85)), ArithmeticProblem("+", (23, 9)))
            )
        ).to_json()
    )
    found = CliRunner().invoke(
        app, ["run", str(program), "--engine", trained.url, "--max-tokens", "400"]
    )
    assert found.exit_code == 0, found.stderr
    assert found.stdout.count("<Path>") == 2
    assert "Answer: 164" in found.stdout


def test_the_comparison_measures_both_engines(
    trained: Served, exported: Path, tmp_path: Path
) -> None:
    file = Path(__file__).parents[2] / "examples" / "parity" / "tiny.yaml"
    settings = load_settings(file).smoke()
    records = Records(tmp_path / "results.jsonl")
    clock = Clock(settings, records, lambda arm: exported, tmp_path / "words")
    for wrong, message in (
        ("sequential", r"has tags, .*--tokenizer-path .*words"),
        ("shared(8)", "share"),
    ):
        with pytest.raises(MvspecError, match=message):
            clock.both([server_of(f"{wrong}={trained.url}")])
    with pytest.raises(MvspecError, match="is not ARM=URL"):
        server_of("multiverse")
    for _ in range(2):  # what is measured is kept
        clock.both([server_of(f"multiverse={trained.url}")])
    local, served = records.rows
    assert (local["engine"], served["engine"]) == ("torch", "sglang")
    for name in ("right", "well_formed", "tokens", "critical_path", "parallelism", "problems"):
        assert local[name] == served[name]
    assert local["seconds"] > 0 < served["together_seconds"]
    write_report(records.rows, settings, tmp_path, device="CPU")
    report = (tmp_path / "results.md").read_text("utf-8")
    assert "| multiverse | in process |" in report
    assert "| multiverse | SGLang |" in report
