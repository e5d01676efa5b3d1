"""The rewritten trajectory of curation's second step: one fenced answer, without numbers.

An outline is a line of its goal that begins with `Path: `, and blank lines stand between the
elements. Where the whole text is fenced, the fence is the reasoning. A model writes all of it.
"""

from __future__ import annotations

from mvspec.forms import multiverse
from mvspec.forms.syntax import Syntax, tag_texts
from mvspec.forms.tagged import TaggedForm
from mvspec.law.tags import Tag

CURATOR = Syntax(
    "curator",
    separator="\n\n",
    after_think="",
    tags=tag_texts({Tag.OUTLINE: "Path: ", Tag.END_OUTLINE: ""}),
    labels="none",
    counted=True,
    outline_gap="",
    path_gap="\n\n",
    fence="```",
)

FORM = TaggedForm(CURATOR, repaired_as=multiverse.FORM)
