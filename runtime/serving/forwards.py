"""What the hooks do in a forward: positions, what may be drawn, and what was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvspec.runtime.serving import marks
from mvspec.runtime.serving.families import Families
from mvspec.runtime.serving.masks import Masks, upload

__all__ = ["Forwards"]


class Forwards:
    """The forwards of one process of SGLang.

    Attributes:
        families: the requests that fork; None where the server cannot.
        masks: of the server's vocabulary.
    """

    def __init__(self) -> None:
        self.families: Families | None = None
        self.masks: Masks | None = None

    def place(self, forward: Any, cls: Any, batch: Any, *args: Any, **kw: Any) -> None:
        """Give tokens the positions of the law."""
        families = self.families
        if not families or forward.positions is None:
            return
        shifts = [getattr(req, "shift", 0) for req in batch.reqs]
        if not any(shifts):
            return
        moved = np.array(shifts, dtype=np.int64)
        if not forward.forward_mode.is_decode():
            moved = np.repeat(moved, batch.extend_lens)
        shift = torch.from_numpy(moved).to(forward.positions.device, non_blocking=True)
        forward.positions = forward.positions - shift.to(forward.positions.dtype)

    def sample(
        self,
        original: Callable[..., Any],
        runner: Any,
        logits: Any,
        forward: Any,
        *args: Any,
        **kw: Any,
    ) -> Any:
        """Hold threads to what may come, and measure what the model itself thinks of it."""
        families, info = self.families, forward.sampling_info
        rows = [] if not families else marks.strand_rows(info.grammars)
        if not rows or families is None or self.masks is None:
            with marks.without_strands(info):
                return original(runner, logits, forward, *args, **kw)
        landing = [(row, s) for row, s in rows if not s.family.adapter.is_chunk(s.req)]
        families.land([strand for _, strand in landing])
        drawing = [(row, strand) for row, strand in landing if strand.drawing]
        scores: Tensor = logits.next_token_logits
        raw = index = None
        if drawing and forward.return_logprob:
            index = upload([row for row, _ in drawing], scores.device)
            raw = scores[index].float()
        given = [(row, strand.live.given[0]) for row, strand in drawing if strand.live.given]
        for strand in self.masks.apply(scores, [r for r in drawing if not r[1].live.given]):
            families.stuck(strand)
        held = self.masks.hold(scores, drawing)
        with marks.without_strands(info):
            ids = original(runner, logits, forward, *args, **kw)
        if held is not None:
            self.masks.draw(held, ids)
        if given:  # what it writes is known: nothing is to be drawn
            at, forced = upload(np.array(given).T, ids.device)
            ids.scatter_(0, at, forced.to(ids.dtype))
        if raw is not None and index is not None:
            marks.put_logprobs(logits, [row for row, _ in drawing], index, raw, ids)
        return ids
