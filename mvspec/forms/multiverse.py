"""The canonical form: what Multiverse models read and write (paper, figure 4).

A tag stands on a line of its own; other tools write tags and text on one line, which is read as
well. A path begins with its label, which the runtime writes with the
header of the path (separator, `<Path>`, newline, `1:`); it writes the header of the join too
(separator, `<Conclusion>`, newline), and the model everything else. Positions are the law's.
"""

from __future__ import annotations

from mvspec.forms.syntax import Syntax
from mvspec.forms.tagged import TaggedForm

MULTIVERSE = Syntax("multiverse", loose=True)

FORM = TaggedForm(MULTIVERSE)
