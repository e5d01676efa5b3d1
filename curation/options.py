"""What decides how a chain becomes a document."""

from __future__ import annotations

from dataclasses import dataclass

from mvspec.curation.request import Request

__all__ = ["Curation"]


@dataclass(frozen=True, slots=True)
class Curation:
    """What decides how a chain becomes a document.

    Args:
        model: that is asked.
        max_distance: of a document's sequential reading to its source, 0 to 1.
        max_path_distance: the same of a path's own sentences.
        attempts: answers of one question that may be refused before the record is.
        max_depth, max_paths: blocks inside blocks, and paths of a block.
        independence: whether the rules look for paths whose words lean on a sibling.
        judge: whether the model is asked as well.
        sequential: keep chains in which nothing runs side by side, as documents without blocks.
        trigger: a line that ends the text before a block; "" for none.
        prefix: how the answer begins.
        temperature, thinking, max_tokens: of the requests.
    """

    model: str
    max_distance: float = 0.2
    max_path_distance: float = 0.5
    attempts: int = 3
    max_depth: int = 3
    max_paths: int = 16
    independence: bool = True
    judge: bool = False
    sequential: bool = False
    trigger: str = "Let's think in parallel."
    prefix: str = "Answer: "
    temperature: float | None = None
    thinking: int | str | None = None
    max_tokens: int = 32_768

    def request(self, step: str) -> Request:
        """Return a request of a step that says nothing yet."""
        return Request(
            step,
            self.model,
            system="",
            prompt="",
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            thinking=self.thinking,
        )
