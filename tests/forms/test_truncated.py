"""Texts that end early: what is there is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_dialects import EXAMPLES
from typer.testing import CliRunner

import mvspec
from mvspec.cli import app


def test_a_row_that_breaks_off_is_left_out(tmp_path: Path) -> None:
    path, out = tmp_path / "traces.jsonl", tmp_path / "fixed.jsonl"
    trace = EXAMPLES["apr"]
    path.write_text(f"{trace}\n{trace[:-30]}\n{{oops\n", "utf-8")
    args = ["check", str(path), "--form", "apr", "--recover", "--json", "--fix", str(out)]
    first, *others = map(json.loads, CliRunner().invoke(app, args).stdout.splitlines())
    assert first["ok"]
    for other in others:
        assert [each["code"] for each in other["diagnostics"]] == ["invalid-json"]
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(rows) == 1
    assert CliRunner().invoke(app, ["check", str(out), "--field", "text"]).exit_code == 0


@pytest.mark.parametrize(
    "end", ["<C", "<Conclusion", "<Conclusion>", "<Conclusion>\n", "<Conclusion>\n\n"]
)
def test_a_bare_conclusion_of_threads_is_cut(end: str) -> None:
    block = (
        "<Parallel>\n<Outlines>\n<Outline>1: a</Outline>\n</Outlines>\n<Thread>\n1: A\n</Thread>"
    )
    document, (diagnostic,) = mvspec.parse(f"{block}\n{end}", "threadweaver", recover=True)
    assert (diagnostic.code, diagnostic.dropped) == ("cut", end)
    assert mvspec.render(document, "threadweaver") == f"{block}\n</Parallel>\n"
    with pytest.raises(mvspec.ParseError) as caught:
        mvspec.parse(f"{block}\n{end}", "threadweaver")
    assert caught.value.cut
