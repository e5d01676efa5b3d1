"""IFEval: whether an answer follows instructions, as lm-evaluation-harness's own task checks it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from mvspec.data.records import InputError
from mvspec.runtime.evaluation.verdict import Verdict

__all__ = ["check_instructions", "grade"]

_SENTENCES = frozenset(
    {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
)
"""Instructions whose check cuts text by NLTK's models."""


@cache
def _library() -> Any:
    """Return lm-evaluation-harness's IFEval.

    Its import fetches NLTK's models unless it believes to be another rank's process; here
    nothing is fetched that nobody asked for.
    """
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        import langdetect
        from lm_eval.tasks.ifeval import utils
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before
    langdetect.DetectorFactory.seed = 0  # it guesses at random otherwise
    return utils


def check_instructions(wanted: Iterable[str]) -> None:
    """Refuse instructions that cannot be checked here.

    Args:
        wanted: their names, as `punctuation:no_comma`.

    Raises:
        InputError: the library or a model of it is missing, or does not know one of them.
    """
    try:
        known = _library().instructions_registry.INSTRUCTION_DICT
    except ImportError as error:
        raise InputError(f"ifeval needs: pip install 'mvspec[harness]' ({error})") from None
    names = set(wanted)
    strange = sorted(names - set(known))
    if strange:
        raise InputError(
            f"ifeval: no check for the instructions {', '.join(strange)}: leave their rows out"
        )
    if names & _SENTENCES and not _has_sentences():
        raise InputError(
            f"ifeval: {', '.join(sorted(names & _SENTENCES))} is checked with NLTK's models, "
            "which are not here: python -m nltk.downloader punkt_tab, or leave the rows out"
        )


def _has_sentences() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def grade(payload: Mapping[str, Any], text: str) -> Verdict:
    """Check every instruction; the answer is right where it follows all of them, strictly.

    Args:
        payload: `prompt`, `instructions` (their names) and `kwargs` (one object for each).
        text: what was written.
    """
    utils = _library()
    given: Sequence[Mapping[str, Any]] = payload["kwargs"]
    example = utils.InputExample(
        key=0,
        instruction_id_list=list(payload["instructions"]),
        prompt=payload["prompt"],
        kwargs=[dict(each) for each in given],
    )
    strict = utils.test_instruction_following_strict(example, text)
    loose = utils.test_instruction_following_loose(example, text)
    pairs = zip(payload["instructions"], strict.follow_instruction_list, strict=True)
    missed = [name for name, follows in pairs if not follows]
    return Verdict(
        float(strict.follow_all_instructions),
        note=f"not followed: {', '.join(missed)}" if missed else "",
        details={
            "followed": list(strict.follow_instruction_list),
            "followed_loosely": list(loose.follow_instruction_list),
        },
    )
