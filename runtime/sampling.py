"""Sampling: temperature, filters, penalties and random streams of the tokens that are drawn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

from mvspec.errors import VerifyError


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters, the same for all threads of a request.

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
        temperature, penalty = _real(self.temperature), _real(self.repetition_penalty)
        check_fields(
            self,
            ("temperature", 0 <= temperature < math.inf, "a number from 0 up"),
            ("top_p", 0 < _real(self.top_p) <= 1, "a number above 0 and at most 1"),
            ("top_k", is_whole(self.top_k) and self.top_k >= 0, "a whole number from 0 up"),
            ("min_p", 0 <= _real(self.min_p) <= 1, "a number from 0 to 1"),
            ("repetition_penalty", 0 < penalty < math.inf, "a number above 0"),
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


def _real(number: object) -> float:
    return float(number) if isinstance(number, Real) else math.nan


def _strings(stops: object) -> bool:
    return isinstance(stops, tuple | list) and all(isinstance(stop, str) and stop for stop in stops)


class DrawRequest(NamedTuple):
    """The request for one token: logits, allowed ids, and its random stream.

    Args:
        sampling: temperature, filters and the like.
        stream, number: of the token in it, as in `Sampling.uniform`.
        allowed: bool [at most vocabulary]: what may be drawn; None for all.
        seen: ids that the repetition penalty counts.
        given: the token, where it is known and only its logprob is wanted.
    """

    sampling: Sampling
    stream: str
    number: int
    allowed: Tensor | None = None
    seen: Sequence[int] = ()
    given: int | None = None


class DrawnToken(NamedTuple):
    """A token that was drawn.

    Args:
        id: the token.
        logprob: under the model itself: no temperature, no filter; None where nobody asked.
        top: the likeliest tokens and their logprobs, as many as were asked for.
    """

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of main memory on a device; nobody waits for what the device does now."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def draw_tokens(logits: Tensor, requests: Sequence[DrawRequest]) -> list[DrawnToken]:
    """Draw a token from each row of logits; all at once, so that a GPU is asked once a step.

    Args:
        logits: [requests, vocabulary].
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    ids = choose_ids(logits, requests)
    total = torch.logsumexp(logits, dim=-1, keepdim=True)
    logprobs = logits.gather(1, ids[:, None]) - total
    # Ids and logprobs in one answer: each that is asked of a GPU is waited for.
    numbers, found = torch.stack([ids.double(), logprobs[:, 0].double()]).tolist()
    if not any(request.sampling.logprobs for request in requests):
        return [DrawnToken(int(id), logprob) for id, logprob in zip(numbers, found, strict=True)]
    tops = [_top(logits, total, index, request) for index, request in enumerate(requests)]
    return [DrawnToken(int(id), *rest) for id, *rest in zip(numbers, found, tops, strict=True)]


def choose_ids(logits: Tensor, requests: Sequence[DrawRequest]) -> Tensor:
    """Return the ids [requests] that are drawn, or given, on the device of the logits.

    Args:
        logits: [requests, vocabulary], float32 or float64.
        requests: how each row is drawn from.
    """
    given = [request.given for request in requests]
    if None not in given:
        return sent(torch.tensor(given), logits.device)
    scores = _allow(_penalize(logits, requests), requests)
    ids = scores.argmax(-1)
    groups: dict[tuple[float, float, int, float], list[int]] = {}
    for index, request in enumerate(requests):
        how = request.sampling
        if how.temperature and given[index] is None:
            filters = (how.temperature, how.top_p, how.top_k, how.min_p)
            groups.setdefault(filters, []).append(index)
    for indices in groups.values():
        rows = sent(torch.tensor(indices), ids.device)
        ids[rows] = _sample(scores[rows], [requests[index] for index in indices])
    for index, known in enumerate(given):
        if known is not None:
            ids[index] = known
    return ids


