"""`mvspec schema`: the JSON Schema of a document."""

from __future__ import annotations

from mvspec.tree.schema import document_schema


def schema() -> None:
    """Print the JSON Schema of a document."""
    print(document_schema(), end="")
