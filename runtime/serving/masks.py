"""What may be drawn, put onto a server's logits: packed bits, and draws with a seed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvspec.runtime.lexicon import Lexicon
from mvspec.runtime.sampling import draw
from mvspec.runtime.serving.strand import Strand

__all__ = ["Masks"]

_KEPT = 256

Rows = Sequence[tuple[int, Strand]]


class Masks:
    """The masks of one server's vocabulary.

    Args:
        lexicon: of its tokenizer.
        size: the width of its logits.
    """

    def __init__(self, lexicon: Lexicon, size: int) -> None:
        self.lexicon = lexicon
        self.size = size
        self._kept: OrderedDict[int, tuple[Any, NDArray[np.int32]]] = OrderedDict()

    def apply(self, scores: Tensor, rows: Rows) -> list[Strand]:
        """Change the logits of strands: penalties for what they see, -inf for what may not come.

        Args:
            scores: [batch, size], changed in place.
            rows: of the batch, and the strands that draw there.

        Returns:
            The strands for which nothing may come, which cannot be; their rows stay free.
        """
        from xgrammar import apply_token_bitmask_inplace

        words = np.full((len(scores), -(-self.size // 32)), -1, dtype=np.int32)
        masked, stuck = False, []
        for row, strand in rows:
            self._penalise(scores[row], strand)
            bits = self._bits(strand)
            if bits is None:
                continue
            if not bits.any():
                stuck.append(strand)
                continue
            words[row] = bits
            masked = True
        if masked:
            packed = torch.from_numpy(words)
            if scores.device.type != "cpu":
                packed = packed.pin_memory().to(scores.device, non_blocking=True)
            apply_token_bitmask_inplace(scores, packed, vocab_size=self.size)
        return stuck

    def draw(self, raw: Tensor | None, rows: Rows, ids: Tensor) -> None:
        """Draw again, from their own random streams, for the strands whose client gave a seed.

        Args:
            raw: [rows, size]: the model's own logits.
            ids: [batch], changed in place.
        """
        if raw is None:
            return
        for logits, (row, strand) in zip(raw, rows, strict=True):
            run = strand.family.run
            if not self.is_seeded(strand) or strand.live.given or not strand.drawing:
                continue
            want = run.want(strand.live)
            want.logits = logits
            ids[row] = draw([want])[0].id

    @staticmethod
    def is_seeded(strand: Strand) -> bool:
        """Whether a strand's tokens are drawn here and not by the server."""
        family = strand.family
        return family.seeded and not family.run.options.sampling.greedy

    def _penalise(self, row: Tensor, strand: Strand) -> None:
        penalty = strand.family.run.options.sampling.repetition_penalty
        if penalty == 1.0:
            return
        seen = torch.tensor(sorted(set(strand.tokens)), device=row.device)
        score = row[seen]
        row[seen] = torch.where(score > 0, score / penalty, score * penalty)

    def _bits(self, strand: Strand) -> NDArray[np.int32] | None:
        """Return the packed mask of a strand; None where anything may come."""
        run, live = strand.family.run, strand.live
        if live.given:
            only = np.zeros(self.size, dtype=np.bool_)
            only[live.given[0]] = True
            return self._pack(only)
        if live.adaptive and run.options.structure and not live.banned:
            return self._remembered(self.lexicon.rules.allowed(live.machine, live.id))
        allowed = run.allowed(live)
        if allowed is None:
            return None
        if live.hole is not None and live.hole.constraint is None and not live.banned:
            return self._remembered(allowed)  # one of few
        return self._pack(allowed.numpy())

    def _remembered(self, allowed: Any) -> NDArray[np.int32]:
        """Pack a mask that comes again and again as the same object."""
        held = self._kept.get(id(allowed))
        if held is None:
            bits = self._pack(np.asarray(allowed))
            self._kept[id(allowed)] = allowed, bits
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return bits
        self._kept.move_to_end(id(allowed))
        return held[1]

    def _pack(self, allowed: NDArray[np.bool_]) -> NDArray[np.int32]:
        bits = np.zeros(-(-self.size // 32) * 32, dtype=np.bool_)
        bits[: len(allowed)] = allowed
        return np.packbits(bits, bitorder="little").view(np.int32)
