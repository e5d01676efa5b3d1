"""The canonical form: what Multiverse models read and write (paper, figure 4).

A tag stands on a line of its own. A path begins with its label, which the runtime writes with the
header of the path (separator, `<Path>`, newline, `1:`); it writes the header of the join too
(separator, `<Conclusion>`, newline), and the model everything else. Positions are the law's.
"""

from __future__ import annotations

from mvspec.forms.syntax import Syntax
from mvspec.forms.tagged import TaggedForm

__all__ = ["FORM", "MULTIVERSE"]

MULTIVERSE = Syntax("multiverse")

FORM = TaggedForm(
    MULTIVERSE,
    """
    block: _PARALLEL goal path+ conclusion _END_PARALLEL
    goal: _GOAL outline+ _END_GOAL
    outline: _OUTLINE LINE _END_OUTLINE
    path: _PATH LABEL (BLANK | TEXT) (block TEXT?)* _END_PATH
    """,
)
