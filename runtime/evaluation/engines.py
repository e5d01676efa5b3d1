"""The engine that an evaluation or a measurement asks: in this process, or on a server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mvspec.runtime.engine.torch_engine import TorchEngine

if TYPE_CHECKING:
    from mvspec.runtime.serving.engine import SGLangEngine

__all__ = ["load_engine", "model_name"]


def load_engine(model: str | None, url: str | None, most: int) -> TorchEngine | SGLangEngine:
    """Return an engine.

    Args:
        model: folder or hub name; None for the default one.
        url: of a server, instead of a model; `MVSPEC_API_KEY` is its key.
        most: requests at once.

    Raises:
        MvspecError: the model cannot be loaded, or the server not be reached.
    """
    if url is None:
        return TorchEngine.load(model, max_concurrent_requests=most)
    from mvspec.runtime.serving.engine import SGLangEngine

    key = os.environ.get("MVSPEC_API_KEY")
    return SGLangEngine(url, api_key=key, max_requests=max(most, 256))


def model_name(engine: TorchEngine | SGLangEngine) -> str:
    """Return what an engine calls its model."""
    return engine.model.name if isinstance(engine, TorchEngine) else engine.model
