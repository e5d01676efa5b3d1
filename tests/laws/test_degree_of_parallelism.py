"""One degree of parallelism: stats, compile, view, plan, trace and eval say the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bpe import chat_tokenizer
from hypothesis import example, given
from qwen import qwen_tokenizer
from strategies import turns
from traces import CANONICAL

import mvspec
from mvspec.compiler import Vocabulary, compile_stages, plan_cost, plan_document
from mvspec.compiler.token_view import lay_tokens
from mvspec.data.measure import count_words, measure, token_counter
from mvspec.law.metrics import Metrics
from mvspec.runtime.evaluation.results import shape_of
from mvspec.trace import Trace, TracedThread
from mvspec.tree.ir import Document, Message
from mvspec.view.record_view import AUTHORS, RecordView, TokenRun, ViewedThread, lay_words

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
CHAT = chat_tokenizer()
COUNT = token_counter(CHAT)


def viewed(threads: list[ViewedThread], runs: list[TokenRun]) -> Metrics:
    return RecordView("a", "a", "document", threads=threads, runs=runs).law()[0]


def traced(threads: list[ViewedThread], runs: list[TokenRun]) -> Trace:
    """The trace of a run that wrote the tokens of a view."""
    owners = [run.thread for run in runs for _ in range(run.size)]
    places = [run.position + offset for run in runs for offset in range(run.size)]
    n = len(owners)
    return Trace(
        threads=tuple(
            TracedThread(id=number, parent=thread.parent if number else None, block=thread.block)
            for number, thread in enumerate(threads)
        ),
        ids=(0,) * n,
        token_texts=("",) * n,
        thread_ids=tuple(owners),
        position_ids=tuple(places),
        authors=tuple(AUTHORS[run.author] for run in runs for _ in range(run.size)),
        logprobs=(None,) * n,
        forward_ids=(-1,) * n,
    )


def check(document: Document, tokenizer: object, counted: Metrics) -> None:
    """Hold what every command prints of a document to what stats counts."""
    stages = compile_stages(document, tokenizer)
    assert stages.metrics == counted
    own = stages.layout.position_ids[stages.tokens.free | stages.tokens.forced]
    if sum(message.role == "assistant" for message in document.messages) == 1 and len(own):
        assert counted.tokens == len(own)
        assert counted.critical_path == int(own.max()) - int(own.min()) + 1
    assert counted.critical_path == len(np.unique(own))
    cost = plan_cost(plan_document(document, tokenizer))
    assert (cost.critical_path, cost.parallelism) == (counted.critical_path, counted.parallelism)
    view = lay_tokens(document, Vocabulary.of(tokenizer))
    assert viewed(view.threads, view.runs) == counted
    assert traced(view.threads, view.runs).metrics == counted


@given(turns(max_depth=3))
@example(mvspec.parse(CANONICAL).messages[0])
def test_an_answer_has_one_degree(turn: Message) -> None:
    document = mvspec.document(mvspec.user("Why?"), turn)
    counted = measure(document, COUNT)
    check(document, CHAT, counted)
    for lowering in ("tree", "shared(2)"):  # `official` tokenises across headers
        assert compile_stages(document, CHAT, lowering).metrics == counted
    shape = shape_of(mvspec.render(mvspec.document(turn)), COUNT)
    assert (shape.tokens, shape.critical_path) == (counted.tokens, counted.critical_path)
    words = lay_words(document)
    assert viewed(words.threads, words.runs) == measure(document, count_words)


@given(turns(max_depth=2), turns(max_depth=2))
def test_a_conversation_and_a_turn_alone_have_one_degree(first: Message, second: Message) -> None:
    asked = mvspec.user("Why?")
    for document in (
        mvspec.document(asked, first, asked, second),
        mvspec.document(first),
    ):
        check(document, CHAT, measure(document, COUNT))


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs ../shared/corpus")
def test_real_traces_have_one_degree() -> None:
    tokenizer = qwen_tokenizer()
    count = token_counter(tokenizer)
    kinds = json.loads((CORPUS / "dev-class.json").read_text("utf-8"))
    with (CORPUS / "multiverse-dev.jsonl").open(encoding="utf-8") as rows:
        for row in map(json.loads, rows):
            if kinds[row["id"]] == "ok":
                document = mvspec.parse(row["output"])
                check(document, tokenizer, measure(document, count))
