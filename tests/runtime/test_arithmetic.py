"""The arithmetic task: what its documents say is true, and the small model does it by itself."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import islice, permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mvspec
from mvspec.cli.demo import show_adaptive_demo
from mvspec.compiler import additive_mask, compile_document
from mvspec.compiler.vocabulary import fingerprint, load_tokenizer
from mvspec.errors import VerifyError
from mvspec.runtime import TorchEngine
from mvspec.runtime.tasks.arithmetic import (
    TINY,
    ArithmeticDifficulty,
    ArithmeticProblem,
    answer_of,
    arithmetic_model,
    is_right,
    problems,
)
from mvspec.runtime.tasks.examination import UNHELD, examine, means, measure_replays
from mvspec.runtime.tasks.problem import PARALLEL, SPLITS, STEPWISE, ask, solve, split_of
from mvspec.tree.ir import Document, Parallel

shares = st.sampled_from((0.0, 0.3, 1.0))


@st.composite
def pairs(draw: st.DrawFn, least: int, most: int) -> tuple[int, int]:
    low = draw(st.integers(least, most))
    return low, draw(st.integers(low, most))


difficulties = st.builds(
    ArithmeticDifficulty,
    digits=pairs(1, 5),
    operands=pairs(2, 4),
    parts=pairs(2, 3),
    plain=st.sampled_from((0.0, 0.3)),
    nested=shares,
    depth=st.integers(1, 3),
    products=shares,
)


@st.composite
def drawn(draw_: st.DrawFn) -> ArithmeticProblem:
    return draw_(difficulties).draw(random.Random(draw_(st.integers(0, 2**32))))


def turn_text(document: Document) -> str:
    return mvspec.render(document.messages[1])


@given(drawn(), st.sampled_from((STEPWISE, PARALLEL)))
def test_every_document_is_legal_and_checks_its_own_answer(
    problem: ArithmeticProblem, prompt: str
) -> None:
    document = solve(problem, prompt)
    text = turn_text(document)
    assert is_right(text, problem.value)
    assert not is_right(text, problem.value + 1)
    assert eval(str(problem)) == problem.value
    assert Document.from_json(document.to_json()) == document
    assert mvspec.parse(text).messages[0] == document.messages[1]


@given(drawn())
def test_every_equation_that_a_document_works_with_is_true(problem: ArithmeticProblem) -> None:
    """Every `a+b=c` and `a*b=c` of the working: each total is the next one's first term."""
    lines = [line for line in turn_text(solve(problem)).splitlines() if "; " in line]
    assert lines
    for line in lines:
        named, worked = line.rsplit(": ", 1)
        columns, total = worked.rsplit("; ", 1)
        assert eval(named.split(": ")[-1]) == int(total)
        for column in columns.split(", "):
            before: str | None = None
            for term in column.split("="):
                known = before if before is not None else ""
                if known:
                    assert eval(known) == int(term.split("+")[0])
                before = term


@given(drawn())
def test_blocks_hold_the_parts_and_the_conclusion_needs_all_of_them(
    problem: ArithmeticProblem,
) -> None:
    def check(body: tuple[object, ...], of: ArithmeticProblem) -> None:
        blocks = [item for item in body if isinstance(item, Parallel)]
        assert len(blocks) == bool(of.parts)
        for block in blocks:
            values = ", ".join(str(part.value) for part in of.parts)
            assert block.conclusion.body[0].text == values  # type: ignore[union-attr]
            for path, part in zip(block.paths, of.parts, strict=True):
                check(path.body, part)

    check(solve(problem).messages[1].body, problem)


@given(drawn())
def test_every_lowering_compiles(problem: ArithmeticProblem) -> None:
    tokenizer = load_tokenizer(str(arithmetic_model()))
    document = solve(problem)
    layout = compile_document(document, tokenizer)
    for lowering in ("sequential", "official", "tree", "shared(1)", "shared(8)", "autoregressive"):
        other = compile_document(document, tokenizer, lowering)
        if lowering in ("sequential", "official", "shared(1)", "shared(8)"):
            # No merge crosses a forced header, so arms differ in their layout alone.
            assert sorted(other.input_ids) == sorted(layout.input_ids)


@given(drawn(), st.randoms())
def test_a_problem_turned_round_is_of_the_same_split(
    problem: ArithmeticProblem, stream: random.Random
) -> None:
    def turned(each: ArithmeticProblem) -> ArithmeticProblem:
        terms = [
            turned(term) if isinstance(term, ArithmeticProblem) else term for term in each.terms
        ]
        stream.shuffle(terms)
        return ArithmeticProblem(each.sign, tuple(terms))

    assert split_of(turned(problem)) == split_of(problem)


def test_splits_hold_no_problem_of_another() -> None:
    easy = ArithmeticDifficulty(
        digits=(1, 1), plain=0.9
    )  # so easy that problems come again and again
    found = {
        split: {repr(each.content) for each in islice(problems(split, seed, easy), 300)}
        for seed, split in enumerate(SPLITS)
    }
    for one, other in permutations(SPLITS, 2):
        assert not found[one] & found[other]
    again = list(islice(problems("test", 5), 20))
    assert again == list(islice(problems("test", 5), 20))
    assert again != list(islice(problems("test", 6), 20))


