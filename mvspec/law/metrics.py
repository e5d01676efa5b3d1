"""How parallel a document is, counted in its surface form.

The degree of parallelism is the `# parallel` of the paper (Multiverse, arXiv 2506.09991):
the assistant's tokens over the length of their critical path. The prompt is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from mvspec.errors import Unsupported
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.law.tags import Tag
from mvspec.tree.ir import Document, Message

__all__ = ["Corpus", "Counter", "Metrics", "count_words", "measure", "token_counter"]

Counter = Callable[[str], int]
"""Counts a run of text. A tag comes alone, as it is one token where a tokenizer knows it."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """The counts of one document, in the unit of the counter (characters, words, tokens).

    Args:
        tokens: everything that the assistant's turns hold.
        critical_path: the longest chain through them: of each block, only its longest path.
        path_tokens: those that stand in a path, fork headers included.
        blocks: parallel blocks, nested ones included.
        paths: paths of all blocks.
        depth: levels of blocks; 0 without any.
        imbalance: the sum over blocks of the longest path over the mean path.
    """

    tokens: int
    critical_path: int
    path_tokens: int = 0
    blocks: int = 0
    paths: int = 0
    depth: int = 0
    imbalance: float = 0.0

    @property
    def parallelism(self) -> float:
        """Degree of parallelism: tokens over critical path; 1 for sequential text."""
        return self.tokens / self.critical_path if self.critical_path else 1.0

    @property
    def coverage(self) -> float:
        """Share of the tokens that stand in a path, 0 to 1."""
        return self.path_tokens / self.tokens if self.tokens else 0.0

    @property
    def paths_per_block(self) -> float | None:
        """Mean number of paths of a block; None without a block."""
        return self.paths / self.blocks if self.blocks else None

    @property
    def longest_over_mean(self) -> float | None:
        """Mean over the blocks of longest path over mean path; 1 is balanced."""
        return self.imbalance / self.blocks if self.blocks else None

    def record(self) -> dict[str, int | float | None]:
        """Return the object that `mvspec stats --each --json` prints for this document."""
        return {
            "tokens": self.tokens,
            "critical_path": self.critical_path,
            "parallelism": self.parallelism,
            "coverage": self.coverage,
            "blocks": self.blocks,
            "paths_per_block": self.paths_per_block,
            "longest_over_mean": self.longest_over_mean,
            "depth": self.depth,
        }


@dataclass(frozen=True, slots=True)
class Corpus:
    """The totals and means of many documents; add one at a time.

    The mean degree of parallelism is over documents, as the paper reports it; coverage, paths
    per block and longest over mean path are over all tokens and blocks together.

    >>> import mvspec
    >>> corpus = Corpus() + measure(mvspec.parse("Four."), count_words)
    >>> corpus.record()["parallelism"]
    1.0
    """

    documents: int = 0
    documents_with_blocks: int = 0
    parallelism_sum: float = 0.0
    parallelism_sum_with_blocks: float = 0.0
    total: Metrics = field(default_factory=lambda: Metrics(0, 0))

    def __add__(self, one: Metrics) -> Corpus:
        total = self.total
        return Corpus(
            self.documents + 1,
            self.documents_with_blocks + bool(one.blocks),
            self.parallelism_sum + one.parallelism,
            self.parallelism_sum_with_blocks + (one.parallelism if one.blocks else 0.0),
            Metrics(
                total.tokens + one.tokens,
                total.critical_path + one.critical_path,
                total.path_tokens + one.path_tokens,
                total.blocks + one.blocks,
                total.paths + one.paths,
                max(total.depth, one.depth),
                total.imbalance + one.imbalance,
            ),
        )

    def record(self) -> dict[str, int | float | None]:
        """Return the object that `mvspec stats --json` prints; means of nothing are None."""
        n, m, total = self.documents, self.documents_with_blocks, self.total
        return {
            "documents": n,
            "documents_with_blocks": m,
            "tokens": total.tokens,
            "critical_path": total.critical_path,
            "parallelism": self.parallelism_sum / n if n else None,
            "parallelism_with_blocks": self.parallelism_sum_with_blocks / m if m else None,
            "parallelism_pooled": total.parallelism if n else None,
            "coverage": total.coverage if n else None,
            "blocks": total.blocks,
            "paths_per_block": total.paths_per_block,
            "longest_over_mean": total.longest_over_mean,
            "depth": total.depth,
        }


def measure(document: Document, count: Counter = len, syntax: Syntax = MULTIVERSE) -> Metrics:
    """Return the metrics of a document's assistant turns.

    Text is counted run by run: a run ends at a tag and where a runtime takes over from the
    model or gives back, which is where tokens end too.

    Args:
        count: the counter; `len` for characters, `count_words`, or `token_counter(tokenizer)`.
        syntax: the surface form that is counted.

    Raises:
        Unsupported: the document has a hole, whose length is not known.

    >>> import mvspec
    >>> block = mvspec.parallel(mvspec.branch("A", "x y"), mvspec.branch("B", "z"))
    >>> metrics = measure(mvspec.document(mvspec.assistant(block)), count_words)
    >>> metrics.tokens, metrics.critical_path, metrics.paths_per_block
    (23, 19, 2.0)
    """
    chain = _Chain(count)
    for message in document.messages:
        if message.role == "assistant":
            chain.turn(message, syntax)
    return Metrics(
        chain.tokens,
        chain.length,
        chain.path_tokens,
        chain.blocks,
        chain.paths,
        chain.depth,
        chain.imbalance,
    )


@dataclass(slots=True)
class _Block:
    outlines: int = 0
    fork: int = 0
    ends: list[int] = field(default_factory=list)


class _Chain:
    """Follows the pieces of a rendering; `length` is that of the chain to the piece at hand."""

    def __init__(self, count: Counter) -> None:
        self.count = count
        self.tokens = self.length = self.path_tokens = 0
        self.blocks = self.paths = self.depth = 0
        self.imbalance = 0.0
        self.open: list[_Block] = []
        self.in_paths = 0

    def turn(self, message: Message, syntax: Syntax) -> None:
        run: list[str] = []
        forced = False
        for piece in syntax.pieces(message):
            if piece.hole is not None:
                raise Unsupported(f"the hole {piece.hole.name!r} has no length yet: fill it first")
            if piece.tag is not None or piece.forced != forced:
                self.add("".join(run))
                run.clear()
                forced = piece.forced
            if piece.tag is None:
                run.append(piece.text)
            else:
                self.add(piece.text)
                self.event(piece.tag)
        self.add("".join(run))

    def add(self, text: str) -> None:
        if not text:
            return
        number = self.count(text)
        self.tokens += number
        self.length += number
        if self.in_paths:
            self.path_tokens += number

    def event(self, tag: Tag) -> None:
        # A thread changes right after a tag: the separator that follows </Goal> or </Path>
        # is the next path's, and the join's after the last path.
        if tag is Tag.PARALLEL:
            self.open.append(_Block())
            self.depth = max(self.depth, len(self.open))
        elif tag is Tag.END_OUTLINE:
            self.open[-1].outlines += 1
        elif tag is Tag.END_GOAL:
            self.open[-1].fork = self.length
            self.in_paths += 1
        elif tag is Tag.END_PATH:
            block = self.open[-1]
            block.ends.append(self.length)
            if len(block.ends) < block.outlines:
                self.length = block.fork
            else:
                self.length = max(block.ends)
                self.in_paths -= 1
        elif tag is Tag.END_PARALLEL:
            block = self.open.pop()
            lengths = [end - block.fork for end in block.ends]
            whole = sum(lengths)
            self.blocks += 1
            self.paths += len(lengths)
            self.imbalance += max(lengths) * len(lengths) / whole if whole else 1.0


def count_words(text: str) -> int:
    """Return the number of runs between white space; a tag is one word.

    >>> count_words("two words")
    2
    """
    return len(text.split())


def token_counter(tokenizer: Any) -> Counter:
    """Return a counter of a tokenizer's tokens.

    A tag is one token where the vocabulary has it. In all other text, control tokens are plain
    characters: what reads like `<|im_end|>` in a text is not one.

    Args:
        tokenizer: a transformers fast tokenizer or a `tokenizers.Tokenizer`; it is copied.

    Raises:
        Unsupported: it is neither.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "encode_special_tokens"):
        raise Unsupported(
            f"{type(tokenizer).__name__} is no fast tokenizer: "
            "give a transformers fast tokenizer or a tokenizers.Tokenizer"
        )
    backend = deepcopy(backend)
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    tags = {str(tag) for tag in Tag if backend.token_to_id(str(tag)) is not None}

    def count(text: str) -> int:
        return 1 if text in tags else len(backend.encode(text, add_special_tokens=False).ids)

    return count
