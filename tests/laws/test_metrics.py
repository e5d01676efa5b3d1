"""Metrics agree with the definition, with hand counts, and with what was published."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from definition import positions, tokens, visible
from hypothesis import given
from qwen import qwen_tokenizer
from strategies import turns
from traces import CANONICAL

import mvspec
from mvspec import assistant, branch, document, gen, parallel, user
from mvspec.data.measure import count_words, measure, token_counter
from mvspec.errors import Unsupported
from mvspec.forms.untagged import UNTAGGED
from mvspec.law.metrics import Corpus, Metrics
from mvspec.law.tags import TAG
from mvspec.tree.ir import Message, Parallel

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"


def test_sequential_text() -> None:
    metrics = measure(document(user("How many?"), assistant("Four of them.")), count_words)
    assert metrics == Metrics(tokens=4, critical_path=4)  # the end of the turn is one
    assert metrics.parallelism == 1.0
    assert metrics.paths_per_block is None
    assert metrics.longest_over_mean is None


def test_nothing() -> None:
    assert measure(document()).parallelism == 1.0
    assert measure(document()).coverage == 0.0
    assert Corpus().to_dict()["parallelism"] is None


def test_block_by_hand() -> None:
    # Words: <Parallel> <Goal>, two times <Outline> n: A </Outline>, </Goal> are 11; a path is
    # <Path> n: text </Path>, 5 and 4; <Conclusion> done </Conclusion> </Parallel> are 4.
    block = parallel(branch("A", "x y"), branch("B", "z"), conclusion="done")
    assert measure(document(assistant(block)), count_words) == Metrics(
        tokens=24, critical_path=20, path_tokens=9, blocks=1, paths=2, depth=1, imbalance=5 / 4.5
    )


def test_nested_block_by_hand() -> None:
    inner = parallel(branch("A", "a"), branch("B", "b " * 7))
    block = parallel(branch("C", inner), branch("D", "d"), branch("E"))
    metrics = measure(document(assistant(block)), count_words)
    inner_path = 3 + 11 + (3 + 7) + 3  # its tags and label, the goal, the longer path, the join
    assert metrics.critical_path == 15 + inner_path + 3
    assert metrics.tokens == 15 + (inner_path + 4) + 4 + 3 + 3
    assert metrics.path_tokens == (inner_path + 4) + 4 + 3
    assert (metrics.blocks, metrics.paths, metrics.depth) == (2, 5, 2)
    lengths = inner_path, 4, 3
    assert metrics.imbalance == pytest.approx(10 / 7 + 3 * max(lengths) / sum(lengths))


def test_characters_are_those_of_the_surface_form() -> None:
    parsed = mvspec.parse(CANONICAL)
    assert measure(parsed).tokens == len(CANONICAL)
    plain = measure(parsed, syntax=UNTAGGED)
    assert plain.tokens == len(mvspec.render(parsed, "untagged"))
    assert plain.paths == measure(parsed).paths


def test_tags_and_headers_are_counted_alone() -> None:
    seen: list[str] = []

    def count(text: str) -> int:
        seen.append(text)
        return 1

    measure(document(assistant("x", parallel(branch("A", "a")))), count)
    assert seen == [
        "x\n", "<Parallel>", "\n", "<Goal>", "\n", "<Outline>", "\n1: A\n", "</Outline>", "\n",
        "</Goal>", "\n", "<Path>", "\n1:", " a\n", "</Path>", "\n", "<Conclusion>", "\n", "\n",
        "</Conclusion>", "\n", "</Parallel>", "\n",
    ]  # fmt: skip


@given(turns())
def test_chain_is_that_of_the_law(turn: Message) -> None:
    metrics = measure(document(turn), lambda text: 1 if TAG.fullmatch(text) else len(text))
    places = [token.place for token in tokens(turn)]
    assert metrics.tokens == len(places)
    assert metrics.critical_path == max(positions(visible(places)), default=-1) + 1
    assert metrics.path_tokens == sum(1 for place in places if place)
    assert metrics.blocks == sum(1 for _ in turn.walk(Parallel))
    assert metrics.paths == sum(1 for _ in turn.walk(mvspec.Path))
    assert metrics.depth == max((block.depth for block in turn.walk(Parallel)), default=0)


def test_turns_of_a_conversation_add_up() -> None:
    turn = assistant(parallel(branch("A", "x y"), branch("B", "z")))
    one = measure(document(user("so?"), turn))
    two = measure(document(user("so?"), turn, user("and?"), turn))
    assert (two.tokens, two.critical_path) == (2 * one.tokens, 2 * one.critical_path)
    assert two.parallelism == one.parallelism
    alone = measure(document(turn))
    assert (alone.tokens, alone.critical_path) == (one.tokens - 1, one.critical_path - 1)


def test_holes_have_no_length() -> None:
    with pytest.raises(Unsupported, match="'price'"):
        measure(document(assistant(gen("price"))))


def test_corpus_means() -> None:
    flat, wide = Metrics(10, 10), Metrics(30, 10, 24, 1, 3, 1, 1.5)
    record = (Corpus() + flat + wide).to_dict()
    assert record["documents"] == 2
    assert record["documents_with_blocks"] == 1
    assert record["parallelism"] == 2.0
    assert record["parallelism_with_blocks"] == 3.0
    assert record["parallelism_pooled"] == 2.0
    assert record["coverage"] == 24 / 40
    assert record["paths_per_block"] == 3.0
    assert record["longest_over_mean"] == 1.5
    assert set(wide.to_dict()) <= set(record)


def test_qwen_has_the_published_ids() -> None:
    tokenizer = qwen_tokenizer()
    assert tokenizer.token_to_id("<|endoftext|>") == 151643
    assert tokenizer.token_to_id("</Goal>") == 151670
    assert tokenizer.token_to_id("</Path>") == 151674
    assert tokenizer.encode("Hello world").ids == [9707, 1879]


def test_tokenizer_counts_tags_once_and_control_tokens_as_text() -> None:
    tokenizer = qwen_tokenizer()
    count = token_counter(tokenizer)
    assert count("</Conclusion>") == 1
    assert count("<|im_end|>") > 1
    # The tokenizer that was handed in is left as it was.
    assert len(tokenizer.encode("<|im_end|>").ids) == 1


def test_counter_of_what_is_no_tokenizer() -> None:
    with pytest.raises(Unsupported, match="str is no fast tokenizer"):
        token_counter("gpt2")


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs ../shared/corpus")
def test_degree_of_parallelism_is_the_published_one() -> None:
    count = token_counter(qwen_tokenizer())
    classes = json.loads((CORPUS / "dev-class.json").read_text("utf-8"))
    corpora: dict[str, Corpus] = defaultdict(Corpus)
    with (CORPUS / "multiverse-dev.jsonl").open(encoding="utf-8") as rows:
        for row in map(json.loads, rows):
            if classes[row["id"]] == "ok":
                corpora[row["source"]] += measure(mvspec.parse(row["output"]), count)
    aime, math = corpora["AIME24"].to_dict(), corpora["MATH500"].to_dict()
    assert aime["parallelism"] == pytest.approx(1.05, abs=0.005)
    assert math["parallelism"] == pytest.approx(1.06, abs=0.005)
    assert (aime["documents_with_blocks"], math["documents_with_blocks"]) == (8, 23)
    assert aime["parallelism_with_blocks"] == pytest.approx(1.08, abs=0.005)
    assert math["parallelism_with_blocks"] == pytest.approx(1.11, abs=0.005)
