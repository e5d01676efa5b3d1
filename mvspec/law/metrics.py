"""Counts of a document's tokens, and the degree of parallelism that follows from them.

The degree of parallelism is the `# parallel` of the paper (Multiverse, arXiv 2506.09991):
the assistant's tokens, the end of the turn included, over the length of their critical path.
That is the longest chain of them; of one turn the highest position id minus the lowest, plus 1.
The prompt is not counted, and neither is what a template writes between two turns.
"""

from __future__ import annotations

from dataclasses import dataclass, field


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

    def to_dict(self) -> dict[str, int | float | None]:
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

    >>> corpus = Corpus() + Metrics(tokens=6, critical_path=4)
    >>> corpus.to_dict()["parallelism"]
    1.5
    """

    documents: int = 0
    documents_with_blocks: int = 0
    parallelism_sum: float = 0.0
    parallelism_sum_with_blocks: float = 0.0
    total: Metrics = field(default_factory=lambda: Metrics(0, 0))

    def __add__(self, one: Metrics) -> Corpus:
        total = self.total
        sums = {name: getattr(total, name) + getattr(one, name) for name in Metrics.__slots__}
        return Corpus(
            self.documents + 1,
            self.documents_with_blocks + bool(one.blocks),
            self.parallelism_sum + one.parallelism,
            self.parallelism_sum_with_blocks + (one.parallelism if one.blocks else 0.0),
            Metrics(**sums | {"depth": max(total.depth, one.depth)}),
        )

    def to_dict(self) -> dict[str, int | float | None]:
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
