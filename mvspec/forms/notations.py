"""The forms whose text is not the tree in its order, or no flat text at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mvspec.errors import Source
from mvspec.forms.apr import APR, read_apr, refuse_apr, write_apr
from mvspec.forms.groups import GROUPS, read_groups, refuse_groups, write_groups
from mvspec.forms.recovery.edits import Edit
from mvspec.forms.recovery.plans import repair_groups
from mvspec.forms.recovery.steps import repair_summary
from mvspec.forms.recovery.traces import repair_apr
from mvspec.forms.summary import SUMMARY, read_summary, refuse_summary, write_summary
from mvspec.forms.syntax import Syntax
from mvspec.tree.ir import Document, Message

__all__ = ["NOTATIONS", "Notation"]


class Notation(NamedTuple):
    """How such a form is read, repaired and written.

    Args:
        syntax: its name, its tags and its limits.
        read: canonical text to a document; raises `Mismatch` on any other.
        repair: the edits that make any text canonical.
        write: a turn that the form can hold, to text.
        refuse: raises `Unsupported` for a turn that the form cannot hold, beyond what the
            syntax tells; given the turn's address.
    """

    syntax: Syntax
    read: Callable[[str], Document]
    repair: Callable[[Source], list[Edit]]
    write: Callable[[Message], str]
    refuse: Callable[[Message, str], None]


NOTATIONS = {
    each.syntax.name: each
    for each in (
        Notation(SUMMARY, read_summary, repair_summary, write_summary, refuse_summary),
        Notation(GROUPS, read_groups, repair_groups, write_groups, refuse_groups),
        Notation(APR, read_apr, repair_apr, write_apr, refuse_apr),
    )
}
"""By the name of the form."""
