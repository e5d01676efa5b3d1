"""Runs as rows: a trace's own tokens, array for array, and what is no row of a tokenizer."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("pyarrow")

from bpe import copy, small_tokenizer, untagged_tokenizer  # noqa: E402
from dice import dice_engine  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from scripted import ask  # noqa: E402
from tiny import FORKING, chat, tiny_engine  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from typer.testing import CliRunner, Result  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.cli import app  # noqa: E402
from mvspec.compiler import Layout, Vocabulary, add_tags  # noqa: E402
from mvspec.compiler.chat_template import TemplateSettings, with_settings  # noqa: E402
from mvspec.compiler.dataset import CompiledDataset  # noqa: E402
from mvspec.compiler.traced import record_rows  # noqa: E402
from mvspec.compiler.vocabulary import save_tokenizer  # noqa: E402
from mvspec.data.records import BadRecord, Record  # noqa: E402
from mvspec.law.limits import Limits  # noqa: E402
from mvspec.runtime import Options, Sampling, Trace  # noqa: E402
from mvspec.trace import VERSION_1  # noqa: E402

GO = mv.document(mv.user("Go."))
ENGINES = {
    "adaptive": tiny_engine(bias=FORKING),
    "dice": dice_engine(small_tokenizer(), 6.0),
    "plain": tiny_engine(tokenizer=chat(untagged_tokenizer())),
}
LISTS = ("ids", "token_texts", "thread_ids", "position_ids", "authors", "logprobs", "forward_ids")


def same(one: Layout, other: Layout) -> bool:
    """Whether every array is the other's, its type and depth too."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in Layout.__dataclass_fields__]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def row(trace: Trace, **change: Any) -> dict[str, Any]:
    """A trace as a line of a file has it, changed."""
    return {**json.loads(trace.model_dump_json(exclude_none=True)), **change}


def of_version_1(trace: Trace) -> dict[str, Any]:
    names = {new: old for old, new in VERSION_1.items()}
    found = {names.get(key, key): value for key, value in row(trace).items()}
    return {key: value for key, value in found.items() if key not in ("version", "vocabulary")}


def record(value: dict[str, Any]) -> Record:
    return Record("a.jsonl:1", json.dumps(value), "json")


def planned(seed: int, holes: bool) -> mv.Document:
    """A random plan: blocks in blocks, with holes in every path or none anywhere."""
    dice, numbers = random.Random(seed), count()

    def body() -> list[Any]:
        written = dice.choice(["So:", "It is ", "é and 答", "1: x"])
        return [written, mv.gen(f"h{next(numbers)}", dice.randint(1, 9))
                if holes else "said"]  # fmt: skip

    def block(depth: int) -> Any:
        inner = [[block(depth - 1)] if depth and dice.random() < 0.5 else [] for _ in range(3)]
        paths = [mv.branch(f"p{n}", *body(), *inner[n]) for n in range(dice.randint(1, 3))]
        return mv.parallel(*paths, conclusion=body())

    turns = [ask(*body(), block(1), *body()) for _ in range(dice.randint(1, 2))]
    return mv.document(*(message for turn in turns for message in turn.messages))


