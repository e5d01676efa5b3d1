"""Real outputs of a Multiverse model, where they lie beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path

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
