"""ThreadWeaver's trajectories: one level of threads, an optional conclusion.

An outline is one line with its tags, nothing stands between two threads, and a conclusion without
text is not written. The client of its published engine writes `<Thread>` and the label of each
thread, and joins by sending all threads again: its positions are those of the lowering `tree`.
"""

from __future__ import annotations

from mvspec.forms import multiverse
from mvspec.forms.syntax import Syntax, tag_texts
from mvspec.forms.tagged import TaggedForm
from mvspec.law.tags import Tag

THREADWEAVER = Syntax(
    "threadweaver",
    tags=tag_texts(
        {
            Tag.THINK: "<think>",
            Tag.END_THINK: "</think>",
            Tag.GOAL: "<Outlines>",
            Tag.END_GOAL: "</Outlines>",
            Tag.PATH: "<Thread>",
            Tag.END_PATH: "</Thread>",
        }
    ),
    counted=True,
    outline_gap="",
    path_gap="",
    optional_join=True,
    loose=True,
    max_depth=1,
    positions="tree",
)

FORM = TaggedForm(THREADWEAVER, repaired_as=multiverse.FORM)
