"""The JSON Schema of a document, which mvspec/tree/document.schema.json holds."""

from __future__ import annotations

import json
from typing import Any

from mvspec.tree.ir import Document


def document_schema() -> str:
    """Return the JSON Schema of a document as text; mvspec/tree/document.schema.json holds it.

    >>> json.loads(document_schema())["title"]
    'Document'
    """
    tree: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    tree |= Document.model_json_schema()
    for part in (tree, *tree["$defs"].values()):
        # Of a docstring, the sentence that says what the node is.
        part["description"] = part["description"].split("\n\n")[0].replace("\n", " ")
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