def _penalize(logits: Tensor, requests: Sequence[DrawRequest]) -> Tensor:
    """Return logits with the repetition penalties; those given stay as they are."""
    scores = logits
    for index, request in enumerate(requests):
        penalty = request.sampling.repetition_penalty
        if penalty != 1.0 and request.seen:
            scores = logits.clone() if scores is logits else scores
            row = scores[index]
            seen = sent(torch.tensor(sorted(set(request.seen))), row.device)
            score = row[seen]
            row[seen] = torch.where(score > 0, score / penalty, score * penalty)
    return scores


def _allow(scores: Tensor, requests: Sequence[DrawRequest]) -> Tensor:
    """Return scores that are minus infinity where a token is not allowed."""
    # Threads in free text share one mask, which a GPU is then sent once.
    keys = [id(request.allowed) for request in requests]
    masks = dict(zip(keys, [request.allowed for request in requests], strict=True))
    if len(masks) == 1 and requests[0].allowed is None:
        return scores
    refused = torch.ones(len(masks), scores.shape[1], dtype=torch.bool)
    for row, mask in zip(refused, masks.values(), strict=True):
        if mask is None:
            row[:] = False
        else:
            torch.logical_not(mask, out=row[: len(mask)])
    refused = sent(refused, scores.device)
    if len(masks) > 1:
        place = {key: index for index, key in enumerate(masks)}
        rows = torch.tensor([place[key] for key in keys])
        refused = refused[sent(rows, scores.device)]
    return scores.masked_fill(refused, -torch.inf)


def _top(
    logits: Tensor, total: Tensor, index: int, request: DrawRequest
) -> tuple[tuple[int, float], ...]:
    if not request.sampling.logprobs:
        return ()
    count = min(request.sampling.logprobs, logits.shape[1])
    found = (logits[index] - total[index]).topk(count)
    return tuple(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def _sample(scores: Tensor, requests: Sequence[DrawRequest]) -> Tensor:
    """Return ids [rows] by inverse transform sampling: min_p, then top_k, then top_p.

    Args:
        scores: [rows, vocabulary]; minus infinity where a token is not allowed.
        requests: one a row, all with the same temperature and filters.
    """
    sampling = requests[0].sampling
    scores = scores.double()
    # The likeliest at 0, so that no temperature is too low to divide by.
    scores -= scores.amax(-1, keepdim=True)
    weights = torch.softmax(scores / sampling.temperature, dim=-1)
    if sampling.min_p > 0:
        least = sampling.min_p * weights.amax(-1, keepdim=True)
        weights = weights.masked_fill_(weights < least, 0)
    values, ids = weights, torch.arange(weights.shape[1], device=weights.device)[None]
    if sampling.top_k or sampling.top_p < 1:
        whole = weights.sum(-1, keepdim=True)
        # A few tokens mostly hold all of top_p, and few are found much faster than many.
        for count in (sampling.top_k,) if sampling.top_k else (64, 1024, weights.shape[1]):
            values, ids = weights.topk(min(count, weights.shape[1]))
            if sampling.top_k or bool((values.sum(-1) >= sampling.top_p * whole[:, 0]).all()):
                break
        if sampling.top_p < 1:
            before = values.cumsum(-1) - values
            whole = values.sum(-1, keepdim=True) if sampling.top_k else whole
            values = values * (before < sampling.top_p * whole)
        # In the order of ids, so that near ties change nothing else.
        ids, order = ids.sort()
        values = values.gather(1, order)
    sums = values.cumsum(-1)
    numbers = [each.sampling.uniform(each.stream, each.number) for each in requests]
    at = sent(torch.tensor(numbers, dtype=sums.dtype), sums.device)[:, None] * sums[:, -1:]
    # Rounding must not reach the end of the sums, where a token of weight 0 may stand.
    at = torch.minimum(at, torch.nextafter(sums[:, -1:], torch.zeros_like(at)))
    place = torch.searchsorted(sums, at, right=True)
    return ids.expand(len(scores), -1).gather(1, place)[:, 0]
