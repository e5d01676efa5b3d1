"""Parallel-R1: paths without a goal and without numbers, and a summary behind `</Parallel>`.

In the tree, paths are labelled 1, 2, 3, their outlines are empty, and the summary is the block's
conclusion. At run time the number of paths is the engine's choice, which writes `<Path>`.
"""

from __future__ import annotations

from mvspec.forms import multiverse
from mvspec.forms.syntax import Syntax, tag_texts
from mvspec.forms.tagged import TaggedForm
from mvspec.law.tags import Tag

PARALLEL_R1 = Syntax(
    "parallel-r1",
    tags=tag_texts(
        {
            Tag.THINK: "<think>",
            Tag.END_THINK: "</think>",
            Tag.GOAL: "",
            Tag.END_GOAL: "",
            Tag.OUTLINE: "",
            Tag.END_OUTLINE: "",
            Tag.CONCLUSION: "<Summary>",
            Tag.END_CONCLUSION: "</Summary>",
        }
    ),
    labels="none",
    counted=True,
    outside=True,
    loose=True,
    max_depth=1,
)

FORM = TaggedForm(PARALLEL_R1, repaired_as=multiverse.FORM)
