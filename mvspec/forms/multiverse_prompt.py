"""Numbered tags that a model without training can be asked for (the paper's rebuttal).

Labels stand in the tags, and nothing is around the outlines: `<Goal 1>`, `<Path 1>`. A model
writes all of it, in one line of generation.
"""

from __future__ import annotations

from mvspec.forms import multiverse
from mvspec.forms.syntax import Syntax, tag_texts
from mvspec.forms.tagged import TaggedForm
from mvspec.law.tags import Tag

MULTIVERSE_PROMPT = Syntax(
    "multiverse-prompt",
    tags=tag_texts(
        {
            Tag.GOAL: "",
            Tag.END_GOAL: "",
            Tag.OUTLINE: "<Goal {}>",
            Tag.END_OUTLINE: "</Goal {}>",
            Tag.PATH: "<Path {}>",
            Tag.END_PATH: "</Path {}>",
        }
    ),
    labels="tag",
)

FORM = TaggedForm(MULTIVERSE_PROMPT, repaired_as=multiverse.FORM)
