"""Native Parallel Reasoner: plans, steps and a takeaway, with no tag around a block.

A block begins at `<guideline>` and ends at `</takeaway>`; plans are numbered from 1 in every block,
and a block with one plan is usual. The published engine writes `<step>` and the number of each
step, and `<takeaway>`; the model everything else. Its training layout is that of Multiverse with
other tags.
"""

from __future__ import annotations

from mvspec.forms import multiverse
from mvspec.forms.syntax import Syntax, tag_texts
from mvspec.forms.tagged import TaggedForm
from mvspec.law.tags import Tag

NPR = Syntax(
    "npr",
    tags=tag_texts(
        {
            Tag.THINK: "<think>",
            Tag.END_THINK: "</think>",
            Tag.GOAL: "<guideline>",
            Tag.END_GOAL: "</guideline>",
            Tag.OUTLINE: "<plan>",
            Tag.END_OUTLINE: "</plan>",
            Tag.PATH: "<step>",
            Tag.END_PATH: "</step>",
            Tag.CONCLUSION: "<takeaway>",
            Tag.END_CONCLUSION: "</takeaway>",
        },
        "",
    ),
    counted=True,
    outline_gap="",
    loose=True,
    max_depth=1,
)

FORM = TaggedForm(NPR, repaired_as=multiverse.FORM)
