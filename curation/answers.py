"""Replies of a model to each step, as Pydantic models; their JSON schemas go with the requests.

Title, docstrings and descriptions are part of a schema and so of a request's key: to change one
is to pay for its answers again.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, Field


class StepReply(BaseModel, frozen=True):
    """A step of the chain, or a substep of the line before it."""

    depth: int = Field(description="1 for a step, 2 for a substep of the step before it, ...")
    title: str = Field(description="What the step does, in one line.")
    first: int = Field(description="Number of its first sentence.")
    last: int = Field(description="Number of its last sentence.")


class StepsReply(BaseModel, frozen=True, title="Steps"):
    """Step 1: the chain as a tree of steps, in the order of the text."""

    steps: tuple[StepReply, ...]


class GroupReply(BaseModel, frozen=True):
    """Neighbouring steps of one level that can run side by side."""

    reason: str = Field(description="Why no path needs another one's result.")
    paths: tuple[tuple[str, ...], ...] = Field(
        description="For each path, the labels of its steps in order, such as ['2', '3']."
    )


class GroupsReply(BaseModel, frozen=True, title="Groups"):
    """Step 2: what can run side by side; empty where nothing can."""

    groups: tuple[GroupReply, ...]


class FrameReply(BaseModel, frozen=True, title="Frame"):
    """Step 5, of a block: one goal for each path, and what the paths come to together."""

    goals: tuple[str, ...] = Field(description="One line for each path, in order.")
    conclusion: str = Field(description="What the paths have shown together.")


class EditReply(BaseModel, frozen=True):
    """A sentence, written anew."""

    sentence: int = Field(description="The number of the sentence.")
    text: str = Field(description="The sentence as it stands alone.")


class EditsReply(BaseModel, frozen=True, title="Edits"):
    """Step 5, of a path: the sentences that lean on another path; all others stay as they are."""

    edits: tuple[EditReply, ...]


class LeanReply(BaseModel, frozen=True):
    """A path that needs another one."""

    path: int = Field(description="Number of the path that leans, from 1.")
    on: int = Field(description="Number of the path that it needs.")
    quote: str = Field(description="The words that show it.")
    remedy: Literal["rewrite", "regroup"] = Field(
        description="rewrite if only the wording leans, regroup if the result is needed."
    )


class JudgementReply(BaseModel, frozen=True, title="Judgement"):
    """Whether the paths of a block are independent."""

    leans: tuple[LeanReply, ...]


class BranchReply(BaseModel, frozen=True):
    """One branch of a place where a chain branches."""

    title: str = Field(description="What the branch does, in one line.")
    first: int = Field(description="Number of its first sentence.")
    last: int = Field(description="Number of its last sentence.")


class BranchingReply(BaseModel, frozen=True):
    """A place where a chain branches."""

    kind: Literal["collective", "selective"] = Field(
        description="collective if the result needs every branch, selective if it needs one."
    )
    reason: str = Field(description="Why, in one line.")
    branches: tuple[BranchReply, ...]


class BranchesReply(BaseModel, frozen=True, title="Branches"):
    """The implicit parallelism of a chain."""

    branchings: tuple[BranchingReply, ...]


@cache
def schema_text(model: type[BaseModel]) -> str:
    """Return the JSON schema of a reply, with the keywords that Gemini documents, as text."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def plain(value: Any) -> Any:
        """Put definitions where they are used, and leave out what says nothing to a model."""
        if isinstance(value, list):
            return [plain(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            value = definitions[value["$ref"].rpartition("/")[2]]
        return {
            key: {name: plain(each) for name, each in item.items()}
            if key == "properties" else plain(item)
            for key, item in value.items()
            if key not in ("title", "additionalProperties")
        }  # fmt: skip

    # In order, and not sorted: it is written so.
    return json.dumps(plain(schema) | {"title": schema["title"]})
