"""The second provider: the same steps on an engine of `runtime/`."""

from __future__ import annotations

import asyncio
import json
from copy import deepcopy
from pathlib import Path

import pytest
from bpe import chat_tokenizer
from curator_model import chains
from tiny import tiny_engine, tiny_model

from mvspec.cli.curate import carry_out
from mvspec.curation import (
    ChainFields,
    CurationOptions,
    ModelAnswer,
    ModelRequest,
    RequestRefused,
    curate_chain,
    read_chain,
)
from mvspec.curation.answers import JudgementReply, schema_text
from mvspec.curation.local import LocalProvider
from mvspec.curation.run import CurationRun
from mvspec.data.records import Record

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}, "kind": {"enum": ["a", "b"], "type": "string"}},
        "required": ["yes", "kind"],
    }
)


def asked(schema: str | None, max_tokens: int = 200, attempt: int = 0) -> ModelAnswer:
    request = ModelRequest(
        "judge", "", "Say yes or no.", "Is it so?", schema, max_tokens, 1.0, attempt=attempt
    )
    return asyncio.run(LocalProvider(tiny_engine()).ask(request))


def test_answers_keep_to_the_schema_and_are_counted() -> None:
    seen = set()
    for attempt in range(6):
        answer = asked(SCHEMA, attempt=attempt)
        assert answer.finish == "stop"
        value = json.loads(answer.text)
        assert set(value) == {"yes", "kind"}
        assert answer.usage.output > 0
        assert answer.usage.prompt > 10
        seen.add(answer.text)
        assert asked(SCHEMA, attempt=attempt) == answer  # the seed is the attempt
    assert len(seen) > 1


def test_an_answer_without_room_is_cut() -> None:
    assert asked(SCHEMA, max_tokens=3).finish == "length"
    assert asked(schema_text(JudgementReply), max_tokens=4).finish == "length"


def test_what_the_engine_cannot_read_is_refused() -> None:
    request = ModelRequest("judge", "", "x", "long " * 5000, None, 10)
    with pytest.raises(RequestRefused):
        asyncio.run(LocalProvider(tiny_engine()).ask(request))


def test_the_steps_run_on_a_model_of_ones_own() -> None:
    """A model that knows nothing gives verdicts and no document, or one that holds."""
    chain = read_chain(Record("a:1", chains(1)[0], "value"), ChainFields())
    options = CurationOptions("", attempts=1, max_tokens=120)
    outcome = asyncio.run(curate_chain(chain, options, LocalProvider(tiny_engine()).ask))
    assert outcome.document is None
    assert outcome.code in ("length", "schema", "parse")
    assert len(outcome.history) == 2


def test_the_command_runs_on_a_model_of_ones_own(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.save_pretrained(tmp_path / "MODEL")
    model = deepcopy(tiny_model("Llama", len(tokenizer)))  # others share it
    model.float().save_pretrained(tmp_path / "MODEL")
    source = tmp_path / "chains.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in chains(2)), "utf-8")
    options = CurationOptions(str(tmp_path / "MODEL"), attempts=0, max_tokens=64)
    given = CurationRun((str(source),), options, local=True)
    assert carry_out(given, tmp_path / "out") == 1
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["history"][0]["step"] == "parse"