def test_what_is_no_answer_is_not_right() -> None:
    assert answer_of("Answer: 12\nAnswer: 13") == 13
    assert answer_of("Answer: 12 or so") is None
    assert not is_right("", 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"digits": (0, 2)}, {"digits": (3, 2)}, {"parts": (1, 2)}, {"plain": 1.5}, {"depth": 0},
    ],
)  # fmt: skip
def test_a_difficulty_that_is_none_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(VerifyError, match=next(iter(wrong))):
        ArithmeticDifficulty(**wrong)  # type: ignore[arg-type]


# The commands of examples/arithmetic


def test_the_generator_writes_what_compile_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import generate

    file = tmp_path / "some.jsonl"
    for more in ([], ["--questions"]):
        monkeypatch.setattr("sys.argv", ["generate.py", str(file), "--count", "4", *more])
        generate.main()
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        assert [row["id"] for row in rows] == [f"train-0-{index}" for index in range(4)]
        expected = list(islice(problems("train"), 4))
        if more:
            assert [row["answer"] for row in rows] == [problem.value for problem in expected]
        else:
            for row, problem in zip(rows, expected, strict=True):
                del row["id"]
                assert Document.from_json(json.dumps(row)) == solve(problem)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--parts 3 2", "error: --parts: (3, 2) is not a least from 2 and a most"),
        ("--task countdown --numbers 2 9", "error: --numbers: (2, 9) is not a least from 3"),
        ("--nested 3", "error: --nested: 3.0 is no share, 0 to 1"),
        ("--count -1", "argument --count: invalid whole value: '-1'"),
        ("--task foo", "argument --task: invalid choice: 'foo'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    says: str,
) -> None:
    import generate

    file = tmp_path / "new" / "out.jsonl"
    monkeypatch.setattr("sys.argv", ["generate.py", str(file), *arguments.split()])
    with pytest.raises(SystemExit, match="2"):
        generate.main()
    assert says in capsys.readouterr().err
    assert not file.parent.exists()
    monkeypatch.setattr("sys.argv", ["generate.py", str(file), "--count", "1"])
    generate.main()  # the folder need not be there
    assert file.read_text("utf-8").count("\n") == 1


def test_no_problem_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import evaluate

    monkeypatch.setattr("sys.argv", ["evaluate.py", "--count", "0"])
    with pytest.raises(SystemExit, match="2"):
        evaluate.main()
    assert "error: --count: 0 is not a whole number from 1 up" in capsys.readouterr().err


def test_the_tokenizer_of_the_model_is_the_scripts() -> None:
    import vocabulary

    assert fingerprint(vocabulary.build()) == fingerprint(load_tokenizer(str(arithmetic_model())))


# The small model


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine.load(arithmetic_model(), device="cpu")


def test_the_small_model_is_small() -> None:
    assert sum(path.stat().st_size for path in arithmetic_model().iterdir()) <= 5_000_000


def test_the_small_model_forks_by_itself_and_is_right(engine: TorchEngine) -> None:
    asked = list(islice(problems("test", seed=7, difficulty=TINY), 24))
    marks = [mark for mark, _ in examine(engine, asked)]
    found = means(marks)
    assert found["right"] >= 0.9
    assert found["well_formed"] >= 0.9
    assert [mark.forked for mark in marks] == [bool(each.parts) for each in asked]
    assert found["parallelism"] > 1.1


def test_law_8_holds_on_the_trained_model(engine: TorchEngine) -> None:
    """Logits of one training forward are those of the engine's steps, forks of its own and all."""
    nested = next(p for p in problems("test") if any(part.parts for part in p.parts))
    result = engine.run(ask(nested), replace(UNHELD, logits=True))
    layout = result.trace.layout
    assert layout.depth > 0
    with torch.no_grad():
        trained = engine.model.model(
            input_ids=torch.from_numpy(layout.input_ids).long()[None],
            position_ids=torch.from_numpy(layout.position_ids).long()[None],
            attention_mask=additive_mask(layout),
            use_cache=False,
        ).logits[0]
    assert result.logits is not None
    pairs = [(mine, trained[i]) for i, mine in enumerate(result.logits) if mine is not None]
    assert len(pairs) >= result.trace.answer - 2
    assert max(float((mine - other).abs().max()) for mine, other in pairs) < 3e-4


def test_the_adaptive_demo_shows_and_measures(capsys: pytest.CaptureFixture[str]) -> None:
    results = show_adaptive_demo(count=3)
    shown = capsys.readouterr().out
    assert "3 of 3 right, 3 well-formed" in shown
    assert "path 1:" in shown
    assert "one path after the other" in shown
    assert any(len(result.trace.threads) > 2 for result in results)


def test_measuring_reads_the_same_tokens_in_more_forwards(engine: TorchEngine) -> None:
    forked = next(each for each in problems("test", seed=1) if each.parts)
    trace = engine.run(ask(forked), UNHELD).trace
    found = measure_replays(engine, [trace], rounds=1)
    assert found.forwards < found.forwards_alone
    assert min(found.seconds, found.seconds_alone) > 0
