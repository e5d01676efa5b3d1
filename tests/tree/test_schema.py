"""The committed JSON Schema is the code's."""

from __future__ import annotations

import json
from pathlib import Path

import mvspec
from mvspec.tree.schema import document_schema

COMMITTED = Path(mvspec.__file__).parent / "tree" / "document.schema.json"


def test_committed_schema_is_the_codes() -> None:
    assert COMMITTED.read_text("utf-8") == document_schema(), (
        "the IR has changed: run `mvspec schema > mvspec/tree/document.schema.json`"
    )


def test_schema_describes_every_node() -> None:
    schema = json.loads(document_schema())
    nodes = {"Conclusion", "Gen", "Goal", "Message", "Outline", "Parallel", "Path", "Text", "Think"}
    assert set(schema["$defs"]) == nodes
    for part in (schema, *schema["$defs"].values()):
        assert part["additionalProperties"] is False
        assert part["description"].endswith(".")
        assert ">>>" not in part["description"]
