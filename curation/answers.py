"""What each step answers, as Pydantic models; their JSON schemas go with the requests."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Branches", "Edits", "Frame", "Groups", "Judgement", "Reply", "StepLine", "Steps",
    "schema_text",
]  # fmt: skip


class Reply(BaseModel):
    """A model's answer; fields that nobody asked for are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class StepLine(Reply):
    """A step of the chain, or a substep of the line before it."""

    depth: int = Field(description="1 for a step, 2 for a substep of the step before it, ...")
    title: str = Field(description="What the step does, in one line.")
    first: int = Field(description="Number of its first sentence.")
    last: int = Field(description="Number of its last sentence.")


class Steps(Reply):
    """Step 1: the chain as a tree of steps, in the order of the text."""

    steps: tuple[StepLine, ...]


class Group(Reply):
    """Neighbouring steps of one level that can run side by side."""

    reason: str = Field(description="Why no path needs another one's result.")
    paths: tuple[tuple[str, ...], ...] = Field(
        description="For each path, the labels of its steps in order, such as ['2', '3']."
    )


class Groups(Reply):
    """Step 2: what can run side by side; empty where nothing can."""

    groups: tuple[Group, ...]


class Frame(Reply):
    """Step 5, of a block: one goal for each path, and what the paths come to together."""

    goals: tuple[str, ...] = Field(description="One line for each path, in order.")
    conclusion: str = Field(description="What the paths have shown together.")


class Edit(Reply):
    """A sentence, written anew."""

    sentence: int = Field(description="The number of the sentence.")
    text: str = Field(description="The sentence as it stands alone.")


class Edits(Reply):
    """Step 5, of a path: the sentences that lean on another path; all others stay as they are."""

    edits: tuple[Edit, ...]


class Lean(Reply):
    """A path that needs another one."""

    path: int = Field(description="Number of the path that leans, from 1.")
    on: int = Field(description="Number of the path that it needs.")
    quote: str = Field(description="The words that show it.")
    remedy: Literal["rewrite", "regroup"] = Field(
        description="rewrite if only the wording leans, regroup if the result is needed."
    )


class Judgement(Reply):
    """Whether the paths of a block are independent."""

    leans: tuple[Lean, ...]


class BranchSpan(Reply):
    """One branch of a place where a chain branches."""

    title: str = Field(description="What the branch does, in one line.")
    first: int = Field(description="Number of its first sentence.")
    last: int = Field(description="Number of its last sentence.")


class Branching(Reply):
    """A place where a chain branches."""

    kind: Literal["collective", "selective"] = Field(
        description="collective if the result needs every branch, selective if it needs one."
    )
    reason: str = Field(description="Why, in one line.")
    branches: tuple[BranchSpan, ...]


class Branches(Reply):
    """The implicit parallelism of a chain."""

    branchings: tuple[Branching, ...]


@cache
def schema_text(model: type[Reply]) -> str:
    """Return the JSON schema of an answer, with the keywords that Gemini documents, as text."""
    return json.dumps(_plain(model.model_json_schema()))  # in order: it is written so


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """Put definitions where they are used, and leave out what says nothing to a model."""
    definitions = schema.pop("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            name = value["$ref"].rpartition("/")[2]
            return resolve(definitions[name] | {k: v for k, v in value.items() if k != "$ref"})
        kept = {k: v for k, v in value.items() if k not in ("title", "additionalProperties")}
        if "properties" in kept:
            kept["properties"] = {k: resolve(v) for k, v in kept["properties"].items()}
            return {k: v if k == "properties" else resolve(v) for k, v in kept.items()}
        return {key: resolve(item) for key, item in kept.items()}

    plain: dict[str, Any] = resolve(schema)
    return plain | {"title": schema["title"]}
