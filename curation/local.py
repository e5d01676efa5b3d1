"""A model of one's own, through an engine of `runtime/`: no key is needed."""

from __future__ import annotations

import json
from dataclasses import replace

from mvspec.curation.request import ModelAnswer, ModelRequest, RequestRefused, TokenUsage
from mvspec.errors import MvspecError
from mvspec.runtime.engine.torch_engine import TorchEngine
from mvspec.runtime.options import Options
from mvspec.runtime.sampling import Sampling
from mvspec.tree.builder import assistant, document, gen, system, user


class LocalProvider:
    """Provider that asks a model in this process.

    The answer is held to the request's schema while it is written.

    Args:
        engine: with the model; `TorchEngine.load(...)`.

    >>> hasattr(LocalProvider, "ask")
    True
    """

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine

    async def ask(self, request: ModelRequest) -> ModelAnswer:
        """Return the model's answer.

        Raises:
            RequestRefused: the engine cannot run the request, as when its prompt is too long.
        """
        schema = None if request.schema is None else json.loads(request.schema)
        hole = gen("answer", request.max_tokens, schema=schema)
        asked = document(system(request.system), user(request.prompt), assistant(hole))
        sampling = Sampling(temperature=request.temperature or 0.0, seed=request.attempt)
        options = replace(Options(), sampling=sampling)
        try:
            result = await self.engine.run_async(asked, options, name=request.key)
        except MvspecError as error:
            raise RequestRefused(str(error)) from None
        trace = result.trace
        written = sum(author == "model" for author in trace.authors)
        usage = TokenUsage(prompt=len(trace.ids) - written, output=written)
        cut = any(hole.cut for hole in trace.holes) or "answer" in result.errors
        text = result.texts.get("answer", "")
        return ModelAnswer(text, "length" if cut else "stop", usage=usage, version=trace.model)
