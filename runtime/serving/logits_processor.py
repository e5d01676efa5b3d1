"""Logits processor of threads: masks what may not come, penalises, and draws with a seed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvspec.runtime.sampling import choose_ids
from mvspec.runtime.serving.forked_request import ThreadKV

_KEPT = 256

Rows = Sequence[tuple[int, ThreadKV]]


def upload(values: Sequence[int] | NDArray[Any], device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device, without waiting for what the device does."""
    made = torch.from_numpy(np.asarray(values))
    return made if device.type == "cpu" else made.pin_memory().to(device, non_blocking=True)


class LogitsProcessor:
    """The logits processor of one server's threads; masks that come again stay on its device.

    Args:
        size: the width of its logits.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: OrderedDict[int, tuple[Any, int]] = OrderedDict()
        self._table: Tensor | None = None
        """int32 [1 + _KEPT, size / 32], packed, on the server's device; the first allows all."""

    def apply(self, scores: Tensor, rows: Rows) -> list[tuple[ThreadKV, Exception]]:
        """Change the logits of threads: penalties for what they see, -inf for what may not come.

        Args:
            scores: [batch, size], changed in place.
            rows: of the batch, and the threads that draw there.

        Returns:
            The threads whose masks have failed, or have nothing that may come: their runs would
            have closed them, so that is a fault; their rows stay free.
        """
        from xgrammar import apply_token_bitmask_inplace

        if self._table is None:
            shape = 1 + _KEPT, -(-self.size // 32)
            self._table = torch.full(shape, -1, dtype=torch.int32, device=scores.device)
        slots = [0] * len(scores)
        once: list[NDArray[np.int32]] = []
        stuck: list[tuple[ThreadKV, Exception]] = []
        used: set[int] = set()
        for row, thread in rows:
            try:
                self._penalise(scores, row, thread)
                allowed, lasting = thread.request.run.allowed(thread.state)
            except Exception as error:
                stuck.append((thread, error))
                continue
            if allowed is None:
                continue
            slot = self._slot(allowed, used) if lasting else 0
            if not slot:
                bits = self._pack(np.asarray(allowed))
                if not bits.any():
                    reason = f"nothing may come next in thread {thread.state.number}"
                    stuck.append((thread, RuntimeError(reason)))
                    continue
                once.append(bits)
                slot = _KEPT + len(once)
            slots[row] = slot
        if any(slots):
            table = self._table
            if once:
                table = torch.cat([table, upload(np.stack(once), scores.device)])
            packed = table.index_select(0, upload(slots, scores.device))
            apply_token_bitmask_inplace(scores, packed, vocab_size=self.size)
        return stuck

    def hold(self, scores: Tensor, rows: Rows) -> tuple[Tensor, Rows] | None:
        """Keep what the threads whose client gave a seed draw from: the server overwrites it.

        Args:
            scores: [batch, size], as `apply` has left them.
            rows: of the batch, and the threads that draw there.
        """
        drawing = (each for each in rows if each[1].sampling)
        seeded = [each for each in drawing if each[1].request.draws(each[1].state)]
        if not seeded:
            return None
        index = upload([row for row, _ in seeded], scores.device)
        return scores[index].float(), seeded

    def draw(self, held: tuple[Tensor, Rows], ids: Tensor) -> None:
        """Draw for them, each from its own random stream, all at once.

        Args:
            held: what `hold` has kept.
            ids: [batch], changed in place.
        """
        scores, rows = held
        wanted = [thread.request.run.draw_request(thread.state, masked=False) for _, thread in rows]
        index = upload([row for row, _ in rows], ids.device)
        ids[index] = choose_ids(scores, wanted).to(ids.dtype)

    def _penalise(self, scores: Tensor, at: int, thread: ThreadKV) -> None:
        penalty = thread.request.run.sampling(thread.state).repetition_penalty
        if penalty == 1.0:
            return
        row = scores[at]
        seen = upload(sorted(set(thread.tokens)), row.device)
        score = row[seen]
        row[seen] = torch.where(score > 0, score / penalty, score * penalty)

    def _slot(self, allowed: Any, used: set[int]) -> int:
        """Return where the table holds a mask; 0 where it cannot.

        Args:
            used: what this step needs, which stays.
        """
        assert self._table is not None
        held = self._kept.get(id(allowed))
        if held is not None:
            self._kept.move_to_end(id(allowed))
            used.add(held[1])
            return held[1]
        bits = self._pack(np.asarray(allowed))
        slot = len(self._kept) + 1
        if slot > _KEPT:
            slot = next(iter(self._kept.values()))[1]
        if slot in used or not bits.any():
            return 0
        if len(self._kept) == _KEPT:
            self._kept.popitem(last=False)
        self._kept[id(allowed)] = allowed, slot
        self._table[slot] = upload(bits, self._table.device)
        used.add(slot)
        return slot

    def _pack(self, allowed: NDArray[np.bool_]) -> NDArray[np.int32]:
        bits = np.zeros(-(-self.size // 32) * 32, dtype=np.bool_)
        bits[: len(allowed)] = allowed
        return np.packbits(bits, bitorder="little").view(np.int32)
