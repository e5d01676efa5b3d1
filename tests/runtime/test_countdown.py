"""The Countdown task: documents search truly, wrong expressions are wrong, splits are apart."""

from __future__ import annotations

import json
import random
import re
import warnings
from dataclasses import replace
from itertools import islice, permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import mvspec
from mvspec.cli import app
from mvspec.cli.training_cli import main as train
from mvspec.compiler import compile_document
from mvspec.compiler.vocabulary import load_tokenizer
from mvspec.errors import Unsupported, VerifyError
from mvspec.forms import FORMS
from mvspec.runtime.tasks.arithmetic import arithmetic_model
from mvspec.runtime.tasks.countdown import (
    TINY,
    CountdownDifficulty,
    CountdownProblem,
    is_right,
    value_of,
)
from mvspec.runtime.tasks.problem import PARALLEL, SPLITS, STEPWISE, problems, solve, split_of
from mvspec.tree.ir import Document, Parallel

EXAMPLE = Path(__file__).parents[2] / "examples" / "countdown"

difficulties = st.builds(
    CountdownDifficulty,
    numbers=st.sampled_from(((3, 3), (3, 4))),
    values=st.sampled_from(((1, 9), (1, 20), (1, 60))),
    targets=st.sampled_from(((10, 99), (1, 150))),
    signs=st.sampled_from(("+-", "+-*", "+-*/", "*+", "/*")),
    plain=st.sampled_from((0.0, 0.3)),
)


@st.composite
def drawn(draw: st.DrawFn) -> CountdownProblem:
    return draw(difficulties).draw(random.Random(draw(st.integers(0, 2**32))))


def turn_text(document: Document) -> str:
    return mvspec.render(document.messages[1])


@given(drawn(), st.sampled_from((STEPWISE, PARALLEL)))
def test_every_document_is_legal_and_its_answer_right(
    problem: CountdownProblem, prompt: str
) -> None:
    document = solve(problem, prompt)
    text = turn_text(document)
    assert problem.is_right(text)
    assert not replace(problem, target=problem.target + 1).is_right(text)
    assert Document.from_json(document.to_json()) == document
    assert mvspec.parse(text).messages[0] == document.messages[1]


@given(drawn())
def test_every_form_that_can_hold_a_document_reads_what_it_writes(
    problem: CountdownProblem,
) -> None:
    turn = solve(problem).messages[1]
    depth = 0 if "<Parallel>" not in mvspec.render(turn) else len(problem.numbers) - 2
    for name, form in FORMS.items():
        syntax = form.syntax
        try:
            text = mvspec.render(turn, form=name)
        except Unsupported:
            # Nested blocks, and outlines or conclusions that a form does not have.
            without = ("curator-summary", "curator-plan", "parallel-r1")
            assert depth > syntax.max_depth or name in without
            continue
        if syntax.tagged:
            again = mvspec.parse(text, form=name).messages[0]
            assert mvspec.render(again, form=name) == text
            if not syntax.counted:
                assert again == turn


@given(drawn())
def test_every_equation_is_true_and_numbers_carry_over(problem: CountdownProblem) -> None:
    text = turn_text(solve(problem))
    equations = re.findall(r"([0-9]+)([-+*/])([0-9]+)([=>])([0-9]+)", text)
    assert len(equations) >= 2
    for big, sign, small, relation, result in equations:
        value, known = eval(f"{big}{sign}{small}"), int(result)
        assert value == known if relation == "=" else value > known == problem.limit
        assert int(big) >= int(small) or sign == "+"
    for hit in re.finditer(r"=([0-9]+)!", text):
        assert int(hit[1]) == problem.target


def reachable(numbers: tuple[int, ...], problem: CountdownProblem) -> bool:
    """Whether the target can be reached: every order of numbers, operations and groups."""
    if len(numbers) == 1:
        return numbers[0] == problem.target
    for first, second, *rest in permutations(numbers):
        if first < second:
            continue
        for sign in problem.signs:
            if sign == "/" and (second == 0 or first % second):
                continue
            result = int(eval(f"{first}{sign}{second}"))
            if result <= problem.limit and reachable((result, *rest), problem):
                return True
    return False


