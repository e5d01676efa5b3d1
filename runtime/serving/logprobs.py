"""Logprobs of sampled tokens: read from SGLang's requests, and put there for threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mvspec.runtime.sampling import DrawnToken
from mvspec.runtime.serving.sglang_req import thread_of


def sampled(reqs: Iterable[Any]) -> Iterator[tuple[Any, DrawnToken]]:
    """Yield the threads of a batch for which a token was sampled there, with its logprobs."""
    for req in reqs:
        thread = thread_of(req)
        if thread is None or not thread.sampling:
            continue  # it was sampled for a request that has left since, or does not count
        logprob: float | None = None
        top: Any = ()
        if req.return_logprob:
            held = req.logprob
            logprob = held.output_token_logprobs_val[-1]
            if held.top_logprobs_num > 0:
                indices, values = held.output_top_logprobs_idx, held.output_top_logprobs_val
                top = tuple(zip(indices[-1], values[-1], strict=True))
        yield thread, DrawnToken(req.output_ids[-1], logprob, top)


def put_logprobs(
    logits: Any, rows: Sequence[tuple[int, Any]], index: Tensor, raw: Tensor, ids: Tensor
) -> None:
    """Replace the logprobs of threads: under the model itself, or as a plain client expects them.

    A plain client gets those after temperature, as from any server of SGLang; its threads keep the
    model's beside them.

    Args:
        logits: what SGLang answers with.
        rows: of the batch, and the threads that draw there.
        index: the same rows, on the device.
        raw: float [rows, vocabulary]: the model's own logits.
        ids: what was sampled for the whole batch.
    """
    if logits.next_token_logprobs is None:
        return
    drawn = ids[index].to(torch.int64)[:, None]
    logprobs = torch.log_softmax(raw, dim=-1)
    tempered = [thread.request.response.tempered for _, thread in rows]
    if any(tempered):
        own = logprobs.gather(1, drawn)[:, 0].tolist()
        divide = [
            thread.request.client_req.sampling_params.temperature if each else 1.0
            for each, (_, thread) in zip(tempered, rows, strict=True)
        ]
        logprobs = torch.log_softmax(raw / raw.new_tensor(divide)[:, None], dim=-1)
        for each, value, (_, thread) in zip(tempered, own, rows, strict=True):
            thread.model_logprob = value if each else None
    chosen = logprobs.gather(1, drawn)[:, 0]
    logits.next_token_logprobs[index] = chosen.to(logits.next_token_logprobs.dtype)
    values = logits.next_token_top_logprobs_val
    for at, (row, _) in enumerate(rows):
        count = len(values[row]) if values else 0
        if count:
            top = logprobs[at].topk(count)
            values[row] = top.values
            logits.next_token_top_logprobs_idx[row] = top.indices