@given(
    which=st.sampled_from(sorted(ENGINES)),
    kind=st.sampled_from(["adaptive", "holes", "replay"]),
    seed=st.integers(0, 10**6),
    share=st.sampled_from([0, 0, 0, 1, 3]),
    structure=st.booleans(),
    most=st.integers(1, 120),
)
def test_a_row_is_the_layout_of_its_run(
    which: str, kind: str, seed: int, share: int, structure: bool, most: int
) -> None:
    engine = ENGINES[which]
    document = GO if kind == "adaptive" else planned(seed, kind == "holes")
    limits = Limits(max_tokens=most) if kind == "adaptive" else Limits()
    trace = engine.run(document, Options(Sampling(1.2, seed=seed), limits, structure, share)).trace
    vocabulary = Vocabulary.of(engine.tokenizer, tagged=which != "plain")
    lowering = f"shared({share})" if share else "multiverse"
    for value in (row(trace), row(trace, vocabulary=""), of_version_1(trace)):
        stages = record_rows(record(value), vocabulary, lowering)[0]
        assert same(stages.layout, trace.layout)
        assert stages.metrics == trace.metrics
    drawn = np.array(trace.authors) == "model"
    assert trace.layout.loss_mask.sum() == drawn[1:].sum()
    ids = Trace.from_dict(row(trace)).plan
    assert sorted(trace.layout.input_ids.tolist()) == sorted(
        id for op in ids.ops if op.op == "extend" for id in op.tokens
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and runs of it: t.jsonl."""
    made = tmp_path_factory.mktemp("runs")
    engine = ENGINES["adaptive"]
    save_tokenizer(engine.tokenizer, made / "tokenizer")
    for seed in range(8):
        limits = Limits(max_tokens=150 if seed % 2 else 40)
        engine.run(GO, Options(Sampling(1.5, seed=seed), limits)).trace.save(made / "t.jsonl")
    return made


def traces(path: Path) -> list[Trace]:
    return [Trace.from_json(line) for line in path.read_text("utf-8").splitlines()]


def compiled(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compile", *map(str, arguments)])


def test_a_data_set_of_runs(folder: Path, tmp_path: Path) -> None:
    result = compiled(folder / "t.jsonl", "--tokenizer", folder / "tokenizer", "-o", tmp_path / "o",
                      "--shard", 3)  # fmt: skip
    assert result.exit_code == 0, result.output
    data, runs = CompiledDataset(tmp_path / "o"), traces(folder / "t.jsonl")
    assert all(same(one, run.layout) for one, run in zip(data, runs, strict=True))
    ends = {run.finish for run in runs}
    assert ends == {"end", "limit"}
    stop = ENGINES["adaptive"].tokenizer.eos_token_id
    for layout, run in zip(data, runs, strict=True):
        own = layout.input_ids[run.prompt :]
        taught = layout.loss_mask[run.prompt :]
        assert bool(own[-1] == stop and taught[-1]) is (run.finish == "end")
        assert run.finish == "end" or not taught[own == stop].any()
    shown = compiled(folder / "t.jsonl", "--tokenizer", folder / "tokenizer", "--where", "seed=1")
    assert shown.exit_code == 0
    lines = [line.split() for line in shown.stdout.splitlines()[3:]]
    assert [int(line[1]) for line in lines] == list(runs[1].ids)
    assert "left out by --where: 7 of 8" in shown.stderr


def test_a_run_and_its_plan_are_printed_as_they_were(folder: Path) -> None:
    run = traces(folder / "t.jsonl")[3]
    shown = compiled(folder / "t.jsonl", "--tokenizer", folder / "tokenizer", "--where", "seed=3",
                     "--emit", "plan")  # fmt: skip
    assert str(run.plan) in shown.stdout
    shown = compiled(folder / "t.jsonl", "--tokenizer", folder / "tokenizer", "--where", "seed=3",
                     "--emit", "segments")  # fmt: skip
    assert {line.split()[0] for line in shown.stdout.splitlines()[2:]} == {
        "template", "engine", "model",
    }  # fmt: skip


def swapped(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer in which two common letters have each other's id."""
    told = json.loads(tokenizer.to_str())
    table = told["model"]["vocab"]
    table["A"], table["o"] = table["o"], table["A"]
    return Tokenizer.from_str(json.dumps(told))


def test_runs_of_another_tokenizer_are_refused_before_anything_runs(
    folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    save_tokenizer(swapped(small_tokenizer()), other)
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps(row(each, vocabulary="")) + "\n"
                            for each in traces(folder / "t.jsonl")))  # fmt: skip
    for path in (folder / "t.jsonl", bare):
        result = compiled(path, "--tokenizer", other, "-o", tmp_path / "o")
        assert result.exit_code == 2
        (line,) = result.stderr.strip().splitlines()
        assert f"{path.name}:1: the trace is of another tokenizer (" in line
        assert "use the tokenizer of LlamaForCausalLM" in line
        assert not (tmp_path / "o").exists()
    mixed = tmp_path / "mixed.jsonl"
    engine = tiny_engine(tokenizer=chat(swapped(small_tokenizer())))
    foreign = engine.run(ask("So: a, o, A.")).trace
    mixed.write_text((folder / "t.jsonl").read_text("utf-8") + json.dumps(row(foreign)) + "\n")
    result = compiled(mixed, "--tokenizer", folder / "tokenizer", "-o", tmp_path / "mixed")
    assert result.exit_code == 1
    assert len(CompiledDataset(tmp_path / "mixed")) == 8
    (entry,) = map(json.loads, (tmp_path / "mixed/quarantine.jsonl").read_text().splitlines())
    assert (entry["place"], entry["code"]) == ("mixed.jsonl:9", "other-tokenizer")