@given(drawn())
def test_blocks_hold_the_search_and_their_conclusions_what_paths_found(
    problem: CountdownProblem,
) -> None:
    def check(body: tuple[object, ...], numbers: tuple[int, ...]) -> None:
        for block in (item for item in body if isinstance(item, Parallel)):
            found = block.conclusion.body[0].text.split(", ")  # type: ignore[union-attr]
            assert len(found) == len(block.paths) == len(numbers) * (len(numbers) - 1) // 2
            for path, each in zip(block.paths, found, strict=True):
                last = path.body[-1].text  # type: ignore[union-attr]
                assert last.endswith("no") if each == "no" else last.endswith(f"! {each}")
                if each != "no":
                    known = value_of(each)
                    assert known is not None
                    assert known[0] == problem.target
                    assert sorted(known[1]) == sorted(numbers)

    body = solve(problem).messages[1].body
    check(body, problem.numbers)
    unsolved = replace(problem, target=problem.limit)
    text = turn_text(solve(unsolved))
    if sum(problem.numbers) != unsolved.target:
        assert unsolved.is_right(text) == reachable(unsolved.numbers, unsolved)


def test_a_search_may_have_nothing_to_try() -> None:
    text = turn_text(solve(CountdownProblem(9, (7, 6, 4), "/")))
    assert "1: 7, 6 and 4: no\n" in text
    assert "1: 8, 4 and 7: 8/4=2 and 7: no\n" in turn_text(
        solve(CountdownProblem(9, (8, 4, 7), "/"))
    )


def test_what_is_not_found_is_said_and_what_is_left_is_searched() -> None:
    text = turn_text(solve(CountdownProblem(2, (4, 2, 1), "-")))
    assert "1: 4, 2 and 1: 4-2=2 and 1: 2-1=1 no\n" in text
    assert text.endswith("no, no, no\n</Conclusion>\n</Parallel>\nAnswer: no")
    nested = turn_text(solve(CountdownProblem(20, (9, 8, 3, 1), "+-*")))
    assert "1: 9, 8 and 3, 1: 9+8=17 and 3, 1:\n<Parallel>" in nested
    assert nested.endswith("Answer: ((9+8)+3)*1")


def test_the_page_shows_what_the_search_writes() -> None:
    text = turn_text(solve(CountdownProblem(24, (1, 12, 1))))
    assert f"```text\n{text}\n```" in (EXAMPLE / "README.md").read_text("utf-8")


@given(drawn(), st.randoms())
def test_a_problem_in_another_order_is_of_the_same_split(
    problem: CountdownProblem, stream: random.Random
) -> None:
    numbers = list(problem.numbers)
    stream.shuffle(numbers)
    assert split_of(replace(problem, numbers=tuple(numbers))) == split_of(problem)


def test_splits_hold_no_problem_of_another() -> None:
    easy = CountdownDifficulty(
        (3, 3), (1, 5), (5, 20)
    )  # so easy that problems come again and again
    found = {
        split: {each.content for each in islice(problems(split, seed, easy), 300)}
        for seed, split in enumerate(SPLITS)
    }
    for one, other in permutations(SPLITS, 2):
        assert not found[one] & found[other]
    again = list(islice(problems("test", 5, TINY), 20))
    assert again == list(islice(problems("test", 5, TINY), 20))
    assert again != list(islice(problems("test", 6, TINY), 20))


