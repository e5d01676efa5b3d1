"""The twelve structural tags: the alphabet in which every surface form writes forks and joins."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cached_property

TAG = re.compile(r"</?(?:Think|Parallel|Goal|Outline|Path|Conclusion)>")
"""The twelve canonical tags: an assistant's text never contains one."""


class Tag(StrEnum):
    """The twelve structural tags by their role, in the order of their published token ids."""

    THINK = "<Think>"
    END_THINK = "</Think>"
    PARALLEL = "<Parallel>"
    END_PARALLEL = "</Parallel>"
    GOAL = "<Goal>"
    END_GOAL = "</Goal>"
    OUTLINE = "<Outline>"
    END_OUTLINE = "</Outline>"
    PATH = "<Path>"
    END_PATH = "</Path>"
    CONCLUSION = "<Conclusion>"
    END_CONCLUSION = "</Conclusion>"

    @cached_property
    def closes(self) -> bool:
        """Whether this is a closing tag."""
        return self.name.startswith("END_")

    @cached_property
    def partner(self) -> Tag:
        """The opening of a closing tag, the closing of an opening one."""
        return Tag[self.name.removeprefix("END_") if self.closes else f"END_{self.name}"]
