"""Plain prose for models that were never taught the tags: written and never read.

The plan alone knows the threads; the runtime writes a heading for each path.
"""

from __future__ import annotations

from typing import ClassVar, NoReturn

from mvspec.errors import Source, Unsupported
from mvspec.forms.syntax import Syntax
from mvspec.forms.tagged import render_pieces
from mvspec.tree.ir import Document, Message

UNTAGGED = Syntax("untagged", tagged=False)


class UntaggedForm:
    """Prose without a tag; see `mvspec.forms.form.Form`."""

    syntax: ClassVar[Syntax] = UNTAGGED
    readable: ClassVar[bool] = False

    def parse(self, source: Source) -> NoReturn:
        """Refuse to read."""
        raise Unsupported(f"form {UNTAGGED.name!r} writes no tags, so it cannot be read back")

    repair = parse

    def render(self, document: Document | Message) -> str:
        """Write one assistant's turn."""
        return render_pieces(document, UNTAGGED)


FORM = UntaggedForm()