def test_shares_are_kept() -> None:
    asked = list(islice(problems("train", 0, replace(TINY, plain=0.3)), 1000))
    plain = [sum(each.numbers) == each.target for each in asked]
    assert 0.25 < sum(plain) / 1000 < 0.35
    forked = [
        any(isinstance(item, Parallel) for item in solve(each).messages[1].body) for each in asked
    ]
    assert forked == [not each for each in plain]


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("8*3*1", True),
        ("(1*3)*8", True),
        ("8/(1/3)", True),  # no search finds it, and it is right
        ("8*3", False),  # 1 is not used
        ("8*3*1*1", False),
        ("8*3+1", False),
        ("12*2", False),
        ("24", False),
        ("no", False),
        ("8*3*1 or so", False),
        ("(8*3*1", False),
        ("8**3", False),
        ("8//3", False),
        ("8/(3-3)*1", False),
        ("-8*-3*1", False),
        ("3(8)*1", False),
        ("08*3*1", False),
        ("(" * 190 + "8", False),
        ("(" * 90 + "8*3*1" + ")" * 90, True),
        ("1*" * 99 + "1", False),
        ("8*3*1" + "*1" * 5000, False),
        ("__import__('os')", False),
        ("", False),
    ],
)
def test_the_checker_takes_expressions_that_use_each_number_once(said: str, right: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for end in ("", "<|im_end|>", "\n"):
            assert is_right(f"8+3=11\nAnswer: {said}{end}", "24 from 8, 3, 1") is right


@given(st.text(alphabet="0123456789+-*/()", max_size=40))
def test_the_checker_crashes_on_nothing(said: str) -> None:
    found = value_of(said)
    if found is not None:
        assert found[0] == eval(said) or abs(float(found[0]) - eval(said)) < 1e-6 * abs(eval(said))


def test_an_answer_that_is_no_problem_is_refused() -> None:
    with pytest.raises(VerifyError, match="24 from 8, 3, 1"):
        is_right("Answer: 8", "24")


@pytest.mark.parametrize(
    "wrong",
    [
        {"numbers": (2, 3)}, {"values": (3, 2)}, {"targets": (0, 9)}, {"signs": "+%"},
        {"signs": ""}, {"plain": -0.1},
    ],
)  # fmt: skip
def test_a_difficulty_that_is_none_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(VerifyError, match=next(iter(wrong))):
        CountdownDifficulty(**wrong)  # type: ignore[arg-type]


def test_a_target_that_nothing_reaches_is_refused() -> None:
    with pytest.raises(VerifyError, match=r"targets: .* can hardly be reached"):
        CountdownDifficulty((3, 3), (1, 1), (50, 99)).draw(random.Random(0))


@given(drawn())
def test_every_lowering_compiles_to_the_same_tokens(problem: CountdownProblem) -> None:
    tokenizer = load_tokenizer(str(arithmetic_model()))
    document = solve(problem)
    layout = compile_document(document, tokenizer)
    for lowering in ("sequential", "official", "shared(8)"):
        other = compile_document(document, tokenizer, lowering)
        assert sorted(other.input_ids) == sorted(layout.input_ids)
    assert len(compile_document(document, tokenizer, "autoregressive")) <= len(layout)


def test_two_rounds_make_a_model_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps of examples/countdown/train.sh, in miniature."""
    import evaluate
    import generate

    monkeypatch.chdir(tmp_path)
    Path("runtime").mkdir()
    Path("runtime/tasks").symlink_to(arithmetic_model().parent)

    def run(command: str) -> None:
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output

    built = Path("build/countdown")
    configs: list[str] = []
    for seed, (folder, config, made) in enumerate(
        ((built, "tiny", "first"), (built / "second", "second", "model"))
    ):
        folder.mkdir(parents=True)
        asked = f"{folder}/train.jsonl --task countdown --count 6 --seed {seed} --plain 0.5"
        monkeypatch.setattr("sys.argv", ["generate.py", *asked.split()])
        generate.main()
        rows = (folder / "train.jsonl").read_text("utf-8").splitlines()
        expected = islice(problems("train", seed, replace(TINY, plain=0.5)), 6)
        for row, problem in zip(rows, expected, strict=True):
            known = json.loads(row)
            assert known.pop("id").startswith(f"train-{seed}-")
            assert Document.from_json(json.dumps(known)) == solve(problem)
        small = "runtime/tasks/arithmetic_model"
        run(f"compile {folder}/train.jsonl --tokenizer {small} -o {folder}/train")
        configs += ["--config", str(EXAMPLE / f"{config}.yaml")]
        train(["fit", *configs, "--trainer.precision", "32-true"])
        run(f"train export {folder}/checkpoints -o {built}/{made} --dtype bfloat16")
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", f"evaluate.py {built}/model --task countdown --count 1".split())
    evaluate.main()
    found = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(found["right"]) == 0  # so few steps teach nothing
    assert float(found["tokens"]) >= 1


def test_questions_come_with_what_the_checker_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import generate

    file = tmp_path / "test.jsonl"
    arguments = f"{file} --task countdown --split test --count 5 --questions --numbers 3 4"
    monkeypatch.setattr("sys.argv", ["generate.py", *arguments.split()])
    generate.main()
    asked = islice(problems("test", 0, replace(TINY, numbers=(3, 4))), 5)
    for line, problem in zip(file.read_text("utf-8").splitlines(), asked, strict=True):
        row = json.loads(line)
        assert row["question"] == f"Make {row['answer']}. {PARALLEL}"
        assert is_right(turn_text(solve(problem)), row["answer"])
