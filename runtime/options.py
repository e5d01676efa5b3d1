"""Options of a run, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mvspec.errors import VerifyError
from mvspec.law.limits import Limits
from mvspec.runtime.sampling import Sampling, check_fields, is_whole


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run: sampling, limits, and how steps are taken.

    Args:
        sampling: how tokens are drawn.
        limits: of the run; what cannot be closed in time is not opened, and what is open in the
            end is closed by force.
        structure: whether a model that decides when to fork is held to the grammar.
        share: let paths read each other after every so many tokens; 0 for never. Nothing that
            a path has written can be taken back then, so its holes' stop strings are of one
            character.
        threads: how many threads may take a token in one step, in surface order; 0 for all.
        decode: let the model's tokens of a replay take a step each, as when they were drawn.
        logits: keep the logits that follow every token.

    Raises:
        VerifyError: a value is out of its range.

    >>> Options(share=-1)
    Traceback (most recent call last):
    mvspec.errors.VerifyError: share: -1 is not a whole number from 0 up
    """

    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)
    structure: bool = True
    share: int = 0
    threads: int = 0
    decode: bool = False
    logits: bool = False

    def __post_init__(self) -> None:
        counts = (
            (name, is_whole(value) and value >= 0, "a whole number from 0 up")
            for name, value in (("share", self.share), ("threads", self.threads))
        )
        switches = (
            (name, isinstance(getattr(self, name), bool), "True or False")
            for name in ("structure", "decode", "logits")
        )
        check_fields(
            self,
            ("sampling", isinstance(self.sampling, Sampling), "a Sampling"),
            ("limits", isinstance(self.limits, Limits), "a Limits"),
            *counts,
            *switches,
        )


def options_of_each(
    count: int, options: Options | Sequence[Options] | None
) -> Sequence[Options | None]:
    """Return the options of each of `count` documents, given one for all or one for each.

    Raises:
        VerifyError: there are not as many options as documents.
    """
    each = options if isinstance(options, Sequence) else [options] * count
    if len(each) != count:
        raise VerifyError(
            "options", f"{len(each)} for {count} documents: give one for all, or one for each"
        )
    return each
