"""How a token is drawn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from mvspec.errors import VerifyError

__all__ = ["Draw", "Sampling", "Wanted", "draw"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; the same for all threads of a request.

    Args:
        temperature: 0 takes the likeliest token; else logits are divided by it.
        top_p: only the likeliest tokens whose probabilities reach this sum.
        top_k: only so many of the likeliest tokens; 0 for all.
        min_p: only tokens at least this share as likely as the likeliest.
        repetition_penalty: logits of tokens that the thread sees already are divided by it
            where positive, multiplied where negative; 1 changes nothing. Source: CTRL
            (arXiv 1909.05858), over what the thread sees, siblings left out.
        stop: strings that end the turn where they come outside blocks; not part of the result.
        seed: of the random streams. Each draw depends on it, the request's name, the thread
            and the token's index in the thread, and on nothing else.
        logprobs: how many of the likeliest tokens to record beside each drawn one.

    Raises:
        VerifyError: a number is out of its range.

    >>> Sampling(temperature=0.6, top_p=0.95, seed=1).greedy
    False
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            ("temperature", 0 <= self.temperature < math.inf, "a number from 0 up"),
            ("top_p", 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            ("top_k", is_whole(self.top_k) and self.top_k >= 0, "a whole number from 0 up"),
            ("min_p", 0 <= self.min_p <= 1, "a number from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a number above 0"),
            ("seed", is_whole(self.seed), "a whole number"),
            (
                "logprobs",
                is_whole(self.logprobs) and 0 <= self.logprobs <= 100,
                "a whole number from 0 to 100",
            ),
            ("stop", _strings(self.stop), "a tuple of strings that are not empty"),
        )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0

    def uniform(self, stream: str, index: int) -> float:
        """Return the number in [0, 1) that decides one draw.

        Args:
            stream: the request and the thread.
            index: of the token in its thread.
        """
        key = f"{self.seed}/{stream}/{index}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def check_fields(record: object, *rules: tuple[str, bool, str]) -> None:
    """Refuse a record with a bad field.

    Args:
        rules: (name of the field, whether its value is good, what it should be).

    Raises:
        VerifyError: of the first field that is not good.
    """
    for name, good, expected in rules:
        if not good:
            raise VerifyError(name, f"{getattr(record, name)!r} is not {expected}")


def is_whole(number: object) -> bool:
    """Whether it is an integer, NumPy's included."""
    return isinstance(number, Integral)


def _strings(stops: object) -> bool:
    return isinstance(stops, tuple | list) and all(isinstance(stop, str) and stop for stop in stops)


@dataclass(slots=True)
class Wanted:
    """A draw that is wanted.

    Args:
        logits: [vocabulary].
        sampling: how.
        stream, index: as in `Sampling.uniform`.
        allowed: bool [at most vocabulary]: what may be drawn; None for all.
        seen: ids that the repetition penalty counts.
        given: the token, where it is known and only its logprob is wanted.
    """

    logits: Tensor
    sampling: Sampling
    stream: str
    index: int
    allowed: Tensor | None = None
    seen: Sequence[int] = ()
    given: int | None = None


@dataclass(frozen=True, slots=True)
class Draw:
    """What was drawn.

    Args:
        id: the token.
        logprob: under the model itself: no temperature, no filter; None where nobody asked.
        top: the likeliest tokens and their logprobs, as many as were asked for.
    """

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


def draw(wanted: Sequence[Wanted]) -> list[Draw]:
    """Draw a token for each; all at once, so that a GPU is asked once a step."""
    logits = torch.stack([want.logits for want in wanted])
    total = torch.logsumexp(logits, dim=-1, keepdim=True)
    scores = logits.clone()
    for row, want in zip(scores, wanted, strict=True):
        if want.sampling.repetition_penalty != 1.0 and want.seen:
            seen = torch.tensor(sorted(set(want.seen)), device=row.device)
            score, penalty = row[seen], want.sampling.repetition_penalty
            row[seen] = torch.where(score > 0, score / penalty, score * penalty)
        if want.allowed is not None:
            allowed = want.allowed.to(row.device)
            row[: len(allowed)].masked_fill_(~allowed, -torch.inf)
            row[len(allowed) :] = -torch.inf
    ids = scores.argmax(-1)
    for index, (row, want) in enumerate(zip(scores, wanted, strict=True)):
        if want.given is not None:
            ids[index] = want.given
        elif not want.sampling.greedy:
            ids[index] = _sample(row, want)
    logprobs = (logits.gather(1, ids[:, None]) - total)[:, 0].tolist()
    tops = [_top(row - each, want) for row, each, want in zip(logits, total, wanted, strict=True)]
    return [Draw(*fields) for fields in zip(ids.tolist(), logprobs, tops, strict=True)]


def _top(logprobs: Tensor, want: Wanted) -> tuple[tuple[int, float], ...]:
    if not want.sampling.logprobs:
        return ()
    found = logprobs.topk(min(want.sampling.logprobs, len(logprobs)))
    return tuple(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def _sample(scores: Tensor, want: Wanted) -> Tensor:
    """Return one id (0-d) by inverse transform sampling: min_p, then top_k, then top_p.

    Args:
        scores: [vocabulary]; minus infinity where a token is not allowed.
    """
    sampling = want.sampling
    scores = scores.double()
    # The likeliest at 0, so that no temperature is too low to divide by.
    weights = torch.softmax((scores - scores.max()) / sampling.temperature, dim=-1)
    if sampling.min_p > 0:
        weights[weights < sampling.min_p * weights.max()] = 0
    if sampling.top_k or sampling.top_p < 1:
        count = min(sampling.top_k or 1024, len(weights))
        values, ids = weights.topk(count)
        if not sampling.top_k and float(values.sum()) < sampling.top_p * float(weights.sum()):
            values, ids = weights.sort(descending=True)  # a flat distribution needs them all
        if sampling.top_p < 1:
            before = values.cumsum(0) - values
            whole = values.sum() if sampling.top_k else weights.sum()
            values = values * (before < sampling.top_p * whole)
        # In the order of ids, so that near ties change nothing else.
        ids, order = ids.sort()
        values = values[order]
    else:
        values, ids = weights, None
    sums = values.cumsum(0)
    at = sampling.uniform(want.stream, want.index) * sums[-1]
    # Rounding must not reach the end of the sums, where a token of weight 0 may stand.
    at = torch.minimum(at, torch.nextafter(sums[-1], torch.zeros_like(at)))
    place = torch.searchsorted(sums, at, right=True)
    return place if ids is None else ids[place]
