"""Evaluations and measurements on a server: as in process, and both sides timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mvspec as mv
from mvspec.compiler.traced import record_rows
from mvspec.data.records import Record
from mvspec.law.limits import Limits
from mvspec.runtime import Options, Sampling
from mvspec.runtime.evaluation.evaluation import AskedSamples, EvaluationSource, run_engine
from mvspec.runtime.evaluation.generation import AnswerGenerator, prompt_of
from mvspec.runtime.evaluation.speed import SpeedGrid, measure_grid


def test_an_evaluation_is_that_of_the_other_engine(
    engine: Any, reference: Any, tmp_path: Path
) -> None:
    data = tmp_path / "sums.jsonl"
    rows = [{"id": f"p{n}", "problem": f"2 + 3, {n}?", "answer": "5"} for n in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = EvaluationSource("math", (str(data),)).open()
    runs = []
    for number, side in enumerate((engine, reference)):
        how = AnswerGenerator(
            side, prompt_of("parallel"), Options(Sampling(temperature=1.0, seed=2))
        )
        path = tmp_path / f"{number}.jsonl"
        runs.append(run_engine(given, how, AskedSamples(2, (40, 120), 4), path, print))
    served, local = runs
    assert len(served.samples) == 12
    for key, sample in served.samples.items():
        other = local.samples[key]
        assert (sample.output, sample.tokens) == (other.output, other.tokens)
        assert (sample.critical_path, sample.finish) == (other.critical_path, other.finish)


def test_a_grid_is_measured_against_plain_requests(engine: Any) -> None:
    cells = list(measure_grid(engine, SpeedGrid((1, 2), (2.0,), 32, 8, repeats=1)))
    assert [cell.batch for cell in cells] == [1, 2]
    assert all(cell.plain[0] > 0 and cell.parallel[0] > 0 for cell in cells)


def test_served_runs_are_compiled_as_they_were_drawn(engine: Any, reference: Any) -> None:
    asked = mv.document(mv.user("Go."))
    options = Options(Sampling(temperature=1.0, seed=2), Limits(max_tokens=120))
    served, local = (side.run(asked, options).trace for side in (engine, reference))
    assert served.vocabulary == local.vocabulary == engine.vocabulary.fingerprint
    rows = [Record("a:1", each.model_dump_json(exclude_none=True), "json")
            for each in (served, local)]  # fmt: skip
    one, other = (record_rows(each, engine.vocabulary, "multiverse")[0].layout for each in rows)
    assert one == other == served.layout
