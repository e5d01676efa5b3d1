"""What `mvspec compile` prints of each stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bpe import chat_tokenizer, small_tokenizer
from traces import CANONICAL
from typer.testing import CliRunner, Result

import mvspec
from mvspec.cli import app
from mvspec.cli.print_stages import emit
from mvspec.compiler import compile_document
from mvspec.compiler.plan import plan_cost
from mvspec.compiler.planning import plan_document
from mvspec.compiler.stages import compile_stages


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "trace.txt"
    path.write_text(CANONICAL, "utf-8")
    return path


def run(trace: Path, *args: object) -> Result:
    tokenizer = trace.parent / "tokenizer.json"
    return CliRunner().invoke(
        app, ["compile", str(trace), "--tokenizer", str(tokenizer), *map(str, args)]
    )


def test_one_trace_prints_its_layout(trace: Path) -> None:
    result = run(trace)
    assert result.exit_code == 0
    title, totals, header, *lines = result.stdout.splitlines()
    layout = compile_document(mvspec.parse(CANONICAL), small_tokenizer())
    assert title == "trace.txt"
    assert totals.startswith(f"{len(layout)} tokens, positions 0 to {layout.position_ids.max()}")
    assert header.split() == ["index", "id", "position", "parent", "loss", "author", "path",
                              "hidden", "text"]  # fmt: skip
    assert len(lines) == len(layout)
    for index, line in enumerate(lines):
        numbers = [int(cell) for cell in line.split()[:4]]
        arrays = layout.input_ids, layout.position_ids, layout.parent
        assert numbers == [index, *(int(array[index]) for array in arrays)]
        assert ("  loss  " in line) == bool(layout.loss_mask[index])
    second = next(i for i, line in enumerate(lines) if " 1.2 " in line)
    lo, hi = layout.hide_lo[1, second], layout.hide_hi[1, second]
    assert f"  {lo}-{hi - 1}  " in lines[second]
    assert "engine" in lines[second]


@pytest.mark.parametrize("lowering", ["autoregressive", "sequential", "tree", "official",
                                      "shared(2)"])  # fmt: skip
def test_every_lowering_prints(lowering: str, trace: Path) -> None:
    layout = compile_document(mvspec.parse(CANONICAL), small_tokenizer(), lowering)
    lines = run(trace, "--lowering", lowering).stdout.splitlines()
    assert len(lines) == len(layout) + 3
    assert f"({lowering})" in lines[1]


def test_every_stage_prints(trace: Path) -> None:
    tree = run(trace, "--emit", "ir").stdout
    assert "path 1.2: Check by fingers." in tree
    parts = run(trace, "--emit", "segments").stdout
    assert "model     '<Think>⏎Let me see." in parts
    assert "engine    '⏎<Path>⏎1.1:'" in parts
    plan = run(trace, "--emit", "plan").stdout
    expected = plan_document(mvspec.parse(CANONICAL), small_tokenizer())
    assert plan == f"trace.txt\n{expected}\n{plan_cost(expected)}\n"
    assert run(trace, "--emit", "masks").exit_code == 2
    assert run(trace, "--emit", "ir", "-o", trace.parent / "out").exit_code == 2


def test_a_bad_record_does_not_stop_the_others(trace: Path) -> None:
    rows = trace.with_suffix(".jsonl")
    bad = CANONICAL.replace("</Path>\n", "", 1)
    hole = mvspec.document(mvspec.assistant(mvspec.gen("answer", 5)))
    values = [{"id": "a", "o": bad}, {"id": "b", "o": "Four."},
              {"id": "c", "o": json.loads(hole.to_json())}]  # fmt: skip
    rows.write_text("".join(json.dumps(value) + "\n" for value in values), "utf-8")
    result = run(rows, "--field", "o")
    assert result.exit_code == 1
    assert result.stdout.startswith("b\n")
    line = result.stderr.splitlines()[0]
    assert line.startswith("trace.jsonl:1:")
    assert line.endswith("[missing-closing]")
    assert "hole 'answer'" in result.stderr
    assert "hole answer, at most 5 tokens" in run(rows, "--field", "o", "--emit", "segments").stdout


def test_stages_agree_with_compile_document() -> None:
    chat = chat_tokenizer()
    document = mvspec.document(mvspec.user("Why?"), *mvspec.parse(CANONICAL).messages)
    for lowering in ("multiverse", "autoregressive", "sequential", "tree", "official", "shared(3)"):
        stages = compile_stages(document, chat, lowering)
        assert stages.layout == compile_document(document, chat, lowering)
    forced = compile_stages(document, chat, forced_loss=True).layout
    assert forced == compile_document(document, chat, forced_loss=True)
    with pytest.raises(mvspec.Unsupported):
        compile_stages(document, chat, "tree", forced_loss=True)


def test_degree_of_parallelism_leaves_the_prompt_out() -> None:
    turn = mvspec.parse(CANONICAL).messages
    alone = compile_stages(mvspec.document(*turn), small_tokenizer())
    layout = alone.layout
    assert alone.metrics.parallelism == len(layout) / (int(layout.position_ids.max()) + 1)
    chat = compile_stages(mvspec.document(mvspec.user("Why? " * 50), *turn), chat_tokenizer())
    end = 1  # the end of turn, which the model writes too
    assert chat.metrics.parallelism == pytest.approx(
        (len(layout) + end) / (int(layout.position_ids.max()) + 1 + end)
    )
    for lowering, wanted in (("sequential", 1.0), ("tree", alone.metrics.parallelism),
                             ("shared(2)", alone.metrics.parallelism)):  # fmt: skip
        stages = compile_stages(mvspec.document(*turn), small_tokenizer(), lowering)
        assert stages.metrics.parallelism == wanted


def test_threads_follow_the_nesting() -> None:
    stages = compile_stages(mvspec.parse(CANONICAL), small_tokenizer())
    threads = np.array(stages.threads())
    assert sorted(set(threads.tolist())) == ["", "1", "1.1", "1.2", "2"]
    assert (stages.layout.hide_hi[0][threads == "2"] > 0).all()


def test_lines_of_a_layout_are_made_for_terminals() -> None:
    lines = list(emit("layout", mvspec.parse("a\x1b[31mb"), small_tokenizer()))
    assert not any("\x1b" in str(line) for line in lines)


def test_segments_are_those_of_the_lowering() -> None:
    document = mvspec.parse(CANONICAL)
    for lowering in ("multiverse", "sequential", "autoregressive"):
        lines = list(emit("segments", document, small_tokenizer(), lowering))
        stages = compile_stages(document, small_tokenizer(), lowering)
        assert len(lines) == 1 + len(stages.segments)
        assert ("engine" in {part.author for part in stages.segments}) == (lowering == "multiverse")
    with pytest.raises(mvspec.Unsupported, match="no lowering"):
        list(emit("segments", document, small_tokenizer(), "none"))
