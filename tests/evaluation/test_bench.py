"""Shapes have the degree that they say, and a grid is measured, written and drawn."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from served_model import save_model
from tiny import tiny_engine
from typer.testing import CliRunner

from mvspec.cli import app
from mvspec.compiler.plan import plan_cost
from mvspec.errors import Unsupported, VerifyError
from mvspec.runtime import Options
from mvspec.runtime.evaluation.speed import (
    ReplayShape,
    SpeedGrid,
    measure_grid,
    replay,
    shape_of_degree,
    token_ids,
)


@given(
    st.integers(0, 20), st.integers(1, 6), st.integers(5, 30), st.integers(5, 30), st.integers(1, 3)
)
def test_a_replay_costs_what_its_shape_says(
    before: int, paths: int, each: int, after: int, blocks: int
) -> None:
    shape = ReplayShape(before, paths, 0 if paths == 1 else each, after, blocks)
    cost = plan_cost(replay(shape, 7, token_ids(500)))
    assert cost.tokens == shape.tokens + 7
    assert cost.critical_path == shape.critical_path
    assert cost.parallelism == pytest.approx(shape.degree)
    assert cost.peak_threads == paths


@given(st.integers(64, 4096), st.floats(1.0, 8.0))
def test_degrees_are_met(tokens: int, degree: float) -> None:
    try:
        shape = shape_of_degree(tokens, degree)
    except VerifyError:
        assert tokens < 300 or degree < 1.1
        return
    assert shape.tokens == tokens
    # Paths have whole tokens: as many may be missing or too much on each.
    assert shape.degree == pytest.approx(degree, rel=8 * shape.paths / tokens * degree)


def test_what_cannot_be_had() -> None:
    for tokens, degree, paths in ((20, 5.0, None), (100, 3.0, 2), (100, 0.5, None)):
        with pytest.raises(VerifyError, match="degree"):
            shape_of_degree(tokens, degree, paths)
    assert shape_of_degree(50, 1).degree == 1


def test_a_grid_is_measured_against_plain_text() -> None:
    engine = tiny_engine()
    told: list[str] = []
    cells = list(measure_grid(engine, SpeedGrid((1, 2), (1.5, 2), 40, 8, repeats=2), told.append))
    assert [(cell.batch, round(cell.degree, 1)) for cell in cells] == [
        (1, 1.5), (1, 2.0), (2, 1.5), (2, 2.0),
    ]  # fmt: skip
    assert len(told) == 2 * 3 * 3
    for cell in cells:
        assert len(cell.plain) == len(cell.parallel) == 2
        low, high = cell.spread
        assert low <= high
        assert cell.tokens == 40
        assert cell.to_dict()["share_of_ideal"] == pytest.approx(cell.speedup / cell.degree)
    # A block's paths advance together: fewer forwards, as many as its critical path asks for.
    shape = shape_of_degree(40, 2)
    found = engine.run(replay(shape, 8, token_ids(300)), Options(decode=True)).trace
    assert (found.answer, found.critical_path) == (40, shape.critical_path)
    assert len(found.forward_seconds) < 40 / 1.5


def test_the_command(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    runner = CliRunner()
    command = ["bench", "--model", str(tmp_path / "model"), "--batch", "2,1", "--degree", "2"]
    command += ["--tokens", "32", "--repeats", "1"]
    out, plot = tmp_path / "out.json", tmp_path / "plot.png"
    result = runner.invoke(app, [*command, "-o", str(out), "--plot", str(plot), "--json"])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert written["cells"] == json.loads(result.stdout)["cells"]
    assert [cell["batch"] for cell in written["cells"]] == [1, 2]
    assert written["about"]["engine"] == "torch"
    assert plot.read_bytes().startswith(b"\x89PNG")
    table, svg = tmp_path / "out.csv", tmp_path / "plot.svg"
    result = runner.invoke(app, [*command, "-o", str(table), "--plot", str(svg)])
    assert "times faster" in result.stdout
    rows = list(csv.DictReader(table.open()))
    assert [float(row["degree"]) for row in rows] == [2.0, 2.0]
    assert svg.read_text().count("<svg") == 1
    for reason, more in {
        "expected whole numbers from 1 up": ["--batch", "0"],
        "expected numbers from 1 up": ["--degree", "two"],
        "cannot have a degree of 9": ["--degree", "9"],
        "name a .json or a .csv": ["-o", "out.txt"],
        "name a .png or an .svg": ["--plot", "out.jpg"],
        "there is no folder": ["-o", str(tmp_path / "no" / "out.csv")],
        "give one": ["--engine", "http://127.0.0.1:9"],
    }.items():
        result = runner.invoke(app, [*command, *more])
        assert result.exit_code == 2, reason
        assert reason in " ".join(result.stderr.replace("│", " ").split())
    result = runner.invoke(app, ["bench", "--engine", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "no server answers" in result.stderr


def test_what_an_engine_has_not_is_refused_by_name() -> None:
    engine = tiny_engine()
    assert not engine.capabilities.plain
    with pytest.raises(Unsupported, match="TorchEngine has no plain requests: replay a plan"):
        engine.run_plain([[1]], 4)
