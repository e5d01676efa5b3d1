"""Implicit parallelism of sequential chains: counts by rules, with their precision.

Run it with `python examples/studies/implicit.py`; docs/studies/implicit.md has what came out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from study import mean_error, publish, sequential_reading, start, table
from width import find_branches, width

import mvspec
from mvspec import Message, MvspecError
from mvspec.curation import split_sentences

LABELLED = Path(__file__).with_name("labelled.txt")
MARK = re.compile(r"\[\[|\|\| ?|\]\]")


@dataclass(frozen=True)
class Chain:
    """A text, and where it could fork if somebody has said so.

    Args:
        branches: of each place, the span of each branch in characters; None where not labelled.
    """

    name: str
    text: str
    branches: tuple[tuple[tuple[int, int], ...], ...] | None = None


def labelled(path: Path = LABELLED) -> list[Chain]:
    """Read the labelled chains.

    Raises:
        MvspecError: marks do not match.
    """
    records = re.split(r"^=== (.*)\n", path.read_text("utf-8"), flags=re.MULTILINE)[1:]
    return [
        read_marks(name, text.rstrip("\n"))
        for name, text in zip(records[::2], records[1::2], strict=True)
    ]


def read_marks(name: str, marked: str) -> Chain:
    """Return a chain without its marks.

    >>> read_marks("a", "So. [[One. || Two.]] End.").branches
    (((4, 9), (9, 13)),)
    """
    text, at = "", 0
    places: list[tuple[tuple[int, int], ...]] = []
    open_: list[int] | None = None
    for match in [*MARK.finditer(marked), None]:
        text += marked[at : match.start() if match else len(marked)]
        if match is None:
            break
        at = match.end()
        mark = match[0].strip()
        if (mark == "[[") == (open_ is not None):
            raise MvspecError(f"{name}: {mark} stands where it cannot")
        if mark == "[[":
            open_ = [len(text)]
        elif open_ is not None:
            open_.append(len(text))
            if mark == "]]":
                places.append(tuple(pairwise(open_)))
                open_ = None
    if open_ is not None:
        raise MvspecError(f"{name}: [[ has no ]]")
    return Chain(name, text, tuple(places))


def found_spans(text: str) -> list[tuple[tuple[int, int], ...]]:
    """Return the branches that the rules find, in characters."""
    sentences = split_sentences(text)
    ends = [0]
    for sentence in sentences:
        ends.append(ends[-1] + len(sentence))
    return [
        tuple((ends[branch.first - 1], ends[branch.last]) for branch in each.branches)
        for each in find_branches(sentences).branchings
    ]


def same_place(one: tuple[tuple[int, int], ...], other: tuple[tuple[int, int], ...]) -> bool:
    """Whether two branchings are one: they overlap by more than half of both together."""
    first, last = max(one[0][0], other[0][0]), min(one[-1][1], other[-1][1])
    union = max(one[-1][1], other[-1][1]) - min(one[0][0], other[0][0])
    return last - first > union / 2


@dataclass(frozen=True)
class Agreement:
    """Found against labelled places, summed over chains."""

    chains: int
    labelled: int
    found: int
    right: int

    @property
    def precision(self) -> float:
        """Share of what was found that is right."""
        return self.right / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """Share of what there is that was found."""
        return self.right / self.labelled if self.labelled else 1.0


def agreement(chains: list[Chain]) -> Agreement:
    """Compare the rules with labels."""
    labels = found = right = 0
    for chain in chains:
        mine = found_spans(chain.text)
        wanted = chain.branches or ()
        labels += len(wanted)
        found += len(mine)
        right += sum(any(same_place(each, other) for other in wanted) for each in mine)
    return Agreement(len(chains), labels, found, right)


def corpus_chains(path: Path, field: str) -> Iterator[Chain]:
    """Yield the sequential readings of a corpus's well-formed outputs, labelled by its blocks."""
    for record in mvspec.read(path, field=field):
        document = record.read().document
        if document is not None:
            turn = document.messages[-1]
            text, _ = sequential_reading(turn)
            yield Chain(record.name, text, blocks_in(turn, text))


def blocks_in(turn: Message, text: str) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Return where the outermost blocks' paths stand in the sequential reading."""
    places = []
    at = 0
    for block in outermost(turn):
        spans = []
        for path in block.paths:
            own, _ = sequential_reading(mvspec.Message(role="assistant", body=path.body))
            begin = text.index(own, at)
            at = begin + len(own)
            spans.append((begin, at))
        places.append(tuple(spans))
    return tuple(places)


def outermost(turn: Message) -> Iterator[mvspec.Parallel]:
    """Yield the blocks of a turn that stand in no other."""
    for item in turn.body:
        for part in item.body if isinstance(item, mvspec.Think) else (item,):
            if isinstance(part, mvspec.Parallel):
                yield part


def main(
    chains: Path | None = None,
    field: str = "output",
    form: str = "text",
    page: Path | None = None,
) -> None:
    """Count implicit parallelism.

    Args:
        chains: JSONL to count in; by default the labelled chains, which show the precision.
        field: of a row, that has the text.
        form: "text" for sequential chains; "multiverse" for outputs with blocks, which are read
            sequentially, and whose blocks are the labels.
        page: a Markdown page whose results are renewed.
    """
    if chains is None:
        some, name = labelled(), "implicit"
    elif form == "multiverse":
        some, name = list(corpus_chains(chains, field)), "implicit-outputs"
    else:
        some = [Chain(each.name, each.at(field)) for each in mvspec.read(chains, field=field)]
        name = "implicit-chains"
    publish(name, report(some), page)


def report(chains: list[Chain]) -> str:
    """Return the counts as a table."""
    parts = [split_sentences(chain.text) for chain in chains]
    sizes = [width(sentences, find_branches(sentences)) for sentences in parts]
    some = [size for size in sizes if size.branchings]
    coverage, speedup = (
        [getattr(size, what) for size in sizes] for what in ("coverage", "speedup")
    )
    rows: list[tuple[str, str]] = [
        ("chains", f"{len(chains)}"),
        ("chains with a place", f"{len(some)} ({len(some) / max(1, len(chains)):.0%})"),
        ("places a chain", f"{sum(size.branchings for size in sizes) / max(1, len(chains)):.2f}"),
        (
            "branches a place",
            _ratio(sum(s.branches for s in sizes), sum(s.branchings for s in sizes)),
        ),
        ("words in branches", "{:.1%} ± {:.1%}".format(*mean_error(coverage))),
        ("speedup at most", "{:.3f} ± {:.3f}".format(*mean_error(speedup))),
    ]
    if all(chain.branches is not None for chain in chains):
        score = agreement(chains)
        rows += [
            ("labelled places", f"{score.labelled}"),
            ("found places", f"{score.found}"),
            ("precision", f"{score.right} of {score.found} ({score.precision:.0%})"),
            ("recall", f"{score.right} of {score.labelled} ({score.recall:.0%})"),
        ]
    return table(("Count", "Value"), rows)


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else "-"


if __name__ == "__main__":
    start(main)
