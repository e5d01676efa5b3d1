"""Checks of a document: coverage, content, independence. Grammar holds by construction."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rapidfuzz.distance import Levenshtein

from mvspec.compiler.lowerings import flatten
from mvspec.curation.chain import ReasoningChain
from mvspec.curation.structure import (
    PathPlan,
    PlanBody,
    SentenceRun,
    own_sentences,
    run_text,
    runs_of,
)
from mvspec.tree.ir import Document, Text, Think


def content_distance(document: Document, chain: ReasoningChain, edits: Mapping[int, str]) -> float:
    """Return the normalised edit distance of a document's sequential reading to its source.

    The reading is that of the `autoregressive` lowering: without tags, Goal and Conclusion.
    White space counts as one space.

    Args:
        edits: the sentences that were written anew; they bound the distance, which makes finding
            it fast.

    Source: the content check of Multiverse's curation, which allows 0.2.
    """
    reading, source = _reading(document), _bare(chain.reasoning)
    if not reading and not source:
        return 0.0
    hint = sum(
        Levenshtein.distance(_bare(chain.sentences[number - 1]), _bare(new))
        for number, new in edits.items()
    )
    distance = Levenshtein.distance(reading, source, score_hint=hint + 8)
    return distance / max(len(reading), len(source))


def run_distance(chain: ReasoningChain, runs: list[SentenceRun], edits: Mapping[int, str]) -> float:
    """Return the normalised edit distance of a path's own sentences to their source."""
    new = _bare(" ".join(run_text(chain, run, edits) for run in runs))
    old = _bare(" ".join(chain.text(run.first, run.last) for run in runs))
    return Levenshtein.distance(new, old) / max(len(new), len(old), 1)


def coverage_gap(
    document: Document, chain: ReasoningChain, body: PlanBody, edits: Mapping[int, str]
) -> str | None:
    """Return where a document does not hold every sentence once and in order; else None.

    It reads the finished document and knows nothing of how that was made.
    """
    numbers = [number for run in runs_of(body) for number in run.numbers]
    if numbers != list(range(1, len(chain.sentences) + 1)):
        return "the structure does not hold every sentence once"
    # White space is not compared: between sentences that touch, as Chinese ones do, a boundary
    # puts a newline.
    wanted = "".join(run_text(chain, SentenceRun(1, len(chain.sentences)), edits).split())
    reading = _reading(document).replace(" ", "")
    if reading == wanted:
        return None
    pairs = enumerate(zip(reading, wanted, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(reading), len(wanted)))
    return f"the reading differs from the source at character {at}: {reading[at : at + 40]!r}"


def _reading(document: Document) -> str:
    turn = flatten(document.messages[-1])
    think = turn.body[0] if turn.body and isinstance(turn.body[0], Think) else None
    texts = [item.text for item in think.body if isinstance(item, Text)] if think else []
    return _bare("\n".join(texts))


def _bare(text: str) -> str:
    return " ".join(text.split())


_POINTING = re.compile(
    r"\b(?:"
    r"(?:the )?(?:previous|preceding|earlier|other|last|next|first|second|third) "
    r"(?:path|branch|case|approach|method|subcase|option|scenario|way)s?"
    r"|(?:case|path|option|approach|method|branch|scenario) "
    r"(?:[0-9]+|(?-i:I{2,3}|I?V|VI{1,3}|[A-D]))"
    r"|(?:as|like) (?:before|above|previously|earlier|in the previous)"
    r"|(?:shown|found|computed|calculated|derived|obtained|seen|mentioned|noted) "
    r"(?:above|before|earlier|previously)"
    r"|same (?:as|way as|logic as|argument as) (?:above|before|in)"
    r"|from (?:the )?(?:above|previous)"
    r")\b",
    re.IGNORECASE,
)
"""Words that may point at a sibling, anywhere in a path."""

_JOINING = re.compile(
    r"\W*(?:similarly|likewise|alternatively|conversely|otherwise|analogously|next|then|finally|"
    r"lastly|second(?:ly)?|third(?:ly)?|fourth(?:ly)?|moreover|furthermore|besides|however|"
    r"on the other hand|in contrast|by contrast|another (?:way|approach|method|case|option)|"
    r"the (?:other|next|last|remaining|second|third) (?:way|approach|method|case|option|one)|"
    r"same (?:here|for)|also|again)\b",
    re.IGNORECASE,
)
"""Words that join the first sentence of a path to the sibling before it."""


def leaning_words(
    chain: ReasoningChain, path: PathPlan, edits: Mapping[int, str], goal: str = ""
) -> tuple[int, str] | None:
    """Return the first sentence of a path whose words lean on a sibling, and the words.

    Rules see words and not meaning. They are not for the first path of a block: it has no
    sibling before it, and what it points at stands before the block.

    >>> chain = ReasoningChain("a", "a", "", "First. Similarly, it is 6.", "")
    >>> leaning_words(chain, PathPlan(("Second",), (SentenceRun(2, 2),)), {})
    (2, 'Similarly')
    >>> leaning_words(chain, PathPlan(("Second",), (SentenceRun(2, 2),)), {2: "It is 6."})
    """
    for place, number in enumerate(own_sentences(path.body)):
        text = edits.get(number, chain.sentences[number - 1]).strip()
        found = _JOINING.match(text) if place == 0 else None
        found = found or _POINTING.search(text)
        if found and not _is_own(found.group(), (goal, *path.titles)):
            return number, found.group().strip()
    return None


def _is_own(words: str, titles: tuple[str, ...]) -> bool:
    """Return whether a path names itself, as path `Case 2` may."""
    return any(words.strip().lower() in title.lower() for title in titles)
