"""The studies, small: planted directions are found, controls are not, counts are as labelled."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

import implicit
import marking
import probing
import prompting
import sharing
import study
from bpe import chat_tokenizer, small_tokenizer
from problems import CONNECTIVES, problems
from reading import read_layouts
from tiny import chat, tiny_model
from traces import CANONICAL
from width import find_branches, width

import mvspec as mv
from mvspec.compiler import compile_document
from mvspec.curation import split_sentences
from mvspec.curation.tasks import prompting_verdict
from mvspec.errors import MvspecError, VerifyError
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.untagged import UNTAGGED


def saved(folder: Path) -> Path:
    """A tiny model in float32 with a tokenizer that knows no tags."""
    tokenizer = chat()
    model = tiny_model("Llama", len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_problems_are_well_formed_and_say_nothing_before_a_stage() -> None:
    some = problems(60)
    assert some == problems(60)
    before: dict[str, set[str]] = {"block": set(), "chain": set()}
    for problem in some:
        text = mv.render(problem.solution)
        assert mv.parse(text).messages[0] == problem.solution
        blocks = list(problem.solution.walk(mv.Parallel))
        assert len(blocks) == problem.stages.count("block")
        reading, starts = study.sequential_reading(problem.solution)
        assert "<" not in reading
        lines = reading.split("\n")
        found = [line for line in lines if line in CONNECTIVES]
        assert len(found) == len(problem.stages)
        for kind, line in zip(problem.stages, found, strict=True):
            before[kind].add(line)
        for start in starts:
            assert reading[:start].rstrip("\n").split("\n")[-1] in CONNECTIVES
    assert before["block"] == before["chain"] == set(CONNECTIVES)


def test_sequential_reading_leaves_out_what_announces_a_block() -> None:
    block = mv.parallel(mv.branch("a", "One."), mv.branch("b", "Two."), conclusion="Both.")
    turn = mv.assistant(mv.think("Hm.\nLet's think in parallel.", block, "So."), "Answer: 2")
    text, starts = study.sequential_reading(turn)
    assert text == "Hm.\nOne.\nTwo.\nSo.\nAnswer: 2"
    assert [text[at:] for at in starts] == ["One.\nTwo.\nSo.\nAnswer: 2"]
    assert study.sequential_reading(mv.assistant(block))[1] == [0]


def test_a_reading_is_the_models_own_loss() -> None:
    tokenizer = small_tokenizer()
    model = tiny_model("Qwen2", tokenizer.get_vocab_size(with_added_tokens=True))
    layouts = [
        compile_document(mv.parse(text), tokenizer, lowering)
        for text in (CANONICAL, "Four and five.")
        for lowering in ("sequential", "multiverse")
    ]
    kept = [[0, len(layout) - 1] for layout in layouts]
    alone = [next(read_layouts(model, [layout])) for layout in layouts]
    readings = list(read_layouts(model, layouts, hidden=kept, batch=3))
    plain = layouts[0]
    logits = model(torch.from_numpy(plain.input_ids).long()[None]).logits[0, :-1].float()
    ids = torch.from_numpy(plain.input_ids).long()[1:]
    wanted = torch.nn.functional.cross_entropy(logits, ids, reduction="none").detach().numpy()
    assert np.isnan(readings[0].losses[0])
    assert np.allclose(readings[0].losses[1:], wanted, atol=1e-5)
    for one, batched, layout in zip(alone, readings, layouts, strict=True):
        assert np.allclose(one.losses, batched.losses, atol=1e-5, equal_nan=True)
        assert batched.hidden is not None
        assert batched.hidden.shape == (3, 2, 32)
        assert np.isnan(batched.losses).sum() == (layout.parent < 0).sum()
    with pytest.raises(VerifyError, match="2 entries for 4 layouts"):
        list(read_layouts(model, layouts, hidden=kept[:2]))


def planted(strength: float) -> marking.Examples:
    """Examples of which layer 1 has the label in a direction, and layer 0 nothing."""
    draw = np.random.default_rng(0)
    labels = draw.random(400) < 0.4
    contexts = [tuple(draw.integers(0, 6, 4).tolist()) for _ in labels]
    hidden = draw.normal(size=(2, 400, 16)).astype(np.float32)
    direction = draw.normal(size=16)
    hidden[1] += strength * np.outer(np.where(labels, 1, -1), direction).astype(np.float32)
    documents = np.repeat(np.arange(80), 5).tolist()
    return marking.Examples(
        labels.tolist(), documents, [{"matched"}] * 400, contexts, [0] * 400, hidden
    )


def test_a_probe_finds_a_planted_direction_and_its_control_does_not() -> None:
    result = probing.measure(planted(1.0), "matched", seeds=3, stride=1, most=400)
    probe = {layer: np.mean(each["probe"]) for layer, each in result["layers"].items()}
    assert probe["1"] > 0.95
    assert abs(probe["0"] - 0.5) < 0.1
    assert abs(np.mean(result["layers"]["1"]["control"]) - 0.5) < 0.15
    assert abs(np.mean(result["surface"]) - 0.5) < 0.12
    assert np.mean(result["mlp"]) > 0.9
    assert "(layer 1)" in probing.report({"matched": result})


def test_without_a_direction_a_probe_guesses() -> None:
    result = probing.measure(planted(0.0), "matched", seeds=3, stride=1, most=400)
    assert all(abs(np.mean(each["probe"]) - 0.5) < 0.1 for each in result["layers"].values())


def test_probing_runs_on_problems_and_on_a_corpus(tmp_path: Path) -> None:
    model = str(saved(tmp_path / "model"))
    page = tmp_path / "page.md"
    page.write_text(
        "A\n<!-- results: probing-corpus -->\nold\n<!-- end: probing-corpus -->\nZ\n", "utf-8"
    )
    rows = [
        {"output": mv.render(each.solution), "question": each.question} for each in problems(30)
    ]
    rows.append({"output": "<Parallel>", "question": "malformed"})
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    out = tmp_path / "out"
    with pytest.raises(MvspecError, match="needs --corpus"):
        probing.main(model, source="corpus")
    probing.main(
        model, documents=31, seeds=1, source="corpus", corpus=corpus, output=out, page=page
    )
    results = json.loads((tmp_path / "out/results.json").read_text("utf-8"))
    assert set(results) == set(marking.SETS)
    blocks = sum(each.stages.count("block") for each in problems(30))
    assert results["line ends"]["positive"] == blocks
    assert results["matched"]["tokens"] == sum(len(each.stages) for each in problems(30))
    assert page.read_text("utf-8").startswith("A\n<!-- results: probing-corpus -->\n| Set |")
    assert "<svg" in (tmp_path / "out/probing-corpus.svg").read_text("utf-8")


def test_under_the_law_the_token_before_a_block_is_the_one_that_chooses_it(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    for problem in problems(6):
        marked = marking.marked_document(tokenizer, problem.document)
        opening = tokenizer.convert_tokens_to_ids("<Parallel>")
        layout = marked.layout
        chosen = {
            token
            for token in marked.chosen
            if opening in layout.input_ids[np.flatnonzero(layout.parent == token)]
        }
        assert chosen == {token for token, (label, _) in marked.chosen.items() if label}
        assert len(chosen) == problem.stages.count("block")
    model = str(saved(tmp_path / "model"))
    corpus = tmp_path / "documents.jsonl"
    rows = [json.loads(each.document.to_json()) for each in problems(20)]
    corpus.write_text("".join(json.dumps({"document": row}) + "\n" for row in rows), "utf-8")
    probing.main(
        model, documents=20, seeds=1, stride=2, source="law", corpus=corpus, field="document",
        output=tmp_path / "out",
    )  # fmt: skip
    results = json.loads((tmp_path / "out/results.json").read_text("utf-8"))
    assert set(results) == {"any token"}  # no turn begins with a block
    given = [marking.marked_document(tokenizer, problem.document) for problem in problems(20)]
    (tmp_path / "out/states-000016.npy").unlink()  # as a kill leaves it
    loaded = deepcopy(tiny_model("Llama", len(tokenizer))).float()
    again = marking.collect(loaded, given, tmp_path / "out").hidden
    assert np.array_equal(again, marking.collect(loaded, given).hidden)
    with pytest.raises(MvspecError, match="read more documents"):
        probing.main(model, documents=2, output=tmp_path / "few")


def test_rules_agree_with_labels() -> None:
    chains = implicit.labelled()
    assert len(chains) == 40
    score = implicit.agreement(chains)
    assert score.precision >= 0.85
    assert score.recall >= 0.85
    perfect = [implicit.Chain(c.name, c.text, tuple(implicit.found_spans(c.text))) for c in chains]
    again = implicit.agreement(perfect)
    assert again.precision == again.recall == 1


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("Case 1: a. Case 2: b. In both cases c.", [(1, 1), (2, 2)]),
        ("1. It is 14.\n2. With 14 it is 28.\n", []),
        ("Nothing forks here. It goes on.", []),
        ("One way. It fails.\n\nAlternatively, another.", [(1, 2), (3, 3)]),
    ],
)
def test_branches(text: str, spans: list[tuple[int, int]]) -> None:
    found = find_branches(split_sentences(text)).branchings
    assert [(b.first, b.last) for each in found for b in each.branches] == spans


def test_width_is_a_bound() -> None:
    sentences = split_sentences("Case 1: one two three. Case 2: one. So, in all, it is four.")
    size = width(sentences, find_branches(sentences))
    assert size.words == 14
    assert size.covered == 8
    assert size.path == 11
    assert width((), find_branches(())).speedup == 1


def test_implicit_reads_outputs_with_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = mv.parallel(mv.branch("a", "Case 1: x is 3."), mv.branch("b", "Case 2: y is 4."))
    turn = mv.render(mv.assistant("Two of them.", block, "So, in all, 7."))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"output": turn}) + "\n", "utf-8")
    implicit.main(corpus, form="multiverse")
    assert "| recall | 1 of 1 (100%) |" in capsys.readouterr().out
    with pytest.raises(MvspecError, match="has no"):
        implicit.read_marks("a", "[[One. || Two.")


def test_prompting_counts_what_a_model_writes_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(saved(tmp_path / "model"))
    out = tmp_path / "out"
    prompting.main(model, count=2, max_tokens=8, batch=2, output=out)
    first = (out / "answers.jsonl").read_text("utf-8")
    assert len(first.splitlines()) == 1 + 2 * len(prompting.CONDITIONS)
    # A kill cuts the last line; what it held is asked again, and nothing else.
    (out / "answers.jsonl").write_text(first[:-20], "utf-8")
    capsys.readouterr()
    prompting.main(model, count=2, max_tokens=8, batch=2, output=out)
    assert (out / "answers.jsonl").read_text("utf-8") == first
    assert "| few-shot | 2 | 0 |" in capsys.readouterr().out
    with pytest.raises(MvspecError, match="other settings"):
        prompting.main(model, count=2, max_tokens=9, output=out)


def test_a_prompt_shows_the_form_and_tags_in_it_are_text() -> None:
    problem, *shots = problems(3)
    document = prompting.asked(problem, "few-shot", shots, 8)
    text = document.messages[0].body[0]
    assert isinstance(text, mv.Text)
    assert text.text.count("Problem: ") == 3
    assert text.text.endswith(problem.question)
    assert "<Goal 1>" in text.text
    solved = mv.render(problem.solution, form="multiverse-prompt")
    assert prompting.is_right(solved, problem)
    assert not prompting.is_right("The sum is 5.", problem)
    verdict = prompting_verdict(solved)
    assert verdict["ok"]
    assert verdict["blocks"] == problem.stages.count("block")


@pytest.mark.parametrize("syntax", [MULTIVERSE, UNTAGGED])
@pytest.mark.parametrize("lowering", sharing.LOWERINGS)
def test_the_same_tokens_are_scored_under_each_lowering(lowering: str, syntax: Any) -> None:
    document = next(each.document for each in problems(9) if "block" in each.stages)
    tokenizer = chat_tokenizer()
    law = sharing.scored(document, tokenizer, "multiverse", syntax)
    other = sharing.scored(document, tokenizer, lowering, syntax)
    for mine, theirs in ((law.first, other.first), (law.later, other.later)):
        assert mine.any()
        ids = (law.layout.input_ids[mine], other.layout.input_ids[theirs])
        assert sorted(ids[0].tolist()) == sorted(ids[1].tolist())
        places = (law.layout.position_ids[mine], other.layout.position_ids[theirs])
        if lowering != "sequential":
            assert sorted(zip(*map(np.ndarray.tolist, (ids[0], places[0])), strict=True)) == sorted(
                zip(*map(np.ndarray.tolist, (ids[1], places[1])), strict=True)
            )


def test_sharing_is_the_law_where_rounds_outlast_the_paths(tmp_path: Path) -> None:
    model = str(saved(tmp_path / "model"))
    sharing.main(model, documents=3, output=tmp_path / "out")
    rows = [
        json.loads(line) for line in (tmp_path / "out/losses.jsonl").read_text("utf-8").splitlines()
    ][1:]
    assert len(rows) == 3 * len(sharing.LOWERINGS)
    # The small tokenizer makes longer paths than 64 tokens of some.
    assert np.abs(sharing.differences(rows, "shared(1)", "later")).max() > 1e-4
    first = sharing.differences(rows, "sequential", "first")
    assert np.abs(first).max() < 1e-4  # a first path of the first block reads the same in both


def test_documents_of_a_corpus_are_those_of_the_problems(tmp_path: Path) -> None:
    model = str(saved(tmp_path / "model"))
    some = [each.document for each in problems(6)]
    corpus = tmp_path / "documents.jsonl"
    rows = [{"id": str(i), **json.loads(each.to_json())} for i, each in enumerate(some)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert list(study.read_documents(corpus, ".")) == some
    with pytest.raises(MvspecError, match=r"documents.jsonl:1: no field 'document': there is"):
        list(study.read_documents(corpus, "document"))
    sharing.main(model, documents=2, output=tmp_path / "made")
    sharing.main(model, documents=2, corpus=corpus, field=".", output=tmp_path / "read")
    made, read = (
        (tmp_path / name / "losses.jsonl").read_text("utf-8").splitlines()[1:]
        for name in ("made", "read")
    )
    assert made == read


def test_studies_say_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(Path(implicit.__file__))
    monkeypatch.setattr(sys, "argv", [script, "--chains", str(tmp_path / "none.jsonl")])
    with pytest.raises(SystemExit) as ended:
        study.start(implicit.main)
    assert ended.value.code == 2
    assert "none.jsonl" in capsys.readouterr().err
    page = tmp_path / "page.md"
    page.write_text("nothing", "utf-8")
    with pytest.raises(MvspecError, match="no place for results"):
        study.publish("implicit", "text", page)