def test_tokens_that_were_added_since_change_nothing(tmp_path: Path) -> None:
    trace = ENGINES["plain"].run(ask("So ", mv.gen("x", 9))).trace
    grown = copy(untagged_tokenizer())
    assert not Vocabulary.of(small_tokenizer()).holds("391:0123456789abcdef")
    add_tags(grown)
    vocabulary = Vocabulary.of(grown)
    assert vocabulary.fingerprint != trace.vocabulary
    assert same(record_rows(record(row(trace)), vocabulary, "multiverse")[0].layout, trace.layout)


BLOCK = mv.parallel(mv.branch("a", "A", mv.gen("a", 5)), mv.branch("b", "B"), conclusion="So.")
CUT = Options(Sampling(1.5, seed=0), Limits(max_tokens=40))
REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, Any], str]] = {
    "no ids": (lambda: row(Trace(document=ask("So."))), {}, "no-ids"),
    "ids left out": (
        lambda: {k: v for k, v in row(ENGINES["dice"].run(ask("So.")).trace).items() if k != "ids"},
        {}, "no-ids",
    ),
    "a strange id": (
        lambda: row(t := ENGINES["dice"].run(ask("So.")).trace, ids=[*t.ids[:-1], 2**30],
                    vocabulary=""),
        {}, "other-tokenizer",
    ),
    "a column too short": (
        lambda: row(t := ENGINES["dice"].run(ask("So.")).trace, authors=list(t.authors[:-1])),
        {}, "not-a-trace",
    ),
    "another position": (
        lambda: row(t := ENGINES["dice"].run(ask("So.")).trace,
                    position_ids=[*t.position_ids[:-1], 7]),
        {}, "the law has",
    ),
    "shared, by the law": (
        lambda: row(ENGINES["dice"].run(ask(BLOCK), Options(share=2)).trace), {},
        r"laid out by --lowering 'shared\(2\)'",
    ),
    "flat": (
        lambda: row(ENGINES["dice"].run(ask("So.")).trace), {"lowering": "autoregressive"},
        "changes the text",
    ),
    "closed by force, sequential": (
        lambda: row(ENGINES["adaptive"].run(GO, CUT).trace),
        {"lowering": "sequential"}, "teach the model to stop there",
    ),
    "closed by force, forced loss": (
        lambda: row(ENGINES["adaptive"].run(GO, CUT).trace),
        {"forced_loss": True}, "teach the model to stop there",
    ),
    "holes, sequential": (
        lambda: row(ENGINES["dice"].run(ask(BLOCK)).trace), {"lowering": "official"},
        "text around the run's holes was written",
    ),
    "untagged, official": (
        lambda: row(ENGINES["plain"].run(ask("So.")).trace, vocabulary=""),
        {"lowering": "official"}, "the run is untagged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_laid_out_says_why(kind: str) -> None:
    made, how, why = REFUSED[kind]
    vocabulary = Vocabulary.of(chat())
    with pytest.raises(mv.MvspecError, match=why) as stop:
        record_rows(record(made()), vocabulary, **({"lowering": "multiverse"} | how))
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("lowering", ["sequential", "tree", "official", "shared(3)"])
def test_other_lowerings_keep_the_ids(lowering: str) -> None:
    inner = mv.parallel(mv.branch("in", "é"), mv.branch("out", "x y"), conclusion="z")
    block = mv.parallel(mv.branch("a", "A", inner), mv.branch("b", "BB"), conclusion="So.")
    trace = ENGINES["dice"].run(ask("Well:", block, "End.")).trace
    vocabulary = Vocabulary.of(chat())
    assert trace.finish == "end"
    assert len(trace.threads) == 5
    layout = record_rows(record(row(trace)), vocabulary, lowering)[0].layout
    if lowering != "tree":
        assert sorted(layout.input_ids.tolist()) == sorted(trace.ids)
    by_rule = mv.compiler.layout_from_ids(
        trace.ids, chat(), lowering, trace.prompt, [each == "engine" for each in trace.authors]
    )
    # But for the newline behind the end of turn, which is the template's.
    assert layout.loss_mask.sum() == by_rule.loss_mask.sum() - 1
    assert same(replace(layout, loss_mask=by_rule.loss_mask), by_rule)


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if think is defined and not think %}<think></think>{% endif %}{% endif %}"
)
CLOCK = "It is {{ strftime_now('%H:%M:%S') }}.\n"


