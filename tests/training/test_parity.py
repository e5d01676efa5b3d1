"""The comparison: it goes on where it was killed, and its arms differ in their layout alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from arms import ARMS, chosen, find_arm, is_canonical, tagged, worded
from fitting import Fitted, OutOfTime, fit
from parity import Comparison
from report import Records
from safetensors.torch import load_file
from sets import mixture, packed
from settings import Settings, load_settings

import mvspec
from mvspec.compiler.vocabulary import load_tokenizer
from mvspec.errors import MvspecError
from mvspec.forms.untagged import UNTAGGED
from mvspec.law.tags import Tag
from mvspec.runtime.tasks import countdown
from mvspec.runtime.tasks.arithmetic import TINY, arithmetic_model, problems
from mvspec.runtime.tasks.problem import ask, solve

FOLDER = Path(__file__).parents[2] / "examples" / "parity"


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(FOLDER / "tiny.yaml").smoke()


def test_the_committed_settings_load_and_shrink() -> None:
    files = sorted(FOLDER.glob("*.yaml"))
    assert files
    for file in files:
        whole = load_settings(file)
        assert [find_arm(arm).name for arm in whole.arms] == list(whole.arms)
        small = whole.smoke()
        assert small.arms == whole.arms
        assert small.fit.documents < whole.fit.documents
        if whole.base is not None:
            assert small.base is not None
            assert small.base.documents < whole.base.documents


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base: {documents: 0}", "base.documents"),
        ("foo: 1", "foo"),
        ("difficulty: {parts: [1, 2]}", "parts"),
        ("difficulty: {foo: 1}", "difficulty.foo"),
        ("task: countdown\ndifficulty: {parts: [2, 3]}", "difficulty.parts"),
        ("task: countdown\ndifficulty: {numbers: [2, 3]}", "numbers"),
        ("task: foo", "task"),
        ("[", "yaml"),
    ],
)  # fmt: skip
def test_wrong_settings_say_where(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "wrong.yaml"
    whole = "model: m\nfit: {documents: 1}\n" + ("" if "base" in text else "base: {documents: 1}\n")
    file.write_text(whole + text, encoding="utf-8")
    with pytest.raises(MvspecError, match=says):
        load_settings(file)
    with pytest.raises(MvspecError, match="no arm is named"):
        find_arm("foo")


def test_only_names_what_the_settings_have() -> None:
    arms, seeds = ("autoregressive", "shared(8)"), (0, 1)
    assert chosen(None, arms, seeds) is None
    assert chosen(["base"], arms, seeds) == set()
    assert chosen(["shared(8):1", "base"], arms, seeds) == {("shared(8)", 1)}
    for only, says in (
        ("shared(8):7", "the seeds 0, 1"),
        ("multiverse:0", r"the arms autoregressive, shared\(8\)"),
        ("foo:0", "no arm is named 'foo'"),
        ("shared(8)", "is not ARM:SEED"),
    ):
        with pytest.raises(MvspecError, match=says):
            chosen([only], arms, seeds)


def test_arms_see_the_same_problems_in_the_same_order(settings: Settings) -> None:
    how = settings.fit.model_copy(update={"documents": 60})
    items = {name: mixture(how, arm.lowering, 3, TINY) for name, arm in ARMS.items()}
    asked = {name: [problem for problem, _ in found] for name, found in items.items()}
    assert len({tuple(each) for each in asked.values()}) == 1
    structured = [
        [low != "autoregressive" for _, low in items[n]] for n in ("multiverse", "official")
    ]
    assert structured[0] == structured[1]
    assert not structured[0][0]
    assert all(structured[0][30:])
    rows = packed(items["multiverse"], how, str(arithmetic_model()))
    assert len(rows) % how.rows == 0
    assert {len(row) for row in rows} == {how.length}
    assert sum(len(set(row.document_ids) - {-1}) for row in rows) == 60


def test_the_task_says_what_is_learnt_and_what_is_right(settings: Settings, tmp_path: Path) -> None:
    small = (
        load_settings(FOLDER / "countdown.yaml")
        .smoke()
        .model_copy(update={"model": settings.model})
    )
    assert small.difficulty == countdown.TINY
    harder = small.model_copy(update={"difficulty": replace(countdown.TINY, numbers=(3, 4))})
    assert Settings.model_validate_json(harder.model_dump_json()) == harder
    items = mixture(small.fit, "multiverse", 0, small.difficulty)
    assert all(isinstance(problem, countdown.CountdownProblem) for problem, _ in items)
    comparison = Comparison(
        small.model_copy(update={"arms": ("multiverse",)}), tmp_path, workers=1, seconds=None
    )
    comparison.run()
    exams = Records(tmp_path / "results.jsonl").find(kind="exam")
    assert [(row["arm"], row["right"]) for row in exams] == [("multiverse", 0)]


def test_a_worded_tokenizer_has_the_same_ids_and_forks_nothing() -> None:
    from mvspec.runtime import TorchEngine

    text = "<Parallel>\n<Goal>\n"
    plain = worded(arithmetic_model())
    engine = TorchEngine.load(arithmetic_model(), device="cpu")
    ids = engine.tokenizer.encode(text, add_special_tokens=False)
    assert tagged(plain.decode(ids)) == text
    served = ARMS["sequential"].engine(arithmetic_model())
    assert served.syntax == UNTAGGED
    problem = next(each for each in problems("test") if each.parts)
    written = served.run(ask(problem), ARMS["sequential"].options(24))
    assert "[Parallel]" in written.text  # the same weights, and the tag is a word like others
    assert len(written.trace.threads) == 1
    assert not is_canonical(tagged(written.text))  # it was cut
    assert is_canonical(mvspec.render(solve(problem).messages[1]))


def test_a_run_that_is_out_of_time_goes_on_from_its_checkpoint(
    tmp_path: Path, settings: Settings
) -> None:
    how = settings.fit.model_copy(update={"documents": 60, "length": 512})
    rows = packed(mixture(how, "multiverse", 0, TINY), how, str(arithmetic_model()))

    def weights(folder: Path, seconds: float | None) -> dict[str, Any]:
        while True:  # each call takes a step at least
            try:
                fit(settings.model, rows, folder, settings, how,
                    tokenizer=str(arithmetic_model()), tell=print, seconds=seconds)  # fmt: skip
                break
            except OutOfTime:
                assert (folder.with_suffix(".state") / "last.ckpt").is_file()
        assert not folder.with_suffix(".state").exists()
        return load_file(folder / "model.safetensors")

    once = weights(tmp_path / "once", None)
    pieces = weights(tmp_path / "pieces", 0.2)
    assert once.keys() == pieces.keys()
    for name, tensor in once.items():
        assert torch.equal(tensor, pieces[name]), name


def test_a_run_that_was_killed_after_its_last_step_has_its_loss(
    tmp_path: Path, settings: Settings
) -> None:
    how = settings.fit.model_copy(update={"documents": 8, "length": 512})
    rows = packed(mixture(how, "multiverse", 0, TINY), how, str(arithmetic_model()))
    tokenizer = str(arithmetic_model())

    def run(folder: Path, seconds: float | None) -> Fitted:
        return fit(settings.model, rows, folder, settings, how,
                   tokenizer=tokenizer, tell=print, seconds=seconds)  # fmt: skip

    def in_steps(folder: Path) -> None:
        while not folder.exists():
            with suppress(OutOfTime):
                run(folder, 0.0)  # a step, and a checkpoint

    (tmp_path / "killed.part").touch()  # where the weights would go: they cannot be written
    with pytest.raises(FileExistsError):
        in_steps(tmp_path / "killed")
    (tmp_path / "killed.part").unlink()
    assert run(tmp_path / "killed", None) == run(tmp_path / "whole", None)


def test_without_a_base_arms_start_from_a_folder_whose_tokenizer_gets_tags(
    tmp_path: Path, settings: Settings
) -> None:
    source = tmp_path / "source"
    shutil.copytree(arithmetic_model(), source)
    table = json.loads((source / "tokenizer.json").read_text("utf-8"))
    tags = set(map(str, Tag))
    table["added_tokens"] = [t for t in table["added_tokens"] if t["content"] not in tags]
    table["model"]["vocab"] = {w: i for w, i in table["model"]["vocab"].items() if w not in tags}
    (source / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    more = {"model": str(source), "base": None, "arms": ("multiverse",)}
    out = tmp_path / "out"
    Comparison(
        settings.model_copy(update=more), out, workers=1, seconds=None, only={("multiverse", 0)}
    ).run()
    assert [row["kind"] for row in Records(out / "results.jsonl").rows] == ["fit", "exam", "exam"]
    assert tags <= set(load_tokenizer(str(out / "models" / "multiverse-0")).get_vocab())
    assert not (out / "models" / "base").exists()


def test_calls_at_once_train_one_base(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(FOLDER / "parity.py"), str(FOLDER / "tiny.yaml"), "--smoke"]
    command += ["--out", str(out), "--workers", "1", "--only"]
    calls = [
        subprocess.Popen([*command, only], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for only in ("autoregressive:0", "sequential:1")
    ]
    assert [call.wait(900) for call in calls] == [0, 0]
    rows = Records(out / "results.jsonl").rows
    assert sorted(row["arm"] for row in rows if row["kind"] == "fit") == [
        "autoregressive", "base", "sequential",
    ]  # fmt: skip


def test_a_killed_comparison_goes_on_where_it_was(tmp_path: Path, settings: Settings) -> None:
    text = (FOLDER / "tiny.yaml").read_text("utf-8")
    file = tmp_path / "two.yaml"
    file.write_text(text + "arms: [autoregressive, shared(8)]\n", encoding="utf-8")
    out = tmp_path / "out"
    command = [sys.executable, str(FOLDER / "parity.py"), str(file), "--out", str(out), "--smoke"]
    process = subprocess.Popen([*command, "--workers", "1"], stderr=subprocess.DEVNULL)
    records = out / "results.jsonl"
    try:
        deadline = time.monotonic() + 900
        while not (records.exists() and records.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = Records(records).rows
    made = (out / "models" / "base" / "model.safetensors").stat().st_mtime_ns
    with records.open("a", encoding="utf-8") as stream:
        stream.write('{"kind": "ex')  # as a kill in the middle of a line leaves it
    small = load_settings(file).smoke()
    comparison = Comparison(small, out, workers=1, seconds=None)
    comparison.run()
    comparison.report()
    rows = Records(records).rows
    assert rows[: len(before)] == before
    keys = Counter((row["kind"], row["arm"], row.get("seed"), row.get("prompt")) for row in rows)
    assert set(keys.values()) == {1}
    assert sum(kind == "fit" for kind, *_ in keys) == 1 + 2 * len(small.seeds)
    assert (out / "models" / "base" / "model.safetensors").stat().st_mtime_ns == made
    report = (out / "results.md").read_text("utf-8")
    assert report.count("| shared(8) |") >= 3
    assert (out / "results.png").stat().st_size > 1000
    # What servers of arms whose tags are words take: the same ids, and no tag.
    words, own = (load_tokenizer(str(out / name)) for name in ("words", "tokenizer"))
    assert not {tag.value for tag in Tag} & set(words.get_vocab())
    text = mvspec.render(solve(next(problems("test"))).messages[1])
    said = words.decode(own.encode(text, add_special_tokens=False))
    assert tagged(said) == text
    assert words.encode(said, add_special_tokens=False) == own.encode(
        text, add_special_tokens=False
    )
    with pytest.raises(MvspecError, match="other settings"):
        Comparison(small.model_copy(update={"seeds": (5,)}), out, workers=1, seconds=None).run()
    with pytest.raises(MvspecError, match="other settings"):  # as `--report` without `--smoke`
        Comparison(load_settings(file), out, workers=1, seconds=None).report()
    asked = small.evaluation.model_copy(update={"zero": ("multivers",)})
    with pytest.raises(MvspecError, match="no arm is named 'multivers'"):
        Comparison(small.model_copy(update={"evaluation": asked}), out, workers=1, seconds=None)
    with pytest.raises(OutOfTime):
        Comparison(small, tmp_path / "new", workers=1, seconds=0.0).run()
