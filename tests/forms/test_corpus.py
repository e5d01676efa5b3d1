"""Real outputs of a Multiverse model, where they lie beside the checkout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from qwen import qwen_tokenizer

import mvspec
from mvspec.compiler import (
    Vocabulary,
    compile_document,
    document_segments,
    layout_from_ids,
    plan_document,
    plan_layout,
)

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"

pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason="needs the corpus of real outputs")


def well_formed() -> list[mvspec.Document]:
    kinds = json.loads((CORPUS / "dev-class.json").read_text("utf-8"))
    lines = (CORPUS / "multiverse-dev.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [mvspec.parse(row["output"]) for row in rows if kinds[row["id"]] == "ok"]


BLOCK = re.compile(r"<Parallel>(.*?)</Parallel>\s*<Summary>(.*?)</Summary>", re.DOTALL)
PATH = re.compile(r"<Path>(.*?)</Path>", re.DOTALL)


def said(body: tuple[Any, ...]) -> str:
    return "".join(item.text for item in body)


def test_rows_of_parallel_r1() -> None:
    lines = (CORPUS / "parallel-r1-dev.jsonl").read_text("utf-8").rstrip("\n").split("\n")
    verdicts = []
    for row in map(json.loads, lines):
        for text in (row["output"], row["answer_tight"]):
            document, diagnostics = mvspec.parse(text, "parallel-r1", recover=True)
            verdicts.append(not diagnostics)
            body = document.messages[0].body
            blocks = [item for item in body if isinstance(item, mvspec.Parallel)]
            assert len(blocks) == len(BLOCK.findall(text))
            for block, (paths, summary) in zip(blocks, BLOCK.findall(text), strict=True):
                assert said(block.conclusion.body).strip() == summary.strip()
                assert len(block.paths) == len(PATH.findall(paths))
                if not diagnostics:
                    found = [said(path.body).strip() for path in block.paths]
                    assert found == [path.strip() for path in PATH.findall(paths)]
            outside = [each for each in BLOCK.split(text)[::3] if each.strip()]
            texts = [item.text for item in body if isinstance(item, mvspec.Text)]
            for each, kept in zip(outside, texts, strict=True):
                before, _, after = each.partition(kept)
                assert kept in each
                assert before.strip() == after.strip() == ""
                assert before.count("\n") <= 1
                assert after.count("\n") <= 1
    # One row has words between its tags: "First, <Path>".
    assert (len(verdicts), sum(verdicts)) == (240, 238)


def test_all_compile_and_a_models_own_ids_give_the_same_layout() -> None:
    tokenizer = qwen_tokenizer()
    documents = well_formed()
    assert len(documents) == 53
    for document in documents:
        layout = compile_document(document, tokenizer)
        assert layout_from_ids(layout.input_ids, tokenizer) == layout
        assert plan_layout(plan_document(document, tokenizer)) == layout
        assert Vocabulary.of(tokenizer).decode(layout.input_ids) == mvspec.render(document)


def test_segments_split_no_token_that_the_whole_text_has() -> None:
    # Forced boundaries could split tokens (tests/compiler/test_segments.py shows one that does);
    # in these outputs, which have a space after every label, none of them does.
    tokenizer = qwen_tokenizer()
    boundaries = 0
    for document in well_formed():
        whole = Vocabulary.of(tokenizer).encode(mvspec.render(document))
        assert compile_document(document, tokenizer).input_ids.tolist() == whole
        boundaries += len(document_segments(document, tokenizer)) - 1
    assert boundaries == 776