def templated(template: str, clock: str | None = None, **arguments: Any) -> Any:
    """The small tokenizer with a chat template."""
    made = chat()
    made.chat_template = template
    return with_settings(made, TemplateSettings(arguments, clock))


@pytest.mark.parametrize(
    ("ran", "compiled_with", "differs"),
    [
        (templated(THINKING), templated(THINKING), ""),
        (templated(THINKING, think=False), templated(THINKING, think=False), ""),
        (templated(THINKING, think=False), templated(THINKING), "<think></think>' and '"),
        (templated(THINKING), templated(THINKING, think=False), "assistant\\\\n' and '"),
        (templated(THINKING), templated("Be brief.\n" + THINKING), "' and 'Be brief"),
        (
            templated(CLOCK + THINKING, "2026-01-02T03:04:05"),
            templated(CLOCK + THINKING, "2027-11-12T13:14:15"),
            "",
        ),
        (
            templated(CLOCK + THINKING, "2026-01-02T03:04:05", think=False),
            templated(CLOCK + THINKING, "2027-11-12T13:14:15"),
            "It is 03:04:05",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["one", "several", "holes"])
def test_a_run_that_was_asked_otherwise_is_no_row(
    ran: Any, compiled_with: Any, differs: str, kind: str
) -> None:
    document = {
        "one": GO,
        "several": mv.document(mv.user("Go."), mv.assistant("So."), mv.user("And?")),
        "holes": ask("It is ", mv.gen("x", 3), "."),
    }[kind]
    engine = tiny_engine(tokenizer=ran)
    trace = engine.run(document, Options(limits=Limits(max_tokens=20))).trace
    vocabulary = Vocabulary.of(compiled_with)
    if not differs:
        (stages,) = record_rows(record(row(trace)), vocabulary, "multiverse")
        assert same(stages.layout, trace.layout)
        return
    with pytest.raises(BadRecord, match="the run was asked otherwise") as stop:
        record_rows(record(row(trace)), vocabulary, "multiverse")
    assert stop.value.entry["code"] == "other-prompt"
    assert re.search(differs, str(stop.value.entry["reason"]))


def test_a_trace_keeps_its_prompt() -> None:
    value = record(row(ENGINES["dice"].run(ask("So.")).trace))
    asked = Record(value.place, value.data, "json", mv.data.records.Fields(instruction="Think."))
    with pytest.raises(mv.MvspecError, match="--instruction would change it"):
        record_rows(asked, Vocabulary.of(chat()), "multiverse")
    with pytest.raises(BadRecord, match="refused: too long"):
        record_rows(record({"id": "a", "output": "", "error": "too long"}),
                      Vocabulary.of(chat()), "multiverse")  # fmt: skip
