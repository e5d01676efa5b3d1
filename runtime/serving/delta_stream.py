"""Streams whose chunks hold what is new alone, for requests that ask for it.

SGLang repeats in every chunk all that came before, which costs client and server time with the
square of the length; its flag against that changes what every other client of the server gets.
This works in the process that answers HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

DELTAS = "mvspec_deltas"
"""Of `custom_params`: true where the chunks of a stream are to hold what is new alone."""

_LISTS = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")


def wait(original: Callable[..., Any], manager: Any, obj: Any, *args: Any, **kw: Any) -> Any:
    """Return the chunks of a request's answer; around `TokenizerManager._wait_one_response`."""
    chunks = original(manager, obj, *args, **kw)
    params = getattr(obj, "sampling_params", None)
    custom = params.get("custom_params") if isinstance(params, dict) else None
    asked = isinstance(custom, dict) and custom.get(DELTAS) is True
    if not (asked and obj.stream):
        return chunks
    incremental = getattr(manager, "incremental_streaming_output", None)
    if incremental is None:  # older than 0.5.20
        incremental = manager.server_args.incremental_streaming_output
    return chunks if incremental else _new_alone(chunks)


async def _new_alone(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    seen = letters = 0
    try:
        async for chunk in chunks:
            meta, text = chunk["meta_info"], chunk.get("text")
            # The lists are SGLang's own, and may have grown since this chunk was made.
            new = slice(seen, max(meta.get("completion_tokens", seen), seen))
            told = dict(chunk, meta_info=dict(meta))
            if "output_ids" in chunk:
                told["output_ids"] = chunk["output_ids"][new]
            for name, value in meta.items():
                if isinstance(value, list) and (name in _LISTS or name.startswith("mvspec")):
                    told["meta_info"][name] = value[new]
            if isinstance(text, str):
                told["text"], letters = text[letters:], len(text)
            seen = new.stop
            yield told
    finally:  # a client that goes away ends the request
        await chunks.aclose()  # type: ignore[attr-defined]
